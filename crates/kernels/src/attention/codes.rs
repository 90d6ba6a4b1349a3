//! Codes of keys and values of a tile, and of the weights that meet the latter.

use super::scratch::{Scratch, TILE_KEYS};
use super::spans::{Span, spans, words_max};
use crate::codec::{EncodedRows, GROUP};
use crate::dot::Words;
use crate::isa::{Isa, by_isa};
use crate::micro::NR;

/// The largest code of a weight: half of 16 bits, so that pairs of products with codes of values stay exact in 32.
const TOP: f32 = 32_767.0;
/// Adding this rounds to the nearest integer, whose bits then lie at the bottom.
const ROUND: f32 = 12_582_912.0;

/// Keys or values of a tile in codes.
#[derive(Clone, Copy)]
pub(super) struct Coded<'a> {
    pub(super) isa: Isa,
    pub(super) rows: EncodedRows<'a>,
    /// The first number of the head in a row.
    pub(super) start: usize,
    pub(super) head_dim: usize,
    /// The first row of the tile, and how many it has.
    pub(super) first: usize,
    pub(super) count: usize,
}

impl<'a> Coded<'a> {
    pub(super) fn spans(&self) -> impl Iterator<Item = Span> + use<> {
        spans(self.start, self.head_dim)
    }

    /// Codes, steps and minima of keys, side by side: in the page a head's rows lie far apart.
    pub(super) fn load_keys(&self, scratch: &mut Scratch<'_>) {
        let stride = 4 * words_max(self.head_dim);
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(scratch.keys);
        for (i, row) in bytes.chunks_exact_mut(stride).take(self.count).enumerate() {
            let at = self.first + i;
            for span in self.spans() {
                let grid = self.rows.grid(at, span.group);
                scratch.key_steps[span.at * TILE_KEYS + i] = grid.step;
                scratch.key_minima[span.at * TILE_KEYS + i] = grid.minimum;
                let part = &mut row[4 * span.word..][..4 * span.words()];
                part[span.len..].fill(0);
                let part = &mut part[..span.len];
                match (self.rows.code_bytes(at), <&mut [u8; GROUP]>::try_from(&mut *part)) {
                    (Some(codes), Ok(whole)) => {
                        whole.copy_from_slice(&codes[span.start..][..GROUP]);
                    }
                    _ => self.rows.read_codes(self.isa, at, span.start, part),
                }
            }
        }
    }

    /// The codes of the tile's keys over a span.
    pub(super) fn key_words<'b>(&self, span: Span, codes: &'b [f32]) -> Words<'b> {
        Words {
            bytes: bytemuck::cast_slice(codes),
            first: 4 * span.word,
            rows: self.count,
            row_stride: 4 * words_max(self.head_dim),
            step_stride: 4,
            steps: span.words(),
        }
    }

    /// Pairs of codes of neighbouring values, and the ratios, minima and units of their grids.
    pub(super) fn load_values(&self, scratch: &mut Scratch<'_>) {
        for span in self.spans() {
            let ratios = &mut scratch.value_ratios[span.at * TILE_KEYS..][..self.count];
            let minima = &mut scratch.value_minima[span.at * TILE_KEYS..][..self.count];
            let mut largest = 0.0;
            for (i, (ratio, minimum)) in ratios.iter_mut().zip(minima).enumerate() {
                let grid = self.rows.grid(self.first + i, span.group);
                (*ratio, *minimum) = (grid.step, grid.minimum);
                largest = if grid.step > largest { grid.step } else { largest };
            }
            scratch.value_units[span.at] = largest / TOP;
            ratios
                .iter_mut()
                .for_each(|ratio| *ratio = if largest > 0.0 { *ratio / largest * TOP } else { 0.0 });
        }
        let pairs: &mut [u32] = bytemuck::cast_slice_mut(scratch.values);
        let codes: &mut [u8] = bytemuck::cast_slice_mut(scratch.rows);
        let (even, odd) = codes.split_at_mut(self.head_dim);
        let odd = &mut odd[..self.head_dim];
        for (i, pairs) in pairs.chunks_exact_mut(self.head_dim).take(self.count.div_ceil(2)).enumerate() {
            let at = self.first + 2 * i;
            let even = self.codes(at, &mut *even);
            let odd = if 2 * i + 1 < self.count {
                self.codes(at + 1, &mut *odd)
            } else {
                odd.fill(0);
                &*odd
            };
            pair(self.isa, even, odd, pairs);
        }
    }

    /// The head's codes of a row, where they lie or unpacked.
    fn codes<'b>(&'b self, at: usize, buffer: &'b mut [u8]) -> &'b [u8] {
        match self.rows.code_bytes(at) {
            Some(codes) => &codes[self.start..][..self.head_dim],
            None => {
                self.rows.read_codes(self.isa, at, self.start, buffer);
                buffer
            }
        }
    }

    /// The pairs of codes of values over a span: rows are numbers of the head.
    pub(super) fn value_words<'b>(&self, span: Span, pairs: &'b [f32]) -> Words<'b> {
        Words {
            bytes: bytemuck::cast_slice(pairs),
            first: 4 * span.offset,
            rows: span.len,
            row_stride: 4,
            step_stride: 4 * self.head_dim,
            steps: self.count.div_ceil(2),
        }
    }
}

