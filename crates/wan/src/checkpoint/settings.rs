//! What a checkpoint says about sampling: solver, shift, boundary, and its own defaults.

use std::path::Path;

use serde_json::{Value, json};

use super::fields::Fields;
use crate::error::Result;
use crate::schedule::{Grid, Solver};

/// What to use where a request is silent. What is `None` here has Wan2.2's own setting.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Defaults {
    /// Width and height in pixels.
    pub size: Option<(usize, usize)>,
    /// Frames.
    pub frames: Option<usize>,
    /// Frames per second.
    pub fps: Option<u32>,
    /// Denoising steps.
    pub steps: Option<usize>,
    /// Guidance of the high-noise expert.
    pub guidance_high: Option<f64>,
    /// Guidance of the low-noise expert.
    pub guidance_low: Option<f64>,
    /// Shift of the noise schedule.
    pub shift: Option<f64>,
    /// What a video should not show.
    pub negative_prompt: Option<String>,
}

/// How a checkpoint that makes a video block by block does so: the section `evanesce.causal` of `model_index.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// Latent frames that are denoised together.
    pub block_frames: usize,
    /// Latent frames at the beginning that every later block sees.
    pub sink_frames: usize,
    /// Latent frames right before a block that it sees.
    pub recent_frames: usize,
    /// What the frames in reach are told about time.
    pub positions: Positions,
}

/// Latent frames of a video that is made block by block, at most: 68 minutes at 16 frames a second.
pub const ROLLOUT_LATENT_FRAMES_MAX: usize = 16_384;

/// Positions in time of the frames that a block sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// Their places in the list of frames in reach: sink, recent frames, block. No distance is longer than that list.
    Window,
    /// Their places in the video.
    Absolute,
}

/// How the checkpoint is meant to be sampled.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) solver: Solver,
    pub(crate) grid: Grid,
    pub(crate) flow_shift: f64,
    /// Where the experts meet, as part of 1; zero with a single expert.
    pub(crate) boundary: f64,
    pub(crate) defaults: Defaults,
    pub(crate) rollout: Option<Rollout>,
}

/// `sample_neg_prompt` of the official `wan/configs/shared_config.py`, which its text-to-video uses unless told otherwise.
const OFFICIAL_NEGATIVE_PROMPT: &str = "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，\
低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，\
手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走";

impl Settings {
    /// Those of the official `wan/configs/wan_t2v_A14B.py`.
    pub(crate) fn official() -> Self {
        Self {
            solver: Solver::UniPc,
            grid: Grid::Official,
            flow_shift: 12.0,
            boundary: 0.875,
            defaults: Defaults {
                size: Some((1280, 720)),
                frames: Some(81),
                fps: Some(16),
                steps: Some(40),
                guidance_high: Some(4.0),
                guidance_low: Some(3.0),
                shift: Some(12.0),
                negative_prompt: Some(OFFICIAL_NEGATIVE_PROMPT.to_owned()),
            },
            rollout: None,
        }
    }
}

/// What `model_index.json` says.
#[derive(Debug)]
pub(crate) struct ModelIndex {
    pub(crate) boundary: Option<f64>,
    pub(crate) has_second_expert: bool,
    pub(crate) defaults: Defaults,
    pub(crate) rollout: Option<Rollout>,
}

impl ModelIndex {
    /// Parses a diffusers `model_index.json`; `path` is named in errors.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields::parse(path, bytes)?;
        fields.only("_class_name", &json!("WanPipeline"), "only text-to-video pipelines are supported")?;
        fields.only("expand_timesteps", &json!(false), "one timestep per token is not supported")?;
        let boundary = fields.optional_number("boundary_ratio", 0.0..=1.0)?;
        let is_model = |value: &Value| value.get(1).is_some_and(Value::is_string);
        let has_second_expert = fields.take("transformer_2").is_some_and(|value| is_model(&value));
        for part in ["transformer", "text_encoder", "tokenizer", "vae", "scheduler"] {
            match fields.take(part) {
                Some(value) if is_model(&value) => {}
                value => {
                    let got = value.map_or_else(|| "absent".to_owned(), |value| value.to_string());
                    return Err(fields.fault(part, got, "a pair of library and class"));
                }
            }
        }
        if has_second_expert && boundary.is_none() {
            return Err(fields.fault(
                "boundary_ratio",
                "absent",
                "a number from 0 to 1, where the two experts meet",
            ));
        }
        let (defaults, rollout) = match fields.optional_section("evanesce")? {
            None => (Defaults::default(), None),
            Some(mut section) => {
                let defaults = section.optional_section("defaults")?.map(parse_defaults).transpose()?;
                let rollout = section.optional_section("causal")?.map(parse_rollout).transpose()?;
                section.finish()?;
                (defaults.unwrap_or_default(), rollout)
            }
        };
        fields.finish()?;
        Ok(Self { boundary, has_second_expert, defaults, rollout })
    }
}

