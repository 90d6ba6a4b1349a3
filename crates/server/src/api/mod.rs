//! The gateway: OpenAI's Videos API, events, health, metrics and the page.

pub(crate) mod access;
mod content;
mod cors;
mod error;
mod events;
mod fields;
mod growing;
mod order;
mod page;
pub(crate) mod pollers;
mod query;
mod status;
mod videos;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use evanesce_engine::Model;
use tokio::sync::{mpsc, watch};
use utoipa::OpenApi;

use self::access::Access;
use self::error::ApiError;
use self::pollers::Pollers;
use crate::board::Board;
use crate::clock::UnixMs;
use crate::config::{Limits, Pages};
use crate::encoder::Encoder;
use crate::id::VideoId;
use crate::job::Job;
use crate::journal::note;
use crate::metrics::Metrics;
use crate::store::{JobStore, QueueLimits};
use crate::videos::VideoStore;
use crate::webhooks::Courier;
use crate::wire::Video;
use crate::worker::{Report, Terms};

/// What handlers work with.
pub(crate) struct App {
    pub(crate) store: Arc<dyn JobStore>,
    pub(crate) videos: Arc<dyn VideoStore>,
    pub(crate) model: Arc<Model>,
    pub(crate) model_name: String,
    pub(crate) board: Arc<Board>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) access: Access,
    pub(crate) courier: Courier,
    pub(crate) limits: Limits,
    /// How pages of keys and values are stored.
    pub(crate) pages: Pages,
    /// What makes the files of the videos.
    pub(crate) encoder: Encoder,
    pub(crate) queue_limits: QueueLimits,
    pub(crate) terms: Terms,
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) started: UnixMs,
    /// When clients that poll come back.
    pub(crate) pollers: Pollers,
}

impl App {
    /// The object of a job as it is now.
    fn video(&self, job: &Job) -> Video {
        Video::new(job, self.board.live(&job.id).as_ref())
    }

    /// How long a client may take.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs_f64(self.limits.client_seconds_max)
    }

    /// Tells the engine. When it does not run any more, the store has it all for the next start.
    async fn report(&self, report: Report) {
        drop(self.reports.send(report).await);
    }

    /// Removes the files of a video; what cannot be removed now is removed by the next sweep.
    pub(crate) async fn remove_files(&self, id: VideoId) {
        let videos = Arc::clone(&self.videos);
        let removed = tokio::task::spawn_blocking(move || videos.remove(&id).map_err(|error| (id, error)));
        if let Ok(Err((id, error))) = removed.await {
            note(id, format_args!("its files cannot be removed yet: {error}"));
        }
    }
}

/// The API's description; a golden keeps it from changing unnoticed.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "evanesce",
        description = "Videos from text. The shape is that of OpenAI's Videos API; what is ours comes after it. \
            A request whose head cannot be read or is too long is answered 400, 414 or 431 without a body, whatever its path.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(
        videos::create,
        videos::list,
        videos::retrieve,
        videos::delete,
        videos::cancel,
        content::content,
        events::of_video,
        events::of_all,
        status::models,
        status::live,
        status::ready,
        status::metrics
    ),
    // What only parameters name, and what only events say.
    components(schemas(crate::store::Direction, crate::videos::Variant, crate::wire::MemoryNow))
)]
struct Description;

/// The OpenAPI document, as `GET /openapi.json` gives it.
#[must_use]
pub fn openapi_json() -> String {
    Description::openapi().to_pretty_json().unwrap_or_default()
}

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/v1/videos", post(videos::create).get(videos::list))
        .route("/v1/videos/{id}", get(videos::retrieve).delete(videos::delete))
        .route("/v1/videos/{id}/cancel", post(videos::cancel))
        .route("/v1/videos/{id}/content", get(content::content))
        .route("/v1/videos/{id}/events", get(events::of_video))
        .route("/v1/events", get(events::of_all))
        .route("/v1/models", get(status::models))
        .route("/metrics", get(status::metrics))
        .route_layer(from_fn_with_state(Arc::clone(&app), access::require));
    let description = || async { ([(header::CONTENT_TYPE, "application/json")], openapi_json()) };
    guarded
        .merge(page::routes())
        .route("/healthz", get(status::ready))
        .route("/healthz/live", get(status::live))
        .route("/openapi.json", get(description))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(from_fn_with_state(Arc::clone(&app), cors::allow))
        .layer(from_fn_with_state(Arc::clone(&app), count))
        .with_state(app)
}

async fn no_such_path() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "not_found",
        "there is nothing at this path; GET /openapi.json lists what there is",
    )
}

async fn no_such_method() -> ApiError {
    let sentence = "this path does not answer this method; GET /openapi.json lists what there is";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", sentence)
}

/// Counts answers, and says that types are to be believed.
async fn count(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    // Methods that nobody serves share a name, so that clients cannot make metrics grow.
    let method = match request.method().as_str() {
        known @ ("GET" | "POST" | "DELETE" | "HEAD") => known.to_owned(),
        _ => "other".to_owned(),
    };
    let mut response = next.run(request).await.into_response();
    app.metrics.request(&method, response.status().as_u16());
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
