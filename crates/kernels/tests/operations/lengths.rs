//! A slice of the wrong length is refused with a message that names it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use evanesce_kernels::{
    Activation, AttentionDims, Conv2dMode, Conv3d, KvSegment, LinearDims, Values, add, attend, attend_biased,
    channel_norm, clamp, conv2d, conv3d_causal, gate_add, gated_gelu, layer_norm_affine, layer_norm_modulate,
    linear, rms_norm, rotate, split_pairs,
};

/// Asserts that `call` panics with `message` in its words.
fn refused(message: &str, call: impl FnOnce()) {
    let panic = catch_unwind(AssertUnwindSafe(call)).expect_err(message);
    let text = panic.downcast_ref::<String>().cloned();
    let text = text
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .expect("a panic has words");
    assert!(text.contains(message), "{text:?} should say {message:?}");
}

const Z: [f32; 64] = [0.0; 64];

fn values(count: usize) -> Values<'static> {
    Values::from(&Z[..count])
}

#[test]
fn linear_refuses_wrong_lengths() {
    let dims = LinearDims { rows: 2, inputs: 3, outputs: 4 };
    let call = |x: usize, weight, bias, out: usize| {
        linear(&Z[..x], values(weight), Some(values(bias)), dims, &mut { Z }[..out]);
    };
    call(6, 12, 4, 8);
    refused("linear: x must be [rows, inputs]", || call(5, 12, 4, 8));
    refused("linear: weight must be [outputs, inputs]", || call(6, 11, 4, 8));
    refused("linear: bias must be [outputs]", || call(6, 12, 3, 8));
    refused("linear: out must be [rows, outputs]", || call(6, 12, 4, 9));
}

#[test]
fn attention_refuses_wrong_lengths() {
    let dims = AttentionDims { queries: 2, heads: 2, head_dim: 3, scale: 1.0 };
    let call = |q: usize, k: usize, v: usize, out: usize| {
        let segments =
            [KvSegment { keys: Z[..k].into(), values: Z[..v].into(), logit_bias: 0.0, turn: None }];
        attend(&Z[..q], &segments, dims, &mut { Z }[..out]);
    };
    call(12, 18, 18, 12);
    refused("attend: q must be", || call(11, 18, 18, 12));
    refused("attend: out must be", || call(12, 18, 18, 18));
    refused("attend: a segment needs a value for every key", || call(12, 18, 12, 12));
    refused("attend: keys must be whole rows", || call(12, 17, 17, 12));
    refused("attend: there must be a key", || call(12, 0, 0, 12));
    let biased =
        |bias: usize| attend_biased(&Z[..12], &Z[..18], &Z[..18], &Z[..bias], dims, &mut { Z }[..12]);
    biased(12);
    refused("attend_biased: bias must be [heads, queries, keys]", || biased(13));
}

#[test]
fn convolutions_refuse_wrong_lengths() {
    let conv = Conv3d { weight: values(12), bias: Some(values(2)), cin: 2, cout: 2, kt: 3, kh: 1, kw: 1 };
    let call = |conv, x: usize, past: &[&[f32]], stride, out: usize| {
        conv3d_causal(&Z[..x], past, 2, 2, 2, conv, stride, &mut { Z }[..out]);
    };
    call(conv, 16, &[&Z[..8]], 1, 16);
    call(conv, 16, &[&Z[..8]], 2, 8);
    refused("conv3d_causal: x must be", || call(conv, 15, &[], 1, 16));
    refused("conv3d_causal: out must be", || call(conv, 16, &[], 1, 15));
    refused("conv3d_causal: out must be", || call(conv, 16, &[], 2, 8));
    refused("conv3d_causal: each past frame must be", || call(conv, 16, &[&Z[..7]], 1, 16));
    refused("conv3d_causal: past must hold at most kt - 1", || call(conv, 16, &[&Z[..8]; 3], 1, 16));
    refused("conv3d_causal: stride_t must be 1 or 2", || call(conv, 16, &[], 3, 16));
    refused("conv3d_causal: weight must be", || call(Conv3d { weight: values(11), ..conv }, 16, &[], 1, 16));
    refused("conv3d_causal: bias must be", || call(Conv3d { bias: Some(values(3)), ..conv }, 16, &[], 1, 16));
    let even = Conv3d { weight: values(24), kh: 2, ..conv };
    refused("conv3d_causal: kh and kw must be odd", || call(even, 16, &[], 1, 16));

    let flat = Conv3d { weight: values(36), kt: 1, kh: 3, kw: 3, ..conv };
    let call = |conv, x: usize, mode, out: usize| conv2d(&Z[..x], 1, 2, 2, conv, mode, &mut { Z }[..out]);
    call(flat, 8, Conv2dMode::UpNearest2, 32);
    refused("conv2d: out must be", || call(flat, 8, Conv2dMode::UpNearest2, 8));
    refused("conv2d: x must be", || call(flat, 7, Conv2dMode::Same, 8));
    refused("conv2d: kt must be 1", || call(conv, 8, Conv2dMode::Same, 8));
    let single = Conv3d { weight: values(4), kh: 1, kw: 1, ..flat };
    refused("conv2d: resampling needs a 3x3 kernel", || call(single, 8, Conv2dMode::Down2, 2));
}

#[test]
fn norms_refuse_wrong_lengths() {
    let out = || Z[..6].to_vec();
    refused("layer_norm_modulate: x and out", || {
        layer_norm_modulate(&Z[..3], &Z[..3], &Z[..3], 0.0, &mut out())
    });
    refused("layer_norm_modulate: scale and shift", || {
        layer_norm_modulate(&Z[..6], &Z[..3], &Z[..2], 0.0, &mut out());
    });
    refused("layer_norm_affine: weight and bias", || {
        layer_norm_affine(&Z[..6], values(3), values(2), 0.0, &mut out());
    });
    refused("rms_norm: x must be whole rows of 4", || rms_norm(&Z[..6], values(4), 0.0, &mut out()));
    refused("channel_norm: x must be whole rows of 0", || {
        channel_norm(&Z[..6], values(0), Activation::None, &mut out());
    });
}

#[test]
fn pointwise_operations_refuse_wrong_lengths() {
    let out = || Z[..12].to_vec();
    refused("gated_gelu: gate and up", || gated_gelu(&mut out(), &Z[..11]));
    refused("clamp: low must be at most high", || clamp(&mut out(), 1.0, -1.0));
    refused("add: residual and update", || add(&mut out(), &Z[..11]));
    refused("split_pairs: pairs and out", || split_pairs(&Z[..11], 2, 3, &mut out()));
    refused("split_pairs: out must be [pairs, 2, 4, 3]", || split_pairs(&Z[..12], 4, 3, &mut out()));
    refused("split_pairs: out must be [pairs, 2, 0, 3]", || split_pairs(&Z[..12], 0, 3, &mut out()));
    refused("gate_add: residual and update", || gate_add(&mut out(), &Z[..11], &Z[..3]));
    refused("gate_add: residual must be whole rows", || gate_add(&mut out(), &Z[..12], &Z[..5]));
    refused("rotate: cos and sin", || rotate(&mut out(), 2, 2, &Z[..3], &Z[..2]));
    refused("rotate: x must hold", || rotate(&mut out(), 2, 2, &Z[..2], &Z[..2]));
    refused("rotate: head_dim must be even", || rotate(&mut out(), 2, 3, &Z[..3], &Z[..3]));
    refused("rotate: cos must be whole rows", || rotate(&mut out(), 2, 4, &Z[..3], &Z[..3]));
}
