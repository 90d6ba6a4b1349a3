//! Where a job's results go. Nothing is visible before it is complete, except a video that is to grow; dropped before that,
//! nothing stays.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use evanesce_cache::Reservation;

use crate::error::{EngineError, Result};
use crate::request::JobSpec;
use crate::tensors::TensorWriter;
use crate::video::{
    EncoderPool, FrameSink, Mp4Writer, PooledVideo, Quality, Result as VideoResult, SinkState, VideoError,
    VideoSettings, VideoSummary,
};

/// Where the pictures go.
pub enum VideoTarget {
    /// An MP4 file, with the quantizer that H.264 keeps constant.
    Mp4 {
        /// The file, which appears when it is complete, unless it is to grow.
        path: PathBuf,
        /// [`Quality::FINEST_QP`] to [`Quality::COARSEST_QP`]; others are refused.
        qp: u8,
        /// Whether it is there from the first half second on, to be played while it grows.
        growing: bool,
    },
    /// Somewhere else.
    Sink(Box<dyn FrameSink>),
    /// The same, by the threads of a pool, while the job goes on.
    Pooled {
        /// Where they go.
        sink: Box<dyn FrameSink + Send>,
        /// Who takes them there.
        pool: Arc<EncoderPool>,
    },
}

impl std::fmt::Debug for VideoTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mp4 { path, qp, growing } => {
                let mut shown = f.debug_struct("Mp4");
                shown.field("path", path).field("qp", qp).field("growing", growing).finish()
            }
            Self::Sink(_) => f.write_str("Sink"),
            Self::Pooled { pool, .. } => f.debug_struct("Pooled").field("pool", pool).finish_non_exhaustive(),
        }
    }
}

/// Where all results go.
#[derive(Debug)]
pub struct Outputs {
    /// The pictures.
    pub video: VideoTarget,
    /// The latents before the VAE de-normalises them: `latents` `[channels, T, height/8, width/8]` f32.
    pub latents: Option<PathBuf>,
    /// The pictures before video encoding: `frames` `[T, height, width, 3]` f32 in 0..=1.
    pub frames: Option<PathBuf>,
}

impl Outputs {
    /// An MP4 file at visually lossless quality, and nothing else.
    #[must_use]
    pub fn mp4(path: impl Into<PathBuf>) -> Self {
        let video = VideoTarget::Mp4 { path: path.into(), qp: Quality::default().qp(), growing: false };
        Self { video, latents: None, frames: None }
    }

    /// Where a file that is asked for at `path` is put: there, or where a link there leads. Every result goes there, and is never
    /// put in the place of a device, a pipe or a link.
    ///
    /// # Errors
    /// When no file can be there.
    pub fn place(path: &Path) -> Result<PathBuf> {
        file_place(path).map_err(|reason| EngineError::file(path, reason))
    }
}

/// As [`Outputs::place`], with the reason alone.
pub(crate) fn file_place(path: &Path) -> std::result::Result<PathBuf, String> {
    let names_directory = path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/");
    if names_directory || path.file_name().is_none() {
        return Err("it names a directory, not a file".to_owned());
    }
    let directory = directory_of(path);
    if !directory.is_dir() {
        return Err(format!("there is no directory {}: create it first", directory.display()));
    }
    // What is not there yet, or cannot be looked at, is found out when the file is made.
    let Ok(held) = std::fs::symlink_metadata(path) else { return Ok(path.to_path_buf()) };
    let place = if held.is_symlink() {
        path.canonicalize()
            .map_err(|error| format!("it is a link that leads to no file ({error}): name a file"))?
    } else {
        path.to_path_buf()
    };
    if place.is_file() {
        return Ok(place);
    }
    Err("it is a device, a pipe or a socket: name a file".to_owned())
}

/// The directory that a file lies in.
pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The video, encoded by whoever computes it or by others.
enum Video {
    Here(Box<dyn FrameSink>),
    Pooled(PooledVideo),
}

/// What a video is when it is saved: known now, or once those who encode it get there.
pub(crate) enum SavedVideo {
    Known(SinkState),
    Awaited(Receiver<VideoResult<Option<SinkState>>>),
}

impl SavedVideo {
    /// Waits until it is known; `None` where the sink cannot be gone on from.
    pub(crate) fn wait(self) -> VideoResult<Option<SinkState>> {
        match self {
            Self::Known(state) => Ok(Some(state)),
            Self::Awaited(state) => state.recv().map_err(|_| VideoError::State("it was given up"))?,
        }
    }
}

/// Results under way.
pub(crate) struct OpenOutputs {
    video: Video,
    latents: Option<TensorWriter>,
    frames: Option<TensorWriter>,
    numbers_per_picture: usize,
}

impl std::fmt::Debug for OpenOutputs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenOutputs")
            .field("latents", &self.latents)
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

