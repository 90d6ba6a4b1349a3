//! The running softmax of a tile.

use crate::isa::by_isa;
use crate::math::exp2_of_negative;
use crate::micro::NR;

/// What the weights of a tile are relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// The largest logit so far: weights of all tiles have one unit.
    Running,
    /// The largest logit of the tile: its largest weight is 1, whatever came before, so codes of weights are as fine as they
    /// can be.
    Tile,
}

by_isa! {
    /// Turns the products `[keys, NR]` of one panel into weights `2^(product * scale + bias - base)`, and brings `max` and
    /// `total` up to date. `decay` is what the sums from before must be multiplied by, and `gain` those of these weights.
    pub(super) fn soften(
        logits: &mut [f32],
        scale: &[f32; NR],
        bias: f32,
        base: Base,
        [max, total, decay, gain]: [&mut [f32; NR]; 4],
    ) = soften_inner
}

#[inline(always)]
fn soften_inner(
    logits: &mut [f32],
    scale: &[f32; NR],
    bias: f32,
    base: Base,
    [max, total, decay, gain]: [&mut [f32; NR]; 4],
) {
    let mut tile = [f32::NEG_INFINITY; NR];
    for products in logits.as_chunks::<NR>().0 {
        for i in 0..NR {
            let logit = products[i].mul_add(scale[i], bias);
            tile[i] = if logit > tile[i] { logit } else { tile[i] };
        }
    }
    let largest: [f32; NR] = std::array::from_fn(|i| if tile[i] > max[i] { tile[i] } else { max[i] });
    // While every logit was -inf there is nothing to be relative to; any finite base gives weights of zero.
    let finite = |x: f32| if x == f32::NEG_INFINITY { 0.0 } else { x };
    let running = largest.map(finite);
    let base = if base == Base::Tile { tile.map(finite) } else { running };
    let mut sum = [0.0; NR];
    for products in logits.as_chunks_mut::<NR>().0 {
        for i in 0..NR {
            let weight = exp2_of_negative(products[i].mul_add(scale[i], bias) - base[i]);
            sum[i] += weight;
            products[i] = weight;
        }
    }
    for i in 0..NR {
        decay[i] = exp2_of_negative(max[i] - running[i]);
        // A tile without a weight has a base of 0, which may lie above the largest logit.
        let above = base[i] - running[i];
        gain[i] = exp2_of_negative(if above > 0.0 { 0.0 } else { above });
        total[i] = total[i].mul_add(decay[i], gain[i] * sum[i]);
        max[i] = largest[i];
    }
}

by_isa! {
    /// `logits = logits * scale + bias` of one panel, `bias` `[keys, NR]`.
    pub(super) fn scale_and_add(logits: &mut [f32], scale: f32, bias: &[f32]) = scale_and_add_inner
}

#[inline(always)]
fn scale_and_add_inner(logits: &mut [f32], scale: f32, bias: &[f32]) {
    for (logit, bias) in logits.iter_mut().zip(bias) {
        *logit = logit.mul_add(scale, *bias);
    }
}

by_isa! {
    /// `sums = sums * factor`, lane by lane, `[rows, NR]`.
    pub(super) fn fade(sums: &mut [f32], factor: &[f32; NR]) = fade_inner
}

#[inline(always)]
fn fade_inner(sums: &mut [f32], factor: &[f32; NR]) {
    for sums in sums.as_chunks_mut::<NR>().0 {
        sums.iter_mut().zip(factor).for_each(|(sum, factor)| *sum *= factor);
    }
}
