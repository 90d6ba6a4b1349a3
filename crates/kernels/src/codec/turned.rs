//! Codes of 2 bits, over numbers that were turned within their group first.
//!
//! With four codes the range of a group must not be spent on one number that stands out, so the group is multiplied by an
//! orthonormal Hadamard matrix before, which spreads every number over all, and again after decoding, as the matrix is its own
//! inverse (Ashkboos et al., "QuaRot", arXiv 2404.00456). What all numbers have in common comes together in the first turned
//! number, which therefore has no code but a byte of its own. A row has a bfloat16 unit, its largest turned number; a group's
//! step, minimum and first number are one byte each in that unit, small floats of 4 bits of exponent: 2.375 bits a number, and 2
//! bytes a row.

use half::bf16;

use super::GROUP;
use super::grid::{Grid, extremes, part, towards};
use crate::isa::{Isa, by_isa};

/// Bytes of a group's step, minimum and first number.
const GRID_BYTES: usize = 3;
/// Bytes of a row's unit.
const UNIT_BYTES: usize = 2;
/// The largest code.
const TOP: f32 = 3.0;
/// The minimum of a group that holds a number that is not finite: a negative zero, which no other group has.
const LOST: u8 = 0x80;

/// Bytes of a row of `width` numbers.
pub(super) const fn row_bytes(width: usize) -> usize {
    width.div_ceil(4) + width.div_ceil(GROUP) * GRID_BYTES + UNIT_BYTES
}

/// Units that a step's code stands for: 4 bits of exponent and 4 of fraction, rising from 0 to 31/32.
fn step_of(code: u8) -> f32 {
    small_float(code >> 4, code & 15, 4) / 2.0
}

/// Units that a minimum's code stands for: a sign, 4 bits of exponent and 3 of fraction, up to 15/8 either way.
fn minimum_of(code: u8) -> f32 {
    let magnitude = small_float(code >> 3 & 15, code & 7, 3);
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// `(1 + fraction) * 2^(exponent - 15)`, or what is left of it without the 1 where the exponent is 0.
fn small_float(exponent: u8, fraction: u8, bits: u32) -> f32 {
    let one = if exponent > 0 { 1 << bits } else { 0 };
    let power = i32::from(exponent.max(1)) - 15 - bits.cast_signed();
    f32::from(one + fraction) * f32::from_bits((127 + power).cast_unsigned() << 23)
}

/// The code of the largest small float up to `wanted`, which is not negative, of those up to `top`.
fn code_below(wanted: f32, bits: u32, top: u8) -> u8 {
    const SMALLEST_NORMAL: f32 = f32::from_bits((127 - 14) << 23);
    let code = if wanted >= SMALLEST_NORMAL {
        // The exponent that means 1 is 127 there and 15 here.
        (wanted.to_bits() >> (23 - bits)) - (112 << bits)
    } else {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 2^bits")]
        let code = (wanted * f32::from_bits((127 + 14 + bits) << 23)) as u32;
        code
    };
    u8::try_from(code).map_or(top, |code| code.min(top))
}

/// The code of the least step from `wanted` units on, or the largest one.
fn step_code(wanted: f32) -> u8 {
    let code = code_below(2.0 * wanted, 4, u8::MAX);
    if step_of(code) < wanted { code.saturating_add(1) } else { code }
}

/// The code of the greatest minimum up to `wanted` units, or the least one.
fn minimum_code(wanted: f32) -> u8 {
    let magnitude = code_below(wanted.abs(), 3, 0x7F);
    if wanted >= 0.0 {
        return magnitude;
    }
    // A negative number never has the code of zero.
    let reaches = minimum_of(magnitude) >= -wanted || magnitude == 0x7F;
    (if reaches { magnitude } else { magnitude + 1 }).max(1) | 0x80
}

/// The code of the signed number next to `wanted` units.
fn nearest_code(wanted: f32) -> u8 {
    let below = minimum_code(wanted);
    let above = match below {
        // Negative numbers fall as their codes rise.
        0x81 => 0,
        0x82.. => below - 1,
        0..0x7F => below + 1,
        _ => below,
    };
    if minimum_of(above) - wanted < wanted - minimum_of(below) { above } else { below }
}

/// The grids of a row.
pub(super) struct Header<'a> {
    grids: &'a [u8],
    unit: f32,
}

impl<'a> Header<'a> {
    pub(super) fn of(row: &'a [u8], width: usize) -> Self {
        let (rest, unit) = row.split_at(row.len() - UNIT_BYTES);
        Self { grids: &rest[width.div_ceil(4)..], unit: bf16::from_le_bytes([unit[0], unit[1]]).to_f32() }
    }

