//! How far two videos are from each other: PSNR and SSIM of the parts that are worth telling apart.
//!
//! A long video that is made block by block drifts from any other run of it, so its first block says what a change did, and
//! the rest how it grew.

mod frames;
mod ssim;

use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use crate::error::{EngineError, Result};
use frames::Frames;

/// Frames a second of files that do not say.
const FPS: f64 = 16.0;

/// One part of two videos, compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// `first_block`, `seconds_0_to_2`, `seconds_2_to_5` or `whole`.
    pub name: &'static str,
    /// The frames it covers.
    pub frames: Range<usize>,
    /// Peak signal-to-noise ratio in dB, of the mean square over all numbers of the part; infinite where they are equal.
    pub psnr_db: f64,
    /// Structural similarity, the mean over frames and colour channels.
    pub ssim: f64,
    /// The lowest PSNR of a single frame in dB.
    pub psnr_least_db: f64,
}

/// Compares two videos or files of frames, frame by frame.
///
/// `block_frames` are the latent frames of the first block; the first of them is one frame, the others are four each.
///
/// # Errors
/// When a file cannot be read or holds numbers that are not finite, or the two differ in size or length.
pub fn compare(a: &Path, b: &Path, block_frames: usize, fps: Option<f64>) -> Result<Vec<Part>> {
    let (mut left, mut right) = (Frames::open(a)?, Frames::open(b)?);
    let (shape, other) = (left.shape(), right.shape());
    if shape != other {
        return Err(EngineError::Request(format!(
            "{} has {}, {} has {}: only videos of one size and length can be compared",
            a.display(),
            said(shape),
            b.display(),
            said(other)
        )));
    }
    let (frames, height, width) = shape;
    if frames == 0 || height.min(width) < ssim::WINDOW {
        let least = ssim::WINDOW;
        let message = format!("has {}; comparing takes 1 frame of {least}x{least}", said(shape));
        return Err(EngineError::file(a, message));
    }
    let fps = fps.or(left.fps()).or(right.fps()).unwrap_or(FPS);
    let (mut x, mut y) = (Vec::new(), Vec::new());
    let mut measured = Vec::with_capacity(frames);
    for _ in 0..frames {
        left.next_into(&mut x)?;
        right.next_into(&mut y)?;
        measured.push((mean_square(&x, &y), similarity(&x, &y, width)));
    }
    Ok(parts(frames, block_frames, fps)
        .into_iter()
        .map(|(name, range)| part(name, range, &measured))
        .collect())
}

/// Frames, height and width of a video or a file of frames.
///
/// # Errors
/// When it cannot be read, or is neither.
pub fn shape_of(path: &Path) -> Result<[usize; 3]> {
    let (frames, height, width) = Frames::open(path)?.shape();
    Ok([frames, height, width])
}

/// Reads a video or a file of frames to its end.
///
/// # Errors
/// When [`compare`] could not read one of its frames.
pub fn read_through(path: &Path) -> Result<()> {
    let mut frames = Frames::open(path)?;
    let mut frame = Vec::new();
    for _ in 0..frames.shape().0 {
        frames.next_into(&mut frame)?;
    }
    Ok(())
}

/// A length and a size in words.
fn said((frames, height, width): (usize, usize, usize)) -> String {
    format!("{frames} frame{} of {width}x{height}", if frames == 1 { "" } else { "s" })
}

/// The parts that a video of so many frames has.
fn parts(frames: usize, block_frames: usize, fps: f64) -> Vec<(&'static str, Range<usize>)> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and saturates"
    )]
    let at = |seconds: f64| ((seconds * fps).round() as usize).min(frames);
    let first = (block_frames.saturating_sub(1).saturating_mul(4) + 1).min(frames);
    let all = [
        ("first_block", 0..first),
        ("seconds_0_to_2", 0..at(2.0)),
        ("seconds_2_to_5", at(2.0)..at(5.0)),
        ("whole", 0..frames),
    ];
    all.into_iter().filter(|(_, range)| !range.is_empty()).collect()
}

fn part(name: &'static str, frames: Range<usize>, measured: &[(f64, f64)]) -> Part {
    let of_part = &measured[frames.clone()];
    let mean = |value: fn(&(f64, f64)) -> f64| of_part.iter().map(value).sum::<f64>() / of_part.len() as f64;
    let worst = of_part.iter().map(|m| m.0).fold(0.0, f64::max);
    Part {
        name,
        frames,
        psnr_db: decibels(mean(|m| m.0)),
        ssim: mean(|m| m.1),
        psnr_least_db: decibels(worst),
    }
}

/// PSNR of values in 0..1.
fn decibels(mean_square: f64) -> f64 {
    -10.0 * mean_square.log10()
}

fn mean_square(a: &[f32], b: &[f32]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    sum / a.len() as f64
}

