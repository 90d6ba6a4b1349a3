//! Pages of keys and values in fewer bytes: encoded once when they are committed, decoded tile by tile where they are read.
//!
//! A row is one token. Integer codecs cut its numbers into groups of [`GROUP`] neighbours, each with a minimum and a step of
//! its own, so a group never reaches into another token and a page can leave without touching its neighbours. (Grids with a
//! float minimum: Liu et al., "KIVI", 2024; a zero point clamped to the codes is worse by a factor of ten where a channel's
//! mean is far from zero.) `grid` has the codecs of 8 and 4 bits, `turned` that of 2.

mod grid;
mod turned;

use half::bf16;
use rayon::prelude::*;

use crate::isa::{Isa, by_isa};
use crate::values::{Dtype, Values};
pub(crate) use grid::Grid;

/// Neighbouring numbers of a row that share a minimum and a step.
pub const GROUP: usize = 64;
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
    /// 4 steps, over numbers that were mixed within their group so that none stands out: 2.4 bits.
    Int2,
}

impl Codec {
    /// Every codec, the most exact first.
    pub const ALL: [Self; 5] = [Self::F32, Self::Bf16, Self::Int8, Self::Int4, Self::Int2];

    /// Its name on the command line and in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Int2 => "int2",
        }
    }

    /// Bytes of a row of `width` numbers.
    #[must_use]
    pub const fn row_bytes(self, width: usize) -> usize {
        match self {
            Self::F32 => 4 * width,
            Self::Bf16 => 2 * width,
            Self::Int8 => width + grid::bytes(width),
            Self::Int4 => width.div_ceil(2) + grid::bytes(width),
            Self::Int2 => turned::row_bytes(width),
        }
    }

    /// Whether its noise is so large that attention must take it into account.
    #[must_use]
    pub(crate) const fn is_coarse(self) -> bool {
        matches!(self, Self::Int4 | Self::Int2)
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

    /// Reads numbers `start..start + out.len()` of row `at`, in rows of `width`.
    pub(crate) fn read(&self, isa: Isa, width: usize, at: usize, start: usize, out: &mut [f32]) {
        match self {
            Self::Plain(numbers) => out.copy_from_slice(&numbers[at * width + start..][..out.len()]),
            Self::Encoded(rows) => rows.read(isa, at, start, out),
        }
    }

    /// The rows, where their codes can be multiplied as integers.
    pub(crate) fn integer(&self) -> Option<EncodedRows<'_>> {
        match self {
            Self::Encoded(rows) if matches!(rows.codec, Codec::Int8 | Codec::Int4) => Some(*rows),
            _ => None,
        }
    }

    /// The rows, where attention must take their noise into account.
    pub(crate) fn coarse(&self) -> Option<EncodedRows<'_>> {
        match self {
            Self::Encoded(rows) if rows.codec.is_coarse() => Some(*rows),
            _ => None,
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
        let row = self.row(at);
        match self.codec {
            Codec::F32 => read_values(isa, Dtype::F32, row, start, out),
            Codec::Bf16 => read_values(isa, Dtype::BF16, row, start, out),
            Codec::Int8 => grid::decode_int8(isa, row, self.width, start, out),
            Codec::Int4 => grid::decode_int4(isa, row, self.width, start, out),
            Codec::Int2 => turned::decode(isa, row, self.width, start, out),
        }
    }

    #[inline(always)]
    fn row(&self, at: usize) -> &'a [u8] {
        let row_bytes = self.codec.row_bytes(self.width);
        &self.bytes[at * row_bytes..][..row_bytes]
    }

    /// The grid of a group of row `at`; a step of 0 where there is none.
    #[inline(always)]
    pub(crate) fn grid(&self, at: usize, group: usize) -> Grid {
        match self.codec {
            Codec::F32 | Codec::Bf16 => Grid { step: 0.0, minimum: 0.0 },
            Codec::Int8 | Codec::Int4 => Grid::of(self.row(at), self.width, group),
            Codec::Int2 => turned::Header::of(self.row(at), self.width).grid(group),
        }
    }

    /// The codes of row `at`, a byte each; `None` where codes are no bytes.
    pub(crate) fn code_bytes(&self, at: usize) -> Option<&'a [u8]> {
        (self.codec == Codec::Int8).then(|| self.row(at))
    }

    /// Codes `start..start + out.len()` of row `at`, a byte each, of a codec whose codes can be multiplied.
    pub(crate) fn read_codes(&self, isa: Isa, at: usize, start: usize, out: &mut [u8]) {
        match self.codec {
            Codec::Int4 => grid::unpack_int4(isa, self.row(at), start, out),
            _ => out.copy_from_slice(&self.row(at)[start..][..out.len()]),
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
            match codec {
                Codec::F32 => out.copy_from_slice(bytemuck::cast_slice(row)),
                Codec::Bf16 => encode_bf16(isa, row, out),
                Codec::Int8 => grid::encode_int8(isa, isa, row, out),
                Codec::Int4 => grid::encode_int4(isa, isa, row, out),
                Codec::Int2 => turned::encode(isa, isa, row, out),
            }
        }
    });
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
