//! Server-sent events: of one video until it has ended, or of all of a tenant's videos and the cache.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::App;
use super::access::Tenant;
use super::error::ApiError;
use super::videos::{PathId, find};
use crate::board::Update;
use crate::id::VideoId;
use crate::wire::{DeletedVideo, ErrorBody, MemoryNow, Video};

const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Events of one video: `video` with the object whenever it changes, first as it is now; ends when the video has ended.
#[utoipa::path(get, path = "/v1/videos/{id}/events", tag = "events", params(("id" = String, Path)),
    responses((status = 200, description = "Events `video` and `video.deleted`.", content_type = "text/event-stream"),
        (status = 401, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 429, description = "The key asks too often; `Retry-After` says when to try again.", body = ErrorBody),
        (status = 500, body = ErrorBody)))]
pub(super) async fn of_video(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    PathId(id): PathId,
) -> Result<impl IntoResponse, ApiError> {
    // Listening begins before looking, so nothing falls between.
    let updates = app.board.listen();
    let job = find(&app, &tenant, &id).await?;
    let first = event("video", &serde_json::to_string(&app.video(&job)).map_err(ApiError::internal)?);
    let listener =
        Listener { tenant, only: Some(job.id.clone()), updates, app, is_over: job.status.is_over() };
    Ok(sse(first, listener))
}

/// Events of all videos: `video`, `video.deleted`, and `memory` with what the cache holds (`MemoryNow`). `missed` says that the listener was too slow
/// and should ask for the list again.
#[utoipa::path(get, path = "/v1/events", tag = "events",
    responses((status = 200, description = "Events `video`, `video.deleted`, `memory` and `missed`.", content_type = "text/event-stream"),
        (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 429, description = "The key asks too often; `Retry-After` says when to try again.", body = ErrorBody),
        (status = 500, body = ErrorBody)))]
pub(super) async fn of_all(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
) -> Result<impl IntoResponse, ApiError> {
    let updates = app.board.listen();
    let memory = MemoryNow::new(&app.model.counters(), app.metrics.level());
    let first = event("memory", &serde_json::to_string(&memory).map_err(ApiError::internal)?);
    Ok(sse(first, Listener { tenant, only: None, updates, app, is_over: false }))
}

fn sse(first: Event, listener: Listener) -> impl IntoResponse {
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Sse::new(stream(first, listener)).keep_alive(keep_alive)
}

fn event(name: &str, json: &str) -> Event {
    Event::default().event(name).data(json)
}

struct Listener {
    app: Arc<App>,
    tenant: Tenant,
    only: Option<VideoId>,
    updates: Receiver<Update>,
    is_over: bool,
}

fn stream(first: Event, listener: Listener) -> impl Stream<Item = Result<Event, Infallible>> {
    unfold((Some(first), listener), |(first, mut listener)| async move {
        let event = match first {
            Some(event) => event,
            None => listener.next().await?,
        };
        Some((Ok(event), (None, listener)))
    })
}

impl Listener {
    /// The next event that concerns this listener; `None` when nothing more will come, or the service stops.
    async fn next(&mut self) -> Option<Event> {
        let mut stopping = self.app.stopping.clone();
        while !self.is_over {
            let update = tokio::select! {
                update = self.updates.recv() => update,
                _ = stopping.wait_for(|stops| *stops) => return None,
            };
            let told = match update {
                Ok(update) => self.told(&update),
                Err(RecvError::Lagged(missed)) => match self.only.clone() {
                    None => Some(event("missed", &missed.to_string())),
                    // What cannot be looked at ends the stream, and its client asks again.
                    Some(id) => return self.look_again(&id).await.ok(),
                },
                Err(RecvError::Closed) => return None,
            };
            if told.is_some() {
                return told;
            }
        }
        None
    }

    /// The video as it is now, for a listener that may have missed its end.
    async fn look_again(&mut self, id: &VideoId) -> Result<Event, ApiError> {
        // Listening begins anew, and before looking, so nothing falls between. What the old listener still had to hear is older.
        self.updates = self.app.board.listen();
        let job = self.app.store.get(&self.tenant.name, id).await?;
        let video = job.map(|job| self.app.video(&job));
        let (name, json, is_over) = made_up(id, video.as_ref()).map_err(ApiError::internal)?;
        self.is_over = is_over;
        Ok(event(name, &json))
    }

    fn told(&mut self, update: &Update) -> Option<Event> {
        let concerns = |tenant: &str, id: &VideoId| {
            *tenant == self.tenant.name && self.only.as_ref().is_none_or(|only| only == id)
        };
        match update {
            Update::Video { tenant, id, json, is_over } if concerns(tenant, id) => {
                self.is_over = self.only.is_some() && *is_over;
                Some(event("video", json))
            }
            Update::Deleted { tenant, id, json } if concerns(tenant, id) => {
                self.is_over = self.only.is_some();
                Some(event("video.deleted", json))
            }
            Update::Memory(json) if self.only.is_none() => Some(event("memory", json)),
            Update::Video { .. } | Update::Deleted { .. } | Update::Memory(_) => None,
        }
    }
}

/// What makes up for missed updates of one video, or of one that is gone: an event's name and data, and whether it is the last.
fn made_up(id: &VideoId, video: Option<&Video>) -> serde_json::Result<(&'static str, String, bool)> {
    match video {
        Some(video) => Ok(("video", serde_json::to_string(video)?, video.status.is_over())),
        None => Ok(("video.deleted", serde_json::to_string(&DeletedVideo::new(id))?, true)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn video(id: &VideoId, status: &str) -> Video {
        let video = json!({"id": id.to_string(), "object": "video", "model": "m", "status": status, "progress": 0, "created_at": 0,
            "prompt": "a red ball", "size": "64x64", "seconds": "1", "num_frames": 17, "fps": 16, "seed": 1,
            "num_inference_steps": 2, "negative_prompt": "", "guidance_scale": 1.0, "guidance_scale_2": 1.0,
            "boundary_ratio": 0.875, "flow_shift": 5.0, "priority": "standard", "quality": "balanced", "phase": "queued",
            "step": 0, "total_steps": 2, "degradations": []});
        serde_json::from_value(video).unwrap()
    }

    #[test]
    fn who_missed_some_updates_of_a_video_hears_how_it_is_now_and_nothing_more_once_it_is_over() {
        let id = VideoId::draw().unwrap();
        for (status, ends) in
            [("queued", false), ("in_progress", false), ("completed", true), ("failed", true)]
        {
            let (name, json, is_over) = made_up(&id, Some(&video(&id, status))).unwrap();
            let told: Value = serde_json::from_str(&json).unwrap();
            assert_eq!((name, &told["status"], is_over), ("video", &json!(status), ends));
        }
        let (name, json, is_over) = made_up(&id, None).unwrap();
        let told: Value = serde_json::from_str(&json).unwrap();
        assert_eq!((name, &told["id"], is_over), ("video.deleted", &json!(id.to_string()), true));
    }
}