    pub(super) fn grid(&self, group: usize) -> Grid {
        let [step, minimum] = [0, 1].map(|i| self.grids[group * GRID_BYTES + i]);
        if minimum == LOST {
            return Grid { step: f32::NAN, minimum: f32::NAN };
        }
        Grid { step: step_of(step) * self.unit, minimum: minimum_of(minimum) * self.unit }
    }

    fn first_number(&self, group: usize) -> f32 {
        minimum_of(self.grids[group * GRID_BYTES + 2]) * self.unit
    }
}

/// Turns a group, or turns it back: blocks of a power of two, each by its orthonormal Hadamard matrix.
#[inline(always)]
fn turn(mut group: &mut [f32]) {
    while !group.is_empty() {
        let len = 1 << group.len().ilog2();
        let (block, rest) = group.split_at_mut(len);
        if let Ok(whole) = <&mut [f32; GROUP]>::try_from(&mut *block) {
            turn_whole(whole);
        } else {
            turn_block(block);
        }
        group = rest;
    }
}

#[inline(always)]
fn turn_block(block: &mut [f32]) {
    #[expect(clippy::cast_precision_loss, reason = "a group has 64 numbers at most")]
    let scale = (block.len() as f32).sqrt().recip();
    block.iter_mut().for_each(|x| *x *= scale);
    let mut half = block.len() / 2;
    while half > 0 {
        for pair in block.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half /= 2;
    }
}

/// As [`turn_block`] for a whole group: four registers of 16, among them and then within them.
#[inline(always)]
fn turn_whole(group: &mut [f32; GROUP]) {
    let rows = group.as_chunks_mut::<16>().0;
    let [a, b, c, d]: [[f32; 16]; 4] = std::array::from_fn(|i| rows[i].map(|x| x * 0.125));
    let (ac, bd, a_c, b_d) = (add(a, c), add(b, d), sub(a, c), sub(b, d));
    let mixed = [add(ac, bd), sub(ac, bd), add(a_c, b_d), sub(a_c, b_d)];
    for (row, mixed) in rows.iter_mut().zip(mixed) {
        *row = within::<1>(within::<2>(within::<4>(within::<8>(mixed))));
    }
}

#[inline(always)]
fn add(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
    std::array::from_fn(|i| a[i] + b[i])
}

#[inline(always)]
fn sub(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
    std::array::from_fn(|i| a[i] - b[i])
}

/// Sums and differences of numbers that are `HALF` apart.
#[inline(always)]
fn within<const HALF: usize>(x: [f32; 16]) -> [f32; 16] {
    let signed: [f32; 16] = std::array::from_fn(|i| if i & HALF == 0 { x[i] } else { -x[i] });
    let other: [f32; 16] = std::array::from_fn(|i| x[i ^ HALF]);
    add(signed, other)
}

#[inline(always)]
fn turned(group: &[f32], buffer: &mut [f32; GROUP]) -> usize {
    buffer[..group.len()].copy_from_slice(group);
    turn(&mut buffer[..group.len()]);
    group.len()
}

by_isa! {
    /// Encodes a row: number `i` is in byte `i / 4`, the first in its lowest bits.
    pub(super) fn encode(set: Isa, row: &[f32], out: &mut [u8]) = encode_inner
}

#[inline(always)]
fn encode_inner(set: Isa, row: &[f32], out: &mut [u8]) {
    let (packed, grids) = out.split_at_mut(row.len().div_ceil(4));
    let (grids, unit_place) = grids.split_at_mut(grids.len() - UNIT_BYTES);
    let mut buffer = [0.0; GROUP];
    let mut largest = 0.0_f32;
    for group in row.chunks(GROUP) {
        let len = turned(group, &mut buffer);
        let [least, greatest] = extremes(set, &buffer[..len]);
        // NaN is not larger than anything.
        for magnitude in [-least, greatest] {
            largest = if magnitude > largest { magnitude } else { largest };
        }
    }
    let unit = towards(bf16::from_f32(largest), largest, f32::INFINITY);
    unit_place.copy_from_slice(&bf16::from_f32(unit).to_le_bytes());
    let groups = row.chunks(GROUP).zip(packed.chunks_mut(GROUP / 4)).zip(grids.chunks_exact_mut(GRID_BYTES));
    for ((group, packed), place) in groups {
        let len = turned(group, &mut buffer);
        let grid = write_grid(set, &buffer[..len], unit, place);
        let mut codes = [0_u8; GROUP];
        grid.codes(&buffer[..len], TOP, &mut codes[..len]);
        for (byte, four) in packed.iter_mut().zip(codes.as_chunks::<4>().0) {
            *byte = four[0] | four[1] << 2 | four[2] << 4 | four[3] << 6;
        }
    }
}

