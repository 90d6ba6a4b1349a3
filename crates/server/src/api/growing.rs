//! A video that is being made, as far as it is there: to be played from its first half second on.
//!
//! The bytes are those of a fragmented MP4, which only grows. Asked for as a whole it is sent as it grows, and the answer ends with
//! the video, or breaks off if there will be none, or what is left of it cannot be had; a range gets what is there of it (RFC 9110,
//! 14.4: the length is `*`). The finished file is another one, with an index, and another tag.

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
use crate::board::Board;
use crate::id::VideoId;
use crate::job::{Job, Status};
use crate::videos::{Growing, Variant, VideoStore};

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
        let video = videos.open_growing(&id, epoch)?;
        let len_bytes = video.file.metadata()?.len();
        Ok::<_, std::io::Error>((video, len_bytes))
    });
    let (video, len_bytes) = match opened.await.map_err(ApiError::internal)? {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Ok((_, 0)) => return Ok(None),
        opened => opened.map_err(ApiError::internal)?,
    };
    let tag = format!("\"{}-growing-{}\"", job.id, job.epoch);
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let is_current = text(header::IF_RANGE).is_none_or(|wanted| wanted == tag);
    let asked = text(header::RANGE).filter(|_| is_current).and_then(parse_range);
    let mut response = match asked {
        None => following(app, job, video).into_response(),
        Some(range) => part(video.file, range, len_bytes)?,
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
fn following(app: &Arc<App>, job: &Job, video: Growing) -> Body {
    let (app, job) = (Arc::clone(app), Arc::new(job.clone()));
    let stopping = app.stopping.clone();
    let stream = try_unfold(Followed::new(video), move |mut followed| {
        let (app, job, mut stopping) = (Arc::clone(&app), Arc::clone(&job), stopping.clone());
        async move {
            loop {
                let (board, videos, of) = (Arc::clone(&app.board), Arc::clone(&app.videos), Arc::clone(&job));
                let read = tokio::task::spawn_blocking(move || {
                    let (bytes, has_ended) = followed.look(&board, &*videos, &of)?;
                    Ok::<_, std::io::Error>((bytes, has_ended, followed))
                });
                let (bytes, has_ended, reader) = read.await.map_err(std::io::Error::other)??;
                if !bytes.is_empty() {
                    return Ok(Some((Bytes::from(bytes), reader)));
                }
                if has_ended {
                    let now = app.store.get(&job.tenant, &job.id).await.map_err(std::io::Error::other)?;
                    let is_there = now.is_some_and(|job| job.status == Status::Completed);
                    return if is_there && reader.is_whole() {
                        Ok(None)
                    } else {
                        Err(std::io::Error::other("there is no more of this video"))
                    };
                }
                followed = reader;
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

/// A video that somebody follows, through all drafts of its job: one that went on from its snapshot writes the same bytes again into
/// a new one, unless it had to begin anew and something gave way in it.
struct Followed {
    video: Growing,
    /// Bytes read of this draft's file.
    read: u64,
    /// Bytes sent, of this file or of those before it, and their digest.
    sent: u64,
    digest: blake3::Hasher,
    /// The digest of what is in this file of the bytes that were sent before it.
    again: blake3::Hasher,
}

impl Followed {
    fn new(video: Growing) -> Self {
        Self { video, read: 0, sent: 0, digest: blake3::Hasher::new(), again: blake3::Hasher::new() }
    }

    /// What comes next of a job's video, if anything is there yet, and whether the job had ended before this look.
    ///
    /// # Errors
    /// When a file cannot be read, or a later draft is another video than that of which a part was sent.
    fn look(
        &mut self,
        board: &Board,
        videos: &dyn VideoStore,
        job: &Job,
    ) -> std::io::Result<(Vec<u8>, bool)> {
        // Asked before reading: what ended before it was read to the end is complete.
        let epoch = board.epoch(&job.id);
        // A job that found no space went back to the queue, and is begun under a later epoch than the one that was followed.
        let bytes = self.go_on(videos, &job.id, epoch.unwrap_or(job.epoch))?;
        Ok((bytes, epoch.is_none()))
    }

    fn go_on(&mut self, videos: &dyn VideoStore, id: &VideoId, epoch: i64) -> std::io::Result<Vec<u8>> {
        let bytes = self.read_on()?;
        if !bytes.is_empty() {
            return Ok(bytes);
        }
        match videos.open_growing(id, epoch) {
            // Held from now on, however short it is still: its name may be gone at the next look.
            Ok(newer) if !newer.is_of_same_draft(&self.video) => {
                (self.video, self.read, self.again) = (newer, 0, blake3::Hasher::new());
                self.read_on()
            }
            Ok(_) | Err(_) => Ok(bytes),
        }
    }

    fn read_on(&mut self) -> std::io::Result<Vec<u8>> {
        loop {
            let known = self.sent - self.read;
            let wanted = usize::try_from(known).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let mut bytes = vec![0; if known == 0 { CHUNK_BYTES } else { wanted }];
            let n_bytes = self.video.file.read(&mut bytes)?;
            bytes.truncate(n_bytes);
            self.read += n_bytes as u64;
            if known == 0 {
                self.sent = self.read;
                self.digest.update(&bytes);
                return Ok(bytes);
            }
            if n_bytes == 0 {
                return Ok(bytes);
            }
            self.again.update(&bytes);
            if self.read == self.sent && self.again.finalize() != self.digest.finalize() {
                return Err(std::io::Error::other("the video was begun anew, and is another one"));
            }
        }
    }

    /// Whether all of a video was sent, once its job has ended and nothing comes any more. A draft that was dropped ends early.
    fn is_whole(&self) -> bool {
        self.video.is_published() && self.read == self.sent
    }
}

#[cfg(test)]
mod tests {
    use evanesce_engine::video::{FrameSink, VideoSettings};

    use super::*;
    use crate::board::{Live, Phase, tests::waiting};
    use crate::encoder::Encoder;
    use crate::videos::{Draft, VideoDirectory};

    /// A job's video under way, with a fragment for every 8 frames.
    struct Making {
        video: Box<dyn FrameSink + Send>,
        draft: Draft,
    }

    /// Videos, one of which is made, and somebody who follows it.
    struct Scene {
        videos: VideoDirectory,
        board: Board,
        /// The job when it was first followed.
        job: Job,
        /// The job as the engine has it.
        now: Job,
        _directory: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let videos = VideoDirectory::open(directory.path(), Encoder::BuiltIn).unwrap();
            let job = Job { status: Status::InProgress, epoch: 1, ..waiting() };
            let (board, now) = (Board::default(), job.clone());
            board.post(&now, Live { phase: Phase::Decode, ..Live::default() });
            Self { videos, board, job, now, _directory: directory }
        }

        /// Puts the job back into the queue: nobody makes its video.
        fn release(&mut self) {
            self.now.status = Status::Queued;
            self.board.post(&self.now, Live::default());
        }

        /// Claims it once more. Giving it back raised its epoch, and so does this.
        fn claim(&mut self) {
            (self.now.status, self.now.epoch) = (Status::InProgress, self.now.epoch + 2);
            self.board.post(&self.now, Live { phase: Phase::Decode, ..Live::default() });
        }

        /// Begins the video, also once more, as a job does that went on from its snapshot.
        fn make(&self, frames: Range<u16>) -> Making {
            let draft = self.videos.draft(&self.now.id, self.now.epoch).unwrap();
            let video = draft.begin_video(VideoSettings::new(64, 64, 16)).unwrap();
            let mut making = Making { video, draft };
            making.push(frames);
            making
        }

        fn follow(&self) -> Followed {
            Followed::new(self.videos.open_growing(&self.now.id, self.now.epoch).unwrap())
        }

        /// What has come since the last look.
        fn look(&self, followed: &mut Followed) -> std::io::Result<Vec<u8>> {
            let mut seen = Vec::new();
            loop {
                let (bytes, has_ended) = followed.look(&self.board, &self.videos, &self.job)?;
                assert_eq!(has_ended, self.now.status.is_over());
                if bytes.is_empty() {
                    return Ok(seen);
                }
                seen.extend(bytes);
            }
        }

        /// Ends the video; all bytes that it had while it grew.
        fn publish(&self, Making { video, draft }: Making) -> Vec<u8> {
            let mut growing = self.follow().video.file;
            video.finish().unwrap();
            let mut whole = Vec::new();
            growing.read_to_end(&mut whole).unwrap();
            for picture in [Variant::Thumbnail, Variant::Spritesheet] {
                std::fs::write(draft.path(picture), b"a picture").unwrap();
            }
            self.videos.publish(&self.now.id, draft).unwrap();
            whole
        }

        fn end(&mut self) {
            self.now.status = Status::Completed;
            self.board.end(&self.now);
        }
    }

    impl Making {
        fn push(&mut self, frames: Range<u16>) {
            for frame in frames {
                self.video.push(&vec![f32::from(frame) / 100.0; 64 * 64 * 3]).unwrap();
            }
        }
    }

    #[test]
    fn who_follows_a_video_through_a_snapshot_gets_all_of_it() {
        let scene = Scene::new();
        let parked = scene.make(0..12);
        let mut followed = scene.follow();
        let mut seen = scene.look(&mut followed).unwrap();
        assert!(!seen.is_empty());
        drop(parked);
        assert!(scene.look(&mut followed).unwrap().is_empty() && !followed.is_whole());
        // As far as it was before, then further, then to its end.
        let mut resumed = scene.make(0..8);
        assert!(scene.look(&mut followed).unwrap().is_empty() && !followed.is_whole());
        resumed.push(8..20);
        seen.extend(scene.look(&mut followed).unwrap());
        assert!(!followed.is_whole());
        let whole = scene.publish(resumed);
        seen.extend(scene.look(&mut followed).unwrap());
        assert!(seen == whole && followed.is_whole());
    }

    #[test]
    fn who_follows_a_video_gets_all_of_it_also_when_its_job_is_claimed_once_more() {
        let mut scene = Scene::new();
        let found_no_space = scene.make(0..12);
        let mut followed = scene.follow();
        let mut seen = scene.look(&mut followed).unwrap();
        assert!(!seen.is_empty());
        drop(found_no_space);
        scene.release();
        assert!(scene.look(&mut followed).unwrap().is_empty() && !followed.is_whole());
        scene.claim();
        let again = scene.make(0..20);
        let more = scene.look(&mut followed).unwrap();
        assert!(!more.is_empty() && !followed.is_whole());
        seen.extend(more);
        let whole = scene.publish(again);
        scene.end();
        seen.extend(scene.look(&mut followed).unwrap());
        assert!(seen == whole && followed.is_whole());
    }

    #[test]
    fn parts_of_two_videos_are_never_sent_as_one_when_a_job_is_claimed_once_more() {
        let mut scene = Scene::new();
        let found_no_space = scene.make(0..12);
        let mut followed = scene.follow();
        scene.look(&mut followed).unwrap();
        drop(found_no_space);
        scene.release();
        scene.claim();
        let _begun_anew = scene.make(50..90);
        assert!(scene.look(&mut followed).is_err());
    }

    #[test]
    fn who_did_not_see_a_video_come_back_is_not_told_that_its_beginning_is_all() {
        let scene = Scene::new();
        let parked = scene.make(0..12);
        let mut followed = scene.follow();
        let beginning = scene.look(&mut followed).unwrap();
        drop(parked);
        // Gone on with and finished between two looks.
        let whole = scene.publish(scene.make(0..20));
        assert!(scene.look(&mut followed).unwrap().is_empty());
        assert!(beginning.len() < whole.len() && !followed.is_whole());
    }

    #[test]
    fn parts_of_two_videos_are_never_sent_as_one() {
        let scene = Scene::new();
        let parked = scene.make(0..12);
        let mut followed = scene.follow();
        scene.look(&mut followed).unwrap();
        drop(parked);
        let _begun_anew = scene.make(50..90);
        assert!(scene.look(&mut followed).is_err());
    }

    #[test]
    fn parts_of_what_is_there_are_ranges_and_all_of_it_is_none() {
        assert_eq!(parse_range("bytes=0-9"), Some(0..10));
        assert_eq!(parse_range("bytes=5-"), Some(5..u64::MAX));
        for whole in ["bytes=0-", "bytes=-5", "bytes=9-3", "bytes=a-", "items=0-9", "bytes=0-1,3-4", ""] {
            assert_eq!(parse_range(whole), None, "{whole}");
        }
    }
}
