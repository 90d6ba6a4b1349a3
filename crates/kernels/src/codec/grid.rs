//! Codes of 8 and 4 bits, with a bfloat16 step and a bfloat16 minimum for each group behind the codes of a row.
//!
//! The minimum is rounded down and the step up, so every number lies on the grid's range and is off by at most half a step and
//! a rounding.
#![expect(unsafe_code, reason = "calls a loop of an instruction set that was detected")]

use half::bf16;

use super::GROUP;
#[cfg(target_arch = "x86_64")]
use crate::isa::Kind;
use crate::isa::{Isa, by_isa};

/// Bytes of a group's step and minimum.
const GRID_BYTES: usize = 4;
/// Adding this rounds to the nearest integer, whose bits then lie at the bottom.
const ROUND: f32 = 12_582_912.0;
/// A power of two that brings the smallest numbers into the middle of the range.
const TINY: f32 = f32::from_bits((127 + 64) << 23);
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
pub(super) fn extremes(isa: Isa, group: &[f32]) -> [f32; 2] {
    #[cfg(target_arch = "x86_64")]
    if let (Kind::Avx512, Ok(whole)) = (isa.kind(), <&[f32; GROUP]>::try_from(group)) {
        // SAFETY: `Kind::Avx512` exists only after its features were detected.
        return unsafe { extremes_avx512(whole) };
    }
    let (mut least, mut greatest) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let mut poison = [0.0_f32; LANES];
    let (whole, rest) = group.as_chunks::<LANES>();
    for numbers in whole {
        for i in 0..LANES {
            least[i] = if numbers[i] < least[i] { numbers[i] } else { least[i] };
            greatest[i] = if numbers[i] > greatest[i] { numbers[i] } else { greatest[i] };
            // Zero, or NaN for ever.
            poison[i] += numbers[i] * 0.0;
        }
    }
    for (i, x) in rest.iter().enumerate() {
        least[i] = if *x < least[i] { *x } else { least[i] };
        greatest[i] = if *x > greatest[i] { *x } else { greatest[i] };
        poison[i] += x * 0.0;
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            least[i] = if least[i + half] < least[i] { least[i + half] } else { least[i] };
            greatest[i] = if greatest[i + half] > greatest[i] { greatest[i + half] } else { greatest[i] };
            poison[i] += poison[i + half];
        }
        half /= 2;
    }
    [least[0] + poison[0], greatest[0] + poison[0]]
}

/// As [`extremes`], step by step: of two zeros the one is taken that is taken there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn extremes_avx512(group: &[f32; GROUP]) -> [f32; 2] {
    use std::arch::x86_64::{
        _mm512_add_ps, _mm512_cvtss_f32, _mm512_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps,
        _mm512_permute_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4,
    };
    let (mut least, mut greatest) = (_mm512_set1_ps(f32::INFINITY), _mm512_set1_ps(f32::NEG_INFINITY));
    let mut poison = _mm512_setzero_ps();
    for numbers in group.as_chunks::<LANES>().0 {
        // SAFETY: LANES numbers fill a register.
        let x = unsafe { _mm512_loadu_ps(numbers.as_ptr()) };
        // The first operand where it is smaller, the second where neither is.
        least = _mm512_min_ps(x, least);
        greatest = _mm512_max_ps(x, greatest);
        poison = _mm512_add_ps(poison, _mm512_mul_ps(x, _mm512_setzero_ps()));
    }
    /// Halves of the lanes meet, then halves of the rest.
    macro_rules! fold {
        ($join:ident, $lanes:ident) => {{
            let lanes = $join(_mm512_shuffle_f32x4::<0b1110>($lanes, $lanes), $lanes);
            let lanes = $join(_mm512_shuffle_f32x4::<0b0001>(lanes, lanes), lanes);
            let lanes = $join(_mm512_permute_ps::<0b1110>(lanes), lanes);
            _mm512_cvtss_f32($join(_mm512_permute_ps::<0b0001>(lanes), lanes))
        }};
    }
    let poison = fold!(_mm512_add_ps, poison);
    [fold!(_mm512_min_ps, least) + poison, fold!(_mm512_max_ps, greatest) + poison]
}

impl Grid {
    /// The grid from the least to the greatest number, for codes up to `top`.
    #[inline(always)]
    fn around(isa: Isa, group: &[f32], top: f32) -> Self {
        let [least, greatest] = extremes(isa, group);
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
        // The inverse of the smallest steps is infinite: two factors then. Steps of 0 make NaN as well as infinity.
        let (scale, inverse) =
            if inverse.is_finite() { (1.0, inverse) } else { (TINY, (self.step * TINY).recip()) };
        for (code, x) in codes.iter_mut().zip(numbers) {
            let place = (x - self.minimum) * scale * inverse;
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
        // A bfloat16 is the upper half of the number.
        let number = |at: usize| f32::from_bits(u32::from_le_bytes([0, 0, place[at], place[at + 1]]));
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
    pub(super) fn encode_int8(set: Isa, row: &[f32], out: &mut [u8]) = encode_int8_inner
}

#[inline(always)]
fn encode_int8_inner(set: Isa, row: &[f32], out: &mut [u8]) {
    let (codes, grids) = out.split_at_mut(row.len());
    let groups = row.chunks(GROUP).zip(codes.chunks_mut(GROUP)).zip(grids.chunks_exact_mut(GRID_BYTES));
    for ((group, codes), place) in groups {
        let grid = Grid::around(set, group, 255.0);
        grid.write(place);
        grid.codes(group, 255.0, codes);
    }
}

by_isa! {
    /// Encodes a row in halves of bytes: number `i` is the lower half of byte `i / 2` where `i` is even.
    pub(super) fn encode_int4(set: Isa, row: &[f32], out: &mut [u8]) = encode_int4_inner
}

#[inline(always)]
fn encode_int4_inner(set: Isa, row: &[f32], out: &mut [u8]) {
    let (packed, grids) = out.split_at_mut(row.len().div_ceil(2));
    let groups = row.chunks(GROUP).zip(packed.chunks_mut(GROUP / 2)).zip(grids.chunks_exact_mut(GRID_BYTES));
    for ((group, packed), place) in groups {
        let grid = Grid::around(set, group, 15.0);
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
    let mut done = 0;
    while done < out.len() {
        let (group, count) = part(start + done, out.len() - done);
        let grid = Grid::of(row, width, group);
        for (to, code) in out[done..done + count].iter_mut().zip(&row[start + done..]) {
            *to = f32::from(*code).mul_add(grid.step, grid.minimum);
        }
        done += count;
    }
}

by_isa! {
    /// Decodes numbers `start..start + out.len()` of a row of `width`.
    pub(super) fn decode_int4(row: &[u8], width: usize, start: usize, out: &mut [f32]) = decode_int4_inner
}

#[inline(always)]
fn decode_int4_inner(row: &[u8], width: usize, start: usize, out: &mut [f32]) {
    let mut done = 0;
    while done < out.len() {
        let (group, count) = part(start + done, out.len() - done);
        let grid = Grid::of(row, width, group);
        let mut codes = [0_u8; GROUP];
        unpack_int4_inner(row, start + done, &mut codes[..count]);
        for (to, code) in out[done..done + count].iter_mut().zip(codes) {
            *to = f32::from(code).mul_add(grid.step, grid.minimum);
        }
        done += count;
    }
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

/// The group of number `at` of a row, and how many of the next `len` numbers lie in it.
#[inline(always)]
pub(super) fn part(at: usize, len: usize) -> (usize, usize) {
    (at / GROUP, (GROUP - at % GROUP).min(len))
}
