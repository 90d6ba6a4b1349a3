//! Frames that a convolution leaves in pairs.

use crate::tasks;

/// Sets the frames of `pairs` `[pairs, pixels, 2, channels]` one after the other: `out` is `[pairs, 2, pixels, channels]`.
///
/// # Panics
/// When the lengths differ or are not whole pairs of frames.
pub fn split_pairs(pairs: &[f32], pixels: usize, channels: usize, out: &mut [f32]) {
    assert_eq!(pairs.len(), out.len(), "split_pairs: pairs and out must be of one length");
    let pair_len = 2 * pixels * channels;
    assert!(
        out.is_empty() || (pair_len > 0 && out.len().is_multiple_of(pair_len)),
        "split_pairs: out must be [pairs, 2, {pixels}, {channels}]"
    );
    tasks::rows(out, channels, |at, chunk| {
        for (row, to) in (at / channels..).zip(chunk.chunks_exact_mut(channels)) {
            let (pair, second, pixel) = (row / (2 * pixels), row / pixels % 2, row % pixels);
            let from = 2 * (pair * pixels + pixel) + second;
            to.copy_from_slice(&pairs[from * channels..][..channels]);
        }
    });
}
