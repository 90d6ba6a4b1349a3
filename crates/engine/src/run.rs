//! One job from admission to its video, one unit at a time.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use evanesce_cache::{Job, JobId, Key, Uses};
use evanesce_wan::kernels::Scratch;
use evanesce_wan::noise::initial_noise;
use evanesce_wan::text::TOKENS_MAX;
use evanesce_wan::transformer::Codec;
use evanesce_wan::weights::Component;
use serde::{Deserialize, Serialize};

use crate::adapt::Adapt;
use crate::admission::{Needs, spare_room};
use crate::ahead::Ahead;
use crate::blocks::Block;
use crate::calibration::{Assignment, Budget, Measurement};
use crate::cancel::CancelToken;
use crate::decode::Decode;
use crate::denoise::{Denoise, put_noise};
use crate::error::{EngineError, Result};
use crate::itinerary::Itinerary;
use crate::keys::{self, LatentRole};
use crate::model::Model;
use crate::output::{OpenOutputs, Outputs};
use crate::progress::{Event, Observer, Stage};
use crate::report::MemoryReport;
use crate::request::{JobSpec, Request};
use crate::snapshot::{Kept, SnapshotError};
use crate::start;
use crate::tensors::NoiseFile;
use crate::text::{Prompt, encode};
use crate::video::VideoSummary;

/// Whether a job has more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a job that is not done has no video yet"]
pub enum Progress {
    /// It has.
    More,
    /// It is done: call [`JobRun::finish`].
    Done,
}

impl Progress {
    /// Whether the job has more to do.
    #[must_use]
    pub fn is_more(self) -> bool {
        self == Self::More
    }
}

/// The unit of work that comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    Prompt { at: usize },
    Noise { block: usize },
    Step { block: usize, at: usize },
    Commit { block: usize, at: usize },
    LatentFrame { at: usize },
    Close,
    Done,
}

/// Latent frames after which a segment of the video ends, in a video that is made at once. One that is made block by block has
/// a segment for each block.
const SEGMENT_LATENT_FRAMES: usize = 8;

/// How far a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Blocks of the video.
    pub n_blocks: usize,
    /// The block under way.
    pub block: usize,
    /// Denoising steps of it that are done.
    pub steps: usize,
    /// Latent frames that have been decoded, of all blocks.
    pub latent_frames: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { n_blocks, block, steps, latent_frames } = self;
        let block = block.saturating_add(1).min(*n_blocks);
        write!(
            f,
            "block {block} of {n_blocks}, with {steps} of its steps and {latent_frames} latent frames done"
        )
    }
}

/// What a job made and used.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What it did.
    pub spec: JobSpec,
    /// The video.
    pub video: VideoSummary,
    /// What it held, hit and gave back.
    pub memory: MemoryReport,
}

/// A job under way. Between two calls of [`JobRun::advance`] it holds nothing but entries of the cache and the tiles that
/// threads work in, which go when it is parked, so it can be interleaved with other jobs, or dropped: then everything it owned is returned and no file is left (laws 1 and 10).
#[derive(Debug)]
pub struct JobRun<'m> {
    pub(crate) model: &'m Model,
    pub(crate) spec: JobSpec,
    pub(crate) itinerary: Itinerary,
    cancel: CancelToken,
    phase: Phase,
    /// What comes when the prompts are there: a job that goes on needs them again.
    after_prompts: Phase,
    pub(crate) adapt: Adapt,
    pub(crate) outputs: Option<OpenOutputs>,
    video: Option<VideoSummary>,
    /// What the last snapshot has on disk.
    pub(crate) kept: Arc<Kept>,
    /// A snapshot is being written.
    pub(crate) is_captured: bool,
    /// Reads of a parked job's entries, which are not announced while it is parked.
    pub(crate) parked: Option<BTreeMap<Key, Vec<Uses>>>,
    // Leases go before the job that owns what they hold.
    prompts: Vec<Prompt>,
    pub(crate) job: Job,
    measured: Option<Measurement>,
    /// What admission found that the job takes.
    pub(crate) needs: Needs,
    /// What threads work in, and a step's results before they are entries.
    pub(crate) scratch: Scratch,
}