impl OpenOutputs {
    /// Opens everything, so that what cannot be written is known before anything is computed.
    pub(crate) fn open(outputs: Outputs, spec: &JobSpec, channels: usize) -> Result<Self> {
        let shape = spec.latent_shape(channels);
        let latents =
            outputs.latents.map(|path| TensorWriter::create(&path, "latents", &shape)).transpose()?;
        let shape = [spec.frames, spec.height, spec.width, 3];
        let frames = outputs.frames.map(|path| TensorWriter::create(&path, "frames", &shape)).transpose()?;
        // Last: one that grows takes the place of what was there at once.
        let video = match outputs.video {
            VideoTarget::Sink(sink) => Video::Here(sink),
            VideoTarget::Pooled { sink, pool } => Video::Pooled(pool.open(sink)),
            VideoTarget::Mp4 { path, qp, growing } => {
                let quality = Quality::from_qp(qp)?;
                let settings =
                    VideoSettings { quality, ..VideoSettings::new(spec.width, spec.height, spec.fps) };
                let create = if growing { Mp4Writer::create_growing } else { Mp4Writer::create };
                Video::Here(Box::new(create(&path, settings)?))
            }
        };
        Ok(Self { video, latents, frames, numbers_per_picture: spec.height * spec.width * 3 })
    }

    /// Takes one plane of the final latents, `[height/8, width/8]`, whose first number has place `at` in them.
    pub(crate) fn write_latent_plane(&mut self, at: usize, plane: &[f32]) -> Result<()> {
        match &mut self.latents {
            Some(writer) => writer.push_at(at, plane.iter().copied()),
            None => Ok(()),
        }
    }

    /// Whether anybody asked for the latents.
    pub(crate) fn wants_latents(&self) -> bool {
        self.latents.is_some()
    }

    /// Whether pictures wait for others to encode them, and need room for that.
    pub(crate) fn are_pooled(&self) -> bool {
        matches!(self.video, Video::Pooled(_))
    }

    /// Takes pictures in display order. `room` counts their bytes while they wait.
    pub(crate) fn push(&mut self, pictures: Vec<f32>, room: Option<Reservation>) -> Result<()> {
        if let Some(frames) = &mut self.frames {
            frames.push(pictures.iter().copied())?;
        }
        match &mut self.video {
            Video::Here(video) => {
                pictures
                    .chunks_exact(self.numbers_per_picture)
                    .try_for_each(|picture| video.push(picture))?;
            }
            Video::Pooled(video) => video.push(pictures, self.numbers_per_picture, room)?,
        }
        Ok(())
    }

    /// Says that a segment of the video ends here.
    pub(crate) fn end_segment(&mut self) -> Result<()> {
        match &mut self.video {
            Video::Here(video) => video.end_segment()?,
            Video::Pooled(video) => video.end_segment()?,
        }
        Ok(())
    }

    /// Waits until no picture waits.
    pub(crate) fn drain(&self) {
        if let Video::Pooled(video) = &self.video {
            video.drain();
        }
    }

    fn is_video_alone(&self) -> bool {
        self.latents.is_none() && self.frames.is_none()
    }

    /// What the video is now, with its stream from `from_bytes` on; `None` where it cannot be gone on from, also if it is not all
    /// that is made: files of numbers cannot be gone on with.
    pub(crate) fn save_video(&mut self, from_bytes: u64) -> Result<Option<SavedVideo>> {
        if !self.is_video_alone() {
            return Ok(None);
        }
        Ok(match &mut self.video {
            Video::Here(video) => video.save(from_bytes)?.map(SavedVideo::Known),
            Video::Pooled(video) => video.save(from_bytes).map(SavedVideo::Awaited),
        })
    }

    /// Makes the video what the saved one was.
    pub(crate) fn restore_video(&mut self, facts: &[u8], stream: &mut dyn Read) -> Result<()> {
        if !self.is_video_alone() {
            return Err(VideoError::State("a job that writes latents or frames has none").into());
        }
        match &mut self.video {
            Video::Here(video) => video.restore(facts, stream)?,
            Video::Pooled(video) => video.restore(facts, stream)?,
        }
        Ok(())
    }

    /// Does whatever takes time or may fail before the files are put in place, so that all of them appear or none (law 7).
    pub(crate) fn complete(&mut self) -> Result<()> {
        for numbers in [&mut self.latents, &mut self.frames].into_iter().flatten() {
            numbers.complete()?;
        }
        match &mut self.video {
            Video::Here(video) => video.complete()?,
            Video::Pooled(video) => video.complete()?,
        }
        Ok(())
    }

    /// Puts every file in place.
    pub(crate) fn finish(mut self) -> Result<VideoSummary> {
        self.complete()?;
        let video = match self.video {
            Video::Here(video) => video.finish()?,
            Video::Pooled(video) => video.finish()?,
        };
        for numbers in [self.latents, self.frames].into_iter().flatten() {
            numbers.finish()?;
        }
        Ok(video)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_link_is_followed_and_what_is_no_file_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        for (link, leads_to) in [("link", "file"), ("second", "link"), ("lost", "nowhere")] {
            std::os::unix::fs::symlink(at(leads_to), at(link)).unwrap();
        }
        std::os::unix::fs::symlink("/dev/null", at("device")).unwrap();
        for path in [at("file"), at("new")] {
            assert_eq!(file_place(&path), Ok(path));
        }
        for link in ["link", "second"] {
            assert_eq!(file_place(&at(link)), Ok(at("file").canonicalize().unwrap()));
        }
        let refusal = |path: &Path| file_place(path).unwrap_err();
        assert!(refusal(Path::new("/dev/null")).contains("a device"));
        assert!(refusal(&at("device")).contains("a device"));
        assert!(refusal(&at("lost")).contains("leads to no file"));
        assert!(refusal(dir.path()).contains("a directory"));
        assert!(refusal(&at("file/inside")).contains("no directory"));
    }
}
