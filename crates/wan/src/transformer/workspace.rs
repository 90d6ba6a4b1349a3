//! Memory of one forward pass.

use super::config::{PATCH_VALUES, TransformerConfig};
use crate::error::{Result, WanError};

/// Rows of the feed-forward part that are wide at the same time.
pub(crate) const FFN_CHUNK_ROWS: usize = 1024;

/// Memory that is handed out from its beginning on.
#[derive(Debug)]
pub(crate) struct Room<'a>(pub(crate) &'a mut [f32]);

impl<'a> Room<'a> {
    /// The next `len` numbers, whatever they are; an error where the caller brought less than `workspace_bytes`.
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a mut [f32]> {
        let left = self.0.len();
        self.0.split_off_mut(..len).ok_or_else(|| {
            WanError::mismatch("workspace", format!("{left} numbers left"), format!("at least {len}"))
        })
    }
}

/// What every block overwrites.
#[derive(Debug)]
pub(crate) struct Scratch<'a> {
    /// `[tokens, dim]`, as the next three.
    pub(crate) normed: &'a mut [f32],
    pub(crate) queries: &'a mut [f32],
    pub(crate) keys: &'a mut [f32],
    pub(crate) values: &'a mut [f32],
    /// `[FFN_CHUNK_ROWS at most, ffn_dim]`.
    pub(crate) hidden: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    /// Numbers of [`Self::new`].
    pub(crate) fn len(config: &TransformerConfig, tokens: usize) -> usize {
        4 * tokens * config.dim() + tokens.min(FFN_CHUNK_ROWS) * config.ffn_dim
    }

    pub(crate) fn new(room: &mut Room<'a>, config: &TransformerConfig, tokens: usize) -> Result<Self> {
        let numbers = tokens * config.dim();
        Ok(Self {
            normed: room.take(numbers)?,
            queries: room.take(numbers)?,
            keys: room.take(numbers)?,
            values: room.take(numbers)?,
            hidden: room.take(tokens.min(FFN_CHUNK_ROWS) * config.ffn_dim)?,
        })
    }
}

/// Text rows that a prompt is padded to: the bound on cross-attention rows.
const TEXT_ROWS_MAX: usize = 512;

/// Numbers that a pass of `branches` branches over `tokens` tokens takes from the memory that its caller brings.
pub(crate) fn workspace_numbers(config: &TransformerConfig, tokens: usize, branches: usize) -> usize {
    let residuals = branches * tokens * config.dim();
    let rope = tokens * config.head_dim;
    let patches = tokens * PATCH_VALUES * config.channels;
    residuals + Scratch::len(config, tokens) + rope + patches + 13 * config.dim()
}

/// Bytes that one forward pass of `branches` branches over `tokens` tokens takes at most, weights and pages aside: those of
/// [`workspace_numbers`], of the velocities, of latents on their way, and of the text, which is embedded where a page is
/// missing.
pub(crate) fn workspace_bytes(config: &TransformerConfig, tokens: usize, branches: usize) -> usize {
    let dim = config.dim();
    let text = branches * TEXT_ROWS_MAX * (dim + config.text_dim) + 3 * TEXT_ROWS_MAX * dim;
    let latents = (1 + branches) * tokens * PATCH_VALUES * config.channels;
    let timestep = 2 * dim + config.freq_dim;
    size_of::<f32>() * (workspace_numbers(config, tokens, branches) + text + latents + timestep)
}
