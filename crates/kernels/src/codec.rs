//! Pages of keys and values in fewer bytes: encoded once when they are committed, decoded tile by tile where they are read.
//!
//! A row is one token. Integer codecs cut its numbers into groups of [`GROUP`] neighbours, each with a minimum and a step of
//! its own, so a group never reaches into another token and a page can leave without touching its neighbours. Minimum and
//! step are bfloat16; the minimum is rounded down and the step up, so every number lies on the grid's range and is off by at
//! most half a step and a rounding. (Grids with a float minimum: Liu et al., "KIVI", 2024; a zero point clamped to the codes
//! is worse by a factor of ten where a channel's mean is far from zero.)

use half::bf16;
use rayon::prelude::*;

use crate::isa::{Isa, by_isa};
use crate::values::{Dtype, Values};

/// Neighbouring numbers of a row that share a minimum and a step.
pub const GROUP: usize = 64;
/// Bytes of a group's step and minimum.
const GRID_BYTES: usize = 4;
/// Numbers that one task encodes, at least.
const TASK_NUMBERS: usize = 1 << 14;

/// How rows of keys or values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Codec {
    /// As they are: 32 bits a number.
    F32,
    /// Rounded to bfloat16: 16 bits.
    Bf16,
    /// 256 steps from the least to the greatest number of a group: 8.5 bits.
    Int8,
    /// 16 steps: 4.5 bits.
    Int4,
}

impl Codec {
    /// Every codec, the most exact first.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Int8, Self::Int4];

    /// Its name on the command line and in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Bytes of a row of `width` numbers.
    #[must_use]
    pub const fn row_bytes(self, width: usize) -> usize {
        let grids = width.div_ceil(GROUP) * GRID_BYTES;
        match self {
            Self::F32 => 4 * width,
            Self::Bf16 => 2 * width,
            Self::Int8 => width + grids,
            Self::Int4 => width.div_ceil(2) + grids,
        }
    }

    /// The largest code, for codecs with a grid.
    const fn top(self) -> Option<f32> {
        match self {
            Self::F32 | Self::Bf16 => None,
            Self::Int8 => Some(255.0),
            Self::Int4 => Some(15.0),
        }
    }
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Rows of keys or values where they lie.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// Plain numbers, row after row.
    Plain(&'a [f32]),
    /// Encoded rows.
    Encoded(EncodedRows<'a>),
}

impl<'a> From<&'a [f32]> for Rows<'a> {
    fn from(numbers: &'a [f32]) -> Self {
        Self::Plain(numbers)
    }
}

impl<'a> From<EncodedRows<'a>> for Rows<'a> {
    fn from(rows: EncodedRows<'a>) -> Self {
        Self::Encoded(rows)
    }
}

impl Rows<'_> {
    /// How many rows of `width` numbers; `None` when they are not whole rows of that width.
    #[must_use]
    pub fn count(&self, width: usize) -> Option<usize> {
        match self {
            Self::Plain([]) => Some(0),
            Self::Plain(numbers) => {
                (width > 0 && numbers.len().is_multiple_of(width)).then(|| numbers.len() / width)
            }
            Self::Encoded(rows) => (rows.width == width).then(|| rows.len()),
        }
    }

    /// Numbers `start..start + buffer.len()` of row `at`, in rows of `width`: in place, or decoded into `buffer`.
    pub(crate) fn row<'b>(
        &'b self,
        isa: Isa,
        width: usize,
        at: usize,
        start: usize,
        buffer: &'b mut [f32],
    ) -> &'b [f32] {
        match self {
            Self::Plain(numbers) => &numbers[at * width + start..][..buffer.len()],
            Self::Encoded(rows) => {
                rows.read(isa, at, start, buffer);
                buffer
            }
        }
    }
}

/// Rows in some codec.
#[derive(Clone, Copy, Debug)]
pub struct EncodedRows<'a> {
    codec: Codec,
    bytes: &'a [u8],
    width: usize,
}