by_isa! {
    fn pair(even: &[u8], odd: &[u8], pairs: &mut [u32]) = pair_inner
}

#[inline(always)]
fn pair_inner(even: &[u8], odd: &[u8], pairs: &mut [u32]) {
    for ((pair, even), odd) in pairs.iter_mut().zip(even).zip(odd) {
        *pair = u32::from(*even) | u32::from(*odd) << 16;
    }
}

by_isa! {
    /// Turns weights `[keys, NR]` of one panel, each times the ratio of its value's step, into codes in pairs
    /// `[keys / 2, NR]`, and adds the minima to `base`.
    pub(super) fn weigh(
        weights: &[f32],
        ratios: &[f32],
        minima: &[f32],
        pairs: &mut [u32],
        [base, decay, gain]: [&mut [f32; NR]; 3],
    ) = weigh_inner
}

#[inline(always)]
fn weigh_inner(
    weights: &[f32],
    ratios: &[f32],
    minima: &[f32],
    pairs: &mut [u32],
    [base, decay, gain]: [&mut [f32; NR]; 3],
) {
    let code = |weight: f32, ratio: f32| weight.mul_add(ratio, ROUND).to_bits();
    let mut sum = [0.0_f32; NR];
    let (rows, last) = weights.as_chunks::<{ 2 * NR }>();
    let (ratios, last_ratio) = ratios.as_chunks::<2>();
    let (minima, last_minimum) = minima.as_chunks::<2>();
    let (pairs, _) = pairs.as_chunks_mut::<NR>();
    let (whole, rest) = pairs.split_at_mut(rows.len());
    for (((pairs, rows), ratios), minima) in whole.iter_mut().zip(rows).zip(ratios).zip(minima) {
        for i in 0..NR {
            let [even, odd] = [rows[i], rows[NR + i]];
            // What lies above a code is shifted out, or masked.
            pairs[i] = code(even, ratios[0]) & 0xFFFF | code(odd, ratios[1]) << 16;
            sum[i] = odd.mul_add(minima[1], even.mul_add(minima[0], sum[i]));
        }
    }
    if let ([ratio], [minimum], Some(pairs)) = (last_ratio, last_minimum, rest.first_mut()) {
        for i in 0..NR {
            pairs[i] = code(last[i], *ratio) & 0xFFFF;
            sum[i] = last[i].mul_add(*minimum, sum[i]);
        }
    }
    for i in 0..NR {
        base[i] = base[i].mul_add(decay[i], gain[i] * sum[i]);
    }
}
