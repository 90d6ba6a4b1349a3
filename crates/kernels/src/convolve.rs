//! The loop that every convolution shares.
//!
//! A task copies the part of the input that a tile of output pixels reads, borders as zeros, and multiplies it by
//! panels of the weights: the pixels are the rows of the product, and a tap is an offset added to all of them.
//! Nothing larger than a tile is ever unfolded.
#![expect(unsafe_code, reason = "tasks write tiles of one output picture")]

use crate::isa::Isa;
use crate::micro::{KC, Keep, Left, NR, Out, Panels, Right, multiply};
use crate::panel;
use crate::scratch::LINE;
use crate::shared::Shared;
use crate::tasks::{self, Share};
use crate::values::Values;

/// Pixels of a tile: whole groups of the micro-kernel's rows, enough of them to repay a walk over the weights.
const TILE_PIXELS: usize = 96;
/// Widest tile.
const TILE_WIDTH: usize = 16;
/// Tiles below which outputs are shared out as well.
const FEW_TILES: usize = 16;
/// Multiply-adds below which threads cost more than they bring.
const ALONE: usize = 1 << 18;

/// Weights of the taps that make one pixel of each cell of the grid.
#[derive(Debug)]
pub(crate) struct Taps {
    /// Frame, row and column of each tap, from the first pixel that the cell reads.
    pub(crate) offsets: Vec<[usize; 3]>,
    /// `[cout / NR, taps, cin, NR]`, rounded up.
    pub(crate) panels: Vec<f32>,
    /// Row and column of the pixel in its cell.
    pub(crate) pixel: [usize; 2],
}

impl Taps {
    /// Turns `weight` `[cout, cin, taps]` into panels.
    pub(crate) fn new(
        isa: Isa,
        weight: Values<'_>,
        [cout, cin]: [usize; 2],
        offsets: Vec<[usize; 3]>,
        pixel: [usize; 2],
    ) -> Self {
        let taps = offsets.len();
        let depth = taps * cin;
        let mut panels = vec![0.0; cout.next_multiple_of(NR) * depth];
        let share = Share::from_work(weight.len(), ALONE);
        tasks::each(&mut panels, (depth * NR).max(1), share, |i, panel| {
            let rows = i * NR..cout.min((i + 1) * NR);
            panel::from_values_in_order(isa, weight, depth, rows, panel, |at| at % taps * cin + at / taps);
        });
        Self { offsets, panels, pixel }
    }
}

/// A whole convolution.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) isa: Isa,
    /// Frames `[h, w, cin]`; a missing one is zeros. Output frame `t` reads from `t * stride_t` on.
    pub(crate) sources: Vec<Option<&'a [f32]>>,
    pub(crate) stride_t: usize,
    pub(crate) size: [usize; 2],
    pub(crate) cin: usize,
    pub(crate) cout: usize,
    /// Frames, rows and columns that a cell reads.
    pub(crate) reach: [usize; 3],
    /// Zeros above and to the left of the picture.
    pub(crate) pad: [usize; 2],
    /// Rows and columns from one cell's first pixel to the next one's.
    pub(crate) stride: usize,
    /// Cells of an output frame.
    pub(crate) grid: [usize; 2],
    /// Rows (and columns) of output pixels in a cell: one for each of `phases`.
    pub(crate) cell: usize,
    pub(crate) phases: Vec<Taps>,
    /// `[cout]`.
    pub(crate) bias: Vec<f32>,
}

/// Cells of one task.
#[derive(Clone, Copy, Debug)]
struct Tile {
    frame: usize,
    origin: [usize; 2],
    size: [usize; 2],
    panels: [usize; 2],
}