/// SSIM of two frames, the mean over the three channels.
fn similarity(a: &[f32], b: &[f32], width: usize) -> f64 {
    let plane = |rgb: &[f32], channel: usize| -> Vec<f64> {
        rgb.iter().skip(channel).step_by(3).map(|x| f64::from(*x)).collect()
    };
    let channels: Vec<f64> =
        (0..3).into_par_iter().map(|c| ssim::ssim(&plane(a, c), &plane(b, c), width)).collect();
    channels.iter().sum::<f64>() / 3.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::TensorWriter;
    use crate::video::{Mp4Writer, Quality, VideoSettings};

    const SIDE: usize = 32;

    fn frame(index: usize, shade: f32) -> Vec<f32> {
        let value = |i: usize| 0.5 + 0.3 * ((i / 3 % SIDE + 2 * index) as f32 / 9.0).sin() + shade;
        (0..SIDE * SIDE * 3).map(value).collect()
    }

    fn write_frames(path: &Path, frames: &[Vec<f32>]) {
        let mut writer = TensorWriter::create(path, "frames", &[frames.len(), SIDE, SIDE, 3]).unwrap();
        for frame in frames {
            writer.push(frame.iter().copied()).unwrap();
        }
        writer.finish().unwrap();
    }

    #[test]
    fn a_shade_of_a_tenth_from_frame_nine_on_is_told_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        write_frames(&a, &(0..41).map(|i| frame(i, 0.0)).collect::<Vec<_>>());
        write_frames(&b, &(0..41).map(|i| frame(i, if i < 9 { 0.0 } else { 0.1 })).collect::<Vec<_>>());
        let parts = compare(&a, &b, 3, None).unwrap();
        let ranges: Vec<_> = parts.iter().map(|part| (part.name, part.frames.clone())).collect();
        let expected =
            [("first_block", 0..9), ("seconds_0_to_2", 0..32), ("seconds_2_to_5", 32..41), ("whole", 0..41)];
        assert_eq!(ranges, expected);
        assert!(parts[0].psnr_db.is_infinite() && (parts[0].ssim - 1.0).abs() < 1e-9);
        assert!((parts[2].psnr_db - 20.0).abs() < 1e-4 && (parts[2].psnr_least_db - 20.0).abs() < 1e-4);
        let share = 10.0 * (32.0f64 / 41.0).log10();
        assert!((parts[3].psnr_db - (20.0 - share)).abs() < 1e-4, "{parts:?}");
        assert!(parts[2].ssim < parts[3].ssim && parts[3].ssim < 1.0);
    }

    #[test]
    fn a_video_is_close_to_the_frames_it_was_made_of_and_says_its_rate() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("frames"), dir.path().join("video"));
        let frames: Vec<_> = (0..20).map(|i| frame(i, 0.0)).collect();
        write_frames(&a, &frames);
        let settings =
            VideoSettings { quality: Quality::from_qp(12).unwrap(), ..VideoSettings::new(SIDE, SIDE, 4) };
        let mut video = Mp4Writer::create(&b, settings).unwrap();
        for frame in &frames {
            video.push(frame).unwrap();
        }
        video.finish().unwrap();
        let parts = compare(&a, &b, 1, None).unwrap();
        assert_eq!(parts[1].frames, 0..8, "two seconds at four frames a second");
        assert!(parts.iter().all(|part| part.psnr_db > 38.0 && part.ssim > 0.97), "{parts:?}");
    }

    #[test]
    fn files_that_cannot_be_compared_are_refused_with_both_shapes_or_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        write_frames(&at("a"), &[frame(0, 0.0), frame(1, 0.0)]);
        write_frames(&at("b"), &[frame(0, 0.0)]);
        let refusal = |a: &str, b: &str| compare(&at(a), &at(b), 3, None).unwrap_err().to_string();
        let lengths = refusal("a", "b");
        assert!(lengths.contains("2 frames of 32x32") && lengths.contains("1 frame of 32x32"), "{lengths}");
        std::fs::write(at("text"), "neither a video nor frames, but long enough").unwrap();
        assert!(refusal("a", "text").contains("neither a video"));
        assert!(refusal("a", "missing").contains("missing"));
        let whole = std::fs::read(at("a")).unwrap();
        std::fs::write(at("cut"), &whole[..whole.len() - 7]).unwrap();
        assert!(refusal("a", "cut").contains("its header says"));
        let mut spoilt = whole;
        let last = spoilt.len() - 4;
        spoilt[last..].copy_from_slice(&f32::NAN.to_le_bytes());
        std::fs::write(at("spoilt"), spoilt).unwrap();
        let position = 2 * SIDE * SIDE * 3 - 1;
        assert!(refusal("a", "spoilt").contains(&format!("NaN at position {position}")));
        assert!(read_through(&at("spoilt")).is_err() && read_through(&at("a")).is_ok());
    }
}
