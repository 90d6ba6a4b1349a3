//! Linear layers.
#![expect(unsafe_code, reason = "tasks write tiles of one output matrix")]

use crate::isa::Isa;
use crate::micro::{KC, Keep, Left, NR, multiply};
use crate::panel;
use crate::shared::Shared;
use crate::tasks::{self, Share};
use crate::values::Values;

/// Rows of an output tile: a multiple of the micro-kernel's rows, small enough that few rows still make many tasks.
const TILE_ROWS: usize = 48;
/// Panels of an output tile.
const TILE_PANELS: usize = 8;
/// Bytes of weights turned into panels at a time.
const PANEL_BYTES: usize = 8 << 20;
/// Multiply-adds below which threads cost more than they bring.
const ALONE: usize = 1 << 18;

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
/// A row of `out` has the same bits however many rows are computed beside it.
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
    let mut padded_bias = vec![0.0; outputs];
    if let Some(bias) = bias {
        bias.read(0, &mut padded_bias);
    }
    if inputs == 0 {
        out.chunks_mut(outputs).for_each(|row| row.copy_from_slice(&padded_bias));
        return;
    }
    let isa = Isa::detect();
    let share = Share::from_work(rows.saturating_mul(inputs).saturating_mul(outputs), ALONE);
    let call = Call { isa, x, dims, bias: &padded_bias, out: Shared::new(out) };
    let panel_len = inputs * NR;
    let panels = outputs.div_ceil(NR);
    let at_once = (PANEL_BYTES / 4 / panel_len).max(1).next_multiple_of(TILE_PANELS).min(panels);
    let mut packed = vec![0.0; at_once * panel_len];
    for first in (0..panels).step_by(at_once) {
        let count = at_once.min(panels - first);
        let packed = &mut packed[..count * panel_len];
        tasks::each(packed, panel_len, share, |i, panel| {
            let begin = (first + i) * NR;
            panel::from_values(isa, weight, inputs, begin..outputs.min(begin + NR), panel, |at| at);
        });
        let row_tiles = rows.div_ceil(TILE_ROWS);
        let groups = count.div_ceil(TILE_PANELS);
        tasks::run(row_tiles * groups, share, TILE_ROWS * TILE_PANELS * NR, |scratch, at| {
            let group = at / row_tiles * TILE_PANELS;
            let panels = &packed[group * panel_len..count.min(group + TILE_PANELS) * panel_len];
            call.tile(at % row_tiles * TILE_ROWS, (first + group) * NR, panels, scratch);
        });
    }
}

struct Call<'a> {
    isa: Isa,
    x: &'a [f32],
    dims: LinearDims,
    bias: &'a [f32],
    out: Shared<'a>,
}

impl Call<'_> {
    /// Computes the rows from `row` on for the outputs from `output` on: one tile, summed up in `sums`.
    fn tile(&self, row: usize, output: usize, panels: &[f32], sums: &mut [f32]) {
        let LinearDims { rows, inputs, outputs } = self.dims;
        let rows = TILE_ROWS.min(rows - row);
        let starts: [usize; TILE_ROWS] = std::array::from_fn(|i| (row + i) * inputs);
        let stride = TILE_PANELS * NR;
        for depth in (0..inputs).step_by(KC) {
            let left = Left {
                values: self.x,
                starts: &starts[..rows],
                spans: &[depth],
                span_len: KC.min(inputs - depth),
                stride: 1,
            };
            let keep = if depth == 0 { Keep::Nothing } else { Keep::Sum };
            for (i, panel) in panels.chunks_exact(inputs * NR).enumerate() {
                multiply(self.isa, &left, &panel[depth * NR..], &mut sums[i * NR..], stride, keep);
            }
        }
        let count = (panels.len() / inputs).min(outputs - output);
        let bias = &self.bias[output..output + count];
        for (i, sums) in sums.chunks_exact(stride).take(rows).enumerate() {
            // SAFETY: each tile of the output belongs to one task.
            let out = unsafe { self.out.range((row + i) * outputs + output, count) };
            for ((out, sum), bias) in out.iter_mut().zip(sums).zip(bias) {
                *out = sum + bias;
            }
        }
    }
}
