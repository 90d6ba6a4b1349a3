//! A checkpoint without its weights: shapes, settings, and what every group of weights takes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::component::is_linear;
use super::held::HeldWeights;
use super::open::{Want, assumed_group, open};
use super::rollout::{Positions, ROLLOUT_LATENT_FRAMES_MAX, Rollout};
use super::settings::{Defaults, Settings};
use super::sizes::SizeRule;
use crate::error::Result;
use crate::schedule::{Grid, Solver};
use crate::text::{self, Umt5Config};
use crate::transformer::{self, LoneBlock, PATCH, TransformerConfig};
use crate::vae::{self, VaeConfig};
use crate::weights::{Component, GroupSpec, TensorSpec};

/// Everything about a checkpoint but its numbers: enough to plan a job.
#[derive(Clone, Debug)]
pub struct Description {
    pub(super) experts: BTreeMap<Component, TransformerConfig>,
    pub(super) text: Umt5Config,
    pub(super) vae: VaeConfig,
    pub(super) settings: Settings,
    pub(super) groups: BTreeMap<Component, Vec<GroupSpec>>,
    pub(super) tokenizer: Option<PathBuf>,
}

impl Description {
    /// Describes what is in `dir`. Configurations must be there; weights are measured where they are, and taken to be in
    /// the types that Wan publishes where they are not.
    ///
    /// # Errors
    /// As [`Checkpoint::open`](super::Checkpoint::open).
    pub fn open(dir: &Path) -> Result<Self> {
        Ok(open(dir, Want::Sizes)?.description)
    }

    /// Wan2.2-T2V-A14B as it is published, with the official settings: experts of 53.2 GiB each in f32, the text encoder in bfloat16.
    #[must_use]
    pub fn wan22_t2v_a14b() -> Self {
        let expert = TransformerConfig { layers: 40, ..LoneBlock::wan22_t2v_a14b() };
        let (text, vae) = (Umt5Config::xxl(), VaeConfig::wan21());
        let experts = [Component::HighNoise, Component::LowNoise].map(|c| (c, expert.clone()));
        let halves = [Component::VaeEncoder, Component::VaeDecoder];
        let expected = experts
            .iter()
            .map(|(component, config)| (*component, transformer::expected_tensors(config)))
            .chain([(Component::TextEncoder, text::expected_tensors(&text))])
            .chain(halves.map(|half| (half, vae::expected_tensors(&vae, half))));
        let groups = expected.map(|(component, groups)| {
            (component, groups.into_iter().map(|group| assumed_group(component, group)).collect())
        });
        let groups = groups.collect();
        let settings = Settings::official();
        Self { experts: experts.into(), text, vae, settings, groups, tokenizer: None }
    }

    /// The same with its weights held in memory as `held` says.
    #[must_use]
    pub fn holding(mut self, held: HeldWeights) -> Self {
        for (component, groups) in &mut self.groups {
            for group in groups {
                *group = group.with_types(|tensor| held.type_of(*component, tensor)).with_packed(is_linear);
            }
        }
        self
    }

    /// The same made block by block in this way, as checkpoints trained for it are.
    #[must_use]
    pub fn with_rollout(mut self, rollout: Rollout) -> Self {
        self.settings.rollout = Some(rollout);
        self
    }

    /// The same distilled to `few_steps`, without guidance.
    #[must_use]
    pub fn with_few_steps(mut self, few_steps: Vec<usize>) -> Self {
        self.settings.solver = Solver::FewStep;
        self.settings.defaults = self.settings.defaults.distilled_to(&few_steps);
        self.settings.few_steps = Some(few_steps);
        self
    }

    /// Shape of an expert; `None` for other components and for an absent second expert.
    #[must_use]
    pub fn transformer(&self, expert: Component) -> Option<&TransformerConfig> {
        self.experts.get(&expert)
    }

    /// Shape of the text encoder.
    #[must_use]
    pub fn text(&self) -> &Umt5Config {
        &self.text
    }

    /// Shape of the VAE.
    #[must_use]
    pub fn vae(&self) -> &VaeConfig {
        &self.vae
    }

    /// The tokenizer's `tokenizer.json`, if it is there.
    #[must_use]
    pub fn tokenizer_path(&self) -> Option<&Path> {
        self.tokenizer.as_deref()
    }

    /// What to use where a request is silent.
    #[must_use]
    pub fn defaults(&self) -> &Defaults {
        &self.settings.defaults
    }

    /// How the model makes a video block by block; `None` when it makes the whole video at once.
    #[must_use]
    pub fn rollout(&self) -> Option<Rollout> {
        self.settings.rollout
    }

    /// The timesteps it was distilled to, before they are warped; `None` when any number of steps will do.
    #[must_use]
    pub fn few_steps(&self) -> Option<&[usize]> {
        self.settings.few_steps.as_deref()
    }

    /// Where the experts meet, as part of 1: timesteps at or above belong to [`Component::HighNoise`]. Zero with a
    /// single expert.
    #[must_use]
    pub fn boundary(&self) -> f64 {
        self.settings.boundary
    }

    /// Shift of the noise schedule.
    #[must_use]
    pub fn flow_shift(&self) -> f64 {
        self.settings.flow_shift
    }

    /// The solver it is meant for.
    #[must_use]
    pub fn solver(&self) -> Solver {
        self.settings.solver
    }

    /// Whose noise levels its users expect.
    #[must_use]
    pub fn grid(&self) -> Grid {
        self.settings.grid
    }

    /// Layout of each group of a component, in forward order; empty for a component that is absent.
    #[must_use]
    pub fn groups(&self, component: Component) -> &[GroupSpec] {
        self.groups.get(&component).map_or(&[], Vec::as_slice)
    }

    /// Bytes of scratch that a pass through `component` takes for matrices that could not be packed, which are turned into
    /// panels wherever they are used, at most; none where all are packed. What components say of their workspaces follows from
    /// shapes alone and leaves this out.
    #[must_use]
    pub fn turned_bytes(&self, component: Component) -> usize {
        let tensors = self.groups(component).iter().flat_map(|group| group.tensors.values());
        let matrices = tensors.filter(|tensor| is_linear(&tensor.name));
        matrices.map(TensorSpec::turned_bytes).max().unwrap_or(0)
    }

    /// Which sizes and lengths of video it can make.
    #[must_use]
    pub fn size_rule(&self) -> SizeRule {
        let positions = self.experts.values().map(|config| config.rope_positions).min();
        SizeRule {
            pixels: self.vae.spatial_factor() * PATCH[1],
            frames: self.vae.temporal_factor(),
            positions: positions.unwrap_or(1),
            latent_frames: match self.settings.rollout {
                // Positions in a window do not grow with the video.
                Some(Rollout { positions: Positions::Window, .. }) => ROLLOUT_LATENT_FRAMES_MAX,
                _ => positions.unwrap_or(1),
            },
        }
    }
}