impl<'a> EncodedRows<'a> {
    /// Views `bytes` as rows of `width` numbers. `None` unless they are whole rows.
    #[must_use]
    pub fn new(codec: Codec, bytes: &'a [u8], width: usize) -> Option<Self> {
        let row_bytes = codec.row_bytes(width);
        (width > 0 && bytes.len().is_multiple_of(row_bytes)).then_some(Self { codec, bytes, width })
    }

    /// How many rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / self.codec.row_bytes(self.width)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Numbers of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// How they are stored.
    #[must_use]
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Decodes all rows, `[len, width]`.
    #[must_use]
    pub fn to_vec(&self) -> Vec<f32> {
        let (isa, mut out) = (Isa::current(), vec![0.0; self.len() * self.width]);
        for (at, row) in out.chunks_exact_mut(self.width).enumerate() {
            self.read(isa, at, 0, row);
        }
        out
    }

    /// Decodes numbers `start..start + out.len()` of row `at`.
    pub(crate) fn read(&self, isa: Isa, at: usize, start: usize, out: &mut [f32]) {
        let row_bytes = self.codec.row_bytes(self.width);
        let row = &self.bytes[at * row_bytes..][..row_bytes];
        match self.codec {
            Codec::F32 => read_values(isa, Dtype::F32, row, start, out),
            Codec::Bf16 => read_values(isa, Dtype::BF16, row, start, out),
            Codec::Int8 | Codec::Int4 => self.read_grids(isa, row, start, out),
        }
    }

    fn read_grids(&self, isa: Isa, row: &[u8], start: usize, mut out: &mut [f32]) {
        let (codes, grids) = row.split_at(row.len() - self.width.div_ceil(GROUP) * GRID_BYTES);
        let mut at = start;
        while !out.is_empty() {
            let group = at / GROUP;
            let count = ((group + 1) * GROUP - at).min(out.len());
            let (part, rest) = out.split_at_mut(count);
            let grid = Grid::from_bytes(&grids[group * GRID_BYTES..][..GRID_BYTES]);
            if self.codec == Codec::Int8 {
                decode_int8(isa, &codes[at..][..count], grid, part);
            } else {
                decode_int4(isa, codes, at, grid, part);
            }
            (at, out) = (at + count, rest);
        }
    }
}

/// Encodes rows of `width` numbers into `out`. A group that holds a number that is not finite decodes to NaN.
///
/// # Panics
/// When `x` is not whole rows, or `out` has another length than their encoding.
pub fn encode(codec: Codec, x: &[f32], width: usize, out: &mut [u8]) {
    assert!(width > 0 && x.len().is_multiple_of(width), "encode: x must be whole rows of width");
    let row_bytes = codec.row_bytes(width);
    assert_eq!(out.len(), x.len() / width * row_bytes, "encode: out must hold the encoded rows");
    let isa = Isa::current();
    let rows_per_task = TASK_NUMBERS.div_ceil(width);
    let parts = x.par_chunks(rows_per_task * width).zip(out.par_chunks_mut(rows_per_task * row_bytes));
    parts.for_each(|(x, out)| {
        for (row, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(row_bytes)) {
            encode_row(isa, codec, row, out);
        }
    });
}

fn encode_row(isa: Isa, codec: Codec, row: &[f32], out: &mut [u8]) {
    let Some(top) = codec.top() else {
        match codec {
            Codec::Bf16 => encode_bf16(isa, row, out),
            _ => out.copy_from_slice(bytemuck::cast_slice(row)),
        }
        return;
    };
    let (codes, grids) = out.split_at_mut(out.len() - row.len().div_ceil(GROUP) * GRID_BYTES);
    if codec == Codec::Int4 {
        codes.fill(0);
    }
    let mut buffer = [0_u8; GROUP];
    for ((at, group), place) in row.chunks(GROUP).enumerate().zip(grids.chunks_exact_mut(GRID_BYTES)) {
        let grid = Grid::around(group, top);
        grid.write(place);
        let buffer = &mut buffer[..group.len()];
        encode_group(isa, group, grid, top, buffer);
        if codec == Codec::Int8 {
            codes[at * GROUP..][..group.len()].copy_from_slice(buffer);
        } else {
            for (i, code) in buffer.iter().enumerate() {
                codes[(at * GROUP + i) / 2] |= code << (i % 2 * 4);
            }
        }
    }
}

