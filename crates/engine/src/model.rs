//! A checkpoint that is open: descriptions of its parts, its weights' residency, and the cache that all of it lives in.

use std::path::Path;
use std::sync::Arc;

use evanesce_cache::{Budgets, Cache, Counters, Disk};
use evanesce_wan::checkpoint::{Checkpoint, HeldWeights};
use evanesce_wan::text::{TextEncoder, Tokenizer};
use evanesce_wan::transformer::Transformer;
use evanesce_wan::weights::Component;

use crate::admission::Needs;
use crate::ahead::Porter;
use crate::blueprint::Blueprint;
use crate::error::{EngineError, Result};
use crate::report::MemoryNow;
use crate::request::JobSpec;
use crate::residency::Weights;
use crate::shelf::Shelf;
use crate::waits::{WaitWatcher, Waits};

/// One model, ready for jobs. Holds no weights of its own: those are entries of its cache.
#[derive(Debug)]
pub struct Model {
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) cache: Cache,
    pub(crate) weights: Weights,
    pub(crate) porter: Porter,
    pub(crate) waits: Waits,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) text: TextEncoder,
    /// Everything about it but its weights.
    pub(crate) blueprint: Arc<Blueprint>,
    pub(crate) shelf: Option<Shelf>,
}

impl Model {
    /// Opens the checkpoint in `directory` over a new cache, with weights in the types that it stores. Reads configurations and
    /// headers, no weights.
    ///
    /// # Errors
    /// What is missing, misshapen or unknown in the checkpoint, in one sentence.
    pub fn open(directory: &Path, budgets: Budgets) -> Result<Self> {
        Self::open_holding(directory, HeldWeights::Stored, budgets, None)
    }

    /// As [`Self::open`] with a disk under the tiers in memory: [`Disk::open`] makes one.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with_disk(directory: &Path, budgets: Budgets, disk: Disk) -> Result<Self> {
        Self::open_holding(directory, HeldWeights::Stored, budgets, Some(disk))
    }

    /// As [`Self::open`] with weights in the types that `held` says, and with a disk under the tiers in memory if there is one.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_holding(
        directory: &Path,
        held: HeldWeights,
        budgets: Budgets,
        disk: Option<Disk>,
    ) -> Result<Self> {
        let cache = match disk {
            None => Cache::new(budgets),
            Some(disk) => Cache::with_disk(budgets, disk),
        };
        Self::open_over(directory, held, cache)
    }

    /// The small checkpoint that the tests of the whole engine run.
    #[cfg(test)]
    pub(crate) fn golden(budgets: Budgets) -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/pipeline/checkpoint");
        Self::open(&directory, budgets).expect("it is committed")
    }

    fn open_over(directory: &Path, held: HeldWeights, cache: Cache) -> Result<Self> {
        let checkpoint = Arc::new(Checkpoint::open(directory)?.holding(held));
        let tokenizer = open_tokenizer(&checkpoint)?;
        let fingerprints = checkpoint.components().map(|c| Ok((c, checkpoint.fingerprint(c)?)));
        let fingerprints = fingerprints.collect::<Result<_>>()?;
        let blueprint = Blueprint::new(checkpoint.description().clone(), fingerprints).ok_or_else(|| {
            EngineError::file(directory, "has no transformer; expected transformer/ or high_noise_model/")
        })?;
        let blueprint = Arc::new(blueprint);
        let weights = Weights::new(Arc::clone(&checkpoint), Arc::clone(&blueprint), cache.clone())?;
        Ok(Self {
            tokenizer,
            text: TextEncoder::new(checkpoint.text().clone()),
            blueprint,
            weights,
            porter: Porter::new()?,
            shelf: None,
            waits: Waits::default(),
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

    /// Tells `watcher` whenever a job of this model waits for weights or pages.
    pub fn watch_waits(&mut self, watcher: Arc<dyn WaitWatcher>) {
        self.waits = Waits(Some(watcher));
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

    /// What a job needs of memory, by its shapes and the lengths of its prompts. Both prompts are tokenized for it.
    ///
    /// # Errors
    /// When a prompt cannot be tokenized.
    pub fn needs(&self, spec: &JobSpec) -> Result<Needs> {
        Ok(Needs::new(&self.blueprint, spec, self.prompt_tokens(spec)?))
    }

    /// As [`Needs::device_bytes`].
    ///
    /// # Errors
    /// As [`Self::needs`].
    pub fn device_bytes_needed(&self, spec: &JobSpec) -> Result<u64> {
        Ok(self.needs(spec)?.device_bytes())
    }

    /// Tokens of a job's prompt and of its negative one.
    ///
    /// # Errors
    /// When a prompt cannot be tokenized.
    pub(crate) fn prompt_tokens(&self, spec: &JobSpec) -> Result<[usize; 2]> {
        let [cond, uncond] = [&spec.prompt, &spec.negative].map(|text| self.tokenizer.prompt_ids(text));
        Ok([cond?.len(), uncond?.len()])
    }

    /// The expert for a component; a checkpoint with one transformer uses it for everything.
    pub(crate) fn expert(&self, component: Component) -> &Transformer {
        self.blueprint.expert(component)
    }
}

/// The tokenizer of `checkpoint`, whose ids must be rows of the text encoder's table.
fn open_tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer> {
    let path = checkpoint.tokenizer_path();
    let tokenizer = Tokenizer::open(path)?;
    let (ids, rows) = (tokenizer.vocab_size(), checkpoint.text().vocab_size);
    if ids > rows {
        let message = format!("has {ids} tokens, expected at most {rows}, the text encoder's vocab_size");
        return Err(EngineError::file(path, message));
    }
    Ok(tokenizer)
}
