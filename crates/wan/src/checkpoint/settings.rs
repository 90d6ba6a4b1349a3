//! What a checkpoint says about sampling: solver, shift, boundary, and its own defaults.

use std::path::Path;

use serde_json::{Value, json};

use super::fields::Fields;
use super::rollout::{CausalFields, Rollout, parse_rollout};
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
    /// Timesteps that the checkpoint was distilled to, before they are warped; `None` for any number of steps.
    pub(crate) few_steps: Option<Vec<usize>>,
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
            few_steps: None,
        }
    }

    /// What `configs/self_forcing_dmd.yaml` of Self-Forcing says, which its checkpoints do not.
    pub(crate) fn self_forcing() -> Self {
        let few_steps = SELF_FORCING_STEPS.to_vec();
        Self {
            solver: Solver::FewStep,
            grid: Grid::Official,
            flow_shift: 5.0,
            boundary: 0.0,
            defaults: Defaults {
                size: Some((832, 480)),
                frames: Some(81),
                fps: Some(16),
                ..Defaults::few_step(&few_steps)
            },
            rollout: Some(Rollout::causal_wan(&CausalFields::default(), None)),
            few_steps: Some(few_steps),
        }
    }
}

/// `denoising_step_list` of Self-Forcing, and of FastVideo's causal pipeline with one expert.
const SELF_FORCING_STEPS: [usize; 4] = [1000, 750, 500, 250];
/// `dmd_denoising_steps` of FastVideo's causal pipeline with two experts.
const TWO_EXPERT_STEPS: [usize; 8] = [1000, 850, 700, 550, 350, 275, 200, 125];

impl Defaults {
    /// Of a distilled checkpoint: its own steps, and no guidance, which is distilled into it.
    fn few_step(few_steps: &[usize]) -> Self {
        Self {
            steps: Some(few_steps.len()),
            guidance_high: Some(1.0),
            guidance_low: Some(1.0),
            ..Self::default()
        }
    }

    /// These, for a checkpoint distilled to `few_steps`.
    pub(super) fn distilled_to(self, few_steps: &[usize]) -> Self {
        Self::few_step(few_steps).or(self)
    }

    /// These, and `others` where these say nothing.
    fn or(self, others: Self) -> Self {
        Self {
            size: self.size.or(others.size),
            frames: self.frames.or(others.frames),
            fps: self.fps.or(others.fps),
            steps: self.steps.or(others.steps),
            guidance_high: self.guidance_high.or(others.guidance_high),
            guidance_low: self.guidance_low.or(others.guidance_low),
            shift: self.shift.or(others.shift),
            negative_prompt: self.negative_prompt.or(others.negative_prompt),
        }
    }
}

/// What `model_index.json` says.
#[derive(Debug)]
pub(crate) struct ModelIndex {
    pub(crate) boundary: Option<f64>,
    pub(crate) has_second_expert: bool,
    pub(crate) defaults: Defaults,
    /// What the `evanesce` section says about going on block by block.
    pub(crate) rollout: Option<Rollout>,
    pub(crate) few_steps: Option<Vec<usize>>,
    /// Whether the pipeline is FastVideo's causal one, distilled to few steps.
    pub(crate) is_causal_dmd: bool,
}

impl ModelIndex {
    /// Parses a diffusers `model_index.json`; `path` is named in errors.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields::parse(path, bytes)?;
        let is_causal_dmd = match fields.optional_text("_class_name")?.as_deref() {
            None | Some("WanPipeline") => false,
            Some("WanCausalDMDPipeline") => true,
            Some(other) => {
                let expected =
                    "WanPipeline or WanCausalDMDPipeline: only text-to-video pipelines are supported";
                return Err(fields.fault("_class_name", other, expected));
            }
        };
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
        let (mut defaults, mut rollout, mut few_steps) = (Defaults::default(), None, None);
        if let Some(mut section) = fields.optional_section("evanesce")? {
            let given = section.optional_section("defaults")?.map(parse_defaults).transpose()?;
            defaults = given.unwrap_or_default();
            if let Some(causal) = section.optional_section("causal")? {
                let (how, steps) = parse_rollout(causal)?;
                (rollout, few_steps) = (Some(how), steps);
            }
            section.finish()?;
        }
        fields.finish()?;
        Ok(Self { boundary, has_second_expert, defaults, rollout, few_steps, is_causal_dmd })
    }

    /// The settings of the whole pipeline, `causal` being what its transformers say about themselves.
    pub(crate) fn settings(
        self,
        (solver, flow_shift): (Solver, f64),
        causal: Option<CausalFields>,
    ) -> Settings {
        let boundary = if self.has_second_expert { self.boundary.unwrap_or(0.0) } else { 0.0 };
        let own_steps: &[usize] =
            if self.has_second_expert { &TWO_EXPERT_STEPS } else { &SELF_FORCING_STEPS };
        // FastVideo's pipeline has its steps in its code, not in the checkpoint.
        let distilled = self.is_causal_dmd || solver == Solver::FewStep;
        let few_steps = self.few_steps.or_else(|| distilled.then(|| own_steps.to_vec()));
        // With two experts its first block is one frame, always.
        let first_block = (distilled && self.has_second_expert).then_some(1);
        let causal = causal.or_else(|| distilled.then(CausalFields::default));
        let published = causal.map(|fields| Rollout::causal_wan(&fields, first_block));
        let defaults = match &few_steps {
            // Steps that a checkpoint says twice are those of its list.
            Some(steps) => Defaults { steps: None, ..self.defaults }.or(Defaults::few_step(steps)),
            None => self.defaults,
        };
        Settings {
            solver: if few_steps.is_some() { Solver::FewStep } else { solver },
            grid: Grid::Diffusers,
            flow_shift,
            boundary,
            defaults,
            rollout: self.rollout.or(published),
            few_steps,
        }
    }
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
        Some("SelfForcingFlowMatchScheduler") => (Solver::FewStep, "shift"),
        other => {
            let expected =
                "UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler or SelfForcingFlowMatchScheduler";
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
    if solver == Solver::FewStep {
        return parse_few_step_scheduler(fields);
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

/// FastVideo's scheduler: a table of all timesteps, into which the few steps are warped.
fn parse_few_step_scheduler(mut fields: Fields) -> Result<(Solver, f64)> {
    let reason = "few steps are warped into the whole table of 1000 timesteps";
    let fixed = [
        ("num_train_timesteps", json!(1000)),
        ("num_inference_steps", json!(1000)),
        ("sigma_max", json!(1.0)),
        ("sigma_min", json!(0.0)),
        ("inverse_timesteps", json!(false)),
        ("extra_one_step", json!(true)),
        ("reverse_sigmas", json!(false)),
    ];
    for (name, value) in fixed {
        match (fields.take(name), value.as_f64()) {
            (None, _) => {}
            (Some(got), Some(number)) if got.as_f64() == Some(number) => {}
            (Some(got), None) if got == value => {}
            (Some(got), _) => return Err(fields.fault(name, got, format!("{value}: {reason}"))),
        }
    }
    // `training` only adds weights for a loss.
    fields.ignore(&["training"]);
    // The default of the class.
    let shift = fields.optional_number("shift", 0.01..=100.0)?.unwrap_or(3.0);
    fields.finish()?;
    Ok((Solver::FewStep, shift))
}
