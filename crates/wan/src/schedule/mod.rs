//! Noise levels, timesteps, and the step from one noise level to the next.
//!
//! A [`Schedule`] is plain data: everything a step needs besides numbers follows from the step's index. What lives from
//! step to step is handed in as [`History`] and handed out through [`StepOutput`]; [`Schedule::keeps`] says for how many
//! steps each piece will be read, so whoever owns it can give it the right lifetime. Nothing is kept here.
//!
//! Flow matching: a sample at noise level `sigma` is `(1 - sigma) * clean + sigma * noise`, and the model predicts the
//! velocity `noise - clean`, so the clean estimate is `sample - sigma * velocity`.
//!
//! References: `UniPCMultistepScheduler` and `FlowMatchEulerDiscreteScheduler` of diffusers 0.42, and
//! `FlowUniPCMultistepScheduler` of Wan2.2 (`wan/utils/fm_solvers_unipc.py`).

mod few_step;
mod grid;
mod unipc;

use crate::error::{Result, WanError};
use crate::weights::Component;

/// How a step moves a sample to the next noise level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Solver {
    /// UniPC with B(h) = e^h - 1 of order 2, predicting the clean sample (Zhao et al., "UniPC: A Unified
    /// Predictor-Corrector Framework for Fast Sampling of Diffusion Models", 2023).
    UniPc,
    /// One Euler step along the velocity.
    Euler,
    /// A few steps that the checkpoint was distilled to, with fresh noise between them.
    FewStep,
}

/// Which implementation's noise levels and timesteps to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Grid {
    /// Those of diffusers' schedulers.
    Diffusers,
    /// Those of the official Wan2.2 code. It has no Euler solver; with [`Solver::Euler`] its levels are used as they are.
    Official,
}

/// Most steps a schedule may have: the timesteps the model was trained on.
pub const STEPS_MAX: usize = 1000;

/// Timesteps run from 0 to this.
const TRAIN_TIMESTEPS: f64 = 1000.0;

/// The noise levels of a run and the solver that walks them.
///
/// ```
/// use evanesce_wan::schedule::{Grid, Schedule, Solver};
///
/// let schedule = Schedule::new(Solver::UniPc, Grid::Official, 40, 12.0)?;
/// assert_eq!(&schedule.timesteps()[..3], &[999.0, 997.0, 995.0]);
/// assert_eq!(schedule.sigmas().len(), 41);
/// # Ok::<(), evanesce_wan::WanError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    solver: Solver,
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
    /// Of few steps with two experts.
    meeting: Option<few_step::Meeting>,
}

/// What a step reads from the steps before it, each as long as the sample. Pieces that [`Schedule::keeps`] did not ask
/// for may be absent.
#[derive(Clone, Copy, Debug, Default)]
pub struct History<'a> {
    /// Clean estimates ([`StepOutput::x0`]) of the step before (first) and of the one before that (second).
    pub x0: [Option<&'a [f32]>; 2],
    /// The corrected sample ([`StepOutput::corrected`]) of the step before.
    pub corrected: Option<&'a [f32]>,
}

/// What the current step starts from.
#[derive(Clone, Copy, Debug)]
pub struct StepInput<'a> {
    /// The model's prediction for `sample` at this step's timestep, after guidance.
    pub velocity: &'a [f32],
    /// The sample as the step before left it, or the initial noise.
    pub sample: &'a [f32],
    /// What earlier steps left behind.
    pub history: History<'a>,
    /// Fresh noise, where [`Schedule::draws_noise`] says so.
    pub noise: Option<&'a [f32]>,
}

/// Where a step writes, each as long as the sample.
#[derive(Debug)]
pub struct StepOutput<'a> {
    /// The sample at the next noise level.
    pub next: &'a mut [f32],
    /// The clean estimate, when a later step reads it.
    pub x0: Option<&'a mut [f32]>,
    /// The sample of this step after correction, when the next step reads it.
    pub corrected: Option<&'a mut [f32]>,
}

/// For how many steps after this one its outputs are read; 0 means never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keeps {
    /// Steps that read [`StepOutput::x0`]: at most two.
    pub x0_steps: usize,
    /// Steps that read [`StepOutput::corrected`]: at most one.
    pub corrected_steps: usize,
}

impl Schedule {
    /// Lays out `steps` noise levels, pushed towards noise by `shift` (1 leaves them evenly spaced; the official A14B
    /// setting is 12).
    ///
    /// # Errors
    /// [`WanError::Request`] when `steps` is not in 1..=1000, when `shift` is not a positive number, or when so large or
    /// small a shift makes neighbouring noise levels equal.
    pub fn new(solver: Solver, grid: Grid, steps: usize, shift: f64) -> Result<Self> {
        if !(1..=STEPS_MAX).contains(&steps) {
            return Err(WanError::Request(format!("steps: got {steps}, expected 1 to {STEPS_MAX}")));
        }
        if !(shift.is_finite() && shift > 0.0) {
            return Err(WanError::Request(format!("shift: got {shift}, expected a positive number")));
        }
        let (timesteps, sigmas) = match (solver, grid) {
            (Solver::UniPc, Grid::Diffusers) => grid::diffusers(steps, shift),
            (Solver::Euler, Grid::Diffusers) => grid::diffusers_euler(steps, shift),
            (Solver::FewStep, _) => {
                let message = "solver: few steps are given by name, not by number";
                return Err(WanError::Request(message.to_owned()));
            }
            (_, Grid::Official) => grid::official(steps, shift),
        };
        let falling = sigmas.windows(2).all(|pair| pair[0] > pair[1]);
        let finite_snr = solver == Solver::Euler || sigmas[0] < 1.0;
        if !(falling && finite_snr) {
            return Err(WanError::Request(format!(
                "shift: got {shift}, which makes noise levels of {steps} steps coincide; expected one nearer to 1"
            )));
        }
        Ok(Self { solver, timesteps, sigmas, meeting: None })
    }

