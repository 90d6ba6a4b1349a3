//! Linear layers.

mod tiles;

pub use tiles::{PANEL_BYTES, turned_bytes};

use crate::activation::Activation;
use crate::isa::Isa;
use crate::packed::PackedWeights;
use crate::values::Values;

/// Sizes of a [`linear`] call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearDims {
    /// Rows of `x` and `out`.
    pub rows: usize,
    /// Numbers in a row of `x`.
    pub inputs: usize,
    /// Numbers in a row of `out`.
    pub outputs: usize,
}

/// Weights of a linear layer, `[outputs, inputs]`.
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a> {
    /// Row after row, as in the checkpoint: turned into panels by every call.
    Rows(Values<'a>),
    /// Turned into panels beforehand.
    Packed(PackedWeights<'a>),
}

impl<'a> From<Values<'a>> for Weight<'a> {
    fn from(values: Values<'a>) -> Self {
        Self::Rows(values)
    }
}

impl<'a> From<PackedWeights<'a>> for Weight<'a> {
    fn from(packed: PackedWeights<'a>) -> Self {
        Self::Packed(packed)
    }
}

impl Weight<'_> {
    /// How many numbers.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Rows(values) => values.len(),
            Self::Packed(packed) => packed.inputs() * packed.outputs(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a linear layer does with its result `y = x weight^T + bias` while it is at hand. The bits are those of the
/// separate operation.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue<'a> {
    /// `out = act(y)`.
    Activate(Activation),
    /// `out += y`, or with a gate `[outputs]` `out += y * gate`, fused: the end of a residual branch.
    AddTo {
        /// A factor for every column.
        gate: Option<&'a [f32]>,
    },
}

/// `out = x weight^T + bias`: `x` `[rows, inputs]`, `weight` `[outputs, inputs]`, `bias` `[outputs]`,
/// `out` `[rows, outputs]`.
///
/// A row of `out` has the same bits however many rows are computed beside it, and however the weights are laid out.
///
/// # Panics
/// When a length does not fit `dims`.
pub fn linear<'a>(
    x: &[f32],
    weight: impl Into<Weight<'a>>,
    bias: Option<Values<'_>>,
    dims: LinearDims,
    out: &mut [f32],
) {
    linear_then(x, weight, bias, dims, Epilogue::Activate(Activation::None), out);
}

/// As [`linear`], with `epilogue` applied to what the layer gives.
///
/// # Panics
/// When a length does not fit `dims`.
pub fn linear_then<'a>(
    x: &[f32],
    weight: impl Into<Weight<'a>>,
    bias: Option<Values<'_>>,
    dims: LinearDims,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    let LinearDims { rows, inputs, outputs } = dims;
    let weight = weight.into();
    assert_eq!(x.len(), rows * inputs, "linear: x must be [rows, inputs]");
    assert_eq!(weight.len(), outputs * inputs, "linear: weight must be [outputs, inputs]");
    assert_eq!(out.len(), rows * outputs, "linear: out must be [rows, outputs]");
    if let Weight::Packed(packed) = weight {
        assert_eq!(
            [packed.outputs(), packed.inputs()],
            [outputs, inputs],
            "linear: weight must be packed for [outputs, inputs]"
        );
    }
    if let Some(bias) = bias {
        assert_eq!(bias.len(), outputs, "linear: bias must be [outputs]");
    }
    if let Epilogue::AddTo { gate: Some(gate) } = epilogue {
        assert_eq!(gate.len(), outputs, "linear: gate must be [outputs]");
    }
    if out.is_empty() {
        return;
    }
    let isa = Isa::current();
    let mut full_bias = vec![0.0; outputs];
    if let Some(bias) = bias {
        bias.read_with(isa, 0, &mut full_bias);
    }
    tiles::run(isa, x, weight, &full_bias, dims, epilogue, out);
}
