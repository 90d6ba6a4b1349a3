//! A video that is being made, as far as it is there: to be played from its first half second on.
//!
//! The bytes are those of a fragmented MP4, which only grows. Asked for as a whole it is sent as it grows, and the answer ends with
//! the video, or breaks off if there will be none; a range gets what is there of it (RFC 9110, 14.4: the length is `*`). The finished
//! file is another one, with an index, and another tag.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::try_unfold;

use super::App;
use super::content::{CHUNK_BYTES, set};
use super::error::ApiError;
use crate::id::VideoId;
use crate::job::{Job, Status};
use crate::videos::{Variant, VideoStore};

/// How often a file that is read to its end is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What is there of a job's video; `None` when it has no growing file, or nothing is in it yet.
pub(super) async fn growing(
    app: &Arc<App>,
    job: &Job,
    headers: &HeaderMap,
) -> Result<Option<Response>, ApiError> {
    let (videos, id, epoch) = (Arc::clone(&app.videos), job.id.clone(), job.epoch);
    let opened = tokio::task::spawn_blocking(move || {
        let file = videos.open_growing(&id, epoch)?;
        let len_bytes = file.metadata()?.len();
        Ok::<_, std::io::Error>((file, len_bytes))
    });
    let (file, len_bytes) = match opened.await.map_err(ApiError::internal)? {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Ok((_, 0)) => return Ok(None),
        opened => opened.map_err(ApiError::internal)?,
    };
    let tag = format!("\"{}-growing-{}\"", job.id, job.epoch);
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let is_current = text(header::IF_RANGE).is_none_or(|wanted| wanted == tag);
    let asked = text(header::RANGE).filter(|_| is_current).and_then(parse_range);
    let mut response = match asked {
        None => following(app, job, file).into_response(),
        Some(range) => part(file, range, len_bytes)?,
    };
    set(&mut response, header::CONTENT_TYPE, Variant::Video.media_type());
    set(&mut response, header::ACCEPT_RANGES, "bytes");
    set(&mut response, header::ETAG, &tag);
    set(&mut response, header::CACHE_CONTROL, "no-store");
    Ok(Some(response))
}

/// First byte, and one past the last; everything from the start on is no part.
fn parse_range(text: &str) -> Option<Range<u64>> {
    let (first, last) = text.strip_prefix("bytes=")?.trim().split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let end = if last.is_empty() { u64::MAX } else { last.parse::<u64>().ok()?.saturating_add(1) };
    (first < end && !(first == 0 && end == u64::MAX)).then_some(first..end)
}

fn part(mut file: File, asked: Range<u64>, len_bytes: u64) -> Result<Response, ApiError> {
    let range = asked.start..asked.end.min(len_bytes).min(asked.start.saturating_add(4 * CHUNK_BYTES as u64));
    if range.is_empty() {
        let sentence = format!("there are {len_bytes} bytes so far, and none of them was asked for");
        let none = ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, "invalid_range", sentence);
        return Err(none.retry_after(RETRY_AFTER));
    }
    let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
    let read = file.seek(SeekFrom::Start(range.start)).and_then(|_| file.read_exact(&mut bytes));
    read.map_err(ApiError::internal)?;
    let mut response = (StatusCode::PARTIAL_CONTENT, bytes).into_response();
    set(&mut response, header::CONTENT_RANGE, &format!("bytes {}-{}/*", range.start, range.end - 1));
    Ok(response)
}

/// The file from its start, and what comes to it, until the job has ended.
fn following(app: &Arc<App>, job: &Job, file: File) -> Body {
    let (app, job) = (Arc::clone(app), job.clone());
    let stopping = app.stopping.clone();
    let stream = try_unfold((file, 0), move |(mut file, sent)| {
        let (app, job, mut stopping) = (Arc::clone(&app), job.clone(), stopping.clone());
        async move {
            loop {
                // Looked at before reading: what ended before it was read to the end is complete.
                let has_ended = app.board.live(&job.id).is_none();
                let (videos, id, epoch) = (Arc::clone(&app.videos), job.id.clone(), job.epoch);
                let read = tokio::task::spawn_blocking(move || {
                    let bytes = chunk(&mut file)?;
                    if bytes.is_empty()
                        && let Some(newer) = reopened(&*videos, &id, epoch, sent)
                    {
                        file = newer;
                        return Ok::<_, std::io::Error>((chunk(&mut file)?, file));
                    }
                    Ok((bytes, file))
                });
                let (bytes, reader) = read.await.map_err(std::io::Error::other)??;
                if !bytes.is_empty() {
                    let sent = sent + bytes.len() as u64;
                    return Ok(Some((Bytes::from(bytes), (reader, sent))));
                }
                if has_ended {
                    let now = app.store.get(&job.tenant, &job.id).await.map_err(std::io::Error::other)?;
                    let is_whole = now.is_some_and(|job| job.status == Status::Completed);
                    return if is_whole {
                        Ok(None)
                    } else {
                        Err(std::io::Error::other("there will be no video"))
                    };
                }
                file = reader;
                tokio::select! {
                    () = tokio::time::sleep(LOOK_AGAIN) => {}
                    _ = stopping.wait_for(|stops| *stops) => {
                        return Err(std::io::Error::other("the service stops"));
                    }
                }
            }
        }
    });
    Body::from_stream(stream)
}

/// What comes next of a file, if anything is there yet.
fn chunk(file: &mut File) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; CHUNK_BYTES];
    let n_bytes = file.read(&mut bytes)?;
    bytes.truncate(n_bytes);
    Ok(bytes)
}

/// The growing file as it is named now, from where the last one was read to: a job that went on from its snapshot writes the same
/// bytes into a new one. Nothing if it is not there, or not as long yet.
fn reopened(videos: &dyn VideoStore, id: &VideoId, epoch: i64, sent: u64) -> Option<File> {
    let mut file = videos.open_growing(id, epoch).ok()?;
    (file.metadata().ok()?.len() > sent).then_some(())?;
    file.seek(SeekFrom::Start(sent)).ok()?;
    Some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_what_is_there_are_ranges_and_all_of_it_is_none() {
        assert_eq!(parse_range("bytes=0-9"), Some(0..10));
        assert_eq!(parse_range("bytes=5-"), Some(5..u64::MAX));
        for whole in ["bytes=0-", "bytes=-5", "bytes=9-3", "bytes=a-", "items=0-9", "bytes=0-1,3-4", ""] {
            assert_eq!(parse_range(whole), None, "{whole}");
        }
    }
}