impl<'m> JobRun<'m> {
    /// Checks a request, its files and the budgets, and opens its outputs. Computes nothing.
    ///
    /// # Errors
    /// What is wrong with the request, in one sentence.
    pub fn admit(model: &'m Model, request: Request, outputs: Outputs, cancel: CancelToken) -> Result<Self> {
        let spec = JobSpec::new(request, &model.checkpoint)?;
        let needs = model.needs(&spec)?;
        needs.check(model)?;
        let channels = model.checkpoint.vae().z_dim();
        if let Some(path) = &spec.noise_in {
            // Read again when it is needed: noise is not an entry before the job has begun.
            let mut noise = NoiseFile::open(path, spec.noise_shape(channels))?;
            for frame in 0..spec.denoised_frames() {
                noise.read(frame..frame + 1)?;
            }
        }
        let outputs = OpenOutputs::open(outputs, &spec, channels)?;
        let itinerary = Itinerary::new(&model.blueprint, &spec);
        let job = model.cache.open_job();
        itinerary.announce(&model.blueprint, &spec, &job, 0);
        Ok(Self {
            model,
            itinerary,
            cancel,
            phase: Phase::Prompt { at: 0 },
            after_prompts: Phase::Noise { block: 0 },
            adapt: Adapt::new(&spec),
            kept: Arc::default(),
            is_captured: false,
            parked: None,
            outputs: Some(outputs),
            video: None,
            prompts: Vec::new(),
            job,
            measured: None,
            needs,
            scratch: Scratch::default(),
            spec,
        })
    }

    /// Measures, from now on, what each of `codecs` would cost: see [`crate::calibration`]. Slow.
    pub fn measure(&mut self, codecs: &[Codec]) {
        self.measured = Some(Measurement::new(codecs));
    }

    /// The cheapest codecs that a budget allows, by what was measured. Nothing where no attention to pages was seen.
    #[must_use]
    pub fn choose(&self, budget: Budget) -> Option<Assignment> {
        let dim = self.model.expert(Component::HighNoise).config().dim();
        self.measured.as_ref()?.choose(dim, budget)
    }

    /// Tokens whose keys and values the job keeps at once, in each layer of an expert: those of all branches.
    #[must_use]
    pub fn kept_tokens(&self) -> usize {
        let Some(rollout) = self.spec.rollout else { return 0 };
        let committed = self.spec.block(self.spec.n_blocks() - 1).frames.start;
        let frames = committed.min(rollout.sink_frames + rollout.recent_frames);
        let branches = if self.spec.uses_guidance() { 2 } else { 1 };
        frames * branches * (self.spec.height / 16) * (self.spec.width / 16)
    }

    /// What was measured, if anything was to be.
    #[must_use]
    pub fn measured(&self) -> Option<&Measurement> {
        self.measured.as_ref()
    }

    /// What the job does.
    #[must_use]
    pub fn spec(&self) -> &JobSpec {
        &self.spec
    }

    /// The job's name in the cache.
    #[must_use]
    pub fn id(&self) -> JobId {
        self.job.id()
    }

    /// How far it is.
    #[must_use]
    pub fn position(&self) -> Position {
        let (n_blocks, steps) = (self.spec.n_blocks(), self.spec.steps());
        let of_block = |block, steps| {
            let latent_frames = self.spec.block(block).frames.start;
            Position { n_blocks, block, steps, latent_frames }
        };
        match self.phase_to_save() {
            Phase::Prompt { .. } => of_block(0, 0),
            Phase::Noise { block } => of_block(block, 0),
            Phase::Step { block, at } => of_block(block, at),
            Phase::Commit { block, .. } => of_block(block, steps),
            Phase::LatentFrame { at } => {
                Position { latent_frames: at, ..of_block(self.spec.block_of(at), steps) }
            }
            Phase::Close | Phase::Done => {
                Position { latent_frames: self.spec.latent_frames(), ..of_block(n_blocks - 1, steps) }
            }
        }
    }

    /// The unit that comes next, prompts that are only read again left out.
    pub(crate) fn phase_to_save(&self) -> Phase {
        match (self.phase, self.after_prompts) {
            (Phase::Prompt { .. }, Phase::Noise { block: 0 }) => self.phase,
            (Phase::Prompt { .. }, after) => after,
            (phase, _) => phase,
        }
    }

