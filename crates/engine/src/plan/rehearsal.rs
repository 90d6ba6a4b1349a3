//! A job gone through without its arithmetic: every entry is put, read, and ended as the job will do it, in a cache that
//! only counts. So what is planned is decided by the code that will run, eviction included (law 4).

use evanesce_cache::{Cache, Displace, Job, Key, Lease, Lifetime, PutSpec, Tick, Tier, Uses};
use evanesce_wan::Result as WanResult;
use evanesce_wan::transformer::{CrossKv, FrameKv};
use evanesce_wan::weights::{Component, GroupId};

use super::{Moved, UnitPlan, flop};
use crate::adapt::Adapt;
use crate::admission::pass_workspace_bytes;
use crate::ahead::{LAYERS_AHEAD, asks_for_features, read_by_layer};
use crate::blocks::Block;
use crate::blueprint::Blueprint;
use crate::cross_kv::{CrossPages, page_bytes};
use crate::decode;
use crate::error::{EngineError, Result};
use crate::features::{self, FeatureEntries};
use crate::itinerary::Itinerary;
use crate::keys::{self, BranchName, LatentRole};
use crate::progress::Stage;
use crate::report::MemoryNow;
use crate::request::JobSpec;
use crate::residency::{PassReads, Position, Wanted, weights_spec};
use crate::self_kv::FramePages;
use crate::start;
use crate::text::workspace_bytes;

const F32_BYTES: usize = size_of::<f32>();

/// A job under rehearsal. Units are those of [`crate::JobRun::advance`].
pub(super) struct Rehearsal<'a> {
    blueprint: &'a Blueprint,
    spec: &'a JobSpec,
    /// Of the prompt and the negative one.
    prompt_tokens: [usize; 2],
    cache: &'a Cache,
    itinerary: Itinerary,
    units: Vec<UnitPlan>,
    /// What the units so far moved, those that were left out aside.
    moved: Moved,
    /// Whether steps that are like their neighbours are left out: where pages move, each takes a while.
    skips_repeats: bool,
    passes_left_out: usize,
    // Leases go before the job.
    prompts: Vec<Lease>,
    job: Job,
}

