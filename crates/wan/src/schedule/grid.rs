//! Noise levels and timesteps, with the reference's own order of operations: timesteps are truncated to whole numbers,
//! so the last bit before the truncation matters.

use super::TRAIN_TIMESTEPS;

/// Timesteps, and noise levels with the final 0.
type Levels = (Vec<f64>, Vec<f64>);

/// `count` evenly spaced numbers from `start` towards `stop`, of which `intervals` steps would reach it; in the roundings
/// of `numpy.linspace`.
fn evenly(start: f64, stop: f64, intervals: usize, count: usize) -> impl Iterator<Item = f64> {
    let spacing = (stop - start) / intervals.max(1) as f64;
    (0..count).map(move |at| if at == intervals && at > 0 { stop } else { at as f64 * spacing + start })
}

fn shifted(sigma: f64, shift: f64) -> f64 {
    shift * sigma / (1.0 + (shift - 1.0) * sigma)
}

#[expect(clippy::cast_possible_truncation, reason = "noise levels are f32 in every reference")]
fn rounded(sigma: f64) -> f64 {
    f64::from(sigma as f32)
}

fn with_whole_timesteps(sigmas: &[f64]) -> Levels {
    let timesteps = sigmas.iter().map(|sigma| (sigma * TRAIN_TIMESTEPS).trunc()).collect();
    let sigmas = sigmas.iter().map(|&sigma| rounded(sigma)).chain([0.0]).collect();
    (timesteps, sigmas)
}

/// `UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=shift)`.
pub(super) fn diffusers(steps: usize, shift: f64) -> Levels {
    /// Pure noise has no finite signal-to-noise ratio, so the first level stays this far below 1.
    const BELOW_ONE: f64 = 1e-6;
    let mut sigmas: Vec<f64> =
        evenly(1.0, 1.0 / TRAIN_TIMESTEPS, steps, steps).map(|sigma| shifted(sigma, shift)).collect();
    if (sigmas[0] - 1.0).abs() < BELOW_ONE {
        sigmas[0] -= BELOW_ONE;
    }
    with_whole_timesteps(&sigmas)
}

/// `FlowUniPCMultistepScheduler(shift=1).set_timesteps(steps, shift=shift)`.
pub(super) fn official(steps: usize, shift: f64) -> Levels {
    /// The highest level of the training table, which holds `f32`.
    const HIGHEST: f32 = 0.999;
    let sigmas: Vec<f64> =
        evenly(f64::from(HIGHEST), 0.0, steps, steps).map(|sigma| shifted(sigma, shift)).collect();
    with_whole_timesteps(&sigmas)
}

/// `FlowMatchEulerDiscreteScheduler(shift=shift)`: the ends of its table are shifted in `f32` when it is made, then every
/// level between them is shifted again, and timesteps are not truncated.
#[expect(clippy::cast_possible_truncation, reason = "the reference computes these in f32")]
pub(super) fn diffusers_euler(steps: usize, shift: f64) -> Levels {
    let end =
        |sigma: f32| f64::from(shift as f32 * sigma / (1.0 + (shift - 1.0) as f32 * sigma)) * TRAIN_TIMESTEPS;
    let sigmas: Vec<f64> = evenly(end(1.0), end(0.001), steps - 1, steps)
        .map(|timestep| rounded(shifted(timestep / TRAIN_TIMESTEPS, shift)))
        .collect();
    let timesteps = sigmas.iter().map(|&sigma| f64::from(sigma as f32 * TRAIN_TIMESTEPS as f32)).collect();
    (timesteps, sigmas.into_iter().chain([0.0]).collect())
}
