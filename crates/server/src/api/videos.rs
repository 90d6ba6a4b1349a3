//! Making, listing, showing, cancelling and deleting videos.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, RawQuery, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::App;
use super::access::Tenant;
use super::error::ApiError;
use super::fields::{create_video, fields, read_body};
use super::order::order;
use super::pollers::PAUSE_MAX;
use super::query::parameters;
use crate::clock::UnixMs;
use crate::id::{VideoId, random_hex};
use crate::job::{Job, Webhook};
use crate::store::{Cancelled, Direction, Inserted, NewJob, Page, QueueLimits, StoreError};
use crate::webhooks::Target;
use crate::wire::{CreateVideo, DeletedVideo, ErrorBody, Video, VideoList};
use crate::worker::Report;

const POLL_AFTER: HeaderName = HeaderName::from_static("openai-poll-after-ms");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;
const POLL_AFTER_MIN: Duration = Duration::from_millis(250);
const POLL_AFTER_UNKNOWN: Duration = Duration::from_secs(1);
const LIST_LIMIT: u32 = 20;
const LIST_LIMIT_MAX: u32 = 100;

type Answer<T> = Result<T, ApiError>;

/// Asks for a video. The job is on disk before this answers.
#[utoipa::path(post, path = "/v1/videos", tag = "videos", request_body(content(
    (CreateVideo = "application/json"), (CreateVideo = "multipart/form-data"))),
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key with the same request gives the same job.")),
    responses((status = 200, body = Video), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 408, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody),
        (status = 422, description = "The idempotency key came with another request before.", body = ErrorBody),
        (status = 429, description = "The queue is full, or the key asks too often; `Retry-After` says when to try again.", body = ErrorBody),
        (status = 500, body = ErrorBody)))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Answer<Response> {
    parameters(query.as_deref(), "a request for a video", &[])?;
    let key = idempotency_key(&headers)?;
    let body = read_body(&headers, body, app.limits.body_bytes_max, app.patience()).await?;
    let is_form = !headers
        .get(axum::http::header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().to_ascii_lowercase().starts_with(b"application/json"));
    let fields = fields(&headers, body).await?;
    // Fields are sorted by name, so the digest does not depend on their order or on a form's boundary.
    let digest = blake3::hash(serde_json::to_string(&fields).map_err(ApiError::internal)?.as_bytes());
    let key = key.map(|key| (key, *digest.as_bytes()));
    // Before anything else can refuse it: who asks again must hear of the job, also where such a request is not taken any more.
    if let Some((key, digest)) = &key
        && let Some(before) = app.store.repeated(&tenant.name, key, digest).await?
    {
        return became(&app, &before);
    }
    let asked = create_video(fields, is_form)?;
    let webhook = asked.webhook.clone().map(|url| webhook(&app, &tenant, url)).transpose()?;
    let new = NewJob {
        id: VideoId::draw().map_err(ApiError::internal)?,
        order: order(&app, &tenant, asked)?,
        tenant: tenant.name,
        created: UnixMs::now(),
        idempotency: key,
        webhook,
    };
    let per_tenant = tenant.jobs_max.unwrap_or(app.queue_limits.per_tenant);
    let limits = QueueLimits { per_tenant, ..app.queue_limits };
    // In a task of its own: once the job is written the engine is told, even if the client has gone.
    let for_task = Arc::clone(&app);
    let inserted = tokio::spawn(async move {
        let _arriving = for_task.board.arriving().await;
        let inserted = for_task.store.insert(new, limits).await?;
        if let Inserted::Created(job) = &inserted {
            for_task.report(Report::Arrived(job.clone())).await;
        }
        Ok::<_, StoreError>(inserted)
    });
    became(&app, &inserted.await.map_err(ApiError::internal)??)
}

/// What became of a request for a video, as its client is told.
fn became(app: &App, inserted: &Inserted) -> Answer<Response> {
    match inserted {
        Inserted::Created(job) | Inserted::Repeated(job) => Ok(show(app, job)),
        Inserted::KeyReused => {
            let sentence = "this Idempotency-Key came with another request before; use a new key";
            Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused", sentence))
        }
        Inserted::Full { waiting, own_limit } => {
            app.metrics.refused_for_full_queue();
            let whose = if *own_limit { "of yours " } else { "" };
            let sentence = format!("{waiting} jobs {whose}wait or run already; try again later");
            let full = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", sentence);
            Err(full.retry_after(Duration::from_secs(5)))
        }
    }
}

