//! What a job will hold and move, before any of it exists: from configurations alone.
//!
//! The least that a job needs is admission's own sum; what it holds over time, and what its tiers move, comes from going
//! through the job in a cache that only counts (`rehearsal`).

mod choice;
mod disk;
mod flop;
mod kv;
mod rehearsal;

use std::ops::{Add, Sub};
use std::path::Path;

use evanesce_cache::{Budgets, Cache, Counters, Kind, Tier, Usage};
use evanesce_wan::checkpoint::{Description, Rollout};
use evanesce_wan::text::{TOKENS_MAX, Tokenizer};
use evanesce_wan::weights::Component;

pub use choice::{Choice, CodecNeeds, PagesIn, WeightsIn};
pub use disk::{Way, exercise};
pub use kv::{KvShape, KvSize};

use crate::admission::Needs;
use crate::blueprint::Blueprint;
use crate::error::{EngineError, Result};
use crate::model::Model;
use crate::progress::Stage;
use crate::report::{MemoryNow, MemoryReport};
use crate::request::{JobSpec, Request};
use rehearsal::Rehearsal;

/// Blocks that are gone through after the window is full: what a longer video adds is the same again.
const STEADY_BLOCKS: usize = 2;

/// What the tiers may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierBudgets {
    /// Where arithmetic reads.
    pub device_bytes: u64,
    /// Below it.
    pub host_bytes: u64,
    /// Below that; 0 where there is no disk tier.
    pub disk_bytes: u64,
}

/// A model that can be planned for.
#[derive(Debug)]
pub struct Planner {
    blueprint: Blueprint,
    tokenizer: Option<Tokenizer>,
}

/// Bytes that moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Weights, from the checkpoint into the device, in the types that the checkpoint stores.
    pub weights_bytes: u64,
    /// From the device into the host.
    pub to_host_bytes: u64,
    /// From the host into the device.
    pub from_host_bytes: u64,
    /// Onto the disk.
    pub to_disk_bytes: u64,
    /// Off the disk.
    pub from_disk_bytes: u64,
}

/// One unit of work.
#[derive(Clone, Debug)]
pub struct UnitPlan {
    /// The stage that it belongs to.
    pub stage: Stage,
    /// The block that it belongs to, from 0.
    pub block: usize,
    /// What is held when it has ended.
    pub memory: MemoryNow,
    /// What moves during it.
    pub moved: Moved,
    /// Multiplications and additions of a denoising step or commit; 0 elsewhere.
    pub flop: f64,
}

/// A plan for one job.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the job does.
    pub spec: JobSpec,
    /// What it was planned for.
    pub budgets: TierBudgets,
    /// The least device tier in which the job finishes without help from the tiers below.
    pub device_bytes_alone: u64,
    /// The least in which it finishes with it.
    pub device_bytes_needed: u64,
    /// Where weights and pages will be, and the best way to store pages that fits.
    pub choice: Choice,
    /// Units in order; none when the job does not fit.
    pub units: Vec<UnitPlan>,
    /// Peaks and counts over the units that were gone through. Peaks are those of the whole job; counts where nothing was
    /// left out.
    pub memory: Option<MemoryReport>,
    /// Blocks of the video.
    pub blocks: usize,
    /// Blocks that repeat the last one that was gone through.
    pub blocks_left_out: usize,
    /// Steps that are like the one before and were not gone through: their units repeat its traffic.
    pub steps_left_out: usize,
    /// Multiplications and additions that would make the pages of the frames in reach anew, for one pass.
    pub recompute_flop: f64,
}

impl Planner {
    /// For what is described.
    ///
    /// # Errors
    /// When it has no transformer.
    pub fn new(description: Description) -> Result<Self> {
        let tokenizer = description.tokenizer_path().map(Tokenizer::open).transpose()?;
        let no_transformer = || EngineError::Request("there is no transformer to plan for".to_owned());
        let blueprint = Blueprint::new(description, Default::default()).ok_or_else(no_transformer)?;
        Ok(Self { blueprint, tokenizer })
    }

    /// For the checkpoint in `directory`, weights there or not.
    ///
    /// # Errors
    /// As [`Model::open`], weights aside.
    pub fn open(directory: &Path) -> Result<Self> {
        Self::new(Description::open(directory)?)
    }

    /// What the model is.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.blueprint.description
    }

    /// How it makes videos block by block, if it does.
    #[must_use]
    pub fn rollout(&self) -> Option<Rollout> {
        self.blueprint.description.rollout()
    }

    /// Plans a job. `prompt_tokens` are those of the prompt and of the negative one; where they are not given they are
    /// counted, if there is a tokenizer and a prompt, and taken to be as many as a prompt may have otherwise.
    ///
    /// # Errors
    /// As [`JobSpec::new`].
    pub fn plan(
        &self,
        request: Request,
        prompt_tokens: Option<[usize; 2]>,
        budgets: TierBudgets,
    ) -> Result<Plan> {
        let is_open = request.prompt.is_empty();
        let prompt = if is_open { "anything".to_owned() } else { request.prompt.clone() };
        let spec = JobSpec::of(Request { prompt, ..request }, &self.blueprint.description)?;
        let tokens = match (prompt_tokens, &self.tokenizer) {
            (Some(tokens), _) => tokens.map(|tokens| tokens.min(TOKENS_MAX)),
            (None, Some(tokenizer)) => {
                let count = |text: &str| Ok::<_, EngineError>(tokenizer.prompt_ids(text)?.len());
                let cond = if is_open { TOKENS_MAX } else { count(&spec.prompt)? };
                [cond, count(&spec.negative)?]
            }
            (None, None) => [TOKENS_MAX; 2],
        };
        Plan::new(&self.blueprint, spec, tokens, budgets)
    }
}