    /// The few steps that a checkpoint was distilled to, given by their places among 1000 evenly spaced timesteps and
    /// pushed towards noise by `shift`. Two experts meet at `boundary`, a share of all timesteps.
    ///
    /// ```
    /// use evanesce_wan::schedule::Schedule;
    ///
    /// let schedule = Schedule::few_step(&[1000, 750, 500, 250], 5.0, None)?;
    /// assert_eq!(schedule.timesteps(), [1000.0, 937.5, 833.333_312_988_281_2, 625.0]);
    /// # Ok::<(), evanesce_wan::WanError>(())
    /// ```
    ///
    /// # Errors
    /// [`WanError::Request`] when the steps do not fall from 1000 to 1, when none of them is below the boundary, or when
    /// `shift` is not a positive number.
    pub fn few_step(steps: &[usize], shift: f64, boundary: Option<f64>) -> Result<Self> {
        if !(shift.is_finite() && shift > 0.0) {
            return Err(WanError::Request(format!("shift: got {shift}, expected a positive number")));
        }
        let (timesteps, sigmas, meeting) = few_step::levels(steps, shift, boundary)?;
        Ok(Self { solver: Solver::FewStep, timesteps, sigmas, meeting })
    }

    /// Whether step `index` adds fresh noise, [`StepInput::noise`].
    #[must_use]
    pub fn draws_noise(&self, index: usize) -> bool {
        self.solver == Solver::FewStep && few_step::draws_noise(index, self.steps(), self.meeting)
    }

    /// Of few steps with two experts, how many the high-noise expert takes.
    #[must_use]
    pub fn high_steps(&self) -> Option<usize> {
        self.meeting.map(|meeting| meeting.high_steps)
    }

    /// How many steps.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// The solver.
    #[must_use]
    pub fn solver(&self) -> Solver {
        self.solver
    }

    /// The timestep that the model is told at each step, falling from 1000. Whole numbers, except for Euler on the
    /// diffusers grid and for few steps.
    #[must_use]
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// Noise levels before each step, then the final 0: one more than there are steps. Each is an `f32`, as in the
    /// reference, where rounding the first one (0.999999) moves its signal-to-noise ratio by more than 1 %.
    #[must_use]
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }

    /// For how many steps what step `index` writes will be read.
    #[must_use]
    pub fn keeps(&self, index: usize) -> Keeps {
        let left = self.steps().saturating_sub(index + 1);
        match self.solver {
            Solver::UniPc => Keeps { x0_steps: left.min(2), corrected_steps: left.min(1) },
            Solver::Euler | Solver::FewStep => Keeps { x0_steps: 0, corrected_steps: 0 },
        }
    }

    /// Takes step `index`: from noise level `sigmas()[index]` to the next.
    ///
    /// Coefficients are computed in `f64`, each output element is rounded to `f32` once.
    ///
    /// # Errors
    /// [`WanError::Mismatch`] when the index, a length or the history does not fit the schedule.
    pub fn step(&self, index: usize, input: &StepInput<'_>, output: StepOutput<'_>) -> Result<()> {
        if index >= self.steps() {
            return Err(WanError::mismatch("step index", index, format!("below {}", self.steps())));
        }
        let len = input.sample.len();
        let lengths = [
            ("velocity", Some(input.velocity.len())),
            ("next sample", Some(output.next.len())),
            ("clean estimate", output.x0.as_ref().map(|x| x.len())),
            ("corrected sample", output.corrected.as_ref().map(|x| x.len())),
        ];
        for (what, got) in lengths {
            if got.is_some_and(|got| got != len) {
                return Err(WanError::mismatch(what, got.unwrap_or_default(), len));
            }
        }
        match self.solver {
            Solver::UniPc => unipc::step(&self.sigmas, index, input, output),
            Solver::FewStep => few_step::step(&self.sigmas, self.meeting, index, input, output.next),
            Solver::Euler => {
                euler(self.sigmas[index + 1] - self.sigmas[index], input, output.next);
                Ok(())
            }
        }
    }
}

/// `next = sample + change * velocity`, where `change` is that of the noise level.
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
fn euler(change: f64, input: &StepInput<'_>, next: &mut [f32]) {
    for ((next, &sample), &velocity) in next.iter_mut().zip(input.sample).zip(input.velocity) {
        *next = (f64::from(sample) + change * f64::from(velocity)) as f32;
    }
}

/// The expert that serves a timestep: the high-noise one from `boundary` (a share of all timesteps, 0.875 for A14B) up.
#[must_use]
pub fn expert_for(timestep: f64, boundary: f64) -> Component {
    if timestep >= boundary * TRAIN_TIMESTEPS { Component::HighNoise } else { Component::LowNoise }
}
