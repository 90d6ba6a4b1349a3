//! Layer norm, RMS norm and the VAE's channel norm, each over the last axis.
//!
//! Sums run over the row in `f64`, so a row's statistics are exact to the last bits of `f32`.

use crate::activation::{Activation, apply_inner};
use crate::isa::{Isa, by_isa};
use crate::tasks;
use crate::values::Values;

/// Partial sums of a row, added up in a fixed order.
const LANES: usize = 16;

/// `LN(x) * (1 + scale) + shift` over rows of `scale.len()` numbers; the norm itself has no affine part.
///
/// # Panics
/// When lengths differ or `x` is not whole rows.
pub fn layer_norm_modulate(x: &[f32], scale: &[f32], shift: &[f32], eps: f32, out: &mut [f32]) {
    check_rows("layer_norm_modulate", x, out, scale.len());
    assert_eq!(scale.len(), shift.len(), "layer_norm_modulate: scale and shift must be of one length");
    let factor: Vec<f32> = scale.iter().map(|scale| 1.0 + scale).collect();
    layer_norm(x, &factor, shift, eps, out);
}

/// `LN(x) * weight + bias` over rows of `weight.len()` numbers.
///
/// # Panics
/// When lengths differ or `x` is not whole rows.
pub fn layer_norm_affine(x: &[f32], weight: Values<'_>, bias: Values<'_>, eps: f32, out: &mut [f32]) {
    check_rows("layer_norm_affine", x, out, weight.len());
    assert_eq!(weight.len(), bias.len(), "layer_norm_affine: weight and bias must be of one length");
    layer_norm(x, &weight.to_vec(), &bias.to_vec(), eps, out);
}

/// `x / sqrt(mean(x^2) + eps) * weight` over rows of `weight.len()` numbers.
///
/// # Panics
/// When lengths differ or `x` is not whole rows.
pub fn rms_norm(x: &[f32], weight: Values<'_>, eps: f32, out: &mut [f32]) {
    check_rows("rms_norm", x, out, weight.len());
    let (isa, weight) = (Isa::current(), weight.to_vec());
    tasks::rows(out, weight.len(), |at, out| rms_rows(isa, &x[at..], &weight, f64::from(eps), out));
}

/// The VAE's `RMS_norm` over channels, then `act`: `act(x / max(||x||_2, 1e-12) * sqrt(C) * gamma)` over rows of
/// `C = gamma.len()` numbers.
///
/// # Panics
/// When lengths differ or `x` is not whole rows.
pub fn channel_norm(x: &[f32], gamma: Values<'_>, act: Activation, out: &mut [f32]) {
    check_rows("channel_norm", x, out, gamma.len());
    let (isa, gamma) = (Isa::current(), gamma.to_vec());
    tasks::rows(out, gamma.len(), |at, out| channel_rows(isa, &x[at..], &gamma, act, out));
}

fn check_rows(name: &str, x: &[f32], out: &[f32], width: usize) {
    assert_eq!(x.len(), out.len(), "{name}: x and out must be of one length");
    assert!(
        x.is_empty() || (width > 0 && x.len().is_multiple_of(width)),
        "{name}: x must be whole rows of {width} numbers"
    );
}

fn layer_norm(x: &[f32], factor: &[f32], shift: &[f32], eps: f32, out: &mut [f32]) {
    let isa = Isa::current();
    tasks::rows(out, factor.len(), |at, out| layer_rows(isa, &x[at..], factor, shift, f64::from(eps), out));
}

/// The sum of `f` over a row.
#[inline(always)]
fn sum(row: &[f32], f: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let mut chunks = row.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += f(f64::from(*value));
        }
    }
    for (lane, value) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += f(f64::from(*value));
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

by_isa! {
    fn layer_rows(x: &[f32], factor: &[f32], shift: &[f32], eps: f64, out: &mut [f32]) = layer_rows_inner
}

#[inline(always)]
fn layer_rows_inner(x: &[f32], factor: &[f32], shift: &[f32], eps: f64, out: &mut [f32]) {
    let count = factor.len() as f64;
    for (row, out) in x.chunks_exact(factor.len()).zip(out.chunks_exact_mut(factor.len())) {
        let mean = sum(row, |v| v) / count;
        let variance = sum(row, |v| (v - mean) * (v - mean)) / count;
        let inverse = (variance + eps).sqrt().recip();
        for (((out, value), factor), shift) in out.iter_mut().zip(row).zip(factor).zip(shift) {
            let normal = narrow((f64::from(*value) - mean) * inverse);
            *out = normal.mul_add(*factor, *shift);
        }
    }
}

by_isa! {
    fn rms_rows(x: &[f32], weight: &[f32], eps: f64, out: &mut [f32]) = rms_rows_inner
}

#[inline(always)]
fn rms_rows_inner(x: &[f32], weight: &[f32], eps: f64, out: &mut [f32]) {
    for (row, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        let mean = sum(row, |v| v * v) / weight.len() as f64;
        let inverse = (mean + eps).sqrt().recip();
        for ((out, value), weight) in out.iter_mut().zip(row).zip(weight) {
            *out = narrow(f64::from(*value) * inverse) * weight;
        }
    }
}

by_isa! {
    fn channel_rows(x: &[f32], gamma: &[f32], act: Activation, out: &mut [f32]) = channel_rows_inner
}

#[inline(always)]
fn channel_rows_inner(x: &[f32], gamma: &[f32], act: Activation, out: &mut [f32]) {
    let root = (gamma.len() as f64).sqrt();
    for (row, out) in x.chunks_exact(gamma.len()).zip(out.chunks_exact_mut(gamma.len())) {
        let norm = sum(row, |v| v * v).sqrt();
        // Not `f64::max`, which would lose NaN.
        let factor = root / if norm < 1e-12 { 1e-12 } else { norm };
        for ((out, value), gamma) in out.iter_mut().zip(row).zip(gamma) {
            *out = narrow(f64::from(*value) * factor) * gamma;
        }
    }
    apply_inner(out, act);
}

/// The nearest `f32`.
#[expect(clippy::cast_possible_truncation, reason = "rounding is the purpose; no integer is involved")]
#[inline(always)]
fn narrow(value: f64) -> f32 {
    value as f32
}