impl Model {
    /// Plans a job over this model's own budgets, as if nothing else ran.
    ///
    /// # Errors
    /// When a prompt cannot be tokenized.
    pub fn plan(&self, spec: JobSpec) -> Result<Plan> {
        let tokens = self.prompt_tokens(&spec)?;
        let counters = self.counters();
        let budget = |tier| counters.tier(tier).budget_bytes;
        let [device_bytes, host_bytes, disk_bytes] = Tier::ALL.map(budget);
        Plan::new(&self.blueprint, spec, tokens, TierBudgets { device_bytes, host_bytes, disk_bytes })
    }
}

impl TierBudgets {
    /// A cache of these budgets that only counts.
    fn cache(self) -> Cache {
        let Self { device_bytes, host_bytes, disk_bytes } = self;
        Cache::counting(Budgets { device_bytes, host_bytes }, disk_bytes)
    }
}

impl Plan {
    fn new(
        blueprint: &Blueprint,
        spec: JobSpec,
        prompt_tokens: [usize; 2],
        budgets: TierBudgets,
    ) -> Result<Self> {
        let cache = budgets.cache();
        let needs = Needs::new(blueprint, &spec, prompt_tokens);
        let device_bytes_needed = needs.device_bytes_beside(budgets.host_bytes, cache.disk());
        let choice = Choice::new(blueprint, &spec, prompt_tokens, budgets, &cache);
        let (blocks, steady) = (spec.n_blocks(), blocks_until_steady(&spec));
        let fits = device_bytes_needed <= budgets.device_bytes;
        let gone_through = if fits { blocks.min(steady) } else { 0 };
        let (mut units, mut memory, mut steps_left_out) = (Vec::new(), None, 0);
        if fits {
            let skips_repeats = matches!(choice.pages, PagesIn::Host | PagesIn::Disk);
            let rehearsal = Rehearsal::new(blueprint, &spec, prompt_tokens, (&cache, skips_repeats));
            (units, steps_left_out) = rehearsal.run(gone_through)?;
            memory = Some(MemoryReport::new(&cache.counters(), &Usage::default()));
        }
        Ok(Self {
            recompute_flop: recompute_flop(blueprint, &spec),
            device_bytes_alone: needs.device_bytes(),
            device_bytes_needed,
            choice,
            units,
            memory,
            blocks,
            blocks_left_out: blocks - gone_through,
            steps_left_out,
            spec,
            budgets,
        })
    }

    /// Whether the job fits its budgets.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.device_bytes_needed <= self.budgets.device_bytes
    }

    /// What a denoising step moves and computes in the steady state: the mean over the last block that was gone through,
    /// but for the very last of a video, which leaves nothing behind.
    #[must_use]
    pub fn steady_step(&self) -> Option<(Moved, f64)> {
        let last = self.units.last()?.block;
        let is_first_made = last == self.spec.blocks_given;
        let block = if self.blocks_left_out == 0 && !is_first_made { last - 1 } else { last };
        let steps = || self.units.iter().filter(|unit| unit.block == block && unit.stage == Stage::Denoise);
        let n = steps().count() as u64;
        let sum = steps().fold(Moved::default(), |sum, unit| sum + unit.moved);
        let flop = steps().map(|unit| unit.flop).sum::<f64>();
        (n > 0).then(|| (sum / n, flop / n as f64))
    }
}

/// Blocks after which every further one is like the last: those that are given are not.
fn blocks_until_steady(spec: &JobSpec) -> usize {
    let Some(rollout) = spec.rollout else { return 1 };
    let in_reach = rollout.sink_frames + rollout.recent_frames;
    let full = 1 + in_reach.div_ceil(rollout.block_frames);
    full.max(spec.blocks_given) + STEADY_BLOCKS
}

/// Arithmetic that makes the pages of a whole window anew: a pass of the expert over its frames, the keys and values of
/// which are then there layer by layer.
fn recompute_flop(blueprint: &Blueprint, spec: &JobSpec) -> f64 {
    let Some(rollout) = spec.rollout else { return 0.0 };
    let last = spec.block(spec.n_blocks() - 1).frames.start;
    let frames = last.min(rollout.sink_frames + rollout.recent_frames);
    flop::of_frames(blueprint, spec, Component::HighNoise, frames, 0)
}

impl Moved {
    /// All that a cache has moved.
    fn so_far(counters: &Counters) -> Self {
        let [host, disk] = [Tier::Host, Tier::Disk].map(|tier| counters.tier(tier).traffic);
        Self {
            weights_bytes: counters.kind(Kind::Weights).raw_bytes,
            to_host_bytes: host.demoted_bytes,
            from_host_bytes: host.promoted_bytes,
            to_disk_bytes: disk.demoted_bytes,
            from_disk_bytes: disk.promoted_bytes,
        }
    }

    fn with(self, other: Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            weights_bytes: combine(self.weights_bytes, other.weights_bytes),
            to_host_bytes: combine(self.to_host_bytes, other.to_host_bytes),
            from_host_bytes: combine(self.from_host_bytes, other.from_host_bytes),
            to_disk_bytes: combine(self.to_disk_bytes, other.to_disk_bytes),
            from_disk_bytes: combine(self.from_disk_bytes, other.from_disk_bytes),
        }
    }
}

impl Add for Moved {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.with(other, |a, b| a + b)
    }
}

impl Sub for Moved {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.with(other, |a, b| a - b)
    }
}

impl std::ops::Div<u64> for Moved {
    type Output = Self;

    fn div(self, by: u64) -> Self {
        self.with(self, |a, _| a / by)
    }
}
