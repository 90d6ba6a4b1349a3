//! After the blocks: the modulated norm, the projection to patches, and the way back to latents.

use evanesce_kernels::layer_norm_modulate;

use super::config::{PATCH_VALUES, TransformerConfig};
use super::embed::for_each_patch_value;
use super::params::{linear, table};
use super::rope::TokenGrid;
use crate::error::Result;
use crate::weights::WeightGroup;

/// Memory that the head overwrites.
pub(crate) struct HeadRoom<'a> {
    /// `[tokens, dim]`.
    pub(crate) normed: &'a mut [f32],
    /// `[tokens, PATCH_VALUES * channels]`.
    pub(crate) patches: &'a mut [f32],
    /// `[2, dim]`.
    pub(crate) modulation: &'a mut [f32],
}

/// Tokens `[tokens, dim]` into `velocity` `[channels, frames, height, width]`; `embedding` is the time embedding
/// `[dim]`.
pub(crate) fn head(
    config: &TransformerConfig,
    weights: &dyn WeightGroup,
    [tokens, embedding]: [&[f32]; 2],
    grid: &TokenGrid,
    room: &mut HeadRoom<'_>,
    velocity: &mut [f32],
) -> Result<()> {
    let HeadRoom { normed, patches, modulation } = room;
    table(weights, "scale_shift_table", modulation.len())?.read(0, modulation);
    for row in modulation.chunks_exact_mut(config.dim()) {
        row.iter_mut().zip(embedding).for_each(|(number, embedded)| *number += embedded);
    }
    let (shift, scale) = modulation.split_at(config.dim());
    #[expect(clippy::cast_possible_truncation, reason = "arithmetic is f32")]
    layer_norm_modulate(tokens, scale, shift, config.eps as f32, normed);
    linear(weights, "proj_out", normed, patches)?;
    // Channels lie innermost in a patch here, outermost in the patch embedding.
    for_each_patch_value(grid, config.channels, |token, channel, at, latent| {
        velocity[latent] = patches[(token * PATCH_VALUES + at) * config.channels + channel];
    });
    Ok(())
}
