//! Linear layers.

use rayon::prelude::*;

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

/// `out = x weight^T + bias`: `x` `[rows, inputs]`, `weight` `[outputs, inputs]`, `bias` `[outputs]`,
/// `out` `[rows, outputs]`.
///
/// # Panics
/// When a length does not fit `dims`.
pub fn linear(x: &[f32], weight: Values<'_>, bias: Option<Values<'_>>, dims: LinearDims, out: &mut [f32]) {
    let LinearDims { rows, inputs, outputs } = dims;
    assert_eq!(x.len(), rows * inputs, "linear: x must be [rows, inputs]");
    assert_eq!(weight.len(), outputs * inputs, "linear: weight must be [outputs, inputs]");
    assert_eq!(out.len(), rows * outputs, "linear: out must be [rows, outputs]");
    if let Some(bias) = bias {
        assert_eq!(bias.len(), outputs, "linear: bias must be [outputs]");
    }
    if out.is_empty() {
        return;
    }
    let weight = weight.to_vec();
    let bias = bias.map_or_else(|| vec![0.0; outputs], |b| b.to_vec());
    out.par_chunks_mut(outputs).enumerate().for_each(|(row, to)| {
        let from = &x[row * inputs..(row + 1) * inputs];
        for (o, value) in to.iter_mut().enumerate() {
            let mut lanes = [0.0_f32; 16];
            let w = &weight[o * inputs..(o + 1) * inputs];
            for (i, (a, b)) in from.iter().zip(w).enumerate() {
                lanes[i % 16] += a * b;
            }
            *value = lanes.iter().sum::<f32>() + bias[o];
        }
    });
}
