//! Size, frame rate and quality of a video, checked before any work starts.

use super::error::{Result, VideoError};

/// Luma macroblock edge; sizes off this grid would need cropping, which the model never produces.
const GRID_PX: usize = 16;
/// Largest picture openh264 encodes (level 5.2), in either orientation.
const MAX_LONG_EDGE_PX: usize = 3840;
const MAX_SHORT_EDGE_PX: usize = 2160;
const MAX_FPS: u32 = 240;
/// Media ticks per frame. With a timescale of fps x this every frame lasts a whole number of ticks.
const TICKS_PER_FRAME: u32 = 1000;

/// Constant quality: the H.264 quantiser that every macroblock uses.
///
/// Smaller is finer; +6 doubles the quantiser step. openh264 goes no finer than 12.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quality {
    qp: u8,
}

impl Quality {
    /// The finest quantiser that openh264 encodes with.
    pub const FINEST_QP: u8 = 12;
    /// The coarsest quantiser of H.264.
    pub const COARSEST_QP: u8 = 51;

    /// A quality with quantiser `qp`.
    ///
    /// # Errors
    /// [`VideoError::Settings`] outside [`FINEST_QP`](Self::FINEST_QP)..=[`COARSEST_QP`](Self::COARSEST_QP).
    pub fn from_qp(qp: u8) -> Result<Self> {
        if (Self::FINEST_QP..=Self::COARSEST_QP).contains(&qp) {
            return Ok(Self { qp });
        }
        Err(VideoError::Settings(format!(
            "video quality {qp} is out of range: choose {} (finest) to {} (coarsest)",
            Self::FINEST_QP,
            Self::COARSEST_QP
        )))
    }

    /// The quantiser.
    pub fn qp(self) -> u8 {
        self.qp
    }
}

impl Default for Quality {
    /// Visually lossless for most material.
    fn default() -> Self {
        Self { qp: 18 }
    }
}

/// What the video shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VideoSettings {
    /// Width in pixels, a multiple of 16.
    pub width: usize,
    /// Height in pixels, a multiple of 16.
    pub height: usize,
    /// Frames per second, all of the same duration.
    pub fps: u32,
    /// Constant quality of every frame.
    pub quality: Quality,
}

impl VideoSettings {
    /// Settings of the given size and rate at the default quality.
    pub fn new(width: usize, height: usize, fps: u32) -> Self {
        Self { width, height, fps, quality: Quality::default() }
    }

    /// Numbers in one frame: height x width x 3.
    pub fn frame_len(&self) -> usize {
        self.width * self.height * 3
    }

    /// Media ticks per second.
    pub(super) fn timescale(&self) -> u32 {
        self.fps * TICKS_PER_FRAME
    }

    /// Media ticks per frame.
    pub(super) fn ticks_per_frame(&self) -> u32 {
        TICKS_PER_FRAME
    }

    /// Frames from one keyframe to the next: two seconds, so that seeking decodes little.
    pub(super) fn keyframe_interval_frames(&self) -> u32 {
        self.fps * 2
    }

    /// Whether the encoder that is built in can make such a video.
    ///
    /// # Errors
    /// [`VideoError::Settings`] naming the first value out of range.
    pub fn check(&self) -> Result<()> {
        let (short, long) = (self.width.min(self.height), self.width.max(self.height));
        if long > MAX_LONG_EDGE_PX || short > MAX_SHORT_EDGE_PX {
            return Err(VideoError::Settings(format!(
                "video size {}x{} is too large: H.264 is encoded up to {MAX_LONG_EDGE_PX}x{MAX_SHORT_EDGE_PX}",
                self.width, self.height
            )));
        }
        // Both limits are multiples of the grid, so the nearest edge is within them.
        check_edge("width", self.width)?;
        check_edge("height", self.height)?;
        if !(1..=MAX_FPS).contains(&self.fps) {
            return Err(VideoError::Settings(format!(
                "frame rate {} is out of range: choose 1 to {MAX_FPS} frames per second",
                self.fps
            )));
        }
        Ok(())
    }
}

fn check_edge(name: &str, edge_px: usize) -> Result<()> {
    if edge_px > 0 && edge_px.is_multiple_of(GRID_PX) {
        return Ok(());
    }
    let nearest_px = (edge_px.saturating_add(GRID_PX / 2) / GRID_PX).max(1) * GRID_PX;
    Err(VideoError::Settings(format!(
        "video {name} {edge_px} is not a positive multiple of {GRID_PX}: the nearest is {nearest_px}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(width: usize, height: usize, fps: u32) -> String {
        VideoSettings::new(width, height, fps).check().unwrap_err().to_string()
    }

    #[test]
    fn sizes_off_the_grid_are_refused_with_the_nearest_size() {
        assert_eq!(refusal(70, 64, 16), "video width 70 is not a positive multiple of 16: the nearest is 64");
        assert_eq!(
            refusal(64, 73, 16),
            "video height 73 is not a positive multiple of 16: the nearest is 80"
        );
        assert!(refusal(0, 64, 16).ends_with("the nearest is 16"));
        assert!(refusal(3839, 2159, 16).ends_with("the nearest is 3840"));
        assert!(refusal(64, 5000, 16).contains("up to 3840x2160"));
    }

    #[test]
    fn sizes_and_rates_beyond_the_encoder_are_refused() {
        assert!(refusal(3840, 2176, 16).contains("too large"));
        assert!(refusal(64, 64, 0).contains("frame rate 0"));
        assert!(refusal(64, 64, 241).contains("frame rate 241"));
        assert!(VideoSettings::new(2160, 3840, 240).check().is_ok());
        assert!(VideoSettings::new(16, 16, 1).check().is_ok());
    }

    #[test]
    fn qualities_that_the_encoder_would_silently_change_are_refused() {
        assert!(Quality::from_qp(11).is_err());
        assert!(Quality::from_qp(52).is_err());
        assert_eq!(Quality::from_qp(51).unwrap().qp(), 51);
    }
}