    /// Sets a job that was just admitted to where a saved one stood.
    pub(crate) fn go_on_at(&mut self, phase: Phase, adapt: Adapt) -> Result<()> {
        let Some(block) = self.block_with(phase) else {
            let what = format!("{phase:?} is no unit of this job");
            return Err(SnapshotError::Damaged(what).into());
        };
        if !adapt.is_of(&self.spec) {
            let what = "what gave way in it could not give way in this job".to_owned();
            return Err(SnapshotError::Damaged(what).into());
        }
        self.adapt = adapt;
        self.job.withdraw();
        self.itinerary.announce(&self.model.blueprint, &self.spec, &self.job, block);
        self.go_on_with_prompts(phase);
        Ok(())
    }

    /// The block that a unit belongs to; `None` for what is no unit that the job can go on with.
    fn block_with(&self, phase: Phase) -> Option<usize> {
        let (block, at, units) = match phase {
            Phase::Noise { block } => (block, 0, 1),
            Phase::Step { block, at } => (block, at, self.spec.steps()),
            // A block that is not there is not reckoned with.
            Phase::Commit { block, at } if block < self.spec.n_blocks() => {
                (block, at, self.itinerary.commits_of(block))
            }
            Phase::LatentFrame { at } => (self.spec.block_of(at), at, self.spec.latent_frames()),
            Phase::Close => (self.spec.n_blocks() - 1, 0, 1),
            Phase::Commit { .. } | Phase::Prompt { .. } | Phase::Done => return None,
        };
        (at < units && block < self.spec.n_blocks()).then_some(block)
    }

    /// Gives the prompts up, and has them again before the next unit that reads them.
    pub(crate) fn go_on_with_prompts(&mut self, phase: Phase) {
        self.prompts.clear();
        let reads = match phase {
            Phase::LatentFrame { at } => self.spec.block_of(at) + 1 < self.spec.n_blocks(),
            Phase::Close | Phase::Done => false,
            Phase::Prompt { .. } | Phase::Noise { .. } | Phase::Step { .. } | Phase::Commit { .. } => true,
        };
        self.phase = if reads { Phase::Prompt { at: 0 } } else { phase };
        self.after_prompts = if let Phase::Prompt { .. } = phase { Phase::Noise { block: 0 } } else { phase };
    }

    /// Does the next unit of work: a prompt, a block's noise, a denoising step, a commit, a latent frame, or closing the
    /// video.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`] when somebody asked, before the unit begins, so that a [snapshot](Self::snapshot) can still be taken;
    /// else whatever went wrong. The job is over then: drop it.
    pub fn advance(&mut self, observer: &mut dyn Observer) -> Result<Progress> {
        if self.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        self.unpark();
        self.phase = match self.phase {
            Phase::Prompt { at } => self.encode_prompt(at, observer)?,
            Phase::Noise { block } => self.draw_noise(&self.spec.block(block), observer)?,
            Phase::Step { block, at } => self.denoise(&self.spec.block(block), at, observer)?,
            Phase::Commit { block, at } => self.commit(&self.spec.block(block), at, observer)?,
            Phase::LatentFrame { at } => self.decode(at, observer)?,
            Phase::Close => self.close(observer)?,
            Phase::Done => Phase::Done,
        };
        Ok(if self.phase == Phase::Done { Progress::Done } else { Progress::More })
    }

    /// Ends the job and says what it made and used.
    ///
    /// # Errors
    /// When it is not done.
    pub fn finish(self) -> Result<Outcome> {
        let Self { model, spec, video, prompts, job, .. } = self;
        let video = video.ok_or_else(|| EngineError::Cache("the job is not done".to_owned()))?;
        drop(prompts);
        let owned_at_end = job.finish();
        let memory = MemoryReport::new(&model.cache.counters(), &owned_at_end);
        Ok(Outcome { spec, video, memory })
    }

