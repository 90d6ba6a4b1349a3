use evanesce_kernels::{Activation, activate, add, clamp, gate_add, gated_gelu, rotate, split_pairs};

use crate::reference;
use crate::support::{Numbers, assert_alike_on_any_threads, assert_near, bits, on_every_isa, poisoned};

/// Where an exponential overflows in `f32`, its reciprocal is flushed to zero.
const TINY: f64 = 4e-37;

/// Every magnitude that `f32` has, both signs, densely where the functions bend.
fn everywhere() -> Vec<f32> {
    let mut x: Vec<f32> = (0..0x7F80_0000_u32).step_by(99_991).map(f32::from_bits).collect();
    x.extend((0..400_000_u32).map(|i| i as f32 * 2.6e-4));
    x.extend(x.clone().iter().map(|v| -v));
    x
}

#[test]
fn activations_agree_with_their_definition_everywhere() {
    let x = everywhere();
    for (act, slope) in [(Activation::None, 0.0), (Activation::Silu, 0.0), (Activation::GeluTanh, 2.5e-7)] {
        let out = on_every_isa("activate", || {
            let mut out = x.clone();
            activate(&mut out, act);
            out
        });
        for (x, out) in x.iter().zip(&out) {
            let wide = f64::from(*x);
            let expected = reference::activation(wide, act);
            // GELU's exponent is itself rounded: on its vanishing side the error grows with it.
            let exponent = if *x < 0.0 { 1.6 * wide.abs() + 0.072 * wide.abs().powi(3) } else { 0.0 };
            let bound = 3e-7 + slope * exponent.min(110.0);
            let error = (f64::from(*out) - expected).abs();
            assert!(
                error <= bound * expected.abs() + TINY,
                "{act:?} of {x:e} is {out:e}, should be {expected:e}"
            );
        }
    }
}

#[test]
fn activations_treat_what_is_not_finite_as_their_formula_does() {
    for act in [Activation::Silu, Activation::GeluTanh] {
        let mut x = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN, 0.0, -0.0];
        activate(&mut x, act);
        assert_eq!(x[0], f32::INFINITY, "{act:?}");
        // -inf * 0.
        assert!(x[1].is_nan() && x[2].is_nan(), "{act:?}");
        assert_eq!(x[3..], [f32::MAX, 0.0, 0.0, 0.0], "{act:?}");
    }
}

#[test]
fn an_activation_does_not_depend_on_a_number_s_place() {
    let x = Numbers::new(1).many(70_001);
    for act in [Activation::Silu, Activation::GeluTanh] {
        let mut all = x.clone();
        activate(&mut all, act);
        for i in (0..x.len()).step_by(997).chain([70_000]) {
            let mut one = [x[i]];
            activate(&mut one, act);
            assert_eq!(one[0].to_bits(), all[i].to_bits(), "{act:?} of number {i}");
        }
    }
}

#[test]
fn a_gated_gelu_multiplies() {
    for count in [0, 1, 7, 33, 40_000] {
        let (gate, up) = (Numbers::new(2).many(count), Numbers::new(3).many(count));
        let expected: Vec<f64> = gate
            .iter()
            .zip(&up)
            .map(|(g, u)| reference::activation(f64::from(*g), Activation::GeluTanh) * f64::from(*u))
            .collect();
        let out = on_every_isa("gated_gelu", || {
            let mut out = gate.clone();
            gated_gelu(&mut out, &up);
            out
        });
        assert_near("gated_gelu", &out, &expected, 3e-7);
    }
}

#[test]
fn a_clamp_moves_what_is_outside_to_the_border_and_nothing_else() {
    let mut x: Vec<f32> = Numbers::new(11).many(40_001).iter().map(|v| v * 2.0).collect();
    x.extend([f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1.0, -1.0, 0.0, -0.0]);
    let out = on_every_isa("clamp", || {
        let mut out = x.clone();
        clamp(&mut out, -1.0, 1.0);
        out
    });
    for (x, out) in x.iter().zip(&out) {
        let expected = if x.abs() > 1.0 { 1.0_f32.copysign(*x) } else { *x };
        assert!(out.to_bits() == expected.to_bits() || out.is_nan() && x.is_nan(), "{x} becomes {out}");
    }
}

#[test]
fn an_update_is_added_to_each_number() {
    for count in [0, 1, 7, 33, 40_001] {
        let (residual, update) = (Numbers::new(4).many(count), Numbers::new(5).many(count));
        let out = on_every_isa("add", || {
            let mut out = residual.clone();
            add(&mut out, &update);
            out
        });
        let expected: Vec<f32> = residual.iter().zip(&update).map(|(r, u)| r + u).collect();
        assert_eq!(bits(&out), bits(&expected), "{count}");
    }
}

