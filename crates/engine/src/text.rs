//! Prompts into embeddings: computed once per model and text, shared by content.

use evanesce_cache::{Job, Lease, Tier};
use evanesce_wan::WanError;
use evanesce_wan::text::{TOKENS_MAX, Umt5Config};
use evanesce_wan::transformer::TextRows;
use evanesce_wan::weights::Component;

use crate::bytes::{as_f32, write_f32};
use crate::error::{EngineError, Result};
use crate::keys;
use crate::model::Model;
use crate::residency::Position;

/// An embedding that is held, rows of real tokens only.
#[derive(Debug)]
pub(crate) struct Prompt {
    lease: Lease,
    n_tokens: usize,
}

impl Prompt {
    /// Real rows, and how many rows of zeros follow them.
    pub(crate) fn rows(&self) -> TextRows<'_> {
        TextRows { real: as_f32(self.lease.bytes()), pad_rows: TOKENS_MAX - self.n_tokens }
    }

    /// Whether the prompt takes all rows: what was beyond them has been cut off.
    pub(crate) fn is_full(&self) -> bool {
        self.n_tokens == TOKENS_MAX
    }
}

/// Tokenizes and encodes `text`, or finds it encoded.
pub(crate) fn encode(model: &Model, job: &Job, position: Position, text: &str) -> Result<Prompt> {
    let ids = model.tokenizer.prompt_ids(text)?;
    let key = keys::embedding(&model.blueprint.fingerprint(Component::TextEncoder), &ids);
    let lease = match job.shared_get(&key) {
        Some(lease) => lease,
        None => {
            let workspace = workspace_bytes(model.text.config(), ids.len()) as u64;
            let _scratch = job.reserve(&[(Tier::Device, workspace)]).map_err(EngineError::cache)?;
            let rows = model.text.encode(&model.weights.for_job(job, position, &model.waits), &ids)?;
            let rows = rows.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(WanError::from)?;
            let len_bytes = size_of_val(&rows[..]);
            let mut writer =
                model.cache.shared_put(key, Tier::Device, len_bytes).map_err(EngineError::cache)?;
            write_f32(writer.bytes_mut(), &rows);
            writer.commit().map_err(EngineError::cache)?
        }
    };
    Ok(Prompt { lease, n_tokens: ids.len() })
}

/// Bytes that encoding `n_tokens` tokens takes beyond weights, at most: the residual stream, its normed copy, queries, keys,
/// values and what attention gives, both halves of the feed-forward layer, and the position biases.
pub(crate) fn workspace_bytes(config: &Umt5Config, n_tokens: usize) -> usize {
    let row = 4 * config.d_model + 4 * config.inner_dim() + 2 * config.d_ff;
    let biases = 2 * config.num_heads * n_tokens * n_tokens;
    size_of::<f32>() * (n_tokens * row + biases)
}
