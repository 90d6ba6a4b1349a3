//! Noise into latents, one step at a time.

use evanesce_cache::{Job, Lease, Lifetime, PutSpec, Tick, Tier, Uses};
use evanesce_wan::checkpoint::{Context, ContextSample};
use evanesce_wan::kernels::{Scratch, Taken};
use evanesce_wan::noise::step_noise;
use evanesce_wan::schedule::{History, StepInput, StepOutput, expert_for};
use evanesce_wan::transformer::{Branch, FrameKv, Latents, PATCH};
use evanesce_wan::weights::Component;

use crate::adapt::Adapt;
use crate::admission::pass_workspace_bytes;
use crate::ahead::Ahead;
use crate::blocks::Block;
use crate::bytes::{as_f32, write_f32};
use crate::calibration::Measurement;
use crate::cross_kv::CrossPages;
use crate::error::{EngineError, Result};
use crate::itinerary::Itinerary;
use crate::keys::{self, BranchName, LatentRole};
use crate::model::Model;
use crate::request::JobSpec;
use crate::residency::Position;
use crate::self_kv::FramePages;
use crate::text::Prompt;

/// What a step reads besides entries of the job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Denoise<'a> {
    pub(crate) model: &'a Model,
    pub(crate) spec: &'a JobSpec,
    pub(crate) job: &'a Job,
    pub(crate) itinerary: &'a Itinerary,
    pub(crate) adapt: &'a Adapt,
    pub(crate) block: &'a Block,
    pub(crate) cond: &'a Prompt,
    pub(crate) uncond: Option<&'a Prompt>,
    /// Measures what codecs of pages would cost.
    pub(crate) measured: Option<&'a Measurement>,
    /// Memory that the job's steps use one after the other.
    pub(crate) scratch: &'a Scratch,
}

impl JobSpec {
    /// Channels, latent frames, height and width of the video's latents.
    pub(crate) fn latent_shape(&self, channels: usize) -> [usize; 4] {
        [channels, self.latent_frames(), self.height / 8, self.width / 8]
    }

    /// As [`Self::latent_shape`] for all frames that are denoised.
    pub(crate) fn noise_shape(&self, channels: usize) -> [usize; 4] {
        [channels, self.denoised_frames(), self.height / 8, self.width / 8]
    }

    /// As [`Self::latent_shape`] for the frames of one block.
    pub(crate) fn block_shape(&self, channels: usize, block: &Block) -> [usize; 4] {
        [channels, block.frames.len(), self.height / 8, self.width / 8]
    }

    /// Whether any expert needs the branch without the prompt.
    pub(crate) fn uses_guidance(&self) -> bool {
        [self.guidance_high, self.guidance_low].iter().any(|guidance| guides(*guidance))
    }

    /// The step before which the experts meet, where `expert` commits what it made until then; nothing where it commits
    /// the clean block.
    pub(crate) fn boundary_context(&self, expert: Component) -> Option<usize> {
        let rollout = self.rollout.filter(|_| expert == Component::HighNoise)?;
        if rollout.context != Context::PerExpert || rollout.context_sample != ContextSample::Boundary {
            return None;
        }
        let high = |timestep: &&f64| expert_for(**timestep, self.boundary) == Component::HighNoise;
        let met = self.schedule.timesteps().iter().filter(high).count();
        (1..self.steps()).contains(&met).then_some(met)
    }

    /// How many steps the sample that step `step` begins with lives: that step alone, or to the end of the first latent
    /// frame after the commits.
    pub(crate) fn sample_steps(&self, step: usize) -> usize {
        let met = self.boundary_context(Component::HighNoise).filter(|met| *met == step);
        met.map_or(1, |met| self.steps() - met + 1)
    }

    pub(crate) fn guidance(&self, expert: Component) -> f64 {
        if expert == Component::LowNoise { self.guidance_low } else { self.guidance_high }
    }
}

/// Guidance of exactly 1 is the branch with the prompt alone.
pub(crate) fn guides(guidance: f64) -> bool {
    guidance.to_bits() != 1f64.to_bits()
}

/// Makes the first sample of a block visible.
pub(crate) fn put_noise(job: &Job, read_by: Tick, noise: &[f32]) -> Result<()> {
    job.announce(keys::latent(LatentRole::Sample, 0), Uses::once(read_by));
    let spec = PutSpec::new(Tier::Device, Lifetime::Steps(1), size_of_val(noise));
    let mut writer = job.put_with(keys::latent(LatentRole::Sample, 0), spec).map_err(EngineError::cache)?;
    write_f32(writer.bytes_mut(), noise);
    drop(writer.commit().map_err(EngineError::cache)?);
    Ok(())
}