/// Who is told when the job has ended; refused if nothing can be sent there, or nothing can be signed.
fn webhook(app: &App, tenant: &Tenant, url: String) -> Answer<Webhook> {
    if !app.courier.can_sign_for(&tenant.name) {
        let sentence = "this key has no webhook_secret to sign with, so a webhook cannot be asked for";
        return Err(ApiError::field("webhook", sentence));
    }
    Target::parse(&url, app.courier.private_addresses)
        .map_err(|sentence| ApiError::field("webhook", sentence))?;
    Ok(Webhook::new(url, format!("evt_{}", random_hex::<16>().map_err(ApiError::internal)?)))
}

fn idempotency_key(headers: &HeaderMap) -> Answer<Option<String>> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::body("there are several Idempotency-Key headers; a request has at most one"));
    }
    let key = value.to_str().ok().filter(|key| (1..=IDEMPOTENCY_KEY_CHARS_MAX).contains(&key.len()));
    let wrong = || {
        ApiError::body(format!(
            "an Idempotency-Key has 1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable ASCII characters"
        ))
    };
    key.map(|key| Some(key.to_owned())).ok_or_else(wrong)
}

/// Lists videos, newest first unless asked otherwise.
#[utoipa::path(get, path = "/v1/videos", tag = "videos",
    params(("after" = Option<String>, Query, description = "The last video of the page before."),
        ("limit" = Option<u32>, Query, minimum = 0, maximum = 100, description = "How many; 20 if left out."),
        ("order" = Option<Direction>, Query, description = "By time of creation; newest first if left out.")),
    responses((status = 200, body = VideoList), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody),
        (status = 403, body = ErrorBody), (status = 404, description = "There is no video `after`.", body = ErrorBody),
        (status = 429, description = "The key asks too often; `Retry-After` says when to try again.", body = ErrorBody),
        (status = 500, body = ErrorBody)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    RawQuery(query): RawQuery,
) -> Answer<Json<VideoList>> {
    let page = page(query.as_deref())?;
    let listing = app.store.list(&tenant.name, &page).await?.ok_or_else(ApiError::no_such_video)?;
    let data: Vec<_> = listing.jobs.iter().map(|job| app.video(job)).collect();
    let name = |video: Option<&Video>| video.map(|video| video.id.clone());
    Ok(Json(VideoList {
        object: "list".to_owned(),
        first_id: name(data.first()),
        last_id: name(data.last()),
        data,
        has_more: listing.has_more,
    }))
}

fn page(query: Option<&str>) -> Answer<Page> {
    let mut page = Page { after: None, limit: LIST_LIMIT, direction: Direction::default() };
    for (name, value) in parameters(query, "a list", &["after", "limit", "order"])? {
        match name {
            "after" => page.after = Some(VideoId::parse(value).ok_or_else(ApiError::no_such_video)?),
            "limit" => {
                let limit = value.parse().ok().filter(|limit| *limit <= LIST_LIMIT_MAX);
                let wrong = || {
                    ApiError::field("limit", format!("limit is a whole number from 0 to {LIST_LIMIT_MAX}"))
                };
                page.limit = limit.ok_or_else(wrong)?;
            }
            // The order: there is no other name.
            _ => {
                page.direction = match value {
                    "asc" => Direction::Ascending,
                    "desc" => Direction::Descending,
                    _ => return Err(ApiError::field("order", "order is asc or desc")),
                };
            }
        }
    }
    Ok(page)
}

/// Shows a video.
#[utoipa::path(get, path = "/v1/videos/{id}", tag = "videos", params(("id" = String, Path)),
    responses((status = 200, body = Video), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 429, description = "The key asks too often; `Retry-After` says when to try again.", body = ErrorBody),
        (status = 500, body = ErrorBody)))]
pub(super) async fn retrieve(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    PathId(id): PathId,
) -> Answer<Response> {
    let open = VideoId::parse(&id).and_then(|id| app.board.open_job(&tenant.name, &id));
    match open {
        Some((job, live)) => Ok(answer(&app, &job, &Video::new(&job, Some(&live)))),
        None => Ok(show(&app, &find(&app, &tenant, &id).await?)),
    }
}

