//! How a checkpoint makes a video block by block: what it says itself, and what others' checkpoints leave to their code.

use serde_json::Value;

use super::fields::Fields;
use crate::error::Result;

/// How a checkpoint that makes a video block by block does so: the section `evanesce.causal` of `model_index.json`, or
/// what the configurations of a causal transformer mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// Latent frames that are denoised together.
    pub block_frames: usize,
    /// Latent frames of the first block.
    pub first_block_frames: usize,
    /// Latent frames at the beginning that every later block sees.
    pub sink_frames: usize,
    /// Latent frames right before a block that it sees.
    pub recent_frames: usize,
    /// What the frames in reach are told about time.
    pub positions: Positions,
    /// Whose keys and values of these frames an expert sees.
    pub context: Context,
    /// What the high-noise expert is shown of a finished block.
    pub context_sample: ContextSample,
}

/// Latent frames of a video that is made block by block, at most: 68 minutes at 16 frames a second.
pub const ROLLOUT_LATENT_FRAMES_MAX: usize = 16_384;

/// Latent frames that a causal Wan sees where its configuration names no window, the block itself included: as many as it
/// was trained on (`GLOBAL_ATTN_COMPAT_MAX_LATENT_FRAMES` of FastVideo; 32,760 tokens in Self-Forcing).
const TRAINED_FRAMES: usize = 21;

/// Positions in time of the frames that a block sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// Their places in the list of frames in reach: sink, recent frames, block. No distance is longer than that list.
    Window,
    /// Their places in the video.
    Absolute,
}

/// Whose keys and values of earlier frames an expert sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// Its own: every expert commits a finished block.
    PerExpert,
    /// Those of the low-noise expert, which alone commits.
    Shared,
}

/// What the high-noise expert is shown of a finished block when it commits it. The low-noise expert is always shown the
/// clean block. Every commit is at timestep 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextSample {
    /// The clean block.
    X0,
    /// The block where the experts met: what the high-noise expert itself made.
    Boundary,
}

/// What the `config.json` of a causal Wan transformer says beyond that of a bidirectional one: FastVideo's
/// `CausalWanTransformer3DModel`, Self-Forcing's `CausalWanModel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CausalFields {
    /// Latent frames in sight, the block itself and sinks included; `None` where all are, which is as many as it was
    /// trained on.
    window_frames: Option<usize>,
    sink_frames: usize,
    block_frames: usize,
    positions: Positions,
}

impl Default for CausalFields {
    fn default() -> Self {
        Self { window_frames: None, sink_frames: 0, block_frames: 3, positions: Positions::Absolute }
    }
}

impl CausalFields {
    /// Takes them out of a transformer's configuration.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self> {
        let defaults = Self::default();
        let window_frames = match fields.take("local_attn_size") {
            None => None,
            Some(value) if value.as_i64() == Some(-1) => None,
            Some(value) => {
                let frames = value.as_u64().and_then(|frames| usize::try_from(frames).ok());
                let frames = frames.filter(|frames| (2..=2048).contains(frames));
                Some(frames.ok_or_else(|| {
                    fields.fault("local_attn_size", &value, "-1, or latent frames from 2 to 2048")
                })?)
            }
        };
        let positions = match fields.optional_text("rope_cache_policy")?.as_deref() {
            None | Some("absolute") => Positions::Absolute,
            Some("relativistic") => Positions::Window,
            Some(other) => {
                return Err(fields.fault("rope_cache_policy", other, "\"absolute\" or \"relativistic\""));
            }
        };
        let causal = Self {
            window_frames,
            sink_frames: fields.optional_count("sink_size", 0..=1024)?.unwrap_or(defaults.sink_frames),
            block_frames: fields
                .optional_count("num_frames_per_block", 1..=1024)?
                .unwrap_or(defaults.block_frames),
            positions,
        };
        // How many frames a cache without a window is made for, and what pipelines read elsewhere.
        fields.ignore(&["sliding_window_num_frames", "boundary_ratio"]);
        let own = causal.sink_frames + causal.block_frames;
        let window = window_frames.unwrap_or(TRAINED_FRAMES);
        if own >= window {
            let expected = format!("less than the window of {window} latent frames");
            return Err(fields.fault("sink_size and num_frames_per_block together", own, expected));
        }
        Ok(causal)
    }
}

impl Rollout {
    /// That of a causal Wan, whose first block has `first_block_frames` if not as many as the others.
    pub(crate) fn causal_wan(fields: &CausalFields, first_block_frames: Option<usize>) -> Self {
        let CausalFields { window_frames, sink_frames, block_frames, positions } = *fields;
        Self {
            block_frames,
            first_block_frames: first_block_frames.unwrap_or(block_frames),
            sink_frames,
            recent_frames: window_frames.unwrap_or(TRAINED_FRAMES) - sink_frames - block_frames,
            positions,
            context: Context::PerExpert,
            context_sample: ContextSample::X0,
        }
    }
}

/// Reads the section `evanesce.causal`: the rollout, and the steps that the checkpoint was distilled to, if it was.
pub(super) fn parse_rollout(mut fields: Fields) -> Result<(Rollout, Option<Vec<usize>>)> {
    let positions =
        choice(&mut fields, "positions", [("window", Positions::Window), ("absolute", Positions::Absolute)])?;
    let contexts = [("per_expert", Context::PerExpert), ("shared", Context::Shared)];
    let samples = [("x0", ContextSample::X0), ("boundary", ContextSample::Boundary)];
    let block_frames = fields.count("block_frames", 1..=1024)?;
    let rollout = Rollout {
        block_frames,
        first_block_frames: fields.optional_count("first_block_frames", 1..=1024)?.unwrap_or(block_frames),
        sink_frames: fields.count("sink_frames", 0..=1024)?,
        recent_frames: fields.count("recent_frames", 1..=1024)?,
        positions,
        context: choice(&mut fields, "context", contexts)?,
        context_sample: choice(&mut fields, "context_sample", samples)?,
    };
    let few_steps = fields.take("steps").map(|value| steps(&fields, &value)).transpose()?;
    fields.finish()?;
    Ok((rollout, few_steps))
}

/// The value of this name, or the first where there is none.
fn choice<T: Copy>(fields: &mut Fields, name: &str, choices: [(&str, T); 2]) -> Result<T> {
    let given = fields.optional_text(name)?;
    let Some(given) = given else { return Ok(choices[0].1) };
    let found = choices.iter().find(|(known, _)| *known == given);
    let [(first, _), (second, _)] = choices;
    found
        .map(|(_, value)| *value)
        .ok_or_else(|| fields.fault(name, &given, format!("\"{first}\" or \"{second}\"")))
}

fn steps(fields: &Fields, value: &Value) -> Result<Vec<usize>> {
    let whole = |value: &Value| value.as_u64().and_then(|step| usize::try_from(step).ok());
    let steps: Option<Vec<usize>> = value.as_array().and_then(|steps| steps.iter().map(whole).collect());
    let falling = |steps: &Vec<usize>| {
        !steps.is_empty()
            && steps.iter().all(|step| (1..=1000).contains(step))
            && steps.windows(2).all(|pair| pair[0] > pair[1])
    };
    steps.filter(falling).ok_or_else(|| {
        fields.fault("steps", value, "falling whole numbers from 1000 to 1, such as [1000, 750, 500, 250]")
    })
}