impl Denoise<'_> {
    /// Takes step `step`, ends it, and makes visible what later steps read.
    pub(crate) fn take(&self, step: usize) -> Result<()> {
        let sample = self.read(LatentRole::Sample, step)?;
        let mut velocity = self.scratch.take(as_f32(&sample).len());
        self.velocity(step, as_f32(&sample), &mut velocity)?;
        let mut next = Next::new(self.spec, step, velocity.len(), self.scratch);
        let [one, two] = [1, 2].map(|back| self.find(LatentRole::Prediction, step, back));
        let predictions = [one?, two?];
        let last_sample = self.find(LatentRole::LastSample, step, 1)?;
        let noise = self.step_noise(step, velocity.len());
        let input = StepInput {
            noise: noise.as_deref(),
            velocity: &velocity,
            sample: as_f32(&sample),
            history: History {
                x0: [0, 1].map(|back| predictions[back].as_deref().map(as_f32)),
                corrected: last_sample.as_deref().map(as_f32),
            },
        };
        self.spec.schedule.step(step, &input, next.output())?;
        drop((sample, predictions, last_sample));
        // What was read for the last time leaves before what replaces it arrives.
        self.job.step();
        next.put(self, step)
    }

    /// Fresh noise for `step`, where the schedule wants some: the same whenever it is drawn.
    fn step_noise(&self, step: usize, len: usize) -> Option<Vec<f32>> {
        let [block, at] = [self.block.at, step].map(|n| u32::try_from(n).expect("blocks and steps are few"));
        self.spec.schedule.draws_noise(step).then(|| step_noise(self.spec.seed, block, at, len))
    }

    /// What the step `back` steps earlier kept for this one, if it did. What was kept and is lost is an error, not a shorter
    /// history.
    fn find(&self, role: LatentRole, step: usize, back: usize) -> Result<Option<Lease>> {
        let Some(at) = step.checked_sub(back) else { return Ok(None) };
        let keeps = self.spec.schedule.keeps(at);
        let kept_steps = if role == LatentRole::Prediction { keeps.x0_steps } else { keeps.corrected_steps };
        (kept_steps >= back).then(|| self.read(role, at)).transpose()
    }

    fn read(&self, role: LatentRole, at: usize) -> Result<Lease> {
        let key = keys::latent(role, at);
        self.job.try_get(&key).map_err(EngineError::cache)
    }

    /// The guided velocity of the sample at `step`.
    fn velocity(&self, step: usize, sample: &[f32], velocity: &mut [f32]) -> Result<()> {
        let pass = Pass {
            at: step,
            expert: self.itinerary.expert(step),
            position: self.itinerary.step(self.block.at, step),
            timestep: self.spec.schedule.timesteps()[step],
            cross_lifetime: match self.spec.rollout {
                None => {
                    let steps_left = self.itinerary.steps_left(step);
                    Lifetime::Steps(u32::try_from(steps_left).expect("at most 1000 steps"))
                }
                Some(_) => Lifetime::Job,
            },
            commits: false,
        };
        self.forward(&pass, sample, velocity)
    }

    /// Runs the finished block through an expert once more, without noise, so that later blocks can see it.
    pub(crate) fn commit(&self, at: usize) -> Result<()> {
        let pass = Pass {
            at: self.spec.steps() + at,
            expert: self.itinerary.committing(at),
            position: self.itinerary.commit(self.block.at, at),
            timestep: 0.0,
            cross_lifetime: Lifetime::Job,
            commits: true,
        };
        if let Some(met) = self.spec.boundary_context(pass.expert) {
            let sample = self.read(LatentRole::Sample, met)?;
            let mut unread = self.scratch.take(as_f32(&sample).len());
            return self.forward(&pass, as_f32(&sample), &mut unread);
        }
        let channels = self.model.expert(pass.expert).config().channels;
        let [_, n_frames, height, width] = self.spec.block_shape(channels, self.block);
        let plane = height * width;
        let [mut sample, mut unread] = [(); 2].map(|()| self.scratch.take(channels * n_frames * plane));
        for (at, frame) in self.block.frames.clone().enumerate() {
            let latent = self.read(LatentRole::Final, frame)?;
            for (channel, numbers) in as_f32(&latent).chunks_exact(plane).enumerate() {
                sample[(channel * n_frames + at) * plane..][..plane].copy_from_slice(numbers);
            }
        }
        self.forward(&pass, &sample, &mut unread)
    }

    fn ahead(&self, pass: usize) -> Ahead<'_> {
        let &Self { model, spec, job, itinerary, adapt, block, .. } = self;
        Ahead { model, spec, job, itinerary, adapt, is_next_block: false, block: block.at, pass }
    }

    /// The guided velocity that one expert predicts for `sample`.
    fn forward(&self, pass: &Pass, sample: &[f32], velocity: &mut [f32]) -> Result<()> {
        let &Pass { expert: component, cross_lifetime: lifetime, commits, .. } = pass;
        let guidance = self.spec.guidance(component);
        let both = [BranchName::Cond, BranchName::Uncond];
        let cross = both.map(|branch| CrossPages { job: self.job, expert: component, branch, lifetime });
        let past = both.map(|branch| {
            let rollout = self.spec.rollout?;
            let owner = self.model.blueprint.context_of(rollout, component);
            let owner = (owner, self.model.expert(component).config().dim());
            let codecs = self.spec.page_codecs();
            let pages = FramePages::new(self.job, owner, branch, self.block, rollout, (codecs, self.adapt));
            // Each layer is read by one branch after the other: the first asks for both.
            let ahead = (branch == BranchName::Cond).then(|| self.ahead(pass.at));
            let measured = self.measured.filter(|_| branch == BranchName::Cond && !commits);
            Some(FramePages { commits, ahead, measured, waits: self.model.waits.clone(), ..pages })
        });
        let texts = [Some(self.cond), self.uncond.filter(|_| guides(guidance))];
        let branches: Vec<_> = texts
            .into_iter()
            .zip(cross.iter().zip(&past))
            .filter_map(|(text, (cross, past))| {
                let past = past.as_ref().map(|past| past as &dyn FrameKv);
                Some(Branch { text: text?.rows(), cross, past })
            })
            .collect();

        let expert = self.model.expert(component);
        let shape = self.spec.block_shape(expert.config().channels, self.block);
        let workspace_bytes = pass_workspace_bytes(&self.model.blueprint, self.spec, component, shape[1]);
        let tokens = sample.len() / (shape[0] * PATCH.iter().product::<usize>());
        let numbers = expert.workspace_numbers(tokens, branches.len()) + branches.len() * sample.len();
        // Whole lines, so that both parts together are charged what the whole would be. The rest is for text, which is
        // embedded only where a page is missing.
        let memory_bytes = (size_of::<f32>() * numbers).next_multiple_of(64);
        let text_bytes = workspace_bytes.saturating_sub(memory_bytes) as u64;
        let mut workspace = self.job.workspace(Tier::Device, memory_bytes).map_err(EngineError::cache)?;
        let _text = self.job.reserve(&[(Tier::Device, text_bytes)]).map_err(EngineError::cache)?;
        let memory: &mut [f32] = bytemuck::cast_slice_mut(workspace.bytes_mut());
        let (velocities, memory) = memory.split_at_mut(branches.len() * sample.len());
        let weights = self.model.weights.for_job(self.job, pass.position, &self.model.waits);
        let latents = Latents { numbers: sample, shape };
        self.scratch.run(|| {
            expert.forward_in(latents, pass.timestep, &branches, &weights, [memory, &mut *velocities])
        })?;
        let (cond, uncond) = velocities.split_at(sample.len());
        velocity.copy_from_slice(cond);
        if !uncond.is_empty() {
            guide(velocity, uncond, guidance);
        }
        Ok(())
    }
}

