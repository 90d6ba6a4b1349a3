//! Where decoded frames go.

use super::error::Result;

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

    /// Completes the result and makes it visible.
    ///
    /// # Errors
    /// If no frame was pushed, an earlier push failed, or the result cannot be stored.
    fn finish(self: Box<Self>) -> Result<VideoSummary>;
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
