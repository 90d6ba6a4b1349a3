//! Where a job's results go. Nothing is visible before it is complete, except a video that is to grow; dropped before that,
//! nothing stays.

use std::path::PathBuf;

use crate::error::Result;
use crate::request::JobSpec;
use crate::tensors::TensorWriter;
use crate::video::{FrameSink, Mp4Writer, Quality, VideoSettings, VideoSummary};

/// Where the pictures go.
pub enum VideoTarget {
    /// An MP4 file, with the quantizer that H.264 keeps constant.
    Mp4 {
        /// The file, which appears when it is complete, unless it is to grow.
        path: PathBuf,
        /// 0 (best) to 51; the encoder refuses what it cannot do.
        qp: u8,
        /// Whether it is there from the first half second on, to be played while it grows.
        growing: bool,
    },
    /// Somewhere else.
    Sink(Box<dyn FrameSink>),
}

impl std::fmt::Debug for VideoTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mp4 { path, qp, growing } => {
                let mut shown = f.debug_struct("Mp4");
                shown.field("path", path).field("qp", qp).field("growing", growing).finish()
            }
            Self::Sink(_) => f.write_str("Sink"),
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
}

/// Results under way.
pub(crate) struct OpenOutputs {
    video: Box<dyn FrameSink>,
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
        let video = match outputs.video {
            VideoTarget::Sink(sink) => sink,
            VideoTarget::Mp4 { path, qp, growing } => {
                let quality = Quality::from_qp(qp)?;
                let settings =
                    VideoSettings { quality, ..VideoSettings::new(spec.width, spec.height, spec.fps) };
                let create = if growing { Mp4Writer::create_growing } else { Mp4Writer::create };
                Box::new(create(&path, settings)?)
            }
        };
        let latents =
            outputs.latents.map(|path| TensorWriter::create(&path, "latents", &spec.latent_shape(channels)));
        let shape = [spec.frames, spec.height, spec.width, 3];
        let frames = outputs.frames.map(|path| TensorWriter::create(&path, "frames", &shape));
        Ok(Self {
            video,
            latents: latents.transpose()?,
            frames: frames.transpose()?,
            numbers_per_picture: spec.height * spec.width * 3,
        })
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

    /// Takes pictures in display order.
    pub(crate) fn push(&mut self, pictures: &[f32]) -> Result<()> {
        for picture in pictures.chunks_exact(self.numbers_per_picture) {
            self.video.push(picture)?;
        }
        match &mut self.frames {
            Some(frames) => frames.push(pictures.iter().copied()),
            None => Ok(()),
        }
    }

    /// Says that a segment of the video ends here.
    pub(crate) fn end_segment(&mut self) -> Result<()> {
        Ok(self.video.end_segment()?)
    }

    /// The video, if it is all that is made: files of numbers cannot be gone on with.
    pub(crate) fn saved_video(&mut self) -> Option<&mut dyn FrameSink> {
        let alone = self.latents.is_none() && self.frames.is_none();
        alone.then_some(&mut *self.video as &mut dyn FrameSink)
    }

    /// Does whatever takes time or may fail before the files are put in place, so that all of them appear or none (law 7).
    pub(crate) fn complete(&mut self) -> Result<()> {
        for numbers in [&mut self.latents, &mut self.frames].into_iter().flatten() {
            numbers.complete()?;
        }
        Ok(self.video.complete()?)
    }

    /// Puts every file in place.
    pub(crate) fn finish(mut self) -> Result<VideoSummary> {
        self.complete()?;
        let video = self.video.finish()?;
        for numbers in [self.latents, self.frames].into_iter().flatten() {
            numbers.finish()?;
        }
        Ok(video)
    }
}
