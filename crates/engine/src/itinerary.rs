//! When a job will read which weights, and which pages: known exactly before it starts, so that eviction and prefetch need
//! not guess (law 5).
//!
//! Ticks count reads of groups of weights; pages of a layer are read at the tick of its group. Every prompt, step and latent frame takes as many ticks as its component has groups, at
//! most [`Itinerary::stride_ticks`]; that makes positions simple to compute and keeps their order.

use evanesce_cache::{Job, Tick, Uses};
use evanesce_wan::schedule::expert_for;
use evanesce_wan::weights::{Component, GroupId};

use crate::blocks::{Blocks, reach};
use crate::blueprint::Blueprint;
use crate::denoise::guides;
use crate::keys::{self, BranchName};
use crate::request::JobSpec;
use crate::residency::Position;

/// Prompts of a job: the prompt itself, and the negative one.
const N_PROMPTS: u64 = 2;

/// The order in which one job reads weights: prompts, then block by block its denoising steps, its commits and its latent
/// frames.
#[derive(Debug)]
pub(crate) struct Itinerary {
    /// Which component serves each denoising step of a block, then each of its commits.
    experts: Vec<Component>,
    steps: usize,
    blocks: Blocks,
    stride_ticks: u64,
}

impl Itinerary {
    pub(crate) fn new(blueprint: &Blueprint, spec: &JobSpec) -> Self {
        let timesteps = spec.schedule.timesteps().iter();
        let mut experts: Vec<_> =
            timesteps.map(|t| blueprint.serving(expert_for(*t, spec.boundary))).collect();
        let steps = experts.len();
        if let Some(rollout) = spec.rollout {
            // The expert that was used last is still there; the one that the next block begins with comes last.
            let (last, first) = (experts[steps - 1], experts[0]);
            let committing = [last, first].map(|expert| blueprint.context_of(rollout, expert));
            experts.push(committing[0]);
            experts.extend((committing[1] != committing[0]).then_some(committing[1]));
        }
        let components =
            [Component::TextEncoder, Component::HighNoise, Component::LowNoise, Component::VaeDecoder];
        let most_groups =
            components.map(|component| blueprint.group_bytes(component).len()).into_iter().max();
        Self { experts, steps, blocks: spec.blocks(), stride_ticks: most_groups.unwrap_or(1).max(1) as u64 }
    }

    /// The component that serves a denoising step.
    pub(crate) fn expert(&self, step: usize) -> Component {
        self.experts[step]
    }

    /// How many commits end a block: none where no block follows that could see it.
    pub(crate) fn commits_of(&self, block: usize) -> usize {
        self.passes_of(block) - self.steps
    }

    /// The component of a commit.
    pub(crate) fn committing(&self, at: usize) -> Component {
        self.experts[self.steps + at]
    }

    /// How many steps, `step` included, the expert of `step` still serves without a break.
    pub(crate) fn steps_left(&self, step: usize) -> usize {
        self.run_from(step).min(self.steps - step)
    }

    /// Where encoding prompt `prompt` stands.
    pub(crate) fn prompt(&self, prompt: usize) -> Position {
        Position { first: self.tick(prompt as u64), next: None }
    }

    /// Where encoding frames stands that the video begins with: where the first step of the first block would.
    pub(crate) fn start(&self) -> Position {
        Position { next: None, ..self.step(0, 0) }
    }

    /// Where a denoising step of a block stands; the last one on an expert prefetches the next expert.
    pub(crate) fn step(&self, block: usize, step: usize) -> Position {
        self.unit(block, step)
    }

    /// Where a commit of a block stands.
    pub(crate) fn commit(&self, block: usize, at: usize) -> Position {
        self.unit(block, self.steps + at)
    }

    /// Where decoding a latent frame stands.
    pub(crate) fn latent_frame(&self, frame: usize) -> Position {
        let block = self.blocks.holding(frame);
        let at = frame - self.blocks.frames(block).start;
        let unit = self.first_unit(block) + (self.experts.len() + at) as u64;
        Position { first: self.tick(unit), next: None }
    }

    /// How many passes of a block there are: its steps, then its commits.
    pub(crate) fn passes_of(&self, block: usize) -> usize {
        if block + 1 < self.blocks.count() { self.experts.len() } else { self.steps }
    }

    /// The component of a pass.
    pub(crate) fn passing(&self, pass: usize) -> Component {
        self.experts[pass]
    }

    /// The last tick of a step of a block, by which everything that it reads has been read.
    pub(crate) fn end_of_step(&self, block: usize, step: usize) -> Tick {
        self.end(self.first_unit(block) + step as u64)
    }

    /// As [`Self::end_of_step`] for decoding a latent frame.
    pub(crate) fn end_of_latent_frame(&self, frame: usize) -> Tick {
        Tick(self.latent_frame(frame).first.0 + self.stride_ticks - 1)
    }

