//! Pointwise non-linearities.

use crate::isa::{Isa, by_isa};
use crate::math::{gelu_tanh, silu};
use crate::tasks::{self, CHUNK, Share};

/// A pointwise function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x`.
    None,
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU in its tanh form: `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
}

/// Applies `act` to every number in place.
pub fn activate(x: &mut [f32], act: Activation) {
    let isa = Isa::current();
    let share = Share::from_work(x.len(), 2 * CHUNK);
    tasks::each(x, CHUNK, share, |_, chunk| apply(isa, chunk, act));
}

/// `gate = gelu_tanh(gate) * up`, elementwise: the gated feed-forward of UMT5.
///
/// # Panics
/// When the lengths differ.
pub fn gated_gelu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gated_gelu: gate and up must be of one length");
    let isa = Isa::current();
    let share = Share::from_work(gate.len(), 2 * CHUNK);
    tasks::each(gate, CHUNK, share, |i, chunk| gated(isa, chunk, &up[i * CHUNK..]));
}

/// Brings every number into `low..=high`, in place; NaN stays NaN.
///
/// # Panics
/// When `low` is not at most `high`.
pub fn clamp(x: &mut [f32], low: f32, high: f32) {
    assert!(low <= high, "clamp: low must be at most high");
    let isa = Isa::current();
    let share = Share::from_work(x.len(), 2 * CHUNK);
    tasks::each(x, CHUNK, share, |_, chunk| clamped(isa, chunk, low, high));
}

by_isa! {
    /// Applies `act` on the calling thread.
    pub(crate) fn apply(x: &mut [f32], act: Activation) = apply_inner
}

#[inline(always)]
pub(crate) fn apply_inner(x: &mut [f32], act: Activation) {
    match act {
        Activation::None => {}
        Activation::Silu => x.iter_mut().for_each(|v| *v = silu(*v)),
        Activation::GeluTanh => x.iter_mut().for_each(|v| *v = gelu_tanh(*v)),
    }
}

by_isa! {
    fn gated(gate: &mut [f32], up: &[f32]) = gated_inner
}

#[inline(always)]
fn gated_inner(gate: &mut [f32], up: &[f32]) {
    gate.iter_mut().zip(up).for_each(|(g, u)| *g = gelu_tanh(*g) * u);
}

by_isa! {
    fn clamped(x: &mut [f32], low: f32, high: f32) = clamped_inner
}

#[inline(always)]
fn clamped_inner(x: &mut [f32], low: f32, high: f32) {
    x.iter_mut().for_each(|v| *v = v.clamp(low, high));
}
