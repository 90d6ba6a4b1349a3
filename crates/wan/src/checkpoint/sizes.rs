//! Which sizes and lengths of video a checkpoint can make.

use crate::error::{Result, WanError};

/// Pixels and frames that the VAE and the patches can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeRule {
    /// Width and height are multiples of this many pixels.
    pub pixels: usize,
    /// Frames are one more than a multiple of this.
    pub frames: usize,
    /// Tokens along an axis, at most.
    pub positions: usize,
    /// Latent frames, at most.
    pub latent_frames: usize,
}

impl SizeRule {
    /// Checks a width and height in pixels.
    ///
    /// # Errors
    /// [`WanError::Request`] with the nearest size that would do.
    pub fn validate_size(&self, width: usize, height: usize) -> Result<()> {
        let nearest = |side: usize| {
            let multiple = (side.saturating_add(self.pixels / 2) / self.pixels).clamp(1, self.positions);
            multiple * self.pixels
        };
        let (near_width, near_height) = (nearest(width), nearest(height));
        if (near_width, near_height) == (width, height) {
            return Ok(());
        }
        Err(WanError::Request(format!(
            "size {width}x{height} cannot be made: both sides must be multiples of {} from {} to {}, the nearest is \
             {near_width}x{near_height}",
            self.pixels,
            self.pixels,
            self.pixels * self.positions
        )))
    }

    /// Checks a number of frames.
    ///
    /// # Errors
    /// [`WanError::Request`] with the nearest lengths that would do.
    pub fn validate_frames(&self, frames: usize) -> Result<()> {
        let longest = (self.latent_frames - 1) * self.frames + 1;
        let below = (frames.clamp(1, longest) - 1) / self.frames * self.frames + 1;
        if below == frames {
            return Ok(());
        }
        let above = (below + self.frames).min(longest);
        let nearest = match frames {
            0 => "1".to_owned(),
            _ if frames > longest => longest.to_string(),
            _ => format!("{below} and {above}"),
        };
        Err(WanError::Request(format!(
            "{frames} frames cannot be made: it must be {}n+1 up to {longest}, the nearest is {nearest}",
            self.frames
        )))
    }
}
