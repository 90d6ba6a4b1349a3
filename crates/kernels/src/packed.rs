//! Weights turned into the panels that the micro-kernel reads, once, where they lie.
//!
//! A panel holds [`NR`] outputs, `[inputs, NR]`, and takes the bytes of the rows that it is made of: packing needs no
//! memory beyond one panel, and whoever counts bytes counts the same. Numbers of two bytes go in pairs, so packing is
//! turning 32-bit words for every type. One layout serves every instruction set there is.

use rayon::prelude::*;

use crate::isa::Isa;
use crate::micro::{NR, Panels};
use crate::panel;
use crate::values::Dtype;

/// Bytes that are turned as one.
const WORD_BYTES: usize = 4;

/// Borrowed weights `[outputs, inputs]` that [`pack_weights`] has turned.
#[derive(Clone, Copy, Debug)]
pub struct PackedWeights<'a> {
    panels: Panels<'a>,
    inputs: usize,
    outputs: usize,
}

impl<'a> PackedWeights<'a> {
    /// Whether a matrix `[outputs, inputs]` of `dtype` can be packed in its own place: whole panels of whole words, of a
    /// type that panels are read in.
    #[must_use]
    pub const fn fits(dtype: Dtype, outputs: usize, inputs: usize) -> bool {
        cfg!(target_endian = "little")
            && outputs.is_multiple_of(NR)
            && (inputs * dtype.size_bytes()).is_multiple_of(WORD_BYTES)
            && !matches!(dtype, Dtype::F16)
    }

    /// Views `bytes` that [`pack_weights`] has turned. `None` when they are not such a matrix, or are `f32` out of line.
    #[must_use]
    pub fn new(dtype: Dtype, bytes: &'a [u8], outputs: usize, inputs: usize) -> Option<Self> {
        if !Self::fits(dtype, outputs, inputs) || bytes.len() != outputs * inputs * dtype.size_bytes() {
            return None;
        }
        let panels = match dtype {
            Dtype::F32 => Panels::F32(bytemuck::try_cast_slice(bytes).ok()?),
            Dtype::BF16 | Dtype::F16 => Panels::Bf16(bytes),
        };
        Some(Self { panels, inputs, outputs })
    }

    /// Numbers that one output is made of.
    #[must_use]
    pub const fn inputs(&self) -> usize {
        self.inputs
    }

    /// How many outputs.
    #[must_use]
    pub const fn outputs(&self) -> usize {
        self.outputs
    }

    pub(crate) const fn panels(&self) -> Panels<'a> {
        self.panels
    }
}

/// Turns `bytes`, a matrix `[outputs, inputs]` of little-endian `dtype`, into panels in its own place.
///
/// # Panics
/// When [`PackedWeights::fits`] says no or `bytes` has another length than that matrix.
pub fn pack_weights(dtype: Dtype, bytes: &mut [u8], outputs: usize, inputs: usize) {
    assert!(PackedWeights::fits(dtype, outputs, inputs), "pack_weights: the matrix must be whole panels");
    let row_bytes = inputs * dtype.size_bytes();
    assert_eq!(bytes.len(), outputs * row_bytes, "pack_weights: bytes must be [outputs, inputs]");
    if bytes.is_empty() {
        return;
    }
    let (isa, words) = (Isa::current(), row_bytes / WORD_BYTES);
    let scratch = || (vec![0.0_f32; NR * words], vec![0.0_f32; NR * words]);
    bytes.par_chunks_exact_mut(NR * row_bytes).for_each_init(scratch, |(rows, turned), panel| {
        bytemuck::cast_slice_mut(rows).copy_from_slice(panel);
        panel::turn(isa, std::array::from_fn(|i| &rows[i * words..][..words]), turned);
        panel.copy_from_slice(bytemuck::cast_slice(turned));
    });
}
