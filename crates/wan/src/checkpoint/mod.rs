//! Checkpoint directories: what they hold, whether it fits, and how a group's bytes get into memory.
//!
//! Three layouts are read, recognised by their files: diffusers' (`model_index.json`), the official Wan2.2 one
//! (`high_noise_model/`), and Self-Forcing's (a `.pt` beside Wan 2.1's `config.json`). Everything is checked when the directory is opened, from headers alone; weights stay on disk
//! until [`Checkpoint::read_group`] copies a group into the caller's memory.

mod archive;
mod component;
mod description;
pub(crate) mod fields;
mod files;
mod header;
mod held;
mod mapping;
mod open;
mod pickle;
pub(crate) mod rollout;
mod settings;
mod sizes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use description::Description;
pub use files::parse_index;
pub use header::{Entry, parse_header};
pub use held::HeldWeights;
pub use pickle::{PickledTensor, parse_pickle};
pub use rollout::{Context, ContextSample, Positions, ROLLOUT_LATENT_FRAMES_MAX, Rollout};
pub use settings::Defaults;
pub use sizes::SizeRule;

pub(crate) use component::is_linear;

use component::ComponentWeights;

use crate::error::{Result, WanError};
use crate::schedule::{Grid, Solver};
use crate::text::Umt5Config;
use crate::transformer::TransformerConfig;
use crate::vae::VaeConfig;
use crate::weights::{Component, GroupId, GroupSpec};

/// Which of the directory layouts a checkpoint has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `model_index.json`, `transformer/`, `transformer_2/`, `vae/`, `text_encoder/`, `tokenizer/`, `scheduler/`.
    Diffusers,
    /// `high_noise_model/`, `low_noise_model/`, `Wan2.1_VAE.pth`, `models_t5_umt5-xxl-enc-bf16.pth`,
    /// `google/umt5-xxl/`.
    Official,
    /// The official layout of Wan 2.1, one transformer, whose weights are a `.pt` of Self-Forcing's training.
    SelfForcing,
}

/// A checkpoint directory that holds everything a pipeline needs.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    layout: Layout,
    tokenizer: PathBuf,
    description: Description,
    weights: BTreeMap<Component, ComponentWeights>,
}

impl Checkpoint {
    /// Opens `dir` and checks everything that can be checked without reading weights: every file, every number of the
    /// configurations, every tensor's name, type, shape and place.
    ///
    /// # Errors
    /// [`WanError::Checkpoint`] or [`WanError::Io`], one sentence that names the file and what would be right.
    pub fn open(dir: &Path) -> Result<Self> {
        open::open(dir, open::Want::Weights)
    }

    /// The same with its weights held in memory as `held` says.
    #[must_use]
    pub fn holding(self, held: HeldWeights) -> Self {
        Self { description: self.description.holding(held), ..self }
    }

    /// How its weights are held in memory, as far as that changes anything: [`HeldWeights::Stored`] where none is rounded as it is
    /// read, whatever was asked for.
    #[must_use]
    pub fn held(&self) -> HeldWeights {
        let rounds = |(component, weights): (&Component, &ComponentWeights)| {
            let mut tensors = self.groups(*component).iter().flat_map(|group| group.tensors.values());
            tensors.any(|tensor| weights.rounds(tensor))
        };
        if self.weights.iter().any(rounds) { HeldWeights::Bf16 } else { HeldWeights::Stored }
    }

