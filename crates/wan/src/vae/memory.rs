//! What a stream holds and what a chunk needs, in bytes, read off the plan.

use super::plan::{Layer, Slot, Stage};

/// Visits the layers with the height and width that each is given.
pub(super) fn walk(
    stages: &[Stage],
    mut height: usize,
    mut width: usize,
    mut visit: impl FnMut(&Stage, usize, usize),
) {
    for stage in stages {
        visit(stage, height, width);
        match stage.layer {
            Layer::Upsample { .. } => (height, width) = (2 * height, 2 * width),
            Layer::Downsample { .. } => (height, width) = (height / 2, width / 2),
            _ => {}
        }
    }
}

fn f32_bytes(numbers: usize) -> usize {
    numbers * size_of::<f32>()
}

/// Bytes that all slots hold between two chunks, once every slot is full.
pub(super) fn slot_bytes(stages: &[Stage], height: usize, width: usize) -> usize {
    let mut numbers = 0;
    walk(stages, height, width, |stage, height, width| {
        let mut add = |slot: &Slot, pixels: usize| {
            numbers += usize::try_from(slot.kept).expect("one or two") * pixels * slot.channels;
        };
        match &stage.layer {
            Layer::Input { slot, .. } | Layer::Output { slot, .. } => add(slot, height * width),
            Layer::Residual { slots, .. } => slots.iter().for_each(|slot| add(slot, height * width)),
            Layer::Upsample { time: Some(slot), .. } => add(slot, height * width),
            Layer::Downsample { time: Some(slot), .. } => add(slot, (height / 2) * (width / 2)),
            _ => {}
        }
    });
    f32_bytes(numbers)
}

/// Most bytes that one later chunk's activations take at once, with room for the largest kernel in f32 order.
pub(super) fn workspace_bytes(stages: &[Stage], height: usize, width: usize) -> usize {
    let mut most = 0;
    walk(stages, height, width, |stage, height, width| {
        most = most.max(live_numbers(stage, height * width));
    });
    let kernels = stages.iter().flat_map(Stage::tensors);
    let largest_kernel = kernels.map(|tensor| tensor.elements()).max().unwrap_or(0);
    f32_bytes(most + largest_kernel)
}

/// Numbers alive at once inside a layer that is given frames of `pixels`.
fn live_numbers(stage: &Stage, pixels: usize) -> usize {
    let given = stage.rate.later * pixels;
    match stage.layer {
        Layer::Pointwise { channels } => 2 * given * channels,
        Layer::Input { inputs, outputs, .. } => given * (inputs + outputs),
        // The input, and either norm with its convolution.
        Layer::Residual { inputs, outputs, .. } => given * (inputs + (inputs + outputs).max(2 * outputs)),
        // The input, the normed one, and queries, keys and values both together and apart; apart for one frame.
        Layer::Attention { channels } => given * channels * 5 + pixels * channels * 3,
        // The input, the pairs, the pairs in order; then those and four times as many pixels of half the channels.
        Layer::Upsample { channels, time: Some(_) } => 6 * given * channels,
        Layer::Upsample { channels, time: None } => 3 * given * channels,
        // The input and a quarter of its pixels; in time even less.
        Layer::Downsample { channels, .. } => given * channels * 5 / 4,
        Layer::Output { inputs, outputs, .. } => given * (2 * inputs).max(inputs + outputs),
    }
}
