//! Refusals: one clear sentence, the right status, in OpenAI's shape.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::journal::note;
use crate::store::StoreError;
use crate::wire::{ErrorBody, ErrorObject};

/// Why a request was not served.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<Cow<'static, str>>,
    code: &'static str,
    retry_after: Option<Duration>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code, retry_after: None }
    }

    /// A field that is wrong.
    pub(crate) fn field(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, "invalid_value", message) }
    }

    pub(crate) fn body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_body", message)
    }

    pub(crate) fn no_such_video() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "there is no such video")
    }

    pub(crate) fn with_code(mut self, code: &'static str) -> Self {
        self.code = code;
        self
    }

    pub(crate) fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// A fault of ours: the log has it, the client is told that there was one.
    pub(crate) fn internal(error: impl std::fmt::Display) -> Self {
        note("request", format_args!("failed: {error}"));
        let sentence = "the service could not do this; its log says more";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", sentence)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::internal(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let error = ErrorObject {
            message: self.message,
            kind: kind.to_owned(),
            param: self.param.map(Cow::into_owned),
            code: Some(self.code.to_owned()),
        };
        let mut response = (self.status, Json(ErrorBody { error })).into_response();
        let headers = response.headers_mut();
        if let Some(delay) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(delay)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Seconds that are over only when `delay` is, and at least one: who comes back sooner is refused again.
fn whole_seconds(delay: Duration) -> u64 {
    delay.as_secs().saturating_add(u64::from(delay.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_to_come_back_before_the_time() {
        for (delay_ms, told) in [(0, "1"), (300, "1"), (1000, "1"), (1001, "2"), (4500, "5"), (5000, "5")] {
            let full = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", "try again later");
            let response = full.retry_after(Duration::from_millis(delay_ms)).into_response();
            assert_eq!(response.headers()[header::RETRY_AFTER], told, "{delay_ms} ms");
        }
    }
}