/// Writes the grid around turned numbers, and gives it as it will be read.
#[inline(always)]
fn write_grid(isa: Isa, numbers: &[f32], unit: f32, place: &mut [u8]) -> Grid {
    if extremes(isa, numbers)[0].is_nan() {
        place.copy_from_slice(&[0, LOST, 0]);
        return Grid { step: f32::NAN, minimum: f32::NAN };
    }
    let in_units = |x: f32| if unit > 0.0 { x / unit } else { 0.0 };
    let (first, others) = numbers.split_at(1);
    place[2] = nearest_code(in_units(first[0]));
    let [least, greatest] = if others.is_empty() { [0.0; 2] } else { extremes(isa, others) };
    place[1] = minimum_code(in_units(least));
    let minimum = minimum_of(place[1]);
    place[0] = step_code((in_units(greatest) - minimum) / TOP);
    Grid { step: step_of(place[0]) * unit, minimum: minimum * unit }
}

by_isa! {
    /// Decodes numbers `start..start + out.len()` of a row of `width`.
    pub(super) fn decode(row: &[u8], width: usize, start: usize, out: &mut [f32]) = decode_inner
}

#[inline(always)]
fn decode_inner(row: &[u8], width: usize, start: usize, out: &mut [f32]) {
    let header = Header::of(row, width);
    let mut buffer = [0.0_f32; GROUP];
    let mut done = 0;
    while done < out.len() {
        let (group, count) = part(start + done, out.len() - done);
        let first = group * GROUP;
        let grid = header.grid(group);
        let numbers = &mut buffer[..GROUP.min(width - first)];
        let levels: [f32; 4] = [0.0_f32, 1.0, 2.0, 3.0].map(|code| code.mul_add(grid.step, grid.minimum));
        for (four, byte) in numbers.chunks_mut(4).zip(&row[first / 4..]) {
            for (i, to) in four.iter_mut().enumerate() {
                *to = levels[usize::from(byte >> (2 * i) & 3)];
            }
        }
        // What is lost in one number is lost in all.
        numbers[0] = header.first_number(group) + grid.step * 0.0;
        turn(numbers);
        out[done..done + count].copy_from_slice(&numbers[start + done - first..][..count]);
        done += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_rise_and_round_outwards() {
        for code in 1..=u8::MAX {
            assert!(step_of(code) > step_of(code - 1));
            assert_eq!(step_code(step_of(code)), code);
        }
        for code in 1..0x80_u8 {
            assert!(minimum_of(code) > minimum_of(code - 1));
            assert_eq!(minimum_code(minimum_of(code)), code);
            assert_eq!(minimum_code(-minimum_of(code)), code | 0x80);
        }
        for code in (0..=u8::MAX).filter(|code| *code != LOST) {
            assert_eq!(nearest_code(minimum_of(code)), code);
        }
        for wanted in [0.3_f32, -0.3, 1e-6, -1e-6, 0.97, -0.061] {
            let off = (minimum_of(nearest_code(wanted)) - wanted).abs();
            assert!(off <= wanted.abs() / 15.9 + 1e-5, "{wanted} is off by {off}");
            assert_ne!(nearest_code(wanted), LOST);
        }
        for wanted in [0.3_f32, 0.9, 1e-3, -0.7, -1.0, -1e-4, 0.0] {
            let minimum = minimum_of(minimum_code(wanted));
            assert!(
                minimum <= wanted && wanted - minimum <= wanted.abs() / 7.9 + 1e-5,
                "{wanted}: {minimum}"
            );
        }
        assert_eq!(minimum_code(-0.0), 0);
        assert_ne!(minimum_code(-1e-30), LOST);
    }

    #[test]
    fn turning_twice_is_not_turning() {
        for len in [1, 2, 3, 24, 32, 63, 64] {
            let numbers: Vec<f32> = (0..len).map(|i: u8| f32::from(i * 37 % 19) - 9.0).collect();
            let mut twice = numbers.clone();
            turn(&mut twice);
            turn(&mut twice);
            assert!(twice.iter().zip(&numbers).all(|(a, b)| (a - b).abs() < 1e-5), "{len}: {twice:?}");
        }
    }
}
