//! The matrix product everything else is made of: some rows times some panels of [`NR`] columns.
//!
//! Each output number is one chain of fused multiply-adds over the inner index, in order, from zero. The chain
//! does not depend on how many rows or columns are computed beside it, nor on the instruction set, so neither do
//! the bits.
#![expect(
    unsafe_code,
    reason = "calls the loops of an instruction set, whose bounds are checked once per call"
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use crate::isa::{Isa, Kind};

/// Columns of a panel.
pub(crate) const NR: usize = 16;
/// Rows that every instruction set's groups divide: tiles of whole multiples have no thin last group.
pub(crate) const MR: usize = 24;
/// Longest chain before its sum is added to the output: panels of this depth stay in the nearest caches.
pub(crate) const KC: usize = 256;

/// Rows to multiply. Row `r` is, for each of `spans` in order, the `span_len` numbers
/// `values[starts[r] + span + i * stride]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) starts: &'a [usize],
    pub(crate) spans: &'a [usize],
    pub(crate) span_len: usize,
    pub(crate) stride: usize,
}

/// Panels to multiply with: `count` of them one after the other, each `[depth, NR]`, used from place `from` on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Right<'a> {
    pub(crate) panels: Panels<'a>,
    pub(crate) depth: usize,
    pub(crate) from: usize,
    pub(crate) count: usize,
}

/// Numbers of panels.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Panels<'a> {
    /// `[depth, NR]`.
    F32(&'a [f32]),
    /// bfloat16 in pairs of neighbours along the depth, `[depth / 2, NR, 2]`: one load of 32-bit lanes has the even
    /// number of each column in its lower halves and the odd one, ready for use, in its upper halves. Matrix units
    /// that multiply bfloat16 take the same order.
    Bf16(&'a [u8]),
}

impl Panels<'_> {
    /// What follows the first `depth` places of all panels one after the other.
    pub(crate) fn skip(self, depth: usize) -> Self {
        match self {
            Self::F32(numbers) => Self::F32(&numbers[depth * NR..]),
            Self::Bf16(bytes) => Self::Bf16(&bytes[2 * depth * NR..]),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::F32(numbers) => numbers.len(),
            Self::Bf16(bytes) => bytes.len() / 2,
        }
    }
}

/// What becomes of the numbers that are in the output already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// They are overwritten.
    Nothing,
    /// The product is added to them.
    Sum,
}

impl Left<'_> {
    fn depth(&self) -> usize {
        self.spans.len() * self.span_len
    }

    fn assert_inside(&self) {
        let start = self.starts.iter().max().expect("a product has rows");
        let span = self.spans.iter().max().expect("a product has depth");
        assert!(self.span_len > 0, "a product has depth");
        assert!(
            start + span + (self.span_len - 1) * self.stride < self.values.len(),
            "a row passes its slice"
        );
    }
}

impl Right<'_> {
    fn assert_holds(&self, left: &Left<'_>) {
        assert!(self.count > 0 && self.from + left.depth() <= self.depth, "panels are shorter than the rows");
        assert!(self.panels.len() >= self.count * self.depth * NR, "there are fewer panels than used");
        if let Panels::Bf16(_) = self.panels {
            let in_pairs = self.depth.is_multiple_of(2) && self.from.is_multiple_of(2);
            assert!(in_pairs && left.spans.len() == 1, "panels of bfloat16 are used in whole pairs");
        }
    }
}

/// Where the products go: row `r` of panel `p` begins at `r * stride + p * panel_stride`.
#[derive(Debug)]
pub(crate) struct Out<'a> {
    pub(crate) values: &'a mut [f32],
    pub(crate) stride: usize,
    pub(crate) panel_stride: usize,
    pub(crate) keep: Keep,
}

impl<'a> Out<'a> {
    /// `[rows, panels * NR]` in rows of `stride`.
    pub(crate) fn rows(values: &'a mut [f32], stride: usize, keep: Keep) -> Self {
        Self { values, stride, panel_stride: NR, keep }
    }

    /// `[panels, panel_stride]`, each panel `[rows, NR]`.
    pub(crate) fn panels(values: &'a mut [f32], panel_stride: usize, keep: Keep) -> Self {
        Self { values, stride: NR, panel_stride, keep }
    }

    fn assert_holds(&self, rows: usize, count: usize) {
        let (last_row, last_panel) = ((rows - 1) * self.stride, (count - 1) * self.panel_stride);
        let apart = self.stride >= last_panel + NR || self.panel_stride >= last_row + NR;
        assert!(
            (apart || count == 1) && self.values.len() >= last_row + last_panel + NR,
            "an output tile is too small"
        );
    }
}

/// Multiplies the rows of `left` with the panels of `right` into `out`.
pub(crate) fn multiply(isa: Isa, left: &Left<'_>, right: &Right<'_>, out: &mut Out<'_>) {
    left.assert_inside();
    right.assert_holds(left);
    out.assert_holds(left.starts.len(), right.count);
    match isa.kind() {
        Kind::Scalar => scalar::multiply(left, right, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Kind::Avx2` exists only after its features were detected; the assertions above are the rest.
        Kind::Avx2 => unsafe { avx2::multiply(left, right, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Kind::Avx512` exists only after its features were detected; the assertions above are the rest.
        Kind::Avx512 => unsafe { avx512::multiply(left, right, out) },
    }
}

/// Calls `$run::<rows, panels>` for the pair of numbers in brackets that `$rows` and `$panels` are.
#[cfg(target_arch = "x86_64")]
macro_rules! sized {
    ($run:ident, ($rows:expr, $panels:expr), $args:tt, [$($r:literal x [$($p:literal),*]),* $(,)?]) => {
        match ($rows, $panels) {
            $($(($r, $p) => $run::<$r, $p> $args,)*)*
            sizes => unreachable!("no loop was made for {sizes:?} rows and panels"),
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) use sized;

#[cfg(test)]
mod tests;
