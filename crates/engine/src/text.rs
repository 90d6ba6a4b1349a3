//! Prompts into embeddings: computed once per model and text, shared by content.

use evanesce_cache::{Job, Lease, Tier};
use evanesce_wan::WanError;
use evanesce_wan::text::TOKENS_MAX;
use evanesce_wan::transformer::TextRows;
use evanesce_wan::weights::Component;

use crate::blueprint::Blueprint;
use crate::bytes::as_f32;
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
    if let Some(lease) = job.shared_get(&key) {
        return Ok(Prompt { lease, n_tokens: ids.len() });
    }
    let len_bytes = ids.len() * model.blueprint.description.text().d_model * size_of::<f32>();
    let kept = model.shelf.as_ref().and_then(|shelf| shelf.load(&key, len_bytes));
    let rows = match kept {
        Some(bytes) => bytes,
        None => {
            let rows = compute(model, job, position, &ids)?;
            let bytes: &[u8] = bytemuck::cast_slice(&rows);
            if let Some(shelf) = &model.shelf {
                shelf.keep(&key, bytes);
            }
            bytes.to_vec()
        }
    };
    let mut writer = model.cache.shared_put(key, Tier::Device, rows.len()).map_err(EngineError::cache)?;
    writer.bytes_mut().copy_from_slice(&rows);
    let lease = writer.commit().map_err(EngineError::cache)?;
    Ok(Prompt { lease, n_tokens: ids.len() })
}

/// Rows of the tokens' embedding.
fn compute(model: &Model, job: &Job, position: Position, ids: &[u32]) -> Result<Vec<f32>> {
    let workspace = workspace_bytes(&model.blueprint, ids.len()) as u64;
    let _scratch = job.reserve(&[(Tier::Device, workspace)]).map_err(EngineError::cache)?;
    let rows = model.text.encode(&model.weights.for_job(job, position, &model.waits), ids)?;
    Ok(rows.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(WanError::from)?)
}

/// Bytes that encoding `n_tokens` tokens takes beyond weights, at most: the residual stream, its normed copy, queries, keys,
/// values and what attention gives, both halves of the feed-forward layer, the position biases, and what turning weights takes.
pub(crate) fn workspace_bytes(blueprint: &Blueprint, n_tokens: usize) -> usize {
    let config = blueprint.description.text();
    let row = 4 * config.d_model + 4 * config.inner_dim() + 2 * config.d_ff;
    let biases = 2 * config.num_heads * n_tokens * n_tokens;
    size_of::<f32>() * (n_tokens * row + biases) + blueprint.description.turned_bytes(Component::TextEncoder)
}
