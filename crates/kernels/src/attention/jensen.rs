//! What quantized keys steal, given back.
//!
//! Noise of a key is zero on average, but a weight is an exponential, and the average of exponentials lies above the
//! exponential of the average: keys in few bits draw weight away from exact ones. With noise uniform over a step, a logit's
//! variance is `scale^2 * sum_g |q_g|^2 * step_g^2 / 12` and half of it is too much on average (arXiv 2605.26266), so that much
//! is taken off. It needs nothing stored: steps are in the page, and `|q_g|^2` is one pass over the query.

use std::f32::consts::LOG2_E;

use super::scratch::TILE_KEYS;
use crate::isa::by_isa;
use crate::micro::NR;

/// Most that is taken off a logit, in units of ln 2. The noise of a page is one draw, not its average: where half its variance
/// is larger than the logarithm of the number of keys, no key of a page is likely to have drawn it.
const MOST: f32 = 8.0 * LOG2_E;

/// `query_noise` of a span from the sum of the query's squares over it, for logits in units of ln 2.
pub(super) fn noise(scale: f32, squares: f32) -> f32 {
    scale * scale * squares * (LOG2_E / 24.0)
}

by_isa! {
    /// Scales the products `[keys, NR]` of a panel to units of ln 2 and takes off what their keys' steps
    /// `[spans, TILE_KEYS]` add on average; `noise` is that of the panel, spans `noise_stride` apart.
    pub(super) fn correct(
        logits: &mut [f32],
        scale: &[f32; NR],
        steps: &[f32],
        noise: &[f32],
        noise_stride: usize,
    ) = correct_inner
}

#[inline(always)]
fn correct_inner(logits: &mut [f32], scale: &[f32; NR], steps: &[f32], noise: &[f32], noise_stride: usize) {
    for (key, logits) in logits.as_chunks_mut::<NR>().0.iter_mut().enumerate() {
        let mut excess = [0.0_f32; NR];
        for (steps, noise) in steps.chunks_exact(TILE_KEYS).zip(noise.chunks(noise_stride)) {
            let square = steps[key] * steps[key];
            for i in 0..NR {
                excess[i] = square.mul_add(noise[i], excess[i]);
            }
        }
        for i in 0..NR {
            let excess = if excess[i] > MOST { MOST } else { excess[i] };
            logits[i] = logits[i].mul_add(scale[i], -excess);
        }
    }
}