/// One pass of a block through an expert.
struct Pass {
    /// Its number in the block.
    at: usize,
    expert: Component,
    /// Where it stands in the job's reads of weights.
    position: Position,
    timestep: f64,
    /// How long keys and values of the text live.
    cross_lifetime: Lifetime,
    /// Whether the block is clean and leaves pages.
    commits: bool,
}

/// `uncond + guidance * (cond - uncond)`, in that order of operations, as the Python pipelines do.
fn guide(cond: &mut [f32], uncond: &[f32], guidance: f64) {
    #[expect(clippy::cast_possible_truncation, reason = "guidance is a factor for f32 numbers")]
    let guidance = guidance as f32;
    for (cond, uncond) in cond.iter_mut().zip(uncond) {
        *cond = uncond + guidance * (*cond - uncond);
    }
}

/// What a step makes, and for how many steps each part is kept.
struct Next {
    sample: Taken,
    prediction: Option<Taken>,
    last_sample: Option<Taken>,
}

impl Next {
    fn new(spec: &JobSpec, step: usize, len: usize, scratch: &Scratch) -> Self {
        let keeps = spec.schedule.keeps(step);
        let kept = |steps: usize| (steps > 0).then(|| scratch.take(len));
        Self {
            sample: scratch.take(len),
            prediction: kept(keeps.x0_steps),
            last_sample: kept(keeps.corrected_steps),
        }
    }

