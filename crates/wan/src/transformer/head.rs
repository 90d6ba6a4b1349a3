//! After the blocks: the modulated norm, the projection to patches, and the way back to latents.

use evanesce_kernels::layer_norm_modulate;

use super::config::{PATCH_VALUES, TransformerConfig};
use super::embed::for_each_patch_value;
use super::params::{linear, table};
use super::rope::TokenGrid;
use crate::error::Result;
use crate::weights::WeightGroup;

/// Tokens `[tokens, dim]` into a velocity `[channels, frames, height, width]`; `embedding` is the time embedding
/// `[dim]`.
pub(crate) fn head(
    config: &TransformerConfig,
    weights: &dyn WeightGroup,
    tokens: &[f32],
    embedding: &[f32],
    grid: &TokenGrid,
) -> Result<Vec<f32>> {
    let dim = config.dim();
    let mut modulation = table(weights, "scale_shift_table", 2 * dim)?.to_vec();
    for row in modulation.chunks_exact_mut(dim) {
        row.iter_mut().zip(embedding).for_each(|(number, embedded)| *number += embedded);
    }
    let (shift, scale) = modulation.split_at(dim);
    let mut normed = vec![0.0; tokens.len()];
    #[expect(clippy::cast_possible_truncation, reason = "arithmetic is f32")]
    layer_norm_modulate(tokens, scale, shift, config.eps as f32, &mut normed);
    let mut patches = vec![0.0; grid.tokens() * PATCH_VALUES * config.channels];
    linear(weights, "proj_out", &normed, &mut patches)?;
    let mut velocity = vec![0.0; patches.len()];
    // Channels lie innermost in a patch here, outermost in the patch embedding.
    for_each_patch_value(grid, config.channels, |token, channel, at, latent| {
        velocity[latent] = patches[(token * PATCH_VALUES + at) * config.channels + channel];
    });
    Ok(velocity)
}