impl<'a> Rehearsal<'a> {
    pub(super) fn new(
        blueprint: &'a Blueprint,
        spec: &'a JobSpec,
        prompt_tokens: [usize; 2],
        (cache, skips_repeats): (&'a Cache, bool),
    ) -> Self {
        let itinerary = Itinerary::new(blueprint, spec);
        let job = cache.open_job();
        itinerary.announce(blueprint, spec, &job, 0);
        Self {
            blueprint,
            spec,
            prompt_tokens,
            cache,
            itinerary,
            units: Vec::new(),
            moved: Moved::default(),
            skips_repeats,
            passes_left_out: 0,
            prompts: Vec::new(),
            job,
        }
    }

    /// Goes through the prompts and the first `n_blocks` blocks. The units, and how many of them were taken to be like the
    /// one before.
    ///
    /// # Errors
    /// When a budget is too small after all.
    pub(super) fn run(mut self, n_blocks: usize) -> Result<(Vec<UnitPlan>, usize)> {
        let n_prompts = if self.spec.uses_guidance() { 2 } else { 1 };
        for at in 0..n_prompts {
            self.prompt(at)?;
            self.note(Stage::Text, 0, 0.0);
        }
        for at in 0..n_blocks.min(self.spec.n_blocks()) {
            self.block(&self.spec.block(at))?;
        }
        Ok((std::mem::take(&mut self.units), self.passes_left_out))
    }

    fn block(&mut self, block: &Block) -> Result<()> {
        if block.at > 0 {
            self.itinerary.announce_block(self.blueprint, self.spec, &self.job, block.at + 1);
            (0..LAYERS_AHEAD).for_each(|layer| self.prefetch_pages(block, 0, layer));
        }
        if block.at < self.spec.blocks_given {
            self.begin_given(block)?;
        } else {
            self.denoise(block)?;
        }
        let is_last = block.at + 1 == self.spec.n_blocks();
        for at in 0..self.itinerary.commits_of(block.at) {
            self.commit(block, at)?;
            self.note(Stage::Denoise, block.at, self.pass_flop(block, self.spec.steps() + at));
        }
        if is_last {
            self.prompts.clear();
        }
        for frame in self.spec.blocks().decoded(block.at) {
            self.decode(frame)?;
            self.note(Stage::Decode, block.at, 0.0);
        }
        Ok(())
    }

    /// As `JobRun::draw_noise`, and the steps that follow.
    fn denoise(&mut self, block: &Block) -> Result<()> {
        self.put_latent(
            LatentRole::Sample,
            0,
            Lifetime::Steps(1),
            self.block_bytes(block),
            &[self.itinerary.end_of_step(block.at, 0)],
        )?;
        for step in 0..self.spec.steps() {
            let repeats = self.repeats(step);
            self.step(block, step, repeats)?;
            self.note(Stage::Denoise, block.at, self.pass_flop(block, step));
            if let (true, [.., before, unit]) = (repeats, &mut self.units[..]) {
                unit.moved = before.moved;
                self.passes_left_out += 1;
            }
        }
        Ok(())
    }

    /// As `JobRun::begin_given` and `start::put`. What moves counts with the block's first unit.
    fn begin_given(&self, block: &Block) -> Result<()> {
        if block.at == 0 {
            let frames = self.spec.frames_given();
            let frame_bytes = self.block_bytes(block) / block.frames.len();
            let scratch = self.reserve(start::workspace_bytes(self.blueprint, self.spec))?;
            start::announce(self.blueprint, &self.itinerary, &self.job, frames);
            let reads = PassReads::new(self.itinerary.start());
            for frame in 0..frames {
                drop(self.lease_group(Component::VaeEncoder, 0, &reads)?);
                let uses: Vec<_> = self.itinerary.reads_of_final(frame).collect();
                self.put_latent(LatentRole::Final, frame, Lifetime::Job, frame_bytes, &uses)?;
            }
            drop(scratch);
        }
        for _ in 0..self.spec.steps() {
            self.job.step();
        }
        Ok(())
    }

    /// Whether a step reads what the one before and the one after it read: pages that do not fit move alike then.
    fn repeats(&self, step: usize) -> bool {
        let expert = self.itinerary.expert(step);
        let alike = |at: usize| at < self.spec.steps() && self.itinerary.expert(at) == expert;
        self.skips_repeats && step >= 2 && (step - 2..=step + 2).all(alike)
    }

    /// Adds up what the unit that has just ended moved, and what is held after it.
    fn note(&mut self, stage: Stage, block: usize, flop: f64) {
        let counters = self.cache.counters();
        let before = std::mem::replace(&mut self.moved, Moved::so_far(&counters));
        let (memory, moved) = (MemoryNow::new(&counters), self.moved - before);
        self.units.push(UnitPlan { stage, block, memory, moved, flop });
    }

    fn pass_flop(&self, block: &Block, pass: usize) -> f64 {
        flop::of_pass(self.blueprint, self.spec, self.itinerary.passing(pass), block)
    }

    fn block_bytes(&self, block: &Block) -> usize {
        let channels = self.blueprint.description.vae().z_dim();
        self.spec.block_shape(channels, block).iter().product::<usize>() * F32_BYTES
    }

    /// As `text::encode` and its caller.
    fn prompt(&mut self, at: usize) -> Result<()> {
        let config = self.blueprint.description.text();
        let tokens = self.prompt_tokens[at];
        // Equal texts are one entry; others differ in what follows their length.
        let other = at == 1 && self.spec.prompt != self.spec.negative;
        let ids = [u32::try_from(tokens).unwrap_or(u32::MAX), u32::from(other)];
        let key = keys::embedding(&self.blueprint.fingerprint(Component::TextEncoder), &ids);
        if let Some(lease) = self.job.shared_get(&key) {
            self.prompts.push(lease);
            return Ok(());
        }
        let _scratch = self.reserve(workspace_bytes(self.blueprint, tokens))?;
        let reads = PassReads::new(self.itinerary.prompt(at));
        for index in 0..self.blueprint.group_bytes(Component::TextEncoder).len() {
            drop(self.lease_group(Component::TextEncoder, index, &reads)?);
        }
        let put = self.cache.shared_put(key, Tier::Device, tokens * config.d_model * F32_BYTES);
        self.prompts.push(put.map_err(EngineError::cache)?.commit().map_err(EngineError::cache)?);
        Ok(())
    }

    /// As `Denoise::take`.
    fn step(&self, block: &Block, step: usize, repeats: bool) -> Result<()> {
        let read = |role, at| {
            let key = keys::latent(role, at);
            if self.job.contains(&key) {
                self.job.try_get(&key).map(Some).map_err(EngineError::cache)
            } else {
                Ok(None)
            }
        };
        let sample = self.job.try_get(&keys::latent(LatentRole::Sample, step)).map_err(EngineError::cache)?;
        let position = self.itinerary.step(block.at, step);
        if !repeats {
            self.pass(block, step, self.itinerary.expert(step), position, false)?;
        }
        let back = |n| step.checked_sub(n);
        let kept = [
            back(1).map(|at| read(LatentRole::Prediction, at)).transpose()?,
            back(2).map(|at| read(LatentRole::Prediction, at)).transpose()?,
            back(1).map(|at| read(LatentRole::LastSample, at)).transpose()?,
        ];
        drop((sample, kept));
        self.job.step();
        self.put_after(block, step)
    }

    /// As `Next::put`.
    fn put_after(&self, block: &Block, step: usize) -> Result<()> {
        if step + 1 == self.spec.steps() {
            return self.put_final(block);
        }
        let keeps = self.spec.schedule.keeps(step);
        let sample_steps = self.spec.sample_steps(step + 1);
        let end = |later: usize| self.itinerary.end_of_step(block.at, later);
        let parts = [
            (LatentRole::Sample, step + 1, sample_steps, 1),
            (LatentRole::Prediction, step, keeps.x0_steps, keeps.x0_steps),
            (LatentRole::LastSample, step, keeps.corrected_steps, keeps.corrected_steps),
        ];
        let mut group = Vec::new();
        for (role, at, steps, reads) in parts.into_iter().filter(|(_, _, steps, _)| *steps > 0) {
            let key = keys::latent(role, at);
            (step + 1..=step + reads).for_each(|later| self.job.announce(key, Uses::once(end(later))));
            if steps > reads && block.at + 1 < self.spec.n_blocks() {
                self.job.announce(key, Uses::once(end(self.itinerary.passes_of(block.at) - 1)));
            }
            let lifetime = Lifetime::Steps(u32::try_from(steps).expect("at most 1000 steps"));
            group.push((key, PutSpec::new(Tier::Device, lifetime, self.block_bytes(block))));
        }
        self.put_group(group)
    }

    /// As `denoise::put_final`.
    fn put_final(&self, block: &Block) -> Result<()> {
        let frame_bytes = self.block_bytes(block) / block.frames.len();
        let mut group = Vec::new();
        for (at, frame) in block.frames.clone().enumerate() {
            let key = keys::latent(LatentRole::Final, frame);
            self.itinerary.reads_of_final(frame).for_each(|tick| self.job.announce(key, Uses::once(tick)));
            let steps = u32::try_from(at + 1).expect("a video has fewer than 2^32 frames");
            group.push((key, PutSpec::new(Tier::Device, Lifetime::Steps(steps), frame_bytes)));
        }
        self.put_group(group)
    }

    /// Latents that become visible together and, where room is wanted, leave together (law 7).
    fn put_group(&self, latents: Vec<(Key, PutSpec)>) -> Result<()> {
        let group = self.job.put_group(latents).map_err(EngineError::cache)?;
        group.commit().map_err(EngineError::cache)?;
        Ok(())
    }

    fn put_latent(
        &self,
        role: LatentRole,
        at: usize,
        lifetime: Lifetime,
        len_bytes: usize,
        uses: &[Tick],
    ) -> Result<()> {
        let key = keys::latent(role, at);
        uses.iter().for_each(|tick| self.job.announce(key, Uses::once(*tick)));
        let put = self.job.put_with(key, PutSpec::new(Tier::Device, lifetime, len_bytes));
        drop(put.map_err(EngineError::cache)?.commit().map_err(EngineError::cache)?);
        Ok(())
    }

    /// As `Denoise::commit`.
    fn commit(&self, block: &Block, at: usize) -> Result<()> {
        let expert = self.itinerary.committing(at);
        let read = |key| self.job.try_get(&key).map_err(EngineError::cache);
        let kept = match self.spec.boundary_context(expert) {
            Some(met) => Some(read(keys::latent(LatentRole::Sample, met))?),
            None => {
                for frame in block.frames.clone() {
                    drop(read(keys::latent(LatentRole::Final, frame))?);
                }
                None
            }
        };
        let position = self.itinerary.commit(block.at, at);
        self.pass(block, self.spec.steps() + at, expert, position, true)?;
        drop(kept);
        Ok(())
    }

    /// As `Denoise::forward` and `Transformer::forward`: group by group, branch by branch.
    fn pass(
        &self,
        block: &Block,
        pass: usize,
        expert: Component,
        position: Position,
        commits: bool,
    ) -> Result<()> {
        let _scratch =
            self.reserve(pass_workspace_bytes(self.blueprint, self.spec, expert, block.frames.len()))?;
        let config = self.blueprint.expert(expert).config();
        let branches = self.spec.branches(expert);
        let lifetime = match self.spec.rollout {
            None => {
                let steps_left = self.itinerary.steps_left(pass);
                Lifetime::Steps(u32::try_from(steps_left).expect("at most 1000 steps"))
            }
            Some(_) => Lifetime::Job,
        };
        let cross: Vec<_> = branches
            .iter()
            .map(|branch| CrossPages { job: &self.job, expert, branch: *branch, lifetime })
            .collect();
        let reads = PassReads::new(position);
        // Group 0 is held until every branch has its first page, or its text to make pages from.
        let first = self.lease_group(expert, 0, &reads)?;
        let first_pages = cross.iter().map(|cross| Ok(cross.get(0)?)).collect::<Result<Vec<_>>>()?;
        let mut has_text: Vec<_> = first_pages.iter().map(Option::is_none).collect();
        let mut first_pages = first_pages.into_iter();
        drop(first);
        for layer in 0..config.layers {
            let mut pages = Vec::with_capacity(branches.len());
            for (cross, has_text) in cross.iter().zip(&mut has_text) {
                let page = if layer == 0 { first_pages.next().flatten() } else { cross.get(layer)? };
                if page.is_none() && !std::mem::replace(has_text, true) {
                    drop(self.lease_group(expert, 0, &reads)?);
                }
                pages.push(page);
            }
            let _weights = self.lease_group(expert, layer + 1, &reads)?;
            for ((branch, cross), page) in branches.iter().zip(&cross).zip(&pages) {
                if page.is_none() {
                    self.put_cross(cross, *branch, layer, config.dim())?;
                }
                self.attend(block, pass, expert, *branch, layer, commits)?;
            }
        }
        drop(self.lease_group(expert, config.layers + 1, &reads)?);
        Ok(())
    }

    fn put_cross(&self, cross: &CrossPages<'_>, branch: BranchName, layer: usize, dim: usize) -> Result<()> {
        let writer = cross.begin(layer, page_bytes(self.prompt_tokens[branch as usize], dim))?;
        drop(writer.commit().map_err(EngineError::cache)?);
        Ok(())
    }

    /// Reads the pages of one layer, and leaves the block's own when it is committed.
    fn attend(
        &self,
        block: &Block,
        pass: usize,
        expert: Component,
        branch: BranchName,
        layer: usize,
        commits: bool,
    ) -> Result<()> {
        let Some(rollout) = self.spec.rollout else { return Ok(()) };
        let owner =
            (self.blueprint.context_of(rollout, expert), self.blueprint.expert(expert).config().dim());
        let adapt = Adapt::new(self.spec);
        let codecs = self.spec.page_codecs();
        let pages = FramePages::new(&self.job, owner, branch, block, rollout, (codecs, &adapt));
        let read: WanResult<_> = pages.pages(layer);
        let read = read?;
        if branch == BranchName::Cond {
            let layers = self.blueprint.expert(expert).config().layers;
            if asks_for_features(&self.itinerary, (block.at, pass), (layer, layers)) {
                self.prefetch_features(block);
            }
            for behind in 1..=LAYERS_AHEAD {
                self.prefetch_pages(block, pass, layer + behind);
            }
        }
        drop(read);
        if commits {
            let tokens = (self.spec.height / 16) * (self.spec.width / 16);
            pages.begin(layer, tokens)?.commit().map_err(|error| EngineError::cache(error.refusal))?;
        }
        Ok(())
    }

    /// As `Ahead::request_behind`, brought at once.
    fn prefetch_pages(&self, block: &Block, pass: usize, layer: usize) {
        let Some(rollout) = self.spec.rollout else { return };
        let layers = self.blueprint.expert(self.itinerary.passing(pass)).config().layers;
        if let Some(behind) = layer.checked_sub(layers) {
            if pass + 1 < self.itinerary.passes_of(block.at) {
                self.prefetch_pages(block, pass + 1, behind);
            } else if block.at + 1 < self.spec.n_blocks() {
                self.prefetch_pages(&self.spec.block(block.at + 1), 0, behind);
            }
            return;
        }
        let expert = self.itinerary.passing(pass);
        let fetcher = self.job.fetcher();
        for key in read_by_layer(self.blueprint, self.spec, rollout, (expert, block.at, layer)) {
            fetcher.prefetch(&key);
        }
    }

    /// As `Ahead::request_behind`, brought at once.
    fn prefetch_features(&self, block: &Block) {
        let fetcher = self.job.fetcher();
        for key in features::read_by(&self.blueprint.decoder, self.spec, block.frames.start) {
            fetcher.prefetch(&key);
        }
    }

    /// As `JobWeights::lease`, with what is read ahead brought behind it at once.
    fn lease_group(&self, component: Component, index: usize, reads: &PassReads) -> Result<Lease> {
        self.job.tick(reads.tick(index));
        let lease = match self.job.shared_get(&self.group_key(component, index)) {
            Some(lease) => lease,
            None => self.read_in(component, index, Displace::Anything)?,
        };
        let group = GroupId { component, index };
        for Wanted { id, distance_ticks } in reads.read_ahead(self.blueprint, group) {
            if !self.cache.shared_contains(&self.blueprint.weights_key(id)) {
                let displace = Displace::NeededAfter { ticks: distance_ticks };
                // A refusal is no failure: the group is read when it is needed.
                drop(self.read_in(id.component, id.index, displace));
            }
        }
        Ok(lease)
    }

    fn group_key(&self, component: Component, index: usize) -> evanesce_cache::ContentKey {
        self.blueprint.weights_key(GroupId { component, index })
    }

    fn read_in(&self, component: Component, index: usize, displace: Displace) -> Result<Lease> {
        let group = self.blueprint.description.groups(component).get(index);
        let no_group = || EngineError::Cache(format!("{component:?} has no group {index}"));
        let spec = weights_spec(group.ok_or_else(no_group)?).displace(displace);
        let put = self.cache.shared_put_with(self.group_key(component, index), spec);
        put.map_err(EngineError::cache)?.commit().map_err(EngineError::cache)
    }

    /// As `Decode::take`.
    fn decode(&self, frame: usize) -> Result<()> {
        let scratch = self.reserve(decode::workspace_bytes(self.blueprint, self.spec))?;
        drop(self.job.try_take(&keys::latent(LatentRole::Final, frame)).map_err(EngineError::cache)?);
        let reads = PassReads::new(self.itinerary.latent_frame(frame));
        let weights = self.lease_group(Component::VaeDecoder, 0, &reads)?;
        let entries = FeatureEntries { job: &self.job, spec: self.spec, itinerary: &self.itinerary, frame };
        let (height, width) = (self.spec.height / 8, self.spec.width / 8);
        for slot in self.blueprint.decoder.slot_uses(frame as u64, height, width) {
            let read = slot.read.clone().map(|at| entries.take(slot.slot, at));
            drop(read.collect::<WanResult<Vec<_>>>()?);
            for (at, readings) in slot.kept {
                let writer = entries.begin(slot.slot, at, readings, slot.frame_bytes)?;
                drop(writer.commit().map_err(EngineError::cache)?);
            }
        }
        drop((weights, scratch));
        self.job.step();
        Ok(())
    }

    fn reserve(&self, len_bytes: usize) -> Result<evanesce_cache::Reservation> {
        self.job.reserve(&[(Tier::Device, len_bytes as u64)]).map_err(EngineError::cache)
    }
}

#[cfg(test)]
mod tests {
    use evanesce_cache::{Budgets, Kind};
    use evanesce_wan::schedule::Solver;

