//! Everything before the blocks: patches, the timestep, the text.

use evanesce_kernels::{Activation, Epilogue, activate};

use super::config::{PATCH, PATCH_VALUES, TransformerConfig};
use super::params::{linear, linear_then};
use super::rope::TokenGrid;
use crate::error::Result;
use crate::weights::WeightGroup;

/// The time embedding: one row per call, never one per token.
pub(crate) struct TimeRows<'a> {
    /// `[dim]`, for the head.
    pub(crate) embedding: &'a mut [f32],
    /// `[6, dim]`, for every block.
    pub(crate) projected: &'a mut [f32],
}

/// Latents `[channels, frames, height, width]` into `tokens` `[tokens, dim]`, by way of `patches`
/// `[tokens, PATCH_VALUES * channels]`.
pub(crate) fn embed_patches(
    config: &TransformerConfig,
    weights: &dyn WeightGroup,
    latents: &[f32],
    grid: &TokenGrid,
    [patches, tokens]: [&mut [f32]; 2],
) -> Result<()> {
    for_each_patch_value(grid, config.channels, |token, channel, at, latent| {
        patches[(token * config.channels + channel) * PATCH_VALUES + at] = latents[latent];
    });
    linear(weights, "patch_embedding", patches, tokens)
}

/// Calls `visit(token, channel, position in the patch, index into the latents)` for every latent value.
pub(crate) fn for_each_patch_value(
    grid: &TokenGrid,
    channels: usize,
    mut visit: impl FnMut(usize, usize, usize, usize),
) {
    let (frames, rows, columns) = (grid.frames.len(), grid.rows, grid.columns);
    let [_, height, width] = PATCH;
    for channel in 0..channels {
        for frame in 0..frames {
            for y in 0..rows * height {
                for x in 0..columns * width {
                    let token = (frame * rows + y / height) * columns + x / width;
                    let latent = ((channel * frames + frame) * rows * height + y) * columns * width + x;
                    visit(token, channel, y % height * width + x % width, latent);
                }
            }
        }
    }
}

/// The sinusoid of a timestep, `[cos | sin]`, frequencies `10000^(-i / half)`, computed in f64 as the official code does.
fn sinusoid(timestep: f64, freq_dim: usize) -> Vec<f32> {
    let half = freq_dim / 2;
    #[expect(clippy::cast_precision_loss, reason = "a width is far below 2^53")]
    let angle = |pair: usize| timestep * 10_000_f64.powf(-(pair as f64) / half as f64);
    #[expect(clippy::cast_possible_truncation, reason = "activations are f32")]
    let numbers = |wave: fn(f64) -> f64| (0..half).map(move |pair| wave(angle(pair)) as f32);
    numbers(f64::cos).chain(numbers(f64::sin)).collect()
}

/// Embeds one timestep.
pub(crate) fn embed_timestep(
    config: &TransformerConfig,
    weights: &dyn WeightGroup,
    timestep: f64,
    rows: &mut TimeRows<'_>,
) -> Result<()> {
    let TimeRows { embedding, projected } = rows;
    let mut hidden = vec![0.0; config.dim()];
    let wave = sinusoid(timestep, config.freq_dim);
    let silu = Epilogue::Activate(Activation::Silu);
    linear_then(weights, "condition_embedder.time_embedder.linear_1", &wave, silu, &mut hidden)?;
    linear(weights, "condition_embedder.time_embedder.linear_2", &hidden, embedding)?;
    hidden.copy_from_slice(embedding);
    activate(&mut hidden, Activation::Silu);
    linear(weights, "condition_embedder.time_proj", &hidden, projected)
}

/// Embeds text rows `[rows, text_dim]` into `[rows, dim]`.
pub(crate) fn embed_text(
    config: &TransformerConfig,
    weights: &dyn WeightGroup,
    text: &[f32],
) -> Result<Vec<f32>> {
    let numbers = text.len() / config.text_dim * config.dim();
    let (mut hidden, mut embedded) = (vec![0.0; numbers], vec![0.0; numbers]);
    let gelu = Epilogue::Activate(Activation::GeluTanh);
    linear_then(weights, "condition_embedder.text_embedder.linear_1", text, gelu, &mut hidden)?;
    linear(weights, "condition_embedder.text_embedder.linear_2", &hidden, &mut embedded)?;
    Ok(embedded)
}
