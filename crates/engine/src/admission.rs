//! Whether a job can run at all within the budgets, before anything is computed.

use evanesce_cache::{Disk, Tier, entry_bytes};
use evanesce_wan::weights::Component;

use crate::ahead::STAGED_READS;
use crate::error::{EngineError, Result};
use crate::model::Model;
use crate::request::JobSpec;
use crate::text::workspace_bytes;

/// Latents that exist at once while a step is taken: the sample, the last sample and two predictions, and the three that
/// replace some of them.
const LATENTS_AT_ONCE: usize = 7;
const F32_BYTES: usize = size_of::<f32>();

/// The least that lets a job finish: one group of weights at a time, everything else of a stage together, and of pages
/// what the tiers below cannot take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    text_bytes: usize,
    /// Of a step or a latent frame, without pages.
    stage_bytes: usize,
    pages: Pages,
}

/// Keys and values of earlier frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pages {
    /// All of them, and in one layer of one branch those of a new block beside those that they push out.
    all_bytes: usize,
    /// What the device holds at least: the pages that are read, those that arrive, and those of a new block.
    staged_bytes: usize,
    /// The largest page.
    page_bytes: usize,
    /// What moves at once: the frames of a block.
    group_pages: usize,
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
        let text = text_workspace_bytes + embedding_bytes + group(Component::TextEncoder);
        // Frames that a slot commits stand beside those they replace.
        let features = 2 * model.decoder.slot_bytes(height, width);
        let cross_kv_bytes =
            if spec.rollout.is_some() { sum(experts, cross_kv) } else { over(experts, cross_kv) };
        // What stays from block to block, and so through the other stage: features while a block is denoised, text while
        // one is decoded.
        let stays = |bytes: usize| if spec.rollout.is_some() { bytes } else { 0 };
        let denoise = step_workspace_bytes
            + embedding_bytes
            + cross_kv_bytes
            + stays(features)
            + LATENTS_AT_ONCE * latent_bytes
            + over(experts, group);
        let decode = decode_workspace_bytes
            + latent_bytes
            + features
            + stays(embedding_bytes + cross_kv_bytes)
            + group(Component::VaeDecoder);
        let pages = Pages::new(model, spec, frame_tokens);
        Ok(Self { text_bytes: text, stage_bytes: denoise.max(decode), pages })
    }

    /// The least Device tier in which the job finishes without help from the tiers below.
    pub(crate) fn device_bytes(&self) -> u64 {
        self.text_bytes.max(self.stage_bytes + self.pages.all_bytes) as u64
    }

    /// Refuses a job that could not finish.
    ///
    /// # Errors
    /// [`EngineError::Budget`], with the least that would do beside the other tiers' budgets.
    pub(crate) fn check(&self, model: &Model) -> Result<()> {
        let needed_bytes = self.least_bytes(model);
        let budget_bytes = budget(model, Tier::Device);
        if budget_bytes < needed_bytes {
            return Err(EngineError::Budget { tier: Tier::Device.as_str(), budget_bytes, needed_bytes });
        }
        Ok(())
    }

    /// The least Device tier in which the job finishes, with what the tiers below can take now.
    pub(crate) fn least_bytes(&self, model: &Model) -> usize {
        let (host, disk) = (budget(model, Tier::Host), budget(model, Tier::Disk));
        let below = self.pages.below_bytes(host, disk, model.cache().disk());
        let on_device = self.pages.all_bytes.saturating_sub(below).max(self.pages.staged_bytes);
        self.text_bytes.max(self.stage_bytes + on_device)
    }
}

fn budget(model: &Model, tier: Tier) -> usize {
    usize::try_from(model.counters().tier(tier).budget_bytes).unwrap_or(usize::MAX)
}

impl Pages {
    /// Pages of both experts, kept from block to block.
    fn new(model: &Model, spec: &JobSpec, frame_tokens: usize) -> Self {
        let Some(rollout) = spec.rollout else { return Self::default() };
        let experts = [Component::HighNoise, Component::LowNoise].map(|component| model.serving(component));
        let branches = if spec.uses_guidance() { 2 } else { 1 };
        let page_bytes = |c| {
            let bytes = spec.kv_codec.page_bytes(frame_tokens, model.expert(c).config().dim());
            usize::try_from(entry_bytes(bytes)).unwrap_or(usize::MAX)
        };
        // The last block leaves no pages.
        let committed = spec.denoised_frames() - rollout.block_frames;
        let frames = committed.min(rollout.sink_frames + rollout.recent_frames);
        let group_pages = committed.min(rollout.block_frames);
        let read = |c| frames * page_bytes(c);
        let arriving = over(experts, |c| group_pages * page_bytes(c));
        let all_bytes = sum(experts, |c| model.expert(c).config().layers * branches * read(c)) + arriving;
        let staged_bytes = all_bytes.min(over(experts, |c| STAGED_READS * read(c)) + arriving);
        Self { all_bytes, staged_bytes, page_bytes: over(experts, page_bytes), group_pages }
    }

    /// Bytes of pages that host and disk can take. Each keeps room for two groups: one that comes down while another one
    /// has not left yet. What goes to disk passes through the host.
    fn below_bytes(&self, host_bytes: usize, disk_bytes: usize, disk: Option<&Disk>) -> usize {
        let slack_pages = 2 * self.group_pages;
        let Some(host_pages) = host_bytes.checked_div(self.page_bytes) else { return 0 };
        let Some(host_pages) = host_pages.checked_sub(slack_pages) else { return 0 };
        let disk_pages = disk.map_or(0, |disk| {
            let page_bytes = usize::try_from(disk.entry_bytes(self.page_bytes)).unwrap_or(usize::MAX);
            (disk_bytes / page_bytes).saturating_sub(slack_pages)
        });
        (host_pages + disk_pages).saturating_mul(self.page_bytes)
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
