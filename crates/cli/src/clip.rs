//! The flags that say what a video is like, for those commands that make one or plan one.

use clap::Args;
use evanesce_engine::{Request, RequestedLength};

use crate::quantity::{parse_frame_size, parse_whole};

/// What a video is like. What is not given comes from the checkpoint, then from Wan2.2's own settings.
#[derive(Debug, Args)]
pub(crate) struct Clip {
    /// What the video should not show.
    #[arg(long, value_name = "TEXT")]
    negative: Option<String>,
    /// Width and height in pixels, multiples of 16.
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = parse_frame_size)]
    size: Option<(usize, usize)>,
    /// How many frames: one more than a multiple of 4.
    #[arg(long, value_name = "N", value_parser = parse_whole::<usize>, conflicts_with = "seconds")]
    frames: Option<usize>,
    /// How many seconds, rounded to the nearest length the model can make.
    #[arg(long, value_name = "S")]
    seconds: Option<f64>,
    /// Frames per second.
    #[arg(long, value_name = "N", value_parser = parse_whole::<u32>)]
    fps: Option<u32>,
    /// Denoising steps.
    #[arg(long, value_name = "N", value_parser = parse_whole::<usize>)]
    steps: Option<usize>,
    /// Guidance of the high-noise expert; 1 turns guidance off.
    #[arg(long, value_name = "G")]
    guidance_high: Option<f64>,
    /// Guidance of the low-noise expert; 1 turns guidance off.
    #[arg(long, value_name = "G")]
    guidance_low: Option<f64>,
}

impl Clip {
    /// A request for such a video.
    pub(crate) fn request(&self, prompt: &str, seed: u64) -> Request {
        Request {
            negative: self.negative.clone(),
            size: self.size,
            length: match (self.frames, self.seconds) {
                (Some(frames), _) => Some(RequestedLength::Frames(frames)),
                (None, seconds) => seconds.map(RequestedLength::Seconds),
            },
            fps: self.fps,
            steps: self.steps,
            guidance_high: self.guidance_high,
            guidance_low: self.guidance_low,
            ..Request::new(prompt, seed)
        }
    }
}
