//! From what somebody asked to what a job will do: every default filled in, every number checked.

use std::path::PathBuf;

use evanesce_wan::checkpoint::{Checkpoint, Context, Description, Rollout};
use evanesce_wan::schedule::{Schedule, Solver};
use evanesce_wan::text::PROMPT_CHARS_MAX;
use evanesce_wan::weights::Component;

use crate::error::{EngineError, Result};
use crate::page_codecs::KvOverrides;
use crate::self_kv::KvCodec;
use crate::start;

/// Denoising steps, at most: the model was trained on this many timesteps.
pub const MAX_STEPS: usize = 1000;

/// Earlier latent frames that a block sees, at most: as many as a checkpoint may name.
pub const WINDOW_FRAMES_MAX: usize = 1024;

/// How long a video somebody asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RequestedLength {
    /// Exactly this many frames: one more than a multiple of 4.
    Frames(usize),
    /// About this many seconds: the nearest number of frames that the model can make.
    Seconds(f64),
}

/// What somebody asked. What is `None` comes from the checkpoint's own defaults, then from Wan2.2's settings.
#[derive(Clone, Debug)]
pub struct Request {
    /// What the video should show.
    pub prompt: String,
    /// Whether there is no prompt, and the video shows what the model makes of nothing.
    pub unconditional: bool,
    /// What it should not show.
    pub negative: Option<String>,
    /// Width and height in pixels.
    pub size: Option<(usize, usize)>,
    /// Length.
    pub length: Option<RequestedLength>,
    /// Frames per second.
    pub fps: Option<u32>,
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Guidance of the high-noise expert.
    pub guidance_high: Option<f64>,
    /// Guidance of the low-noise expert.
    pub guidance_low: Option<f64>,
    /// Where the experts meet, as part of 1.
    pub boundary: Option<f64>,
    /// Shift of the noise schedule.
    pub shift: Option<f64>,
    /// Sampler.
    pub solver: Option<Solver>,
    /// Seed of the initial noise.
    pub seed: u64,
    /// A file with the initial noise, instead of drawing it.
    pub noise_in: Option<PathBuf>,
    /// A file with the frames that the video begins with, instead of making them: for videos made block by block.
    pub start_from: Option<PathBuf>,
    /// How keys and values of earlier frames are stored, for videos made block by block.
    pub kv_codec: Option<KvCodec>,
    /// Pages that are stored in other codecs.
    pub kv_overrides: KvOverrides,
    /// Latent frames right before a block that it sees, where the checkpoint's own number is not wanted.
    pub kv_window: Option<usize>,
    /// As `kv_window`, of the latent frames at the beginning that every block sees.
    pub kv_sink: Option<usize>,
}

impl Request {
    /// A request that leaves everything but the prompt and the seed to the checkpoint.
    #[must_use]
    pub fn new(prompt: impl Into<String>, seed: u64) -> Self {
        Self {
            prompt: prompt.into(),
            unconditional: false,
            negative: None,
            size: None,
            length: None,
            fps: None,
            steps: None,
            guidance_high: None,
            guidance_low: None,
            boundary: None,
            shift: None,
            solver: None,
            seed,
            noise_in: None,
            start_from: None,
            kv_codec: None,
            kv_overrides: KvOverrides::default(),
            kv_window: None,
            kv_sink: None,
        }
    }
}

impl Request {
    /// Checks what is asked of pages of keys and values, and nothing else.
    ///
    /// # Errors
    /// As [`JobSpec::new`].
    pub fn check_pages(&self, checkpoint: &Checkpoint) -> Result<()> {
        let description = checkpoint.description();
        rollout(self, description)?;
        check_codecs(self.kv_codec, &self.kv_overrides, description)
    }
}