    fn encode_prompt(&mut self, at: usize, observer: &mut dyn Observer) -> Result<Phase> {
        let uncond = self.spec.uses_guidance().then_some(&*self.spec.negative);
        let texts = [Some(&*self.spec.prompt), uncond];
        let n_units = texts.iter().flatten().count();
        if at == 0 {
            observer.on_event(Event::Started { stage: Stage::Text, n_units });
        }
        if let Some(text) = texts[at] {
            let prompt = encode(self.model, &self.job, self.itinerary.prompt(at), text)?;
            if prompt.is_full() {
                let notice =
                    format!("the prompt takes all {TOKENS_MAX} tokens; what is beyond them is not read");
                observer.on_event(Event::Notice(&notice));
            }
            self.prompts.push(prompt);
            observer.on_event(Event::Advanced { stage: Stage::Text, done_units: at + 1 });
        }
        if at + 1 < n_units {
            return Ok(Phase::Prompt { at: at + 1 });
        }
        observer.on_event(Event::Finished { stage: Stage::Text });
        if let Phase::Step { block, .. } | Phase::Commit { block, .. } = self.after_prompts {
            let n_units = self.itinerary.passes_of(block);
            observer.on_event(Event::Started { stage: Stage::Denoise, n_units });
        }
        Ok(self.after_prompts)
    }

    fn draw_noise(&mut self, block: &Block, observer: &mut dyn Observer) -> Result<Phase> {
        self.adapt.begin_block(block.at, block.frames.len());
        if self.spec.rollout.is_some() {
            observer.on_event(Event::Block { at: block.at, n_blocks: self.spec.n_blocks() });
        }
        if block.at > 0 {
            self.itinerary.announce_block(&self.model.blueprint, &self.spec, &self.job, block.at + 1);
            let Self { model, spec, job, itinerary, adapt, .. } = &*self;
            let (block, is_next_block) = (block.at, false);
            Ahead { model, spec, job, itinerary, adapt, is_next_block, block, pass: 0 }.request_first();
        }
        let n_units = self.itinerary.passes_of(block.at);
        observer.on_event(Event::Started { stage: Stage::Denoise, n_units });
        if block.at < self.spec.blocks_given {
            return self.begin_given(block, observer);
        }
        let channels = self.model.checkpoint.vae().z_dim();
        let noise = match &self.spec.noise_in {
            Some(path) => {
                NoiseFile::open(path, self.spec.noise_shape(channels))?.read(block.frames.clone())?
            }
            None => {
                let shape = self.spec.block_shape(channels, block);
                initial_noise(self.spec.block_seed(block.at), shape.iter().product())
            }
        };
        put_noise(&self.job, self.itinerary.end_of_step(block.at, 0), &noise)?;
        Ok(Phase::Step { block: block.at, at: 0 })
    }

    /// Takes a block that is given as denoised.
    fn begin_given(&mut self, block: &Block, observer: &mut dyn Observer) -> Result<Phase> {
        if let Some(path) = self.spec.start_from.as_ref().filter(|_| block.at == 0) {
            start::put(self.model, &self.spec, &self.job, &self.itinerary, path)?;
        }
        // What lives some steps counts those of every block.
        for _ in 0..self.spec.steps() {
            self.job.step();
        }
        self.write_latents(block)?;
        if self.itinerary.commits_of(block.at) > 0 {
            return Ok(Phase::Commit { block: block.at, at: 0 });
        }
        Ok(self.begin_decoding(block, observer))
    }

    fn denoise(&mut self, block: &Block, at: usize, observer: &mut dyn Observer) -> Result<Phase> {
        self.denoising(block)?.take(at)?;
        observer.on_event(Event::Advanced { stage: Stage::Denoise, done_units: at + 1 });
        if at + 1 < self.spec.steps() {
            return Ok(Phase::Step { block: block.at, at: at + 1 });
        }
        self.write_latents(block)?;
        if self.itinerary.commits_of(block.at) > 0 {
            return Ok(Phase::Commit { block: block.at, at: 0 });
        }
        // Nothing reads the prompts after the last block.
        self.prompts.clear();
        Ok(self.begin_decoding(block, observer))
    }

    fn commit(&mut self, block: &Block, at: usize, observer: &mut dyn Observer) -> Result<Phase> {
        self.denoising(block)?.commit(at)?;
        observer.on_event(Event::Advanced { stage: Stage::Denoise, done_units: self.spec.steps() + at + 1 });
        if at + 1 < self.itinerary.commits_of(block.at) {
            return Ok(Phase::Commit { block: block.at, at: at + 1 });
        }
        Ok(self.begin_decoding(block, observer))
    }

