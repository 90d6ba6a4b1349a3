//! Where decoded frames go.

use std::io::Read;

use super::error::{Result, VideoError};

/// Takes frames in display order, one at a time, and turns them into something that lasts.
///
/// The caller pushes until the video ends, then calls [`finish`](Self::finish) once. Implementations make their
/// result visible only in `finish`; dropped before that, or after an error, they leave nothing behind.
pub trait FrameSink {
    /// Takes one frame `[height, width, 3]`, RGB in 0..1, row-major.
    ///
    /// # Errors
    /// If the frame has the wrong size or cannot be kept. The result is then lost: `finish` fails too.
    fn push(&mut self, rgb: &[f32]) -> Result<()>;

    /// Whether taking a frame may wait for another process, for as long as that one likes. Who encodes several videos lets nobody wait
    /// with such a one.
    fn waits_for_others(&self) -> bool {
        false
    }

    /// Says that a segment ends here: nothing that comes later depends on more of what came before than [`save`](Self::save)
    /// gives. Where segments end depends on the job alone, so a result is the same whether or not anybody saved.
    ///
    /// # Errors
    /// If the result cannot be kept.
    fn end_segment(&mut self) -> Result<()> {
        Ok(())
    }

    /// What has been taken so far, at the end of a segment, with the stream's bytes from `from_bytes` on; `None` in the middle of a
    /// segment, or from a sink that cannot be gone on from.
    ///
    /// # Errors
    /// If what was taken cannot be read back.
    fn save(&mut self, from_bytes: u64) -> Result<Option<SinkState>> {
        let _ = from_bytes;
        Ok(None)
    }

    /// Makes this fresh sink what the saved one was. `stream` gives all [`SinkState::stream_bytes`] bytes.
    ///
    /// # Errors
    /// If the state is not one of such a sink, or cannot be kept.
    fn restore(&mut self, facts: &[u8], stream: &mut dyn Read) -> Result<()> {
        let _ = (facts, stream);
        Err(VideoError::State("this kind of result cannot be gone on with"))
    }

    /// Does of [`finish`](Self::finish) whatever takes time or may fail, and shows nothing yet: several results can then be made
    /// visible together. No frame may follow.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    fn complete(&mut self) -> Result<()> {
        Ok(())
    }

    /// Completes the result and makes it visible.
    ///
    /// # Errors
    /// If no frame was pushed, an earlier push failed, or the result cannot be stored.
    fn finish(self: Box<Self>) -> Result<VideoSummary>;
}

/// What a sink needs to be gone on with: small facts, and a stream of bytes that only ever grows.
pub struct SinkState {
    /// In the sink's own words.
    pub facts: Vec<u8>,
    /// Length of the stream.
    pub stream_bytes: u64,
    /// The stream's bytes that were asked for, up to `stream_bytes`; whatever the sink does next does not change them.
    pub tail: Box<dyn Read + Send>,
}

impl std::fmt::Debug for SinkState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { facts, stream_bytes, .. } = self;
        f.debug_struct("SinkState")
            .field("facts", facts)
            .field("stream_bytes", stream_bytes)
            .finish_non_exhaustive()
    }
}

/// What a finished video is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VideoSummary {
    /// Frames in the video.
    pub frames: usize,
    /// Frames divided by the frame rate.
    pub duration_s: f64,
    /// Length of the file.
    pub bytes: u64,
}
