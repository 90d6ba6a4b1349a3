//! Codes of 8 and 4 bits, with a bfloat16 step and a bfloat16 minimum for each group behind the codes of a row.
//!
//! The minimum is rounded down and the step up, so every number lies on the grid's range and is off by at most half a step and
//! a rounding.

use half::bf16;

use super::GROUP;
use crate::isa::by_isa;

/// Bytes of a group's step and minimum.
const GRID_BYTES: usize = 4;
/// Adding this rounds to the nearest integer, whose bits then lie at the bottom.
const ROUND: f32 = 12_582_912.0;
/// Numbers that are looked at side by side.
const LANES: usize = 16;

/// Bytes of all grids of a row of `width` numbers.
pub(super) const fn bytes(width: usize) -> usize {
    width.div_ceil(GROUP) * GRID_BYTES
}

/// Where the codes of a group lie: `minimum + code * step`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) step: f32,
    pub(crate) minimum: f32,
}

/// The least and the greatest number of a group; both NaN if one is not finite.
#[inline(always)]
pub(super) fn extremes(group: &[f32]) -> [f32; 2] {
    let (mut least, mut greatest, mut poison) =
        ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES], [0.0; LANES]);
    let (whole, rest) = group.as_chunks::<LANES>();
    let mut meet = |numbers: &[f32]| {
        for (i, x) in numbers.iter().enumerate() {
            least[i] = if *x < least[i] { *x } else { least[i] };
            greatest[i] = if *x > greatest[i] { *x } else { greatest[i] };
            // Zero, or NaN for ever.
            poison[i] += x * 0.0;
        }
    };
    whole.iter().for_each(|numbers| meet(numbers));
    meet(rest);
    let poison: f32 = poison.iter().sum();
    let fold = |lanes: [f32; LANES], wins: fn(f32, f32) -> bool| {
        lanes.into_iter().reduce(|a, b| if wins(b, a) { b } else { a }).unwrap_or(f32::NAN) + poison
    };
    [fold(least, |a, b| a < b), fold(greatest, |a, b| a > b)]
}

impl Grid {
    /// The grid from the least to the greatest number, for codes up to `top`.
    #[inline(always)]
    fn around(group: &[f32], top: f32) -> Self {
        let [least, greatest] = extremes(group);
        if least.is_nan() {
            return Self { step: f32::NAN, minimum: f32::NAN };
        }
        let minimum = towards(bf16::from_f32(least), least, f32::NEG_INFINITY);
        // Halves first: the difference of two large numbers may be beyond f32.
        let wanted = (greatest * 0.5 - minimum * 0.5) / top * 2.0;
        let step = towards(bf16::from_f32(wanted), wanted, f32::INFINITY);
        Self { step, minimum }
    }

    /// The codes of some numbers, of which each is rounded to the nearest.
    #[inline(always)]
    pub(super) fn codes(self, numbers: &[f32], top: f32, codes: &mut [u8]) {
        let inverse = self.step.recip();
        // The inverse of the smallest steps is infinite.
        let by = |x: f32| if inverse.is_finite() { x * inverse } else { x / self.step };
        for (code, x) in codes.iter_mut().zip(numbers) {
            let place = by(x - self.minimum);
            // A NaN becomes 0: where all numbers are the minimum that is right, and a grid of NaN makes it NaN again.
            let place = if place > 0.0 { place } else { 0.0 };
            let place = if place < top { place } else { top };
            *code = ((place + ROUND).to_bits() & 0xFF) as u8;
        }
    }

    fn write(self, place: &mut [u8]) {
        place[..2].copy_from_slice(&bf16::from_f32(self.step).to_le_bytes());
        place[2..].copy_from_slice(&bf16::from_f32(self.minimum).to_le_bytes());
    }

    /// The grid of a group in a row of `width` numbers.
    #[inline(always)]
    pub(super) fn of(row: &[u8], width: usize, group: usize) -> Self {
        let grids = row.len() - bytes(width);
        let place = &row[grids + group * GRID_BYTES..][..GRID_BYTES];
        let number = |at: usize| bf16::from_le_bytes([place[at], place[at + 1]]).to_f32();
        Self { step: number(0), minimum: number(2) }
    }
}

/// `rounded`, or the bfloat16 next to it if it lies on the wrong side of `exact`: at or beyond it towards `end`.
pub(super) fn towards(rounded: bf16, exact: f32, end: f32) -> f32 {
    let value = rounded.to_f32();
    let is_beyond = if end > 0.0 { value >= exact } else { value <= exact };
    if is_beyond {
        return value;
    }
    let away_from_zero = (end > 0.0) == (value > 0.0);
    let bits = rounded.to_bits();
    let next = match bits << 1 {
        // Zero: the least number of the wanted sign.
        0 => u16::from(end < 0.0) << 15 | 1,
        _ if away_from_zero => bits + 1,
        _ => bits - 1,
    };
    // A range that bfloat16 cannot hold keeps its nearest grid; the codes are clamped to it.
    let next = bf16::from_bits(next).to_f32();
    if next.is_finite() { next } else { value }
}

