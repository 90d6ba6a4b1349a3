//! A few small pictures of a finished video.

use std::path::Path;

use super::error::Result;
use super::reader::Mp4Reader;

/// One small picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thumbnail {
    /// The frame it shows, from 0.
    pub frame: usize,
    /// Pixels across.
    pub width: usize,
    /// Pixels down.
    pub height: usize,
    /// Row by row, red, green and blue.
    pub rgb: Vec<u8>,
}

/// At most `count` frames spread evenly over the video at `path`, first and last included, no side longer than `side` pixels.
/// Reads the whole video, since frames build on each other, and keeps one of them at a time.
///
/// # Errors
/// When the file is no MP4 with H.264.
pub fn thumbnails(path: &Path, count: usize, side: usize) -> Result<Vec<Thumbnail>> {
    let mut video = Mp4Reader::open(path)?;
    let (frames, width, height) = (video.frames(), video.width(), video.height());
    let count = count.clamp(1, frames);
    let picked = |i: usize| if count == 1 { 0 } else { i * (frames - 1) / (count - 1) };
    let step = width.max(height).div_ceil(side.max(1));
    let (mut found, mut rgb) = (Vec::with_capacity(count), Vec::new());
    for frame in 0..frames {
        video.next_into(&mut rgb)?;
        if picked(found.len()) == frame {
            found.push(shrunk(frame, &rgb, (width, height), step));
        }
        if found.len() == count {
            break;
        }
    }
    Ok(found)
}

/// Every pixel the mean of `step` x `step` pixels; what is left at the right and at the bottom is cut off.
fn shrunk(frame: usize, rgb: &[f32], (width, height): (usize, usize), step: usize) -> Thumbnail {
    let (across, down) = ((width / step).max(1), (height / step).max(1));
    let mean = |x: usize, y: usize, channel: usize| {
        let (columns, rows) = (step.min(width), step.min(height));
        let at = |k: usize| rgb[((y * step + k / columns) * width + x * step + k % columns) * 3 + channel];
        (0..columns * rows).map(at).sum::<f32>() / (columns * rows) as f32
    };
    let mut small = Vec::with_capacity(across * down * 3);
    for (y, x, channel) in
        (0..down).flat_map(|y| (0..across).flat_map(move |x| (0..3).map(move |channel| (y, x, channel))))
    {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "frames lie in 0..=1")]
        small.push((mean(x, y, channel) * 255.0).round() as u8);
    }
    Thumbnail { frame, width: across, height: down, rgb: small }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::video::{Mp4Writer, Quality, VideoSettings};

    #[test]
    fn they_are_spread_over_the_video_and_show_it_small() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.mp4");
        let settings =
            VideoSettings { quality: Quality::from_qp(12).unwrap(), ..VideoSettings::new(96, 48, 8) };
        let mut video = Mp4Writer::create(&path, settings).unwrap();
        for index in 0..11u8 {
            let shade = f32::from(index) / 10.0;
            let pixel = |i: usize| if i / 3 % 96 < 48 { shade } else { 1.0 - shade };
            video.push(&(0..settings.frame_len()).map(pixel).collect::<Vec<_>>()).unwrap();
        }
        video.finish().unwrap();
        let found = thumbnails(&path, 3, 32).unwrap();
        let places: Vec<_> = found.iter().map(|t| (t.frame, t.width, t.height, t.rgb.len())).collect();
        assert_eq!(places, [(0, 32, 16, 1536), (5, 32, 16, 1536), (10, 32, 16, 1536)]);
        let near = |got: u8, wanted: i32| (i32::from(got) - wanted).abs() <= 6;
        assert!(near(found[0].rgb[0], 0) && near(found[0].rgb[31 * 3], 255));
        assert!(near(found[2].rgb[0], 255) && near(found[2].rgb[31 * 3], 0));
        assert_eq!(thumbnails(&path, 99, 96).unwrap().len(), 11);
        assert_eq!(thumbnails(&path, 1, 1).unwrap()[0].rgb.len(), 3);
    }
}