    fn output(&mut self) -> StepOutput<'_> {
        StepOutput {
            next: &mut self.sample,
            x0: self.prediction.as_deref_mut(),
            corrected: self.last_sample.as_deref_mut(),
        }
    }

    /// Together or not at all (law 7): a job that goes on from here needs all three.
    fn put(&self, denoise: &Denoise<'_>, step: usize) -> Result<()> {
        let spec = denoise.spec;
        let keeps = spec.schedule.keeps(step);
        if step + 1 == spec.steps() {
            return put_final(denoise, &self.sample);
        }
        let sample_steps = spec.sample_steps(step + 1);
        let parts = [
            (keys::latent(LatentRole::Sample, step + 1), sample_steps, Some(&self.sample)),
            (keys::latent(LatentRole::Prediction, step), keeps.x0_steps, self.prediction.as_ref()),
            (keys::latent(LatentRole::LastSample, step), keeps.corrected_steps, self.last_sample.as_ref()),
        ];
        let parts: Vec<_> =
            parts.iter().filter_map(|(key, steps, part)| Some((*key, *steps, (*part)?))).collect();
        for (key, steps, _) in &parts {
            // A sample is read by the next step, however long it stays.
            let reads = if *key == parts[0].0 { 1 } else { *steps };
            for later in step + 1..=step + reads {
                let read_by = denoise.itinerary.end_of_step(denoise.block.at, later);
                denoise.job.announce(*key, Uses::once(read_by));
            }
        }
        if sample_steps > 1 && denoise.block.at + 1 < spec.n_blocks() {
            let commit = denoise.itinerary.passes_of(denoise.block.at) - 1;
            let read_by = denoise.itinerary.end_of_step(denoise.block.at, commit);
            denoise.job.announce(parts[0].0, Uses::once(read_by));
        }
        let specs = parts.iter().map(|(key, steps, part)| {
            let steps = u32::try_from(*steps).expect("at most 1000 steps");
            (*key, PutSpec::new(Tier::Device, Lifetime::Steps(steps), size_of_val(&part[..])))
        });
        let mut group = denoise.job.put_group(specs).map_err(EngineError::cache)?;
        for (at, (_, _, part)) in parts.iter().enumerate() {
            write_f32(group.bytes_mut(at), part);
        }
        group.commit().map_err(EngineError::cache)?;
        Ok(())
    }
}

/// The final sample, frame by frame: frame `i` of a block is read in decode step `i` after it and leaves with it.
fn put_final(denoise: &Denoise<'_>, sample: &[f32]) -> Result<()> {
    let &Denoise { job, spec, block, itinerary, .. } = denoise;
    for frame in block.frames.clone() {
        let key = keys::latent(LatentRole::Final, frame);
        for read_by in itinerary.reads_of_final(frame) {
            job.announce(key, Uses::once(read_by));
        }
    }
    let frames = block.frames.len();
    let plane = (spec.height / 8) * (spec.width / 8);
    let channels = sample.len() / (frames * plane);
    let specs = block.frames.clone().enumerate().map(|(at, frame)| {
        let steps = u32::try_from(at + 1).expect("a video has fewer than 2^32 frames");
        let put = PutSpec::new(Tier::Device, Lifetime::Steps(steps), channels * plane * size_of::<f32>());
        (keys::latent(LatentRole::Final, frame), put)
    });
    let mut group = job.put_group(specs).map_err(EngineError::cache)?;
    for frame in 0..frames {
        let bytes = group.bytes_mut(frame);
        for (channel, to) in bytes.chunks_exact_mut(plane * size_of::<f32>()).enumerate() {
            write_f32(to, &sample[(channel * frames + frame) * plane..][..plane]);
        }
    }
    group.commit().map_err(EngineError::cache)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use evanesce_cache::Budgets;
    use evanesce_wan::schedule::Solver;

    use super::*;
    use crate::cancel::CancelToken;
    use crate::output::Outputs;
    use crate::progress::Silent;
    use crate::request::{Request, RequestedLength};
    use crate::run::JobRun;

    #[test]
    fn what_was_kept_for_a_step_and_is_lost_is_an_error_and_no_shorter_history() {
        let model = Model::golden(Budgets { device_bytes: 1 << 30, host_bytes: 0 });
        let directory = tempfile::tempdir().unwrap();
        let kept = [(LatentRole::Prediction, 1), (LatentRole::Prediction, 0), (LatentRole::LastSample, 1)];
        for (role, at) in kept {
            let request = Request {
                size: Some((32, 32)),
                length: Some(RequestedLength::Frames(5)),
                steps: Some(4),
                solver: Some(Solver::UniPc),
                ..Request::new("a red ball", 1)
            };
            let outputs = Outputs::mp4(directory.path().join("out.mp4"));
            let mut run = JobRun::admit(&model, request, outputs, CancelToken::new()).unwrap();
            while run.position().steps < 2 {
                assert!(run.advance(&mut Silent).unwrap().is_more());
            }
            assert!(run.job.remove(&keys::latent(role, at)), "{role:?} of step {at} was not kept");
            let error = run.advance(&mut Silent).unwrap_err().to_string();
            assert!(error.contains("is not cached"), "{role:?} of step {at}: {error}");
        }
    }
}
