//! The tiles of a linear layer.
//!
//! A task takes a tile of rows and a group of panels and walks the inputs in blocks of [`KC`]: the block of a panel
//! group stays in the nearest caches while the rows' blocks pass, and the rows' blocks stay in the second cache while
//! the other panels of the group pass. (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication",
//! 2008.)
#![expect(unsafe_code, reason = "tasks write tiles of one output matrix")]

use std::ops::Range;

use super::{Epilogue, LinearDims, Weight};
use crate::activation::{Activation, apply_inner};
use crate::isa::{Isa, by_isa};
use crate::micro::{KC, Keep, Left, MR, NR, Out, Panels, Right, multiply};
use crate::panel;
use crate::scratch::Scratch;
use crate::shared::Shared;
use crate::tasks::{self, Share};
use crate::values::Values;

/// Rows of an output tile at most.
const TILE_ROWS: usize = 8 * MR;
/// Panels of an output tile at most.
const TILE_PANELS: usize = 12;
/// Tasks below which tiles are made smaller, so that all threads end together.
const ENOUGH_TASKS: usize = 32;
/// Rows up to which weights are turned where they are used, as each is read for one tile only.
const FEW_ROWS: usize = 2 * MR;
/// Panels of a tile of few rows.
const FEW_PANELS: usize = 8;
/// Bytes of weights in rows that are turned into panels at a time, at most; one panel, of 16 outputs, where that alone takes
/// more.
pub const PANEL_BYTES: usize = 8 << 20;
/// Multiply-adds below which threads cost more than they bring.
const ALONE: usize = 1 << 18;

/// Bytes of scratch in which a linear layer turns weights `[outputs, inputs]` that lie in rows into panels, at most: see
/// [`PANEL_BYTES`]. Packed weights take none.
#[must_use]
pub fn turned_bytes(outputs: usize, inputs: usize) -> usize {
    panels_at_once(outputs, inputs) * panel_bytes(inputs)
}

/// Panels that are turned at a time: all, or else whole tiles of them where one fits at all.
fn panels_at_once(outputs: usize, inputs: usize) -> usize {
    let fit = (PANEL_BYTES / panel_bytes(inputs).max(1)).max(1);
    let in_tiles = if fit < TILE_PANELS { fit } else { fit - fit % TILE_PANELS };
    in_tiles.min(outputs.div_ceil(NR))
}

fn panel_bytes(inputs: usize) -> usize {
    inputs * NR * size_of::<f32>()
}

/// Computes a layer whose sizes have been checked; `out` is not empty.
pub(super) fn run(
    isa: Isa,
    x: &[f32],
    weight: Weight<'_>,
    bias: &[f32],
    dims: LinearDims,
    epilogue: Epilogue<'_>,
    out: &mut [f32],
) {
    let LinearDims { rows, inputs, outputs } = dims;
    let share = Share::from_work(rows.saturating_mul(inputs).saturating_mul(outputs), ALONE);
    let call = Call { isa, x, dims, bias, epilogue, share, out: Shared::new(out) };
    let panels = outputs.div_ceil(NR);
    match weight {
        _ if inputs == 0 => call.few_rows(Values::from(&[][..])),
        Weight::Packed(packed) => call.tiles(packed.panels(), 0, panels),
        Weight::Rows(values) if rows <= FEW_ROWS => call.few_rows(values),
        Weight::Rows(values) => {
            let panel_len = inputs * NR;
            let at_once = panels_at_once(outputs, inputs);
            let mut turned = Scratch::current().take(at_once * panel_len);
            for first in (0..panels).step_by(at_once) {
                let count = at_once.min(panels - first);
                let turned = &mut turned[..count * panel_len];
                tasks::each(turned, panel_len, share, |i, panel| {
                    call.turn(values, first + i, 0..inputs, panel);
                });
                call.tiles(Panels::F32(turned), first, count);
            }
        }
    }
}

struct Call<'a> {
    isa: Isa,
    x: &'a [f32],
    dims: LinearDims,
    bias: &'a [f32],
    epilogue: Epilogue<'a>,
    share: Share,
    out: Shared<'a>,
}

/// Products of the same rows with several panels, `[rows, panels * NR]`.
struct Sums<'a> {
    first_row: usize,
    rows: usize,
    first_panel: usize,
    panels: usize,
    values: &'a mut [f32],
}

/// Rows and panels of a tile: as many as the caches hold, fewer where there would be few tasks; rows in equal parts.
fn tile_size(rows: usize, panels: usize) -> [usize; 2] {
    let sizes = [[TILE_ROWS, TILE_PANELS], [TILE_ROWS / 2, TILE_PANELS], [TILE_ROWS / 2, TILE_PANELS / 2]];
    let tasks = |size: &[usize; 2]| rows.div_ceil(size[0]) * panels.div_ceil(size[1]);
    let size = sizes.into_iter().find(|size| tasks(size) >= ENOUGH_TASKS);
    let [most, wide] = size.unwrap_or([TILE_ROWS / 4, TILE_PANELS / 2]);
    let tiles = rows.div_ceil(most);
    [rows.div_ceil(tiles).next_multiple_of(MR), wide]
}