/// What a job will do, with nothing left open.
#[derive(Clone, Debug)]
pub struct JobSpec {
    /// What the video should show, as given.
    pub prompt: String,
    /// What it should not show.
    pub negative: String,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Frames.
    pub frames: usize,
    /// Frames per second.
    pub fps: u32,
    /// Guidance of the high-noise expert.
    pub guidance_high: f64,
    /// Guidance of the low-noise expert.
    pub guidance_low: f64,
    /// Where the experts meet, as part of 1.
    pub boundary: f64,
    /// Shift of the noise schedule.
    pub shift: f64,
    /// Timesteps and noise levels.
    pub schedule: Schedule,
    /// Seed of the initial noise.
    pub seed: u64,
    /// A file with the initial noise.
    pub noise_in: Option<PathBuf>,
    /// A file with the frames that the video begins with.
    pub start_from: Option<PathBuf>,
    /// Blocks that it gives, which are not made here; 0 where there is none.
    pub blocks_given: usize,
    /// How the video is made block by block; `None` when it is made at once.
    pub rollout: Option<Rollout>,
    /// How its keys and values of earlier frames are stored.
    pub kv_codec: KvCodec,
    /// Which of them are stored otherwise.
    pub kv_overrides: KvOverrides,
}

impl JobSpec {
    /// Fills in what `request` leaves open and checks all of it against the checkpoint.
    ///
    /// # Errors
    /// [`EngineError::Request`], [`EngineError::Model`], or [`EngineError::File`] where the video cannot go on from its start
    /// file, of which only the header is read; each one sentence with what would be right.
    pub fn new(request: Request, checkpoint: &Checkpoint) -> Result<Self> {
        Self::of(request, checkpoint.description())
    }

    /// As [`Self::new`] from the checkpoint's description alone.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(request: Request, checkpoint: &Description) -> Result<Self> {
        let defaults = checkpoint.defaults();
        check_prompt("prompt", &request.prompt)?;
        match (request.prompt.trim().is_empty(), request.unconditional) {
            (true, false) => return Err(refusal("the prompt is empty; say what the video should show")),
            (false, true) => {
                return Err(refusal("an unconditional video has no prompt; leave one of the two out"));
            }
            _ => {}
        }
        let negative = request.negative.clone().or_else(|| defaults.negative_prompt.clone());
        let negative = negative.unwrap_or_default();
        check_prompt("negative prompt", &negative)?;

        let (width, height) = request.size.or(defaults.size).unwrap_or((832, 480));
        checkpoint.size_rule().validate_size(width, height)?;
        let fps = request.fps.or(defaults.fps).unwrap_or(16);
        within("fps", fps as usize, 1, 240)?;
        let frames = match request.length {
            Some(RequestedLength::Frames(frames)) => frames,
            Some(RequestedLength::Seconds(seconds)) => frames_of_seconds(seconds, fps)?,
            None => defaults.frames.unwrap_or(81),
        };
        let rollout = rollout(&request, checkpoint)?;
        check_codecs(request.kv_codec, &request.kv_overrides, checkpoint)?;
        checkpoint.size_rule().validate_frames(frames)?;

        let steps = request.steps.or(defaults.steps).unwrap_or(40);
        within("steps", steps, 1, MAX_STEPS)?;
        let guidance_high = request.guidance_high.or(defaults.guidance_high).unwrap_or(4.0);
        let guidance_low = request.guidance_low.or(defaults.guidance_low).unwrap_or(3.0);
        for (name, guidance) in [("guidance-high", guidance_high), ("guidance-low", guidance_low)] {
            within_real(name, guidance, 0.0, 100.0)?;
        }
        let boundary = request.boundary.unwrap_or_else(|| checkpoint.boundary());
        within_real("boundary", boundary, 0.0, 1.0)?;
        // One transformer meets no other.
        let has_two = checkpoint.transformer(Component::LowNoise).is_some();
        let boundary = if has_two { boundary } else { 0.0 };
        let shares = rollout.is_some_and(|rollout| rollout.context == Context::Shared);
        if shares && guidance_high != 1.0 && guidance_low == 1.0 {
            return Err(refusal(
                "the experts of this checkpoint share what the low-noise one keeps of earlier frames: guide that one as well, or neither",
            ));
        }
        let shift = request.shift.or(defaults.shift).unwrap_or_else(|| checkpoint.flow_shift());
        within_real("shift", shift, 0.01, 100.0)?;
        let schedule = schedule(request.solver, checkpoint, steps, (boundary, shift))?;
        Self {
            prompt: request.prompt,
            negative,
            width,
            height,
            frames,
            fps,
            guidance_high,
            guidance_low,
            boundary,
            shift,
            schedule,
            seed: request.seed,
            noise_in: request.noise_in,
            start_from: request.start_from,
            blocks_given: 0,
            rollout,
            kv_codec: request.kv_codec.unwrap_or_default(),
            kv_overrides: request.kv_overrides,
        }
        .with_blocks_given()
    }

    /// The same with the blocks that its start file gives.
    fn with_blocks_given(self) -> Result<Self> {
        let given = self.start_from.as_ref().map(|path| start::blocks_given(path, &self));
        Ok(Self { blocks_given: given.transpose()?.unwrap_or(0), ..self })
    }

    /// Latent frames: the first stands for one picture, each later one for four.
    #[must_use]
    pub fn latent_frames(&self) -> usize {
        (self.frames - 1) / 4 + 1
    }

    /// Denoising steps.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.schedule.steps()
    }
}

