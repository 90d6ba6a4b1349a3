//! How much arithmetic a pass is: multiplications and additions, each counted as one.

use evanesce_wan::weights::Component;

use crate::blocks::{Block, reach};
use crate::blueprint::Blueprint;
use crate::request::JobSpec;

/// Rows of text that queries meet: a prompt of middling length; the number hardly matters.
const TEXT_ROWS: f64 = 128.0;

/// One pass of a block through an expert, all its branches: linear layers and attention, nothing smaller.
pub(super) fn of_pass(blueprint: &Blueprint, spec: &JobSpec, expert: Component, block: &Block) -> f64 {
    let earlier = spec.rollout.map_or(0, |rollout| reach(rollout, block.frames.start).frames.len());
    of_frames(blueprint, spec, expert, block.frames.len(), earlier)
}

/// A pass of `frames` latent frames that also see `earlier` ones.
pub(super) fn of_frames(
    blueprint: &Blueprint,
    spec: &JobSpec,
    expert: Component,
    frames: usize,
    earlier: usize,
) -> f64 {
    let config = blueprint.expert(expert).config();
    let [dim, ffn] = [config.dim(), config.ffn_dim].map(|width| width as f64);
    let per_frame = (spec.height / 16 * (spec.width / 16)) as f64;
    let [tokens, keys] = [frames, frames + earlier].map(|frames| frames as f64 * per_frame);
    let linear = 2.0 * tokens * dim * (6.0 * dim + 2.0 * ffn);
    let attention = 4.0 * tokens * dim * (keys + TEXT_ROWS);
    let layers = config.layers * spec.branches(expert).len();
    layers as f64 * (linear + attention)
}
