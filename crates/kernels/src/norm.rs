//! Layer norm, RMS norm and the VAE's channel norm, each over the last axis.

use crate::activation::{Activation, activate};
use crate::values::Values;

fn rows(name: &str, x: &[f32], out: &[f32], width: usize) -> usize {
    assert_eq!(x.len(), out.len(), "{name}: x and out must be of one length");
    assert!(
        x.is_empty() || (width > 0 && x.len().is_multiple_of(width)),
        "{name}: x must be whole rows of {width} numbers"
    );
    width.max(1)
}

fn standardise(x: &[f32], eps: f32, out: &mut [f32]) {
    let n = x.len() as f64;
    let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let variance = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
    let inverse = 1.0 / (variance + f64::from(eps)).sqrt();
    for (o, v) in out.iter_mut().zip(x) {
        *o = ((f64::from(*v) - mean) * inverse) as f32;
    }
}

/// `LN(x) * (1 + scale) + shift` over rows of `scale.len()` numbers; the norm itself has no affine part.
///
/// # Panics
/// When lengths differ or `x` is not whole rows.
pub fn layer_norm_modulate(x: &[f32], scale: &[f32], shift: &[f32], eps: f32, out: &mut [f32]) {
    let width = rows("layer_norm_modulate", x, out, scale.len());
    assert_eq!(scale.len(), shift.len(), "layer_norm_modulate: scale and shift must be of one length");
    for (from, to) in x.chunks(width).zip(out.chunks_mut(width)) {
        standardise(from, eps, to);
        for ((o, scale), shift) in to.iter_mut().zip(scale).zip(shift) {
            *o = o.mul_add(1.0 + scale, *shift);
        }
    }
}

/// `LN(x) * weight + bias` over rows of `weight.len()` numbers.
///
/// # Panics
/// When lengths differ or `x` is not whole rows.
pub fn layer_norm_affine(x: &[f32], weight: Values<'_>, bias: Values<'_>, eps: f32, out: &mut [f32]) {
    let width = rows("layer_norm_affine", x, out, weight.len());
    assert_eq!(weight.len(), bias.len(), "layer_norm_affine: weight and bias must be of one length");
    let (weight, bias) = (weight.to_vec(), bias.to_vec());
    for (from, to) in x.chunks(width).zip(out.chunks_mut(width)) {
        standardise(from, eps, to);
        for ((o, weight), bias) in to.iter_mut().zip(&weight).zip(&bias) {
            *o = o.mul_add(*weight, *bias);
        }
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight` over rows of `weight.len()` numbers.
///
/// # Panics
/// When lengths differ or `x` is not whole rows.
pub fn rms_norm(x: &[f32], weight: Values<'_>, eps: f32, out: &mut [f32]) {
    let width = rows("rms_norm", x, out, weight.len());
    let weight = weight.to_vec();
    for (from, to) in x.chunks(width).zip(out.chunks_mut(width)) {
        let mean = from.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / width as f64;
        let inverse = (1.0 / (mean + f64::from(eps)).sqrt()) as f32;
        for ((o, v), w) in to.iter_mut().zip(from).zip(&weight) {
            *o = v * inverse * w;
        }
    }
}

/// The VAE's `RMS_norm` over channels, then `act`: `act(x / max(||x||_2, 1e-12) * sqrt(C) * gamma)` over rows of
/// `C = gamma.len()` numbers.
///
/// # Panics
/// When lengths differ or `x` is not whole rows.
pub fn channel_norm(x: &[f32], gamma: Values<'_>, act: Activation, out: &mut [f32]) {
    let width = rows("channel_norm", x, out, gamma.len());
    let gamma = gamma.to_vec();
    for (from, to) in x.chunks(width).zip(out.chunks_mut(width)) {
        let norm = from.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt().max(1e-12);
        let factor = ((width as f64).sqrt() / norm) as f32;
        for ((o, v), g) in to.iter_mut().zip(from).zip(&gamma) {
            *o = v * factor * g;
        }
        activate(to, act);
    }
}
