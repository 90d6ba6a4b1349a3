//! Which sizes and lengths of video a checkpoint can make.

use crate::error::{Result, WanError};

/// Pixels on one side, at most: as many as Wan2.2's 1024 positions along an axis carry. A checkpoint that names more positions makes
/// no larger frames, so that bytes of frames can always be counted.
const SIDE_PIXELS_MAX: usize = 16_384;

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
        let positions = self.positions.min(SIDE_PIXELS_MAX / self.pixels).max(1);
        let nearest = |side: usize| {
            let multiple = (side.saturating_add(self.pixels / 2) / self.pixels).clamp(1, positions);
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
            self.pixels * positions
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_size_is_one_that_can_be_made() {
        for (positions, most) in [(4, 64), (1024, 16_384), (1 << 20, 16_384)] {
            let rule = SizeRule { pixels: 16, frames: 4, positions, latent_frames: 1024 };
            for side in [0, 7, 63, 65, 4097, 16_384, 16_400, usize::MAX] {
                let nearest = (side.saturating_add(8) / 16 * 16).clamp(16, most);
                assert!(rule.validate_size(nearest, 16).is_ok(), "{side}");
                let refused = rule.validate_size(16, side).err().map(|error| error.to_string());
                match refused {
                    None => assert_eq!(nearest, side),
                    Some(sentence) => {
                        assert!(sentence.ends_with(&format!("the nearest is 16x{nearest}")), "{sentence}")
                    }
                }
            }
        }
    }
}
