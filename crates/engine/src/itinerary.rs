//! When a job will read which weights: known exactly before it starts, so that eviction and prefetch need not guess (law 5).
//!
//! Ticks count reads of groups. Every prompt, step and latent frame takes as many ticks as its component has groups, at
//! most [`Itinerary::stride_ticks`]; that makes positions simple to compute and keeps their order.

use evanesce_cache::{Job, Tick, Uses};
use evanesce_wan::schedule::expert_for;
use evanesce_wan::weights::{Component, GroupId};

use crate::model::Model;
use crate::request::JobSpec;
use crate::residency::Position;

/// Prompts of a job: the prompt itself, and the negative one.
const N_PROMPTS: u64 = 2;

/// The order in which one job reads weights.
#[derive(Debug)]
pub(crate) struct Itinerary {
    /// Which component serves each denoising step.
    experts: Vec<Component>,
    stride_ticks: u64,
}

impl Itinerary {
    pub(crate) fn new(model: &Model, spec: &JobSpec) -> Self {
        let timesteps = spec.schedule.timesteps().iter();
        let experts = timesteps.map(|t| model.serving(expert_for(*t, spec.boundary))).collect();
        let components =
            [Component::TextEncoder, Component::HighNoise, Component::LowNoise, Component::VaeDecoder];
        let most_groups =
            components.map(|component| model.checkpoint.groups(component).len()).into_iter().max();
        Self { experts, stride_ticks: most_groups.unwrap_or(1).max(1) as u64 }
    }

    /// The component that serves a denoising step.
    pub(crate) fn expert(&self, step: usize) -> Component {
        self.experts[step]
    }

    /// How many steps, `step` included, the expert of `step` still serves without a break.
    pub(crate) fn steps_left(&self, step: usize) -> usize {
        self.experts[step..].iter().take_while(|expert| **expert == self.experts[step]).count()
    }

    /// Where encoding prompt `prompt` stands.
    pub(crate) fn prompt(&self, prompt: usize) -> Position {
        Position { first: self.tick(prompt as u64), next: None }
    }

    /// Where a denoising step stands; its last step on an expert prefetches the next expert.
    pub(crate) fn step(&self, step: usize) -> Position {
        let next = self.experts.get(step + 1).filter(|next| **next != self.experts[step]);
        Position { first: self.step_tick(step), next: next.map(|next| (*next, self.step_tick(step + 1))) }
    }

    /// Where decoding a latent frame stands.
    pub(crate) fn latent_frame(&self, frame: usize) -> Position {
        Position { first: self.step_tick(self.experts.len() + frame), next: None }
    }

    /// Tells the cache all of it. Periodic reads cost one announcement however many they are.
    pub(crate) fn announce(&self, model: &Model, job: &Job, spec: &JobSpec) {
        self.announce_component(model, job, Component::TextEncoder, 0, N_PROMPTS);
        let mut step = 0;
        while step < self.experts.len() {
            let steps = self.steps_left(step);
            self.announce_component(model, job, self.experts[step], N_PROMPTS + step as u64, steps as u64);
            step += steps;
        }
        let decode = N_PROMPTS + self.experts.len() as u64;
        self.announce_component(model, job, Component::VaeDecoder, decode, spec.latent_frames() as u64);
    }

    fn announce_component(&self, model: &Model, job: &Job, component: Component, from_unit: u64, units: u64) {
        for index in 0..model.checkpoint.groups(component).len() {
            let first = Tick(self.tick(from_unit).0 + index as u64);
            let key = model.weights.key(GroupId { component, index });
            job.announce(key, Uses::every(self.stride_ticks, first, units));
        }
    }

    fn step_tick(&self, step: usize) -> Tick {
        self.tick(N_PROMPTS + step as u64)
    }

    fn tick(&self, unit: u64) -> Tick {
        Tick(unit * self.stride_ticks)
    }
}
