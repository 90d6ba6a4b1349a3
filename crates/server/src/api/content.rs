//! Bytes of a video, whole or a range of them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::try_unfold;

use super::App;
use super::access::Tenant;
use super::error::ApiError;
use super::growing::growing;
use super::query::parameters;
use super::videos::{PathId, find};
use crate::job::{Job, Status};
use crate::videos::Variant;
use crate::wire::ErrorBody;

pub(super) const CHUNK_BYTES: usize = 64 << 10;

/// Downloads a video, its thumbnail or its spritesheet. One range of bytes may be asked for. A video that is being made is sent as
/// it grows, as a fragmented MP4, from its first half second on.
#[utoipa::path(get, path = "/v1/videos/{id}/content", tag = "videos",
    params(("id" = String, Path), ("variant" = Option<Variant>, Query, description = "The video, if left out.")),
    responses((status = 200, description = "All of it.", content_type = "video/mp4"),
        (status = 206, description = "The range that was asked for."), (status = 304, description = "The client has it."),
        (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 409, description = "Nothing of it is there yet.", body = ErrorBody),
        (status = 416, body = ErrorBody),
        (status = 429, description = "The key asks too often; `Retry-After` says when to try again.", body = ErrorBody),
        (status = 500, body = ErrorBody)))]
pub(super) async fn content(
    State(app): State<Arc<App>>,
    Extension(tenant): Extension<Tenant>,
    PathId(id): PathId,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let variant = variant(query.as_deref())?;
    let mut job = find(&app, &tenant, &id).await?;
    if job.status == Status::InProgress && variant == Variant::Video {
        if let Some(response) = growing(&app, &job, &headers).await? {
            return Ok(response);
        }
        // It may have been finished between the two looks.
        job = find(&app, &tenant, &id).await?;
    }
    if job.status != Status::Completed {
        let sentence = if job.status.is_over() {
            "there is nothing to download: the video has failed".to_owned()
        } else {
            format!("there is nothing to download yet: the video is {}", job.status.as_str())
        };
        return Err(ApiError::new(StatusCode::CONFLICT, "video_not_ready", sentence));
    }
    finished(&app, &job, variant, &headers).await
}

async fn finished(
    app: &Arc<App>,
    job: &Job,
    variant: Variant,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let tag = format!("\"{}-{}\"", job.id, variant.as_str());
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if text(header::IF_NONE_MATCH).is_some_and(|tags| tags == "*" || tags.contains(&tag)) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let (videos, wanted) = (Arc::clone(&app.videos), job.id.clone());
    let opened = tokio::task::spawn_blocking(move || videos.open(&wanted, variant));
    let (file, len_bytes) = match opened.await.map_err(ApiError::internal)? {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(ApiError::no_such_video()),
        opened => opened.map_err(ApiError::internal)?,
    };
    // A range of something else is no use: then all of it is sent.
    let is_current = text(header::IF_RANGE).is_none_or(|wanted| wanted == tag);
    let asked =
        text(header::RANGE).filter(|_| is_current).map_or(Asked::All, |range| parse_range(range, len_bytes));
    let (status, range) = match asked {
        Asked::All => (StatusCode::OK, 0..len_bytes),
        Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Asked::Nothing => {
            let sentence = format!("the file has {len_bytes} bytes, and none of them was asked for");
            let mut refusal =
                ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, "invalid_range", sentence).into_response();
            set(&mut refusal, header::CONTENT_RANGE, &format!("bytes */{len_bytes}"));
            return Ok(refusal);
        }
    };
    let mut response = (status, body(file, range.clone())).into_response();
    set(&mut response, header::CONTENT_TYPE, variant.media_type());
    set(&mut response, header::CONTENT_LENGTH, &(range.end - range.start).to_string());
    set(&mut response, header::ACCEPT_RANGES, "bytes");
    set(&mut response, header::ETAG, &tag);
    set(&mut response, header::CACHE_CONTROL, "private, max-age=3600");
    if status == StatusCode::PARTIAL_CONTENT {
        let part = format!("bytes {}-{}/{len_bytes}", range.start, range.end - 1);
        set(&mut response, header::CONTENT_RANGE, &part);
    }
    Ok(response)
}

fn variant(query: Option<&str>) -> Result<Variant, ApiError> {
    let asked = parameters(query, "the content of a video", &["variant"])?;
    let wrong = || ApiError::field("variant", "variant is video, thumbnail or spritesheet");
    asked.first().map_or(Ok(Variant::Video), |(_, name)| Variant::from_name(name).ok_or_else(wrong))
}

pub(super) fn set(response: &mut Response, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    All,
    Part(Range<u64>),
    Nothing,
}

/// One range of bytes (RFC 9110, 14.1.2). Several ranges, other units and nonsense count as no range, as they may.
fn parse_range(text: &str, len_bytes: u64) -> Asked {
    let parse = || {
        let (first, last) = text.strip_prefix("bytes=")?.trim().split_once('-')?;
        let number = |digits: &str| digits.parse::<u64>().ok();
        match (first.is_empty(), last.is_empty()) {
            (true, true) => None,
            (true, false) => Some(len_bytes.saturating_sub(number(last)?)..len_bytes),
            (false, true) => Some(number(first)?..len_bytes),
            (false, false) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then(|| first..last.saturating_add(1).min(len_bytes))
            }
        }
    };
    match parse() {
        None => Asked::All,
        Some(range) if range.start >= range.end => Asked::Nothing,
        Some(range) => Asked::Part(range),
    }
}

/// The bytes of a range, read as the client takes them. A removed file stays readable for whoever has it open.
fn body(file: File, range: Range<u64>) -> Body {
    let stream = try_unfold((file, range), |(mut file, range)| async move {
        if range.is_empty() {
            return Ok(None);
        }
        let read = tokio::task::spawn_blocking(move || {
            let wanted = usize::try_from(range.end - range.start).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let mut bytes = vec![0; wanted];
            file.seek(SeekFrom::Start(range.start))?;
            file.read_exact(&mut bytes)?;
            Ok::<_, std::io::Error>((Bytes::from(bytes), (file, range.start + wanted as u64..range.end)))
        });
        read.await.map_err(std::io::Error::other)?.map(Some)
    });
    Body::from_stream(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        assert_eq!(parse_range("bytes=0-9", 100), Asked::Part(0..10));
        assert_eq!(parse_range("bytes=90-", 100), Asked::Part(90..100));
        assert_eq!(parse_range("bytes=-10", 100), Asked::Part(90..100));
        assert_eq!(parse_range("bytes=-1000", 100), Asked::Part(0..100));
        assert_eq!(parse_range("bytes=50-18446744073709551615", 100), Asked::Part(50..100));
        assert_eq!(parse_range("bytes=100-", 100), Asked::Nothing);
        assert_eq!(parse_range("bytes=-0", 100), Asked::Nothing);
        for ignored in [
            "bytes=9-0",
            "bytes=-",
            "bytes=a-b",
            "items=0-9",
            "bytes=0-1,5-6",
            "",
            "bytes=99999999999999999999-",
        ] {
            assert_eq!(parse_range(ignored, 100), Asked::All, "{ignored}");
        }
    }
}