    /// When each read of a frame of a final sample is over: those of its block's commits, then that of its decoding.
    pub(crate) fn reads_of_final(&self, frame: usize) -> impl Iterator<Item = Tick> + '_ {
        let block = self.blocks.holding(frame);
        let commits = (0..self.commits_of(block)).map(move |at| self.end_of_step(block, self.steps + at));
        commits.chain([self.end_of_latent_frame(frame)])
    }

    /// Tells the cache what the job reads first: its prompts, `block`, and the block after it.
    pub(crate) fn announce(&self, blueprint: &Blueprint, spec: &JobSpec, job: &Job, block: usize) {
        self.announce_component(blueprint, job, Component::TextEncoder, 0, N_PROMPTS);
        self.announce_block(blueprint, spec, job, block);
        self.announce_block(blueprint, spec, job, block + 1);
    }

    /// Tells the cache what block `block` reads, if there is one: as a job begins a block it announces the next, so that
    /// next uses are known a block ahead and the plan stays small however long the video. Periodic reads cost one
    /// announcement however many they are.
    pub(crate) fn announce_block(&self, blueprint: &Blueprint, spec: &JobSpec, job: &Job, block: usize) {
        // A window that was halved leaves announcements of frames that nobody read.
        job.forget_past();
        if block >= self.blocks.count() {
            return;
        }
        let (first, passes) = (self.first_unit(block), self.passes_of(block));
        let mut at = 0;
        while at < passes {
            let run = self.run_from(at).min(passes - at);
            self.announce_component(blueprint, job, self.experts[at], first + at as u64, run as u64);
            self.announce_pages(blueprint, spec, job, block, at, run as u64);
            at += run;
        }
        let (frames, decoding) = (self.blocks.decoded(block).len(), first + self.experts.len() as u64);
        self.announce_component(blueprint, job, Component::VaeDecoder, decoding, frames as u64);
    }

    fn announce_component(
        &self,
        blueprint: &Blueprint,
        job: &Job,
        component: Component,
        from_unit: u64,
        units: u64,
    ) {
        for index in 0..blueprint.group_bytes(component).len() {
            let first = Tick(self.tick(from_unit).0 + index as u64);
            let key = blueprint.weights_key(GroupId { component, index });
            job.announce(key, Uses::every(self.stride_ticks, first, units));
        }
    }

    /// The pages that `run` passes from `at` on read: those of the text, and those of earlier frames in reach, which need
    /// not exist yet.
    fn announce_pages(
        &self,
        blueprint: &Blueprint,
        spec: &JobSpec,
        job: &Job,
        block: usize,
        at: usize,
        run: u64,
    ) {
        let expert = self.experts[at];
        let earlier = spec.rollout.map(|rollout| {
            let frames = reach(rollout, spec.block(block).frames.start).frames;
            (blueprint.context_of(rollout, expert), frames)
        });
        let first = self.tick(self.first_unit(block) + at as u64);
        for layer in 0..blueprint.expert(expert).config().layers {
            // Group 0 comes before the layers.
            let uses = Uses::every(self.stride_ticks, Tick(first.0 + layer as u64 + 1), run);
            for branch in spec.branches(expert) {
                job.announce(keys::cross_kv(expert, *branch, layer), uses);
                if let Some((owner, frames)) = &earlier {
                    for frame in frames {
                        let (key, _) = spec.page_codecs().page_read((*owner, *branch), layer, *frame, block);
                        job.announce(key, uses);
                    }
                }
            }
        }
    }

    /// How many passes from `at` on one expert serves without a break.
    fn run_from(&self, at: usize) -> usize {
        self.experts[at..].iter().take_while(|expert| **expert == self.experts[at]).count()
    }

    fn unit(&self, block: usize, at: usize) -> Position {
        let unit = self.first_unit(block) + at as u64;
        let next = match self.experts[..self.passes_of(block)].get(at + 1) {
            Some(next) => Some((*next, unit + 1)),
            None if block + 1 < self.blocks.count() => Some((self.experts[0], self.first_unit(block + 1))),
            None => None,
        };
        let next = next.filter(|(next, _)| *next != self.experts[at]);
        Position { first: self.tick(unit), next: next.map(|(next, unit)| (next, self.tick(unit))) }
    }

    /// The first unit of a block.
    fn first_unit(&self, block: usize) -> u64 {
        N_PROMPTS + (block * (self.experts.len() + self.blocks.longest())) as u64
    }

    fn tick(&self, unit: u64) -> Tick {
        Tick(unit * self.stride_ticks)
    }

    fn end(&self, unit: u64) -> Tick {
        Tick(self.tick(unit + 1).0 - 1)
    }
}

impl JobSpec {
    /// The branches that an expert takes: the second one only where it is guided.
    pub(crate) fn branches(&self, expert: Component) -> &'static [BranchName] {
        if guides(self.guidance(expert)) {
            &[BranchName::Cond, BranchName::Uncond]
        } else {
            &[BranchName::Cond]
        }
    }
}