fn parse_rollout(mut fields: Fields) -> Result<Rollout> {
    let positions = match fields.optional_text("positions")?.as_deref() {
        None | Some("window") => Positions::Window,
        Some("absolute") => Positions::Absolute,
        Some(other) => return Err(fields.fault("positions", other, "\"window\" or \"absolute\"")),
    };
    let rollout = Rollout {
        block_frames: fields.count("block_frames", 1..=1024)?,
        sink_frames: fields.count("sink_frames", 0..=1024)?,
        recent_frames: fields.count("recent_frames", 1..=1024)?,
        positions,
    };
    fields.finish()?;
    Ok(rollout)
}

fn parse_defaults(mut fields: Fields) -> Result<Defaults> {
    let size = match fields.take("size") {
        None => None,
        Some(value) => {
            let side = |index: usize| usize::try_from(value.get(index)?.as_u64()?).ok();
            let sides =
                side(0).zip(side(1)).filter(|_| value.as_array().is_some_and(|sides| sides.len() == 2));
            Some(sides.ok_or_else(|| fields.fault("size", &value, "[width, height] in pixels"))?)
        }
    };
    let defaults = Defaults {
        size,
        frames: fields.optional_count("frames", 1..=100_000)?,
        fps: fields.optional_count("fps", 1..=240)?.and_then(|fps| u32::try_from(fps).ok()),
        steps: fields.optional_count("steps", 1..=1000)?,
        guidance_high: fields.optional_number("guidance_high", 0.0..=100.0)?,
        guidance_low: fields.optional_number("guidance_low", 0.0..=100.0)?,
        shift: fields.optional_number("shift", 0.01..=100.0)?,
        negative_prompt: fields.optional_text("negative_prompt")?,
    };
    fields.finish()?;
    Ok(defaults)
}

/// Parses a diffusers `scheduler_config.json` into solver and shift; `path` is named in errors.
pub(crate) fn parse_scheduler(path: &Path, bytes: &[u8]) -> Result<(Solver, f64)> {
    let mut fields = Fields::parse(path, bytes)?;
    let class = fields.optional_text("_class_name")?;
    let (solver, shift) = match class.as_deref() {
        Some("UniPCMultistepScheduler") => (Solver::UniPc, "flow_shift"),
        Some("FlowMatchEulerDiscreteScheduler") => (Solver::Euler, "shift"),
        other => {
            let expected = "UniPCMultistepScheduler or FlowMatchEulerDiscreteScheduler";
            return Err(fields.fault("_class_name", other.unwrap_or("absent"), expected));
        }
    };
    if solver == Solver::UniPc {
        let reason = "the model predicts a velocity";
        for (name, expected) in
            [("prediction_type", json!("flow_prediction")), ("use_flow_sigmas", json!(true))]
        {
            let got = fields.take(name);
            if got.as_ref() != Some(&expected) {
                let got = got.map_or_else(|| "absent".to_owned(), |got| got.to_string());
                return Err(fields.fault(name, got, format!("{expected}: {reason}")));
            }
        }
    }
    let fixed = [
        ("num_train_timesteps", json!(1000)),
        ("solver_order", json!(2)),
        ("solver_type", json!("bh2")),
        ("predict_x0", json!(true)),
        ("lower_order_final", json!(true)),
        ("final_sigmas_type", json!("zero")),
        ("thresholding", json!(false)),
        ("use_dynamic_shifting", json!(false)),
        ("use_karras_sigmas", json!(false)),
        ("use_exponential_sigmas", json!(false)),
        ("use_beta_sigmas", json!(false)),
        ("invert_sigmas", json!(false)),
        ("stochastic_sampling", json!(false)),
        ("shift_terminal", json!(null)),
        ("disable_corrector", json!([])),
    ];
    for (name, value) in fixed {
        fields.only(name, &value, "no other way of sampling is supported")?;
    }
    // Every other field belongs to what the fixed ones above switch off.
    let shift = fields.optional_number(shift, 0.01..=100.0)?.unwrap_or(1.0);
    Ok((solver, shift))
}