    use super::*;
    use crate::model::Model;
    use crate::request::{Request, RequestedLength};

    const BUDGETS: Budgets = Budgets { device_bytes: 1 << 30, host_bytes: 0 };

    fn spec(model: &Model) -> JobSpec {
        let request = Request {
            size: Some((32, 32)),
            length: Some(RequestedLength::Frames(9)),
            steps: Some(3),
            solver: Some(Solver::UniPc),
            ..Request::new("a red ball", 1)
        };
        JobSpec::new(request, model.checkpoint()).unwrap()
    }

    #[test]
    fn behind_a_group_that_a_pass_reads_again_nothing_is_read_ahead_as_in_the_job() {
        let model = Model::golden(BUDGETS);
        let (spec, cache) = (spec(&model), Cache::counting(BUDGETS, 0));
        let rehearsal = Rehearsal::new(&model.blueprint, &spec, [4, 4], (&cache, false));
        let reads = PassReads::new(rehearsal.itinerary.step(0, 0));
        let lease = |index| drop(rehearsal.lease_group(Component::HighNoise, index, &reads).unwrap());
        let first_layer = rehearsal.group_key(Component::HighNoise, 1);
        lease(0);
        assert!(cache.shared_contains(&first_layer), "it is read ahead");
        lease(1);
        // It has left the device since.
        assert!(cache.shared_remove(&first_layer));
        lease(0);
        assert!(!cache.shared_contains(&first_layer));
    }

