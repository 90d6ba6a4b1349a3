//! Whether a job can run at all within the budgets, before anything is computed.

use evanesce_cache::{Tier, entry_bytes};
use evanesce_wan::weights::Component;

use crate::error::{EngineError, Result};
use crate::model::Model;
use crate::request::JobSpec;
use crate::text::workspace_bytes;

/// Latents that exist at once while a step is taken: the sample, the last sample and two predictions, and the three that
/// replace some of them.
const LATENTS_AT_ONCE: usize = 7;
const F32_BYTES: usize = size_of::<f32>();

/// The least that lets a job finish: one group of weights at a time, everything else of a stage together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    device_bytes: usize,
}

impl Needs {
    /// Computes them from shapes and the prompts' lengths.
    ///
    /// # Errors
    /// When a prompt cannot be tokenized.
    pub(crate) fn new(model: &Model, spec: &JobSpec) -> Result<Self> {
        let (height, width) = (spec.height / 8, spec.width / 8);
        let frames = spec.block(0).frames.len();
        let latent_numbers = model.checkpoint.vae().z_dim() * frames * height * width;
        let latent_bytes = latent_numbers * F32_BYTES;
        let frame_tokens = (height / 2) * (width / 2);
        let tokens = frames * frame_tokens;
        let branches = if spec.uses_guidance() { 2 } else { 1 };

        let experts = [Component::HighNoise, Component::LowNoise].map(|component| model.serving(component));
        let step_workspace_bytes =
            over(experts, |c| model.expert(c).workspace_bytes(tokens, branches)) + 2 * latent_bytes;
        let prompts = [&spec.prompt, &spec.negative].map(|text| model.tokenizer.prompt_ids(text));
        let [cond, uncond] = prompts.map(|ids| ids.map(|ids| ids.len()));
        let rows = cond?.max(uncond?) + 1;
        let config = model.text.config();
        let text_workspace_bytes = workspace_bytes(config, rows);
        let picture_bytes = 4 * spec.height * spec.width * 3 * F32_BYTES;
        let decode_workspace_bytes = model.decoder.workspace_bytes(height, width) + 2 * picture_bytes;

        let embedding_bytes = 2 * rows * config.d_model * F32_BYTES;
        let cross_kv = |c| {
            let config = model.expert(c).config();
            branches * config.layers * 2 * rows * config.dim() * F32_BYTES
        };
        let group = |component| largest_group_bytes(model, component);
        // Pages of both experts are kept from block to block; in one layer of one branch those of a new block stand beside
        // those that they push out.
        let page_bytes = |c| {
            let bytes = spec.kv_codec.page_bytes(frame_tokens, model.expert(c).config().dim());
            usize::try_from(entry_bytes(bytes)).unwrap_or(usize::MAX)
        };
        let self_kv_bytes = spec.rollout.map_or(0, |rollout| {
            // The last block leaves no pages.
            let committed = spec.denoised_frames() - rollout.block_frames;
            let frames = committed.min(rollout.sink_frames + rollout.recent_frames);
            let arriving = committed.min(rollout.block_frames);
            let kept = |c| branches * model.expert(c).config().layers * frames * page_bytes(c);
            sum(experts, kept) + over(experts, |c| arriving * page_bytes(c))
        });
        let text = text_workspace_bytes + embedding_bytes + group(Component::TextEncoder);
        // Frames that a slot commits stand beside those they replace.
        let features = 2 * model.decoder.slot_bytes(height, width);
        let cross_kv_bytes =
            if spec.rollout.is_some() { sum(experts, cross_kv) } else { over(experts, cross_kv) };
        // What stays from block to block, and so through the other stage: features while a block is denoised, text and
        // pages while one is decoded.
        let stays = |bytes: usize| if spec.rollout.is_some() { bytes } else { 0 };
        let denoise = step_workspace_bytes
            + embedding_bytes
            + cross_kv_bytes
            + self_kv_bytes
            + stays(features)
            + LATENTS_AT_ONCE * latent_bytes
            + over(experts, group);
        let decode = decode_workspace_bytes
            + latent_bytes
            + features
            + stays(embedding_bytes + cross_kv_bytes + self_kv_bytes)
            + group(Component::VaeDecoder);
        let device_bytes = text.max(denoise).max(decode);
        Ok(Self { device_bytes })
    }

    /// The least Device tier in which the job finishes.
    pub(crate) fn device_bytes(&self) -> u64 {
        self.device_bytes as u64
    }

    /// Refuses a job that could not finish.
    ///
    /// # Errors
    /// [`EngineError::Budget`], with the least that would do.
    pub(crate) fn check(&self, model: &Model) -> Result<()> {
        let budget = model.counters().tier(Tier::Device).budget_bytes;
        let budget_bytes = usize::try_from(budget).unwrap_or(usize::MAX);
        if budget_bytes < self.device_bytes {
            let tier = Tier::Device.as_str();
            return Err(EngineError::Budget { tier, budget_bytes, needed_bytes: self.device_bytes });
        }
        Ok(())
    }
}

fn over(components: [Component; 2], bytes: impl Fn(Component) -> usize) -> usize {
    components.map(bytes).into_iter().max().unwrap_or(0)
}

/// Over both experts, or over the only one.
fn sum([high, low]: [Component; 2], bytes: impl Fn(Component) -> usize) -> usize {
    if high == low { bytes(high) } else { bytes(high) + bytes(low) }
}

fn largest_group_bytes(model: &Model, component: Component) -> usize {
    model.checkpoint.groups(component).iter().map(|group| group.len_bytes).max().unwrap_or(0)
}
