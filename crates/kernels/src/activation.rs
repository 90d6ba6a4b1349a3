//! Pointwise non-linearities.

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

pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

pub(crate) fn gelu(x: f32) -> f32 {
    let twice = x * (1.595_769_1 + 0.071_354_814 * x * x);
    x / (1.0 + (-twice).exp())
}

/// Applies `act` to every number in place.
pub fn activate(x: &mut [f32], act: Activation) {
    match act {
        Activation::None => {}
        Activation::Silu => x.iter_mut().for_each(|v| *v = silu(*v)),
        Activation::GeluTanh => x.iter_mut().for_each(|v| *v = gelu(*v)),
    }
}

/// `gate = gelu_tanh(gate) * up`, elementwise: the gated feed-forward of UMT5.
///
/// # Panics
/// When the lengths differ.
pub fn gated_gelu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gated_gelu: gate and up must be of one length");
    for (g, u) in gate.iter_mut().zip(up) {
        *g = gelu(*g) * u;
    }
}
