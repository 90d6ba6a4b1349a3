//! Models, health and metrics.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;

use super::App;
use super::error::ApiError;
use crate::wire::{ErrorBody, ModelList, ServedModel};

/// Lists the models that are served.
#[utoipa::path(get, path = "/v1/models", tag = "models",
    responses((status = 200, body = ModelList), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 429, description = "The key asks too often; `Retry-After` says when to try again.", body = ErrorBody)))]
pub(super) async fn models(State(app): State<Arc<App>>) -> Json<ModelList> {
    let model = ServedModel {
        id: app.model_name.clone(),
        object: "model".to_owned(),
        created: app.started.seconds(),
        owned_by: "evanesce".to_owned(),
    };
    Json(ModelList { object: "list".to_owned(), data: vec![model] })
}

/// Whether the process answers.
#[utoipa::path(get, path = "/healthz/live", tag = "health", responses((status = 200, description = "It does.")))]
pub(super) async fn live() -> &'static str {
    "live\n"
}

/// Whether the service takes jobs: its store answers, its engine runs, and it is not stopping.
#[utoipa::path(get, path = "/healthz", tag = "health",
    responses((status = 200, description = "It does."), (status = 503, body = ErrorBody)))]
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<&'static str, ApiError> {
    let unavailable = |sentence: &str| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", sentence);
    if *app.stopping.borrow() {
        return Err(unavailable("the service is stopping"));
    }
    if app.reports.is_closed() {
        return Err(unavailable("the engine does not run"));
    }
    app.store.queued().await.map_err(|_| unavailable("the job store does not answer"))?;
    Ok("ready\n")
}

/// Counters in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "health",
    responses((status = 200, content_type = "text/plain"), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 429, description = "The key asks too often; `Retry-After` says when to try again.", body = ErrorBody)))]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.metrics.text(&app.model.cache().ledger(), &app.board))
}