/// Where the codes of a group lie: `minimum + code * step`.
#[derive(Clone, Copy, Debug)]
struct Grid {
    step: f32,
    minimum: f32,
}

impl Grid {
    /// The grid from the least to the greatest number.
    fn around(group: &[f32], top: f32) -> Self {
        let finite = group.iter().all(|x| x.is_finite());
        if !finite {
            return Self { step: f32::NAN, minimum: f32::NAN };
        }
        let least = group.iter().copied().fold(f32::INFINITY, f32::min);
        let greatest = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let minimum = towards(bf16::from_f32(least), least, f32::NEG_INFINITY);
        // Halves first: the difference of two large numbers may be beyond f32.
        let wanted = (greatest * 0.5 - minimum * 0.5) / top * 2.0;
        let step = towards(bf16::from_f32(wanted), wanted, f32::INFINITY);
        Self { step, minimum }
    }

    fn write(self, place: &mut [u8]) {
        place[..2].copy_from_slice(&bf16::from_f32(self.step).to_le_bytes());
        place[2..].copy_from_slice(&bf16::from_f32(self.minimum).to_le_bytes());
    }

    fn from_bytes(place: &[u8]) -> Self {
        let number = |at: usize| bf16::from_le_bytes([place[at], place[at + 1]]).to_f32();
        Self { step: number(0), minimum: number(2) }
    }
}

/// `rounded`, or the bfloat16 next to it if it lies on the wrong side of `exact`: at or beyond it towards `end`.
fn towards(rounded: bf16, exact: f32, end: f32) -> f32 {
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
    fn encode_group(group: &[f32], grid: Grid, top: f32, codes: &mut [u8]) = encode_group_inner
}

#[inline(always)]
fn encode_group_inner(group: &[f32], grid: Grid, top: f32, codes: &mut [u8]) {
    for (code, x) in codes.iter_mut().zip(group) {
        // Divided, not multiplied by the inverse, which is infinite for the smallest steps.
        let place = (x - grid.minimum) / grid.step;
        // A NaN becomes 0: where all numbers are the minimum that is right, and a grid of NaN makes it NaN again.
        let place = if place > 0.0 { place.min(top) } else { 0.0 };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within 0..=255")]
        {
            *code = (place + 0.5) as u8;
        }
    }
}

by_isa! {
    fn decode_int8(codes: &[u8], grid: Grid, out: &mut [f32]) = decode_int8_inner
}

#[inline(always)]
fn decode_int8_inner(codes: &[u8], grid: Grid, out: &mut [f32]) {
    for (to, code) in out.iter_mut().zip(codes) {
        *to = f32::from(*code).mul_add(grid.step, grid.minimum);
    }
}

by_isa! {
    /// Numbers from `start` on; number `i` of a row is the lower half of byte `i / 2` where `i` is even.
    fn decode_int4(codes: &[u8], start: usize, grid: Grid, out: &mut [f32]) = decode_int4_inner
}

#[inline(always)]
fn decode_int4_inner(codes: &[u8], start: usize, grid: Grid, out: &mut [f32]) {
    for (i, to) in out.iter_mut().enumerate() {
        let at = start + i;
        let code = codes[at / 2] >> (at % 2 * 4) & 15;
        *to = f32::from(code).mul_add(grid.step, grid.minimum);
    }
}

by_isa! {
    fn encode_bf16(x: &[f32], out: &mut [u8]) = encode_bf16_inner
}

#[inline(always)]
fn encode_bf16_inner(x: &[f32], out: &mut [u8]) {
    for (x, to) in x.iter().zip(out.chunks_exact_mut(2)) {
        to.copy_from_slice(&bf16::from_f32(*x).to_le_bytes());
    }
}

fn read_values(isa: Isa, dtype: Dtype, row: &[u8], start: usize, out: &mut [f32]) {
    Values::new(dtype, row).expect("a row holds whole numbers").read_with(isa, start, out);
}