by_isa! {
    /// Encodes a row in bytes.
    pub(super) fn encode_int8(row: &[f32], out: &mut [u8]) = encode_int8_inner
}

#[inline(always)]
fn encode_int8_inner(row: &[f32], out: &mut [u8]) {
    let (codes, grids) = out.split_at_mut(row.len());
    let groups = row.chunks(GROUP).zip(codes.chunks_mut(GROUP)).zip(grids.chunks_exact_mut(GRID_BYTES));
    for ((group, codes), place) in groups {
        let grid = Grid::around(group, 255.0);
        grid.write(place);
        grid.codes(group, 255.0, codes);
    }
}

by_isa! {
    /// Encodes a row in halves of bytes: number `i` is the lower half of byte `i / 2` where `i` is even.
    pub(super) fn encode_int4(row: &[f32], out: &mut [u8]) = encode_int4_inner
}

#[inline(always)]
fn encode_int4_inner(row: &[f32], out: &mut [u8]) {
    let (packed, grids) = out.split_at_mut(row.len().div_ceil(2));
    let groups = row.chunks(GROUP).zip(packed.chunks_mut(GROUP / 2)).zip(grids.chunks_exact_mut(GRID_BYTES));
    for ((group, packed), place) in groups {
        let grid = Grid::around(group, 15.0);
        grid.write(place);
        let mut codes = [0_u8; GROUP];
        grid.codes(group, 15.0, &mut codes[..group.len()]);
        for (byte, pair) in packed.iter_mut().zip(codes.as_chunks::<2>().0) {
            *byte = pair[0] | pair[1] << 4;
        }
    }
}

by_isa! {
    /// Decodes numbers `start..start + out.len()` of a row of `width`.
    pub(super) fn decode_int8(row: &[u8], width: usize, start: usize, out: &mut [f32]) = decode_int8_inner
}

#[inline(always)]
fn decode_int8_inner(row: &[u8], width: usize, start: usize, out: &mut [f32]) {
    each_group(start, out, |group, at, out| {
        let grid = Grid::of(row, width, group);
        for (to, code) in out.iter_mut().zip(&row[at..]) {
            *to = f32::from(*code).mul_add(grid.step, grid.minimum);
        }
    });
}

by_isa! {
    /// Decodes numbers `start..start + out.len()` of a row of `width`.
    pub(super) fn decode_int4(row: &[u8], width: usize, start: usize, out: &mut [f32]) = decode_int4_inner
}

#[inline(always)]
fn decode_int4_inner(row: &[u8], width: usize, start: usize, out: &mut [f32]) {
    each_group(start, out, |group, at, out| {
        let grid = Grid::of(row, width, group);
        for (i, to) in out.iter_mut().enumerate() {
            *to = f32::from(half_at(row, at + i)).mul_add(grid.step, grid.minimum);
        }
    });
}

by_isa! {
    /// Codes `start..start + out.len()` of a row of halves of bytes.
    pub(super) fn unpack_int4(row: &[u8], start: usize, out: &mut [u8]) = unpack_int4_inner
}

#[inline(always)]
fn unpack_int4_inner(row: &[u8], start: usize, out: &mut [u8]) {
    if start.is_multiple_of(2) {
        let (pairs, last) = out.as_chunks_mut::<2>();
        for (pair, byte) in pairs.iter_mut().zip(&row[start / 2..]) {
            *pair = [byte & 15, byte >> 4];
        }
        let done = start + 2 * pairs.len();
        last.iter_mut().for_each(|code| *code = half_at(row, done));
    } else {
        out.iter_mut().enumerate().for_each(|(i, code)| *code = half_at(row, start + i));
    }
}

#[inline(always)]
fn half_at(row: &[u8], at: usize) -> u8 {
    row[at / 2] >> (at % 2 * 4) & 15
}

/// Calls `decode(group, at, part)` for the part of `out` in each group; `at` is the part's first number in the row.
#[inline(always)]
pub(super) fn each_group(
    start: usize,
    mut out: &mut [f32],
    mut decode: impl FnMut(usize, usize, &mut [f32]),
) {
    let mut at = start;
    while !out.is_empty() {
        let count = (GROUP - at % GROUP).min(out.len());
        let (part, rest) = out.split_at_mut(count);
        decode(at / GROUP, at, part);
        (at, out) = (at + count, rest);
    }
}
