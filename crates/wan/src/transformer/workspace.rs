//! Memory of one forward pass.

use super::config::TransformerConfig;

/// Rows of the feed-forward part that are wide at the same time.
pub(crate) const FFN_CHUNK_ROWS: usize = 1024;

/// Activations that every block overwrites, each `[tokens, dim]`.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) normed: Vec<f32>,
    pub(crate) queries: Vec<f32>,
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

impl Scratch {
    pub(crate) fn new(tokens: usize, dim: usize) -> Self {
        let [normed, queries, keys, values] = std::array::from_fn(|_| vec![0.0; tokens * dim]);
        Self { normed, queries, keys, values }
    }
}

/// Text rows that a prompt is padded to: the bound on cross-attention rows.
const TEXT_ROWS_MAX: usize = 512;

/// Bytes that one forward pass of `branches` branches over `tokens` tokens allocates at most, weights and pages aside.
pub(crate) fn workspace_bytes(config: &TransformerConfig, tokens: usize, branches: usize) -> usize {
    let dim = config.dim();
    let residuals = branches * tokens * dim;
    let scratch = 4 * tokens * dim;
    let hidden = tokens.min(FFN_CHUNK_ROWS) * config.ffn_dim;
    let rope = tokens * config.head_dim;
    let timestep = 8 * dim + config.freq_dim;
    let text = branches * TEXT_ROWS_MAX * (dim + config.text_dim) + 3 * TEXT_ROWS_MAX * dim;
    let latents = (2 + branches) * tokens * 4 * config.channels;
    size_of::<f32>() * (residuals + scratch + hidden + rope + timestep + text + latents)
}
