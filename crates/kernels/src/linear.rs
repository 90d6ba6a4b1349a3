//! Linear layers.
#![expect(unsafe_code, reason = "tasks write tiles of one output matrix")]

use std::ops::Range;

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
/// Rows up to which weights are turned where they are used, as each is read for one tile only.
const FEW_ROWS: usize = TILE_ROWS;
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
    let call = Call { isa, x, weight, dims, bias: &padded_bias, out: Shared::new(out) };
    let panels = outputs.div_ceil(NR);
    if rows <= FEW_ROWS {
        tasks::run(panels, share, KC * NR + FEW_ROWS * NR, |scratch, panel| call.few_rows(panel, scratch));
        return;
    }
    let panel_len = inputs * NR;
    let at_once = (PANEL_BYTES / 4 / panel_len).max(1).next_multiple_of(TILE_PANELS).min(panels);
    let mut packed = vec![0.0; at_once * panel_len];
    for first in (0..panels).step_by(at_once) {
        let count = at_once.min(panels - first);
        let packed = &mut packed[..count * panel_len];
        tasks::each(packed, panel_len, share, |i, panel| call.pack(first + i, 0..inputs, panel));
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
    weight: Values<'a>,
    dims: LinearDims,
    bias: &'a [f32],
    out: Shared<'a>,
}

/// Products of the same rows with several panels, `[rows, panels * NR]`.
struct Sums<'a> {
    first_row: usize,
    rows: usize,
    first_output: usize,
    values: &'a mut [f32],
    stride: usize,
}

impl Call<'_> {
    /// Turns columns of the weights of NR outputs into a panel.
    fn pack(&self, panel: usize, columns: Range<usize>, to: &mut [f32]) {
        let LinearDims { inputs, outputs, .. } = self.dims;
        let rows = panel * NR..outputs.min((panel + 1) * NR);
        panel::from_values(self.isa, self.weight, inputs, rows, columns, to);
    }

    /// Adds the product of one block of inputs with one panel of weights.
    fn block(&self, sums: &mut Sums<'_>, column: usize, depth: usize, panel: &[f32]) {
        let inputs = self.dims.inputs;
        let starts: [usize; TILE_ROWS] = std::array::from_fn(|i| (sums.first_row + i) * inputs);
        let left = Left {
            values: self.x,
            starts: &starts[..sums.rows],
            spans: &[depth],
            span_len: KC.min(inputs - depth),
            stride: 1,
        };
        let keep = if depth == 0 { Keep::Nothing } else { Keep::Sum };
        multiply(self.isa, &left, panel, &mut sums.values[column..], sums.stride, keep);
    }

    /// All of one panel for a call of few rows: weights are turned block by block where they are used.
    fn few_rows(&self, panel: usize, scratch: &mut [f32]) {
        let (block, values) = scratch.split_at_mut(KC * NR);
        let mut sums =
            Sums { first_row: 0, rows: self.dims.rows, first_output: panel * NR, values, stride: NR };
        for depth in (0..self.dims.inputs).step_by(KC) {
            self.pack(panel, depth..self.dims.inputs.min(depth + KC), block);
            self.block(&mut sums, 0, depth, block);
        }
        self.store(&sums);
    }

    /// The tile of the rows from `row` on and the outputs from `output` on.
    fn tile(&self, row: usize, output: usize, panels: &[f32], scratch: &mut [f32]) {
        let LinearDims { rows, inputs, .. } = self.dims;
        let rows = TILE_ROWS.min(rows - row);
        let mut sums = Sums {
            first_row: row,
            rows,
            first_output: output,
            values: scratch,
            stride: panels.len() / inputs,
        };
        for depth in (0..inputs).step_by(KC) {
            for (i, panel) in panels.chunks_exact(inputs * NR).enumerate() {
                self.block(&mut sums, i * NR, depth, &panel[depth * NR..]);
            }
        }
        self.store(&sums);
    }

    /// Adds the bias and writes to the output what exists of it.
    fn store(&self, sums: &Sums<'_>) {
        let outputs = self.dims.outputs;
        let count = sums.stride.min(outputs - sums.first_output);
        let bias = &self.bias[sums.first_output..][..count];
        for (i, values) in sums.values.chunks_exact(sums.stride).take(sums.rows).enumerate() {
            // SAFETY: each tile of the output belongs to one task.
            let out = unsafe { self.out.range((sums.first_row + i) * outputs + sums.first_output, count) };
            for ((out, value), bias) in out.iter_mut().zip(values).zip(bias) {
                *out = value + bias;
            }
        }
    }
}
