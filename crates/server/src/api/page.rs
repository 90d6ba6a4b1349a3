//! The page: a few files in the binary, nothing from elsewhere.

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; \
                      media-src 'self' blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}

/// Routes of the page.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let html = || async { file("text/html; charset=utf-8", include_str!("../page/index.html")) };
    let style = || async { file("text/css; charset=utf-8", include_str!("../page/style.css")) };
    let script = || async { file("text/javascript; charset=utf-8", include_str!("../page/page.js")) };
    let growing = || async { file("text/javascript; charset=utf-8", include_str!("../page/growing.js")) };
    let icon = || async { file("image/svg+xml", include_str!("../page/icon.svg")) };
    Router::new()
        .route("/", get(html))
        .route("/style.css", get(style))
        .route("/page.js", get(script))
        .route("/growing.js", get(growing))
        .route("/icon.svg", get(icon))
}