impl Call<'_> {
    /// All rows with `count` panels that lie one after the other; the first is panel `first` of the layer.
    fn tiles(&self, panels: Panels<'_>, first: usize, count: usize) {
        let LinearDims { rows, inputs, .. } = self.dims;
        let [tile_rows, tile_panels] =
            if rows <= FEW_ROWS { [rows, FEW_PANELS] } else { tile_size(rows, count) };
        let row_tiles = rows.div_ceil(tile_rows);
        let tasks = row_tiles * count.div_ceil(tile_panels);
        tasks::run(tasks, self.share, tile_rows * tile_panels * NR, |scratch, at| {
            let panel = at / row_tiles * tile_panels;
            let wide = tile_panels.min(count - panel);
            let first_row = at % row_tiles * tile_rows;
            let rows = tile_rows.min(rows - first_row);
            let values = &mut scratch[..rows * wide * NR];
            let mut sums = Sums { first_row, rows, first_panel: first + panel, panels: wide, values };
            let panels = panels.skip(panel * inputs);
            for depth in (0..inputs).step_by(KC) {
                let right = Right { panels, depth: inputs, from: depth, count: wide };
                self.block(&mut sums, depth, &right);
            }
            self.store(&sums);
        });
    }

    /// Few rows, for which weights are turned block by block where they are used.
    fn few_rows(&self, weight: Values<'_>) {
        let LinearDims { rows, inputs, outputs } = self.dims;
        let panels = outputs.div_ceil(NR);
        let (block_len, sums_len) = (FEW_PANELS * KC * NR, rows * FEW_PANELS * NR);
        tasks::run(panels.div_ceil(FEW_PANELS), self.share, block_len + sums_len, |scratch, at| {
            let (block, values) = scratch.split_at_mut(block_len);
            let first_panel = at * FEW_PANELS;
            let count = FEW_PANELS.min(panels - first_panel);
            let values = &mut values[..rows * count * NR];
            values.fill(0.0);
            let mut sums = Sums { first_row: 0, rows, first_panel, panels: count, values };
            for depth in (0..inputs).step_by(KC) {
                let columns = depth..inputs.min(depth + KC);
                let deep = columns.len();
                for (i, panel) in block.chunks_exact_mut(deep * NR).take(count).enumerate() {
                    self.turn(weight, first_panel + i, columns.clone(), panel);
                }
                let right = Right { panels: Panels::F32(block), depth: deep, from: 0, count };
                self.block(&mut sums, depth, &right);
            }
            self.store(&sums);
        });
    }

    /// Turns columns of the weights of NR outputs into a panel.
    fn turn(&self, weight: Values<'_>, panel: usize, columns: Range<usize>, to: &mut [f32]) {
        let LinearDims { inputs, outputs, .. } = self.dims;
        let rows = panel * NR..outputs.min((panel + 1) * NR);
        panel::from_values(self.isa, weight, inputs, rows, columns, to);
    }

    /// Adds the product of one block of inputs with the panels.
    fn block(&self, sums: &mut Sums<'_>, depth: usize, right: &Right<'_>) {
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
        let stride = sums.panels * NR;
        multiply(self.isa, &left, right, &mut Out::rows(&mut *sums.values, stride, keep));
    }

    /// Adds the bias and writes to the output what exists of it, as the epilogue says.
    fn store(&self, sums: &Sums<'_>) {
        let outputs = self.dims.outputs;
        let (first, stride) = (sums.first_panel * NR, sums.panels * NR);
        let count = stride.min(outputs - first);
        let bias = &self.bias[first..][..count];
        for (i, values) in sums.values.chunks_exact(stride).take(sums.rows).enumerate() {
            // SAFETY: each tile of the output belongs to one task.
            let out = unsafe { self.out.range((sums.first_row + i) * outputs + first, count) };
            match self.epilogue {
                Epilogue::Activate(act) => put(self.isa, out, &values[..count], bias, act),
                Epilogue::AddTo { gate: None } => add(self.isa, out, &values[..count], bias),
                Epilogue::AddTo { gate: Some(gate) } => {
                    add_gated(self.isa, out, &values[..count], bias, &gate[first..][..count]);
                }
            }
        }
    }
}

by_isa! {
    fn put(out: &mut [f32], values: &[f32], bias: &[f32], act: Activation) = put_inner
}

#[inline(always)]
fn put_inner(out: &mut [f32], values: &[f32], bias: &[f32], act: Activation) {
    for ((out, value), bias) in out.iter_mut().zip(values).zip(bias) {
        *out = value + bias;
    }
    apply_inner(out, act);
}

by_isa! {
    fn add(out: &mut [f32], values: &[f32], bias: &[f32]) = add_inner
}

#[inline(always)]
fn add_inner(out: &mut [f32], values: &[f32], bias: &[f32]) {
    for ((out, value), bias) in out.iter_mut().zip(values).zip(bias) {
        *out += value + bias;
    }
}

by_isa! {
    fn add_gated(out: &mut [f32], values: &[f32], bias: &[f32], gate: &[f32]) = add_gated_inner
}

#[inline(always)]
fn add_gated_inner(out: &mut [f32], values: &[f32], bias: &[f32], gate: &[f32]) {
    for (((out, value), bias), gate) in out.iter_mut().zip(values).zip(bias).zip(gate) {
        *out = (value + bias).mul_add(*gate, *out);
    }
}
