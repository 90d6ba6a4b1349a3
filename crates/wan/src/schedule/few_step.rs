//! Sampling in a few steps that a checkpoint was distilled to, as Self-Forcing and FastVideo's causal pipeline do it.
//!
//! Every step predicts where its expert leads and goes back to the next step's noise level with fresh noise. The
//! low-noise expert, or the only one, leads to the clean sample `x0 = x - s v`; then `x = (1 - s') x0 + s' noise`. The
//! high-noise expert leads to the boundary, `x_b = x - (s - s_b) v`; then `x = a x_b + b noise` with
//! `a = (1 - s') / (1 - s_b)` and `b = sqrt(s'^2 - (a s_b)^2)`, which has the noise level `s'` again, and from its last
//! step `x_b` goes on to the other expert as it is.
//!
//! References: `pipeline/causal_inference.py` and `utils/wan_wrapper.py` of Self-Forcing;
//! `pipelines/stages/causal_denoising.py` and `SelfForcingFlowMatchScheduler` of FastVideo.

use super::{StepInput, TRAIN_TIMESTEPS};
use crate::error::{Result, WanError};

/// Entries of the table that steps are warped into.
const TABLE: u16 = 1000;

/// Where the steps of two experts meet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Meeting {
    /// Steps of the high-noise expert.
    pub(super) high_steps: usize,
    /// Noise level that it leads to.
    sigma: f64,
}

#[expect(clippy::cast_possible_truncation, reason = "the reference's table is f32")]
fn rounded(number: f64) -> f64 {
    f64::from(number as f32)
}

/// Noise level of table entry `at`, of which the first is pure noise.
fn table(at: u16, shift: f64) -> f64 {
    let sigma = 1.0 - f64::from(at) / f64::from(TABLE);
    rounded(shift * sigma / (1.0 + (shift - 1.0) * sigma))
}

/// Timesteps, noise levels with the final 0, and where experts that meet at `boundary` (of all timesteps) do so.
pub(super) fn levels(
    steps: &[usize],
    shift: f64,
    boundary: Option<f64>,
) -> Result<(Vec<f64>, Vec<f64>, Option<Meeting>)> {
    let entry = |step: &usize| u16::try_from(*step).ok().and_then(|step| TABLE.checked_sub(step));
    let entries: Option<Vec<u16>> = steps.iter().map(entry).collect();
    let falling = |entries: &Vec<u16>| {
        entries.windows(2).all(|pair| pair[0] < pair[1]) && entries.last().is_some_and(|last| *last < TABLE)
    };
    let entries = entries.filter(falling).ok_or_else(|| {
        WanError::Request(format!("steps: got {steps:?}, expected falling whole numbers from 1000 to 1"))
    })?;
    let sigmas: Vec<f64> = entries.iter().map(|at| table(*at, shift)).collect();
    let timesteps: Vec<f64> = sigmas.iter().map(|sigma| rounded(sigma * TRAIN_TIMESTEPS)).collect();
    let meeting = boundary.map(|boundary| {
        let boundary = boundary * TRAIN_TIMESTEPS;
        let distance = |at: &u16| (table(*at, shift) * TRAIN_TIMESTEPS - boundary).abs();
        let nearest = (0..TABLE).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0);
        let high_steps = timesteps.iter().filter(|timestep| **timestep >= boundary).count();
        Meeting { high_steps, sigma: table(nearest, shift) }
    });
    if meeting.is_some_and(|meeting| meeting.high_steps == steps.len()) {
        let message = "the last step belongs to the high-noise expert, expected one below the boundary";
        return Err(WanError::Request(format!("steps: got {steps:?}, of which {message}")));
    }
    Ok((timesteps, sigmas.into_iter().chain([0.0]).collect(), meeting))
}

/// Whether step `index` of `steps` goes back to a noise level with fresh noise.
pub(super) fn draws_noise(index: usize, steps: usize, meeting: Option<Meeting>) -> bool {
    index + 1 < steps && meeting.is_none_or(|meeting| index + 1 != meeting.high_steps)
}

/// One step; see [`super::Schedule::step`], which has checked the index and all lengths but the noise's.
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
pub(super) fn step(
    sigmas: &[f64],
    meeting: Option<Meeting>,
    index: usize,
    input: &StepInput<'_>,
    next: &mut [f32],
) -> Result<()> {
    let steps = sigmas.len() - 1;
    let meeting = meeting.filter(|meeting| index < meeting.high_steps);
    let change = sigmas[index] - meeting.map_or(0.0, |meeting| meeting.sigma);
    let led = |at: usize| (f64::from(input.sample[at]) - change * f64::from(input.velocity[at])) as f32;
    if !draws_noise(index, steps, meeting) {
        next.iter_mut().enumerate().for_each(|(at, next)| *next = led(at));
        return Ok(());
    }
    let noise = input.noise.filter(|noise| noise.len() == next.len()).ok_or_else(|| {
        let got = input.noise.map_or_else(|| "none".to_owned(), |noise| noise.len().to_string());
        WanError::mismatch(format!("noise of step {index}"), got, next.len())
    })?;
    let sigma = sigmas[index + 1];
    let (kept, added) = match meeting {
        None => (1.0 - sigma, sigma),
        Some(meeting) => {
            let kept = (1.0 - sigma) / (1.0 - meeting.sigma);
            (kept, (sigma * sigma - (kept * meeting.sigma).powi(2)).sqrt())
        }
    };
    for (at, next) in next.iter_mut().enumerate() {
        *next = (kept * f64::from(led(at)) + added * f64::from(noise[at])) as f32;
    }
    Ok(())
}
