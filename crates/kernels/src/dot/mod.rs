//! Products of small integers, four bytes or two halves of a word at a time, finished in `f32`.
//!
//! An integer sum is exact, so it does not matter how a set of instructions adds it up; what follows is a fixed chain of
//! fused multiply-adds. So here too every set gives the same bits. Rows are broadcast and columns lie side by side, as in
//! [`crate::micro`].
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
use crate::micro::NR;

/// Rows to multiply: word `i` of row `r` are the four bytes from `first + r * row_stride + i * step_stride` on,
/// the lowest first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) row_stride: usize,
    pub(crate) step_stride: usize,
    /// Words of a row.
    pub(crate) steps: usize,
}

/// Panels to multiply with: `count` of them, `stride` words apart, each `[steps, NR]` from its place `from` on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns<'a> {
    pub(crate) words: &'a [u32],
    pub(crate) stride: usize,
    pub(crate) from: usize,
    pub(crate) count: usize,
}

/// What a word holds, and what becomes of an integer sum. Lanes are those of all panels one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Finish<'a> {
    /// Four bytes, unsigned in rows and signed in columns.
    /// `out = before + steps[row] * sum + minima[row] * column_sums[lane]`, where `before` is what is there if `keep`,
    /// else 0.
    Grid { steps: &'a [f32], minima: &'a [f32], column_sums: &'a [f32], keep: bool },
    /// Two signed halves.
    /// `out = out * decays[lane] + sum * gains[lane]`.
    Weighted { decays: &'a [f32], gains: &'a [f32] },
}

/// Where results go: row `r` of panel `p` begins at `p * panel_stride + r * NR`.
#[derive(Debug)]
pub(crate) struct Tile<'a> {
    pub(crate) values: &'a mut [f32],
    pub(crate) panel_stride: usize,
}

impl Words<'_> {
    fn assert_inside(&self) {
        assert!(self.rows > 0 && self.steps > 0, "a product has rows and depth");
        let last = (self.rows - 1) * self.row_stride + (self.steps - 1) * self.step_stride;
        assert!(self.first + last + 4 <= self.bytes.len(), "a row passes its slice");
    }
}

impl Finish<'_> {
    fn assert_holds(&self, rows: usize, lanes: usize) {
        let fits = match self {
            Self::Grid { steps, minima, column_sums, .. } => {
                steps.len() >= rows && minima.len() >= rows && column_sums.len() >= lanes
            }
            Self::Weighted { decays, gains } => decays.len() >= lanes && gains.len() >= lanes,
        };
        assert!(fits, "a finish is shorter than its tile");
    }
}

/// Multiplies the rows with the panels, and finishes each sum into `out`.
pub(crate) fn dot(isa: Isa, left: &Words<'_>, right: &Columns<'_>, finish: Finish<'_>, out: &mut Tile<'_>) {
    left.assert_inside();
    let (rows, count) = (left.rows, right.count);
    assert!(
        count > 0 && (count - 1) * right.stride + (right.from + left.steps) * NR <= right.words.len(),
        "there are fewer panels than used"
    );
    finish.assert_holds(rows, count * NR);
    assert!(
        (count - 1) * out.panel_stride + rows * NR <= out.values.len() && out.panel_stride >= rows * NR,
        "an output tile is too small"
    );
    match isa.kind() {
        Kind::Scalar => scalar::dot(left, right, finish, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Kind::Avx512` and the line before promise the features; the assertions above are the rest.
        Kind::Avx512 if is_x86_feature_detected!("avx512vnni") => unsafe {
            avx512::dot(left, right, finish, out);
        },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: both kinds exist only after AVX2 and FMA were detected; the assertions above are the rest.
        Kind::Avx2 | Kind::Avx512 => unsafe { avx2::dot(left, right, finish, out) },
    }
}

#[cfg(test)]
mod tests;