#[test]
fn pairs_of_frames_come_apart_pixel_by_pixel() {
    for (pairs, pixels, channels) in [(1, 1, 1), (2, 3, 5), (3, 77, 48), (1, 2, 20_000)] {
        let x = Numbers::new(12).many(2 * pairs * pixels * channels);
        let out = on_every_isa("split_pairs", || {
            let mut out = poisoned(x.len());
            split_pairs(&x, pixels, channels, &mut out);
            out
        });
        for (i, out) in out.iter().enumerate() {
            let (frame, pixel, channel) = (i / channels / pixels, i / channels % pixels, i % channels);
            let from = ((frame / 2 * pixels + pixel) * 2 + frame % 2) * channels + channel;
            assert_eq!(*out, x[from], "number {i}");
        }
    }
}

#[test]
fn a_gate_scales_each_update_before_it_is_added() {
    for (rows, width) in [(1, 1), (3, 7), (5, 192), (40, 1536), (1, 40_000)] {
        let (residual, update) = (Numbers::new(4).many(rows * width), Numbers::new(5).many(rows * width));
        let gate = Numbers::new(6).many(width);
        let out = on_every_isa("gate_add", || {
            let mut out = residual.clone();
            gate_add(&mut out, &update, &gate);
            out
        });
        for (i, out) in out.iter().enumerate() {
            assert_eq!(*out, update[i].mul_add(gate[i % width], residual[i]), "number {i}");
        }
    }
}

#[test]
fn rotation_turns_each_pair_by_its_tokens_angle() {
    for (tokens, heads, head_dim) in
        [(1, 1, 2), (3, 2, 6), (7, 3, 10), (336, 6, 32), (50, 12, 128), (2, 3, 20_000)]
    {
        let (x, angles) =
            (Numbers::new(7).many(tokens * heads * head_dim), Numbers::new(8).many(tokens * head_dim / 2));
        let cos: Vec<f32> = angles.iter().map(|a| (a * 7.0).cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|a| (a * 7.0).sin()).collect();
        let mut out = x.clone();
        rotate(&mut out, heads, head_dim, &cos, &sin);
        let expected: Vec<f64> = (0..x.len())
            .map(|i| {
                let angle = i / (heads * head_dim) * (head_dim / 2) + i % head_dim / 2;
                let (cos, sin) = (f64::from(cos[angle]), f64::from(sin[angle]));
                let (a, b) = (f64::from(x[i / 2 * 2]), f64::from(x[i / 2 * 2 + 1]));
                if i % 2 == 0 { a * cos - b * sin } else { a * sin + b * cos }
            })
            .collect();
        assert_near(&format!("rotate {tokens} {heads} {head_dim}"), &out, &expected, 1e-7);
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let (x, y) = (Numbers::new(9).many(300_000), Numbers::new(10).many(300_000));
    let start = |out: &mut [f32]| out.copy_from_slice(&x);
    assert_alike_on_any_threads("activate", x.len(), |out| {
        start(out);
        activate(out, Activation::GeluTanh);
    });
    assert_alike_on_any_threads("gated_gelu", x.len(), |out| {
        start(out);
        gated_gelu(out, &y);
    });
    assert_alike_on_any_threads("clamp", x.len(), |out| {
        start(out);
        clamp(out, -0.5, 0.5);
    });
    assert_alike_on_any_threads("add", x.len(), |out| {
        start(out);
        add(out, &y);
    });
    assert_alike_on_any_threads("split_pairs", x.len(), |out| split_pairs(&x, 30, 50, out));
    assert_alike_on_any_threads("gate_add", x.len(), |out| {
        start(out);
        gate_add(out, &y, &y[..1000]);
    });
    assert_alike_on_any_threads("rotate", x.len(), |out| {
        start(out);
        rotate(out, 5, 20, &y[..30_000], &y[30_000..60_000]);
    });
}

#[test]
fn nothing_is_done_to_nothing() {
    activate(&mut [], Activation::Silu);
    gated_gelu(&mut [], &[]);
    clamp(&mut [], 0.0, 0.0);
    add(&mut [], &[]);
    split_pairs(&[], 0, 0, &mut []);
    gate_add(&mut [], &[], &[]);
    rotate(&mut [], 2, 4, &[], &[]);
    assert!(bits(&[]).is_empty());
}