/// Deletes a video and its files; a job under way stops within one step.
#[utoipa::path(delete, path = "/v1/videos/{id}", tag = "videos", params(("id" = String, Path)),
    responses((status = 200, body = DeletedVideo), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 429, description = "The key asks too often; `Retry-After` says when to try again.", body = ErrorBody),
        (status = 500, body = ErrorBody)))]
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    PathId(id): PathId,
) -> Answer<Json<DeletedVideo>> {
    let id = VideoId::parse(&id).ok_or_else(ApiError::no_such_video)?;
    let (for_task, wanted) = (Arc::clone(&app), id.clone());
    let deleted = tokio::spawn(async move {
        let deleted = for_task.store.delete(&tenant.name, &wanted).await?;
        if let Some(job) = &deleted {
            for_task.board.close(&job.id).await;
            for_task.remove_files(wanted).await;
            for_task.report(Report::Deleted(Box::new(job.clone()))).await;
        }
        Ok::<_, StoreError>(deleted)
    });
    deleted.await.map_err(ApiError::internal)??.ok_or_else(ApiError::no_such_video)?;
    Ok(Json(DeletedVideo::new(&id)))
}

/// Stops a job within one step. It has failed then, with the code `cancelled`.
#[utoipa::path(post, path = "/v1/videos/{id}/cancel", tag = "videos", params(("id" = String, Path)),
    responses((status = 200, body = Video), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, description = "Its video is there.", body = ErrorBody),
        (status = 429, description = "The key asks too often; `Retry-After` says when to try again.", body = ErrorBody),
        (status = 500, body = ErrorBody)))]
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    PathId(id): PathId,
) -> Answer<Response> {
    let id = VideoId::parse(&id).ok_or_else(ApiError::no_such_video)?;
    let for_task = Arc::clone(&app);
    let cancelled = tokio::spawn(async move {
        let moments = for_task.terms.moments();
        let cancelled = for_task.store.cancel(&tenant.name, &id, moments).await?;
        if let Cancelled::Now(job) = &cancelled {
            for_task.board.close(&job.id).await;
            for_task.report(Report::Cancelled(job.clone())).await;
        }
        Ok::<_, StoreError>(cancelled)
    });
    match cancelled.await.map_err(ApiError::internal)?? {
        Cancelled::Now(job) => Ok(show(&app, &job)),
        Cancelled::Before(job) if job.failure.is_some() => Ok(show(&app, &job)),
        Cancelled::Before(_) => {
            let sentence = "the video is done, so there is nothing to cancel; delete it if it is not wanted";
            Err(ApiError::new(StatusCode::CONFLICT, "already_completed", sentence))
        }
        Cancelled::Unknown => Err(ApiError::no_such_video()),
    }
}

/// What stands in a path where a video's name does.
pub(super) struct PathId(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for PathId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        // What is no text, such as `%ff`, is no video's name either.
        let id = <Path<String> as FromRequestParts<S>>::from_request_parts(parts, state).await;
        id.map(|Path(id)| Self(id)).map_err(|_no_text| ApiError::no_such_video())
    }
}

/// The tenant's job of this name.
pub(super) async fn find(app: &App, tenant: &Tenant, id: &str) -> Answer<Job> {
    let id = VideoId::parse(id).ok_or_else(ApiError::no_such_video)?;
    app.store.get(&tenant.name, &id).await?.ok_or_else(ApiError::no_such_video)
}

/// The object, and when to ask again.
fn show(app: &App, job: &Job) -> Response {
    answer(app, job, &app.video(job))
}

fn answer(app: &App, job: &Job, video: &Video) -> Response {
    let mut response = Json(video).into_response();
    if !job.status.is_over() {
        // A tenth of what is left, so that waiting clients neither flood nor sleep through the end.
        let tenth = |eta_s: f64| Duration::try_from_secs_f64(eta_s / 10.0).unwrap_or(PAUSE_MAX);
        let wanted = video.eta_s.map_or(POLL_AFTER_UNKNOWN, |eta_s| tenth(eta_s).max(POLL_AFTER_MIN));
        let delay = app.pollers.pause(wanted);
        let poll_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        response.headers_mut().insert(POLL_AFTER, HeaderValue::from(poll_ms));
    }
    response
}