/// The steps that a request asks for: any number, unless the checkpoint was distilled to its own.
fn schedule(
    solver: Option<Solver>,
    checkpoint: &Description,
    steps: usize,
    (boundary, shift): (f64, f64),
) -> Result<Schedule> {
    let Some(few) = checkpoint.few_steps() else {
        let solver = solver.unwrap_or_else(|| checkpoint.solver());
        return Ok(Schedule::new(solver, checkpoint.grid(), steps, shift)?);
    };
    if steps != few.len() || solver.is_some() {
        return Err(refusal(format!(
            "this checkpoint is made for its own {} steps; leave out the number of steps and the solver",
            few.len()
        )));
    }
    Ok(Schedule::few_step(few, shift, (boundary > 0.0).then_some(boundary))?)
}

/// How a video is made block by block: as the checkpoint says, with the window that somebody asked for.
fn rollout(request: &Request, checkpoint: &Description) -> Result<Option<Rollout>> {
    let own = checkpoint.rollout();
    if own.is_none() && (request.kv_window.is_some() || request.kv_sink.is_some()) {
        return Err(refusal(
            "a window of earlier frames is for checkpoints that make a video block by block; this one makes it at once",
        ));
    }
    let Some(own) = own else { return Ok(None) };
    let recent_frames = request.kv_window.unwrap_or(own.recent_frames);
    let sink_frames = request.kv_sink.unwrap_or(own.sink_frames);
    within("kv-window", recent_frames, 1, WINDOW_FRAMES_MAX)?;
    within("kv-sink", sink_frames, 0, WINDOW_FRAMES_MAX)?;
    Ok(Some(Rollout { recent_frames, sink_frames, ..own }))
}

fn refusal(message: impl Into<String>) -> EngineError {
    EngineError::Request(message.into())
}

fn check_codecs(codec: Option<KvCodec>, overrides: &KvOverrides, checkpoint: &Description) -> Result<()> {
    let asked = codec.is_some() || !overrides.is_empty();
    if checkpoint.rollout().is_none() && asked {
        return Err(refusal(
            "a codec for keys and values is for checkpoints that make a video block by block; this one makes it at once",
        ));
    }
    overrides.check(|expert| checkpoint.transformer(expert).map(|config| config.layers))
}

fn check_prompt(name: &str, text: &str) -> Result<()> {
    let n_chars = text.chars().count();
    if n_chars > PROMPT_CHARS_MAX {
        return Err(refusal(format!(
            "the {name} has {n_chars} characters; at most {PROMPT_CHARS_MAX} are read"
        )));
    }
    Ok(())
}

fn within(name: &str, value: usize, min: usize, max: usize) -> Result<()> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(refusal(format!("{name} is {value}; it lies between {min} and {max}")))
    }
}

fn within_real(name: &str, value: f64, min: f64, max: f64) -> Result<()> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(refusal(format!("{name} is {value}; it lies between {min} and {max}")))
    }
}

/// The number of frames, one more than a multiple of 4, that comes nearest to `seconds`.
fn frames_of_seconds(seconds: f64, fps: u32) -> Result<usize> {
    within_real("seconds", seconds, 0.0, 4096.0)?;
    let groups = (seconds * f64::from(fps) / 4.0).round();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most 4096 s at 240 frames a second"
    )]
    Ok(groups as usize * 4 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_become_the_nearest_length_the_model_can_make() {
        assert_eq!(frames_of_seconds(5.0, 16).unwrap(), 81);
        assert_eq!(frames_of_seconds(0.0, 16).unwrap(), 1);
        assert_eq!(frames_of_seconds(1.1, 16).unwrap(), 17);
        assert!(frames_of_seconds(f64::NAN, 16).is_err());
        assert!(frames_of_seconds(-1.0, 16).is_err());
    }
}