    fn denoising<'a>(&'a self, block: &'a Block) -> Result<Denoise<'a>> {
        let [cond, uncond] = [0, 1].map(|at| self.prompts.get(at));
        let cond = cond.ok_or_else(|| EngineError::Cache("the prompt's embedding is gone".to_owned()))?;
        let Self { model, spec, job, itinerary, adapt, .. } = self;
        let (measured, scratch) = (self.measured.as_ref(), &self.scratch);
        Ok(Denoise { model, spec, job, itinerary, adapt, block, cond, uncond, measured, scratch })
    }

    fn begin_decoding(&mut self, block: &Block, observer: &mut dyn Observer) -> Phase {
        // Commits leave no more than the window, unless it shrank between them.
        self.prune_unseen();
        if block.at + 1 == self.spec.n_blocks() {
            // No step will work in it again.
            self.scratch = Scratch::default();
            self.model.cache.trim();
        }
        observer.on_event(Event::Finished { stage: Stage::Denoise });
        let n_units = self.spec.blocks().decoded(block.at).len();
        observer.on_event(Event::Started { stage: Stage::Decode, n_units });
        Phase::LatentFrame { at: block.frames.start }
    }

    /// Writes a block's final frames to their places in `[channels, T, height, width]`.
    fn write_latents(&mut self, block: &Block) -> Result<()> {
        let Some(outputs) = self.outputs.as_mut().filter(|outputs| outputs.wants_latents()) else {
            return Ok(());
        };
        let plane = (self.spec.height / 8) * (self.spec.width / 8);
        let frames = self.spec.latent_frames();
        for frame in block.frames.start..block.frames.end.min(frames) {
            // A copy of it is no read that anybody announced.
            let latent =
                self.job.peek(&keys::latent(LatentRole::Final, frame)).map_err(EngineError::cache)?;
            for (channel, numbers) in crate::bytes::as_f32(&latent).chunks_exact(plane).enumerate() {
                outputs.write_latent_plane((channel * frames + frame) * plane, numbers)?;
            }
        }
        Ok(())
    }

    fn decode(&mut self, at: usize, observer: &mut dyn Observer) -> Result<Phase> {
        let (model, spec, job, itinerary) = (self.model, &self.spec, &self.job, &self.itinerary);
        let pictures = Decode { model, spec, job, itinerary }.take(at)?;
        observer.on_event(Event::Encoding(true));
        let outputs = self.outputs.as_mut().ok_or_else(closed)?;
        let pictures_bytes = 4 * pictures.len() as u64;
        let room =
            outputs.are_pooled().then(|| spare_room(model, job, &self.needs, pictures_bytes)).flatten();
        outputs.push(pictures, room)?;
        observer.on_event(Event::Encoding(false));
        let block = self.spec.block(self.spec.block_of(at));
        let done_units = at + 1 - block.frames.start;
        observer.on_event(Event::Advanced { stage: Stage::Decode, done_units });
        let is_last = at + 1 == self.spec.latent_frames();
        let in_block = at + 1 - block.frames.start;
        if is_last || at + 1 == block.frames.end || in_block.is_multiple_of(SEGMENT_LATENT_FRAMES) {
            self.outputs.as_mut().ok_or_else(closed)?.end_segment()?;
        }
        if !is_last && at + 1 < block.frames.end {
            return Ok(Phase::LatentFrame { at: at + 1 });
        }
        observer.on_event(Event::Finished { stage: Stage::Decode });
        Ok(if is_last { Phase::Close } else { Phase::Noise { block: block.at + 1 } })
    }

    fn close(&mut self, observer: &mut dyn Observer) -> Result<Phase> {
        observer.on_event(Event::Started { stage: Stage::Encode, n_units: 1 });
        self.outputs.as_mut().ok_or_else(closed)?.complete()?;
        observer.on_event(Event::Advanced { stage: Stage::Encode, done_units: 1 });
        observer.on_event(Event::Finished { stage: Stage::Encode });
        // Nothing that might stop the job comes after the files are in place.
        self.video = Some(self.outputs.take().ok_or_else(closed)?.finish()?);
        Ok(Phase::Done)
    }
}

fn closed() -> EngineError {
    EngineError::Cache("the outputs are closed already".to_owned())
}

#[cfg(test)]
mod tests;
