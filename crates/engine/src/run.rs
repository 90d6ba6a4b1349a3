//! One job from admission to its video, one unit at a time.

use evanesce_cache::{Job, JobId};
use evanesce_wan::noise::initial_noise;
use evanesce_wan::text::TOKENS_MAX;

use crate::admission::Needs;
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
use crate::tensors::read_noise;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Prompt { at: usize },
    Noise,
    Step { at: usize },
    LatentFrame { at: usize },
    Close,
    Done,
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

/// A job under way. Between two calls of [`JobRun::advance`] it holds nothing but entries of the cache, so it can be
/// interleaved with other jobs, or dropped: then everything it owned is returned and no file is left (laws 1 and 10).
#[derive(Debug)]
pub struct JobRun<'m> {
    model: &'m Model,
    spec: JobSpec,
    itinerary: Itinerary,
    cancel: CancelToken,
    phase: Phase,
    outputs: Option<OpenOutputs>,
    video: Option<VideoSummary>,
    // Leases go before the job that owns what they hold.
    prompts: Vec<Prompt>,
    job: Job,
}

impl<'m> JobRun<'m> {
    /// Checks a request, its files and the budgets, and opens its outputs. Computes nothing.
    ///
    /// # Errors
    /// What is wrong with the request, in one sentence.
    pub fn admit(model: &'m Model, request: Request, outputs: Outputs, cancel: CancelToken) -> Result<Self> {
        let spec = JobSpec::new(request, &model.checkpoint)?;
        Needs::new(model, &spec)?.check(model)?;
        let channels = model.checkpoint.vae().z_dim();
        if let Some(path) = &spec.noise_in {
            // Read again when it is needed: noise is not an entry before the job has begun.
            read_noise(path, &spec.latent_shape(channels))?;
        }
        let outputs = OpenOutputs::open(outputs, &spec, channels)?;
        let itinerary = Itinerary::new(model, &spec);
        let job = model.cache.open_job();
        itinerary.announce(model, &job, &spec);
        Ok(Self {
            model,
            itinerary,
            cancel,
            phase: Phase::Prompt { at: 0 },
            outputs: Some(outputs),
            video: None,
            prompts: Vec::new(),
            job,
            spec,
        })
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

    /// Does the next unit of work: a prompt, the noise, a denoising step, a latent frame, or closing the video.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`] when somebody asked, else whatever went wrong. The job is over then: drop it.
    pub fn advance(&mut self, observer: &mut dyn Observer) -> Result<Progress> {
        if self.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        self.phase = match self.phase {
            Phase::Prompt { at } => self.encode_prompt(at, observer)?,
            Phase::Noise => self.draw_noise(observer)?,
            Phase::Step { at } => self.denoise(at, observer)?,
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
        Ok(Phase::Noise)
    }

    fn draw_noise(&mut self, observer: &mut dyn Observer) -> Result<Phase> {
        observer.on_event(Event::Started { stage: Stage::Denoise, n_units: self.spec.steps() });
        let shape = self.spec.latent_shape(self.model.checkpoint.vae().z_dim());
        let noise = match &self.spec.noise_in {
            Some(path) => read_noise(path, &shape)?,
            None => initial_noise(self.spec.seed, shape.iter().product()),
        };
        put_noise(&self.job, &noise)?;
        Ok(Phase::Step { at: 0 })
    }

    fn denoise(&mut self, at: usize, observer: &mut dyn Observer) -> Result<Phase> {
        let [cond, uncond] = [0, 1].map(|at| self.prompts.get(at));
        let cond = cond.ok_or_else(|| EngineError::Cache("the prompt's embedding is gone".to_owned()))?;
        let (model, spec, job, itinerary) = (self.model, &self.spec, &self.job, &self.itinerary);
        Denoise { model, spec, job, itinerary, cond, uncond }.take(at)?;
        observer.on_event(Event::Advanced { stage: Stage::Denoise, done_units: at + 1 });
        if at + 1 < self.spec.steps() {
            return Ok(Phase::Step { at: at + 1 });
        }
        self.prompts.clear();
        self.write_latents()?;
        observer.on_event(Event::Finished { stage: Stage::Denoise });
        observer.on_event(Event::Started { stage: Stage::Decode, n_units: self.spec.latent_frames() });
        Ok(Phase::LatentFrame { at: 0 })
    }

    /// Gathers the final frames into `[channels, T, height, width]`.
    fn write_latents(&mut self) -> Result<()> {
        let Some(outputs) = self.outputs.as_mut().filter(|outputs| outputs.wants_latents()) else {
            return Ok(());
        };
        let frames =
            (0..self.spec.latent_frames()).map(|frame| self.job.get(&keys::latent(LatentRole::Final, frame)));
        let frames: Vec<_> =
            frames.collect::<Option<_>>().ok_or_else(|| EngineError::Cache("a latent is gone".to_owned()))?;
        let plane = (self.spec.height / 8) * (self.spec.width / 8);
        let channels = self.model.checkpoint.vae().z_dim();
        let planes = (0..channels).flat_map(|channel| frames.iter().map(move |frame| (channel, frame)));
        outputs.write_latents(planes.flat_map(|(channel, frame)| {
            crate::bytes::as_f32(frame)[channel * plane..][..plane].iter().copied()
        }))
    }

    fn decode(&mut self, at: usize, observer: &mut dyn Observer) -> Result<Phase> {
        let (model, spec, job, itinerary) = (self.model, &self.spec, &self.job, &self.itinerary);
        let pictures = Decode { model, spec, job, itinerary }.take(at)?;
        observer.on_event(Event::Encoding(true));
        self.outputs.as_mut().ok_or_else(closed)?.push(&pictures)?;
        observer.on_event(Event::Encoding(false));
        observer.on_event(Event::Advanced { stage: Stage::Decode, done_units: at + 1 });
        if at + 1 < self.spec.latent_frames() {
            return Ok(Phase::LatentFrame { at: at + 1 });
        }
        observer.on_event(Event::Finished { stage: Stage::Decode });
        Ok(Phase::Close)
    }

    fn close(&mut self, observer: &mut dyn Observer) -> Result<Phase> {
        observer.on_event(Event::Started { stage: Stage::Encode, n_units: 1 });
        self.video = Some(self.outputs.take().ok_or_else(closed)?.finish()?);
        observer.on_event(Event::Advanced { stage: Stage::Encode, done_units: 1 });
        observer.on_event(Event::Finished { stage: Stage::Encode });
        Ok(Phase::Done)
    }
}

fn closed() -> EngineError {
    EngineError::Cache("the outputs are closed already".to_owned())
}
