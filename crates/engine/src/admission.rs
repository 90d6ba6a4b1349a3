//! Whether a job can run at all within the budgets, before anything is computed.

use evanesce_cache::Tier;
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
        let page_bytes = |c| spec.kv_codec.page_bytes(frame_tokens, model.expert(c).config().dim());
        let self_kv_bytes = spec.rollout.map_or(0, |rollout| {
            let frames = rollout.sink_frames + rollout.recent_frames;
            let kept = |c| branches * model.expert(c).config().layers * frames * page_bytes(c);
            sum(experts, kept) + over(experts, |c| rollout.block_frames * page_bytes(c))
        });
        let text = text_workspace_bytes + embedding_bytes + group(Component::TextEncoder);
        let denoise = step_workspace_bytes
            + embedding_bytes
            + over(experts, cross_kv)
            + LATENTS_AT_ONCE * latent_bytes
            + over(experts, group);
        // Frames that a slot commits stand beside those they replace.
        let features = 2 * model.decoder.slot_bytes(height, width);
        let decode = decode_workspace_bytes + latent_bytes + features + group(Component::VaeDecoder);
        // Between two blocks everything that later ones read stays.
        let (denoise, decode) = match spec.rollout {
            None => (denoise, decode),
            Some(_) => {
                let all_cross_kv_bytes = sum(experts, cross_kv);
                (
                    denoise - over(experts, cross_kv) + all_cross_kv_bytes + self_kv_bytes + features,
                    decode + embedding_bytes + all_cross_kv_bytes + self_kv_bytes,
                )
            }
        };
        let device_bytes = text.max(denoise).max(decode);
        Ok(Self { device_bytes })
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