    #[test]
    fn what_a_step_makes_is_one_group_as_in_the_job() {
        let model = Model::golden(BUDGETS);
        let (spec, cache) = (spec(&model), Cache::counting(BUDGETS, 0));
        let rehearsal = Rehearsal::new(&model.blueprint, &spec, [4, 4], (&cache, false));
        // How many latents there are, and whether they are one group.
        let made = |is_final: bool| {
            let is_wanted = |key: &Key| {
                key.kind == Kind::Latent && is_final == (keys::role_of(key) == Some(LatentRole::Final))
            };
            let latents = rehearsal.job.entries().into_iter().filter(|owned| is_wanted(&owned.key));
            let groups: Vec<_> = latents.map(|owned| owned.group).collect();
            (groups.len(), groups.iter().all(|group| group.is_some() && *group == groups[0]))
        };
        let block = spec.block(0);
        let bytes = rehearsal.block_bytes(&block);
        rehearsal.put_latent(LatentRole::Sample, 0, Lifetime::Steps(1), bytes, &[]).unwrap();
        rehearsal.step(&block, 0, false).unwrap();
        assert!(matches!(made(false), (2.., true)), "{:?}", made(false));
        (1..3).for_each(|step| rehearsal.step(&block, step, false).unwrap());
        assert_eq!(made(true), (3, true));
    }
}
