//! UniPC of order 2 as one linear combination per step.
//!
//! With `alpha = 1 - sigma`, `lambda = ln(alpha / sigma)` and `h` the change of `lambda` over a step, step `i`
//! 1. estimates the clean sample, `m = sample - sigma * velocity`;
//! 2. corrects `sample`, with the order that step `i - 1` predicted it with, from the corrected sample of step `i - 1`
//!    and the estimates `m` of steps `i`, `i - 1` and (order 2) `i - 2`;
//! 3. predicts the next sample from the corrected one and from the estimates of steps `i` and (order 2) `i - 1`.
//!
//! The order is 2 except at the first and the last step, whatever the number of steps.

use crate::error::{Result, WanError};

use super::{StepInput, StepOutput};

/// Weights of `to = sample * .. + newest * .. + m0 * .. + m1 * ..`, where `m0` is the clean estimate at the level that is
/// left and `m1` the one before it. `newest` is that at the level that is reached, known only to the corrector.
#[derive(Clone, Copy, Debug)]
struct Weights {
    sample: f64,
    newest: f64,
    m0: f64,
    m1: f64,
}

/// The part of a step that predictor and corrector share.
struct Stride {
    /// Change of lambda.
    h: f64,
    /// Change of lambda over the stride before, relative to this one; negative.
    ratio: f64,
    /// `alpha * (e^-h - 1)`, alpha being that of the level reached.
    gain: f64,
    /// Ratio of noise levels.
    shrink: f64,
}

fn lambda(sigma: f64) -> f64 {
    (1.0 - sigma).ln() - sigma.ln()
}

impl Stride {
    /// From level `from` to the next; `from` of 0 has no stride before it and is taken with order 1.
    fn new(sigmas: &[f64], from: usize) -> Self {
        let (here, there) = (sigmas[from], sigmas[from + 1]);
        let h = lambda(there) - lambda(here);
        let before = from.checked_sub(1).map_or(h, |before| lambda(sigmas[before]) - lambda(here));
        Self { h, ratio: before / h, gain: (1.0 - there) * (-h).exp_m1(), shrink: there / here }
    }

    /// Weights for given multiples of `(m1 - m0) / ratio` and of `newest - m0`.
    fn weights(&self, of_past: f64, of_newest: f64) -> Weights {
        let m1 = -self.gain * of_past / self.ratio;
        let newest = -self.gain * of_newest;
        Weights { sample: self.shrink, newest, m0: -self.gain - m1 - newest, m1 }
    }

    /// Predictor.
    fn predict(&self, order: usize) -> Weights {
        self.weights(if order == 2 { 0.5 } else { 0.0 }, 0.0)
    }

    /// Corrector; of order 2 it solves `rho_0 + rho_1 = b_1`, `ratio * rho_0 + rho_1 = b_2`.
    fn correct(&self, order: usize) -> Weights {
        if order == 1 {
            return self.weights(0.0, 0.5);
        }
        let growth = (-self.h).exp_m1();
        let phi_2 = growth / -self.h - 1.0;
        let phi_3 = phi_2 / -self.h - 0.5;
        let (b_1, b_2) = (phi_2 / growth, 2.0 * phi_3 / growth);
        let rho_0 = (b_1 - b_2) / (1.0 - self.ratio);
        self.weights(rho_0, b_1 - rho_0)
    }
}

/// The order with which step `index` predicts.
fn order(steps: usize, index: usize) -> usize {
    2.min(steps - index).min(index + 1)
}

/// One step; see [`super::Schedule::step`], which has checked the index and the lengths of everything but the history.
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
pub(super) fn step(
    sigmas: &[f64],
    index: usize,
    input: &StepInput<'_>,
    output: StepOutput<'_>,
) -> Result<()> {
    let steps = sigmas.len() - 1;
    let sigma = sigmas[index];
    let now = order(steps, index);
    let predict = (index + 1 < steps).then(|| Stride::new(sigmas, index).predict(now));
    let correct = (index > 0).then(|| {
        let order = order(steps, index - 1);
        (Stride::new(sigmas, index - 1).correct(order), order)
    });
    let past = Past::new(index, correct.is_some_and(|(_, order)| order == 2), input)?;

    let StepOutput { next, mut x0, mut corrected } = output;
    for at in 0..next.len() {
        let clean = f64::from((f64::from(input.sample[at]) - sigma * f64::from(input.velocity[at])) as f32);
        let (m0, m1) = (past.m0(at), past.m1(at));
        let mut sample = f64::from(input.sample[at]);
        if let Some((weights, _)) = correct {
            sample =
                weights.sample * past.sample(at) + weights.newest * clean + weights.m0 * m0 + weights.m1 * m1;
            sample = f64::from(sample as f32);
        }
        // The last level has no noise left: the clean estimate is the sample.
        next[at] = predict.map_or(clean, |to| to.sample * sample + to.m0 * clean + to.m1 * m0) as f32;
        if let Some(x0) = &mut x0 {
            x0[at] = clean as f32;
        }
        if let Some(corrected) = &mut corrected {
            corrected[at] = sample as f32;
        }
    }
    Ok(())
}

/// The history that a step reads; what it does not read is empty and counts as 0.
struct Past<'a> {
    m0: &'a [f32],
    m1: &'a [f32],
    sample: &'a [f32],
}

impl<'a> Past<'a> {
    fn new(index: usize, second: bool, input: &StepInput<'a>) -> Result<Self> {
        let piece = |what: &str, given: Option<&'a [f32]>, needed: bool| -> Result<&'a [f32]> {
            let len = input.sample.len();
            match given {
                _ if !needed => Ok(&[]),
                Some(piece) if piece.len() == len => Ok(piece),
                Some(piece) => Err(WanError::mismatch(format!("{what} for step {index}"), piece.len(), len)),
                None => Err(WanError::mismatch(format!("{what} for step {index}"), "none", len)),
            }
        };
        Ok(Self {
            m0: piece("clean estimate of the step before", input.history.x0[0], index > 0)?,
            m1: piece("clean estimate of two steps before", input.history.x0[1], second)?,
            sample: piece("corrected sample of the step before", input.history.corrected, index > 0)?,
        })
    }

    fn m0(&self, at: usize) -> f64 {
        self.m0.get(at).map_or(0.0, |&x| f64::from(x))
    }

    fn m1(&self, at: usize) -> f64 {
        self.m1.get(at).map_or(0.0, |&x| f64::from(x))
    }

    fn sample(&self, at: usize) -> f64 {
        self.sample.get(at).map_or(0.0, |&x| f64::from(x))
    }
}