impl Plan<'_> {
    /// Writes output frames `[grid * cell, cout]` into `out`.
    pub(crate) fn run(&self, out: &mut [f32]) {
        let [high, wide] = self.grid;
        let tile_w = wide.min(TILE_WIDTH);
        let tile_h = high.min(TILE_PIXELS / tile_w);
        let tiles = [high.div_ceil(tile_h), wide.div_ceil(tile_w)];
        let frames = out.len() / (high * wide * self.cell * self.cell * self.cout);
        let panels = self.cout.div_ceil(NR);
        let few = frames * tiles[0] * tiles[1] < FEW_TILES;
        let group = if few { panels.div_ceil(4) } else { panels };
        let groups = panels.div_ceil(group);
        let input = self.reach[0] * self.extent(tile_h, 1) * self.extent(tile_w, 2) * self.cin;
        // The sums begin with a cache line.
        let input = input.next_multiple_of(LINE);
        let sums = tile_h * tile_w * group * NR;
        let work = out.len().saturating_mul(self.phases[0].offsets.len() * self.cin);
        let shared = Shared::new(out);
        tasks::run(
            frames * tiles[0] * tiles[1] * groups,
            Share::from_work(work, ALONE),
            input + sums,
            |scratch, at| {
                let (at, first) = (at / groups, at % groups * group);
                let origin = [at / tiles[1] % tiles[0] * tile_h, at % tiles[1] * tile_w];
                let tile = Tile {
                    frame: at / tiles[1] / tiles[0],
                    origin,
                    size: [tile_h.min(high - origin[0]), tile_w.min(wide - origin[1])],
                    panels: [first, panels.min(first + group)],
                };
                let (input, sums) = scratch.split_at_mut(input);
                self.load(tile, input);
                for taps in &self.phases {
                    self.multiply(tile, taps, input, sums);
                    self.store(tile, taps, sums, &shared);
                }
            },
        );
    }

    /// Rows (`axis` 1) or columns (2) that `cells` cells read.
    fn extent(&self, cells: usize, axis: usize) -> usize {
        (cells - 1) * self.stride + self.reach[axis]
    }

    /// Copies what the tile reads to `input` `[reach frames, rows, columns, cin]`, zeros where there is no picture.
    fn load(&self, tile: Tile, input: &mut [f32]) {
        let [h, w] = self.size;
        let (rows, columns) = (self.extent(tile.size[0], 1), self.extent(tile.size[1], 2));
        // Columns of the tile that lie left of the picture, in it, and right of it.
        let start = tile.origin[1] * self.stride;
        let left = self.pad[1].saturating_sub(start).min(columns);
        let from = (start + left) - self.pad[1];
        let count = w.saturating_sub(from).min(columns - left);
        let sources = &self.sources[tile.frame * self.stride_t..][..self.reach[0]];
        for (i, to) in input.chunks_exact_mut(columns * self.cin).take(self.reach[0] * rows).enumerate() {
            let row =
                (tile.origin[0] * self.stride + i % rows).checked_sub(self.pad[0]).filter(|row| *row < h);
            let (Some(source), Some(row)) = (sources[i / rows], row) else {
                to.fill(0.0);
                continue;
            };
            let (before, rest) = to.split_at_mut(left * self.cin);
            let (inside, after) = rest.split_at_mut(count * self.cin);
            before.fill(0.0);
            after.fill(0.0);
            if count > 0 {
                inside.copy_from_slice(&source[(row * w + from) * self.cin..][..count * self.cin]);
            }
        }
    }

    /// The tile's products `[cells, panels * NR]`.
    fn multiply(&self, tile: Tile, taps: &Taps, input: &[f32], sums: &mut [f32]) {
        let (rows, columns) = (self.extent(tile.size[0], 1), self.extent(tile.size[1], 2));
        let cell = |row: usize, column: usize| (row * columns + column) * self.stride * self.cin;
        let mut starts = [0; TILE_PIXELS];
        let cells = tile.size[0] * tile.size[1];
        for (i, start) in starts.iter_mut().take(cells).enumerate() {
            *start = cell(i / tile.size[1], i % tile.size[1]);
        }
        let spans: Vec<usize> =
            taps.offsets.iter().map(|[t, y, x]| ((t * rows + y) * columns + x) * self.cin).collect();
        let stride = (tile.panels[1] - tile.panels[0]) * NR;
        let depth = taps.offsets.len() * self.cin;
        let panels = &taps.panels[tile.panels[0] * depth * NR..tile.panels[1] * depth * NR];
        let chunk = self.cin.div_ceil(self.cin.div_ceil(KC));
        let mut at = 0;
        for spans in spans.chunks((KC / self.cin).max(1)) {
            for channel in (0..self.cin).step_by(chunk) {
                let span_len = chunk.min(self.cin - channel);
                let values = &input[channel..];
                let left = Left { values, starts: &starts[..cells], spans, span_len, stride: 1 };
                let keep = if at == 0 { Keep::Nothing } else { Keep::Sum };
                let right = Right { panels: Panels::F32(panels), depth, from: at, count: stride / NR };
                multiply(self.isa, &left, &right, &mut Out::rows(&mut *sums, stride, keep));
                at += span_len * spans.len();
            }
        }
    }

    /// Adds the bias and writes the tile's pixels of one phase.
    fn store(&self, tile: Tile, taps: &Taps, sums: &[f32], out: &Shared<'_>) {
        let first = tile.panels[0] * NR;
        let count = self.cout.min(tile.panels[1] * NR) - first;
        let bias = &self.bias[first..first + count];
        let stride = (tile.panels[1] - tile.panels[0]) * NR;
        let [high, wide] = self.grid.map(|cells| cells * self.cell);
        let cells = tile.size[0] * tile.size[1];
        for (i, sums) in sums.chunks_exact(stride).take(cells).enumerate() {
            let row = (tile.origin[0] + i / tile.size[1]) * self.cell + taps.pixel[0];
            let column = (tile.origin[1] + i % tile.size[1]) * self.cell + taps.pixel[1];
            let at = ((tile.frame * high + row) * wide + column) * self.cout + first;
            // SAFETY: each (frame, pixel, group of outputs) belongs to one task and one phase of it.
            let out = unsafe { out.range(at, count) };
            out.iter_mut().zip(sums).zip(bias).for_each(|((out, sum), bias)| *out = sum + bias);
        }
    }
}
