//! A checkpoint that is open: descriptions of its parts, its weights' residency, and the cache that all of it lives in.

use std::path::Path;
use std::sync::Arc;

use evanesce_cache::{Budgets, Cache, Counters, Disk};
use evanesce_wan::checkpoint::Checkpoint;
use evanesce_wan::text::{TextEncoder, Tokenizer};
use evanesce_wan::transformer::Transformer;
use evanesce_wan::vae::Decoder;
use evanesce_wan::weights::Component;

use crate::admission::Needs;
use crate::ahead::Porter;
use crate::error::{EngineError, Result};
use crate::report::MemoryNow;
use crate::request::JobSpec;
use crate::residency::Weights;
use crate::shelf::Shelf;

/// One model, ready for jobs. Holds no weights of its own: those are entries of its cache.
#[derive(Debug)]
pub struct Model {
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) cache: Cache,
    pub(crate) weights: Weights,
    pub(crate) porter: Porter,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) text: TextEncoder,
    pub(crate) decoder: Decoder,
    pub(crate) shelf: Option<Shelf>,
    high: Transformer,
    low: Option<Transformer>,
}

impl Model {
    /// Opens the checkpoint in `directory` over a new cache. Reads configurations and headers, no weights.
    ///
    /// # Errors
    /// What is missing, misshapen or unknown in the checkpoint, in one sentence.
    pub fn open(directory: &Path, budgets: Budgets) -> Result<Self> {
        Self::open_over(directory, Cache::new(budgets))
    }

    /// As [`Self::open`] with a disk under the tiers in memory: [`Disk::open`] makes one.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with_disk(directory: &Path, budgets: Budgets, disk: Disk) -> Result<Self> {
        Self::open_over(directory, Cache::with_disk(budgets, disk))
    }

    fn open_over(directory: &Path, cache: Cache) -> Result<Self> {
        let checkpoint = Arc::new(Checkpoint::open(directory)?);
        let weights = Weights::new(Arc::clone(&checkpoint), cache.clone())?;
        let expert = |component| {
            let config = checkpoint.transformer(component)?;
            Some(Transformer::new(component, config.clone()))
        };
        let high = expert(Component::HighNoise).ok_or_else(|| {
            EngineError::file(directory, "has no transformer; expected transformer/ or high_noise_model/")
        })?;
        Ok(Self {
            tokenizer: Tokenizer::open(checkpoint.tokenizer_path())?,
            text: TextEncoder::new(checkpoint.text().clone()),
            decoder: Decoder::new(checkpoint.vae().clone()),
            high,
            low: expert(Component::LowNoise),
            weights,
            porter: Porter::new()?,
            shelf: None,
            cache,
            checkpoint,
        })
    }

    /// Keeps embeddings of prompts in `directory` as well, at most `limit_bytes` of them, so that text is encoded once however
    /// often the process starts. They are named by content, and checked when they are read.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn keep_embeddings(self, directory: &Path, limit_bytes: u64) -> std::io::Result<Self> {
        Ok(Self { shelf: Some(Shelf::open(directory, limit_bytes)?), ..self })
    }

    /// The checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The cache's counters at this moment.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.cache.counters()
    }

    /// What the cache holds at this moment, by tier and kind.
    #[must_use]
    pub fn memory_now(&self) -> MemoryNow {
        MemoryNow::new(&self.cache.counters())
    }

    /// The cache that everything of this model lives in.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The least bytes of the Device tier in which the job finishes: what to plan for before it starts.
    ///
    /// # Errors
    /// When a prompt cannot be tokenized.
    pub fn device_bytes_needed(&self, spec: &JobSpec) -> Result<u64> {
        Ok(Needs::new(self, spec)?.device_bytes())
    }

    /// As [`Self::device_bytes_needed`], with what the tiers below can take at this moment.
    ///
    /// # Errors
    /// When a prompt cannot be tokenized.
    pub fn device_bytes_least(&self, spec: &JobSpec) -> Result<u64> {
        Ok(Needs::new(self, spec)?.least_bytes(self) as u64)
    }

    /// The expert for a component; a checkpoint with one transformer uses it for everything.
    pub(crate) fn expert(&self, component: Component) -> &Transformer {
        match (component, &self.low) {
            (Component::LowNoise, Some(low)) => low,
            _ => &self.high,
        }
    }

    /// The component that really serves `component`.
    pub(crate) fn serving(&self, component: Component) -> Component {
        if component == Component::LowNoise && self.low.is_none() { Component::HighNoise } else { component }
    }
}