    /// What it is, without its weights.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its layout.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The components it has, in order. [`Component::LowNoise`] is absent when there is a single expert.
    pub fn components(&self) -> impl Iterator<Item = Component> + '_ {
        self.weights.keys().copied()
    }

    /// Shape of an expert; `None` for other components and for an absent second expert.
    #[must_use]
    pub fn transformer(&self, expert: Component) -> Option<&TransformerConfig> {
        self.description.transformer(expert)
    }

    /// Shape of the text encoder.
    #[must_use]
    pub fn text(&self) -> &Umt5Config {
        self.description.text()
    }

    /// Shape of the VAE.
    #[must_use]
    pub fn vae(&self) -> &VaeConfig {
        self.description.vae()
    }

    /// The tokenizer's `tokenizer.json`.
    #[must_use]
    pub fn tokenizer_path(&self) -> &Path {
        &self.tokenizer
    }

    /// What to use where a request is silent.
    #[must_use]
    pub fn defaults(&self) -> &Defaults {
        self.description.defaults()
    }

    /// How the model makes a video block by block; `None` when it makes the whole video at once.
    #[must_use]
    pub fn rollout(&self) -> Option<Rollout> {
        self.description.rollout()
    }

    /// Where the experts meet, as part of 1: timesteps at or above belong to [`Component::HighNoise`]. Zero with a
    /// single expert.
    #[must_use]
    pub fn boundary(&self) -> f64 {
        self.description.boundary()
    }

    /// Shift of the noise schedule.
    #[must_use]
    pub fn flow_shift(&self) -> f64 {
        self.description.flow_shift()
    }

    /// The solver it is meant for.
    #[must_use]
    pub fn solver(&self) -> Solver {
        self.description.solver()
    }

    /// Whose noise levels its users expect.
    #[must_use]
    pub fn grid(&self) -> Grid {
        self.description.grid()
    }

    /// Layout of each group of a component, in forward order; empty for a component that is absent.
    #[must_use]
    pub fn groups(&self, component: Component) -> &[GroupSpec] {
        self.description.groups(component)
    }

    /// Copies a group's tensors into `out`, in the layout and the types of its [`GroupSpec`]. Files are
    /// mapped window by window and unmapped at once, so the process holds `out` and little more.
    ///
    /// # Errors
    /// When there is no such group, `out` has another length, or a file changed since the checkpoint was opened.
    pub fn read_group(&self, id: GroupId, out: &mut [u8]) -> Result<()> {
        let weights = self.weights.get(&id.component);
        let group = weights.zip(self.groups(id.component).get(id.index));
        let (weights, spec) = group
            .ok_or_else(|| WanError::mismatch("group", format!("{id:?}"), "one that the checkpoint has"))?;
        if out.len() != spec.len_bytes {
            return Err(WanError::mismatch(format!("bytes of {id:?}"), out.len(), spec.len_bytes));
        }
        weights.read(spec, out)
    }

    /// Identity of a component's content: its tensors' names, types and shapes, samples of their numbers, every number of
    /// its configuration, the tokenizer for the text encoder, and which tensors are rounded as they are read. Equal for the same
    /// content in either layout.
    ///
    /// Of a tensor up to 4 KiB all bytes count, of a larger one as many, in samples all over it. So weights that were trained on
    /// or converted anew are told apart, since they differ nearly everywhere; a few numbers changed between the samples of a
    /// large tensor go unnoticed.
    ///
    /// # Errors
    /// When the component is absent or a file cannot be read any more.
    pub fn fingerprint(&self, component: Component) -> Result<[u8; 32]> {
        let weights = self.weights.get(&component).ok_or_else(|| {
            WanError::mismatch("component", format!("{component:?}"), "one that the checkpoint has")
        })?;
        let mut hasher = blake3::Hasher::new();
        weights.identify(&mut hasher)?;
        let tensors = self.groups(component).iter().flat_map(|group| group.tensors.values());
        for tensor in tensors.filter(|tensor| weights.rounds(tensor)) {
            hasher.update(format!("{} in {:?}\n", tensor.name, tensor.dtype).as_bytes());
        }
        hasher.update(self.configuration(component).as_bytes());
        if component == Component::TextEncoder {
            hasher.update(&open::read_tokenizer(&self.tokenizer)?);
        }
        Ok(*hasher.finalize().as_bytes())
    }

    /// All that a component's configuration says, the same for both layouts.
    fn configuration(&self, component: Component) -> String {
        match component {
            Component::TextEncoder => format!("{:?}", self.text()),
            Component::HighNoise | Component::LowNoise => format!("{:?}", self.transformer(component)),
            Component::VaeEncoder | Component::VaeDecoder => format!("{:?}", self.vae()),
        }
    }

    /// Which sizes and lengths of video it can make.
    #[must_use]
    pub fn size_rule(&self) -> SizeRule {
        self.description.size_rule()
    }

    /// Checks a width and height in pixels.
    ///
    /// # Errors
    /// [`WanError::Request`] with the nearest size that would do.
    pub fn validate_size(&self, width: usize, height: usize) -> Result<()> {
        self.size_rule().validate_size(width, height)
    }

    /// Checks a number of frames.
    ///
    /// # Errors
    /// [`WanError::Request`] with the nearest lengths that would do.
    pub fn validate_frames(&self, frames: usize) -> Result<()> {
        self.size_rule().validate_frames(frames)
    }
}

/// Reads the two settings files of the diffusers layout without keeping anything: for fuzzing.
///
/// # Errors
/// As [`Checkpoint::open`].
#[doc(hidden)]
pub fn parse_settings(path: &Path, model_index: &[u8], scheduler: &[u8]) -> Result<()> {
    settings::ModelIndex::parse(path, model_index)?;
    settings::parse_scheduler(path, scheduler)?;
    Ok(())
}
