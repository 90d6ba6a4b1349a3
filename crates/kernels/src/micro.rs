//! The matrix product everything else is made of: some rows times a panel of [`NR`] columns.
//!
//! Each output number is one chain of fused multiply-adds over the inner index, in order, from zero. The chain
//! does not depend on how many rows or columns are computed beside it, nor on the instruction set, so neither do
//! the bits.
#![expect(unsafe_code, reason = "the innermost loop reads through pointers checked once per call")]

use crate::isa::{Isa, Kind};

/// Columns of a panel.
pub(crate) const NR: usize = 16;
/// Rows that share one walk over a panel.
pub(crate) const MR: usize = 6;
/// Longest chain before its sum is added to the output: a panel of this depth stays in the nearest cache.
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

/// Multiplies the rows of `left` with `panel` (`[depth, NR]`) into `out`, where row `r` begins at `r * out_stride`.
pub(crate) fn multiply(
    isa: Isa,
    left: &Left<'_>,
    panel: &[f32],
    out: &mut [f32],
    out_stride: usize,
    keep: Keep,
) {
    left.assert_inside();
    assert!(panel.len() >= left.depth() * NR, "a panel is shorter than the rows");
    assert!(
        out_stride >= NR && out.len() >= (left.starts.len() - 1) * out_stride + NR,
        "an output tile is too small"
    );
    let tile = Tile { panel, out_stride, keep };
    match isa.kind() {
        Kind::Portable => groups_portable(left, tile, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Kind::Avx2` exists only after its features were detected; the assertions above are the rest.
        Kind::Avx2 => unsafe { groups_avx2(left, tile, out) },
    }
}

#[derive(Clone, Copy)]
struct Tile<'a> {
    panel: &'a [f32],
    out_stride: usize,
    keep: Keep,
}

fn groups_portable(left: &Left<'_>, tile: Tile<'_>, out: &mut [f32]) {
    for (start, out) in left.starts.iter().zip(out.chunks_mut(tile.out_stride)) {
        let mut sums = [0.0_f32; NR];
        let mut columns = tile.panel.chunks_exact(NR);
        for span in left.spans {
            let row = &left.values[start + span..];
            for (value, column) in row.iter().step_by(left.stride).take(left.span_len).zip(&mut columns) {
                sums.iter_mut().zip(column).for_each(|(sum, right)| *sum = value.mul_add(*right, *sum));
            }
        }
        match tile.keep {
            Keep::Nothing => out[..NR].copy_from_slice(&sums),
            Keep::Sum => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
        }
    }
}

/// # Safety
/// Every row of `left` lies in its values, the panel holds `depth * NR` numbers, and `out` has room for all rows.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn groups_avx2(left: &Left<'_>, tile: Tile<'_>, out: &mut [f32]) {
    for (group, starts) in left.starts.chunks(MR).enumerate() {
        let out = &mut out[group * MR * tile.out_stride..];
        // SAFETY: the caller's promise covers every group of rows.
        unsafe {
            match *starts {
                [a, b, c, d, e, f] => rows_avx2(left, [a, b, c, d, e, f], tile, out),
                [a, b, c, d, e] => rows_avx2(left, [a, b, c, d, e], tile, out),
                [a, b, c, d] => rows_avx2(left, [a, b, c, d], tile, out),
                [a, b, c] => rows_avx2(left, [a, b, c], tile, out),
                [a, b] => rows_avx2(left, [a, b], tile, out),
                [a] => rows_avx2(left, [a], tile, out),
                _ => unreachable!("chunks hold 1 to MR rows"),
            }
        }
    }
}

/// # Safety
/// As [`groups_avx2`], for the rows that begin at `starts`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn rows_avx2<const R: usize>(left: &Left<'_>, starts: [usize; R], tile: Tile<'_>, out: &mut [f32]) {
    use std::arch::x86_64::{
        _mm256_add_ps, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps,
        _mm256_storeu_ps,
    };
    let base = left.values.as_ptr();
    // SAFETY: each start lies inside the values by the caller's promise.
    let rows = starts.map(|start| unsafe { base.add(start) });
    let mut right = tile.panel.as_ptr();
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for &span in left.spans {
        let mut at = span;
        for _ in 0..left.span_len {
            // SAFETY: `right` advances by NR at most `depth` times, and `at` stays inside each row, both by the
            // caller's promise. Steps past the last read use wrapping arithmetic and are never read.
            unsafe {
                let (low, high) = (_mm256_loadu_ps(right), _mm256_loadu_ps(right.add(8)));
                for (sum, row) in sums.iter_mut().zip(rows) {
                    let value = _mm256_broadcast_ss(&*row.add(at));
                    sum[0] = _mm256_fmadd_ps(value, low, sum[0]);
                    sum[1] = _mm256_fmadd_ps(value, high, sum[1]);
                }
            }
            right = right.wrapping_add(NR);
            at += left.stride;
        }
    }
    for (row, sum) in sums.into_iter().enumerate() {
        // SAFETY: `out` has room for NR = 16 numbers of every row by the caller's promise.
        unsafe {
            let low = out.as_mut_ptr().add(row * tile.out_stride);
            let high = low.add(8);
            let kept = match tile.keep {
                Keep::Nothing => sum,
                Keep::Sum => [
                    _mm256_add_ps(_mm256_loadu_ps(low), sum[0]),
                    _mm256_add_ps(_mm256_loadu_ps(high), sum[1]),
                ],
            };
            _mm256_storeu_ps(low, kept[0]);
            _mm256_storeu_ps(high, kept[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Isa, Keep, Left, MR, NR, multiply};

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let values: Vec<f32> = (0..4000).map(|i| ((i * 37 % 101) as f32 - 50.0) * 1.37e-2).collect();
        let panel: Vec<f32> = (0..64 * NR).map(|i| ((i * 53 % 97) as f32 - 48.0) * 3.1e-3).collect();
        for rows in 1..=2 * MR + 1 {
            let starts: Vec<usize> = (0..rows).map(|r| r * 191 % 1000).collect();
            let left =
                Left { values: &values, starts: &starts, spans: &[0, 700, 31], span_len: 21, stride: 3 };
            let stride = NR + 3;
            let mut outs = [vec![0.5; rows * stride], vec![0.5; rows * stride]];
            for (out, isa) in outs.iter_mut().zip([Isa::PORTABLE, Isa::detect()]) {
                multiply(isa, &left, &panel, out, stride, Keep::Sum);
            }
            assert!(outs[0].iter().zip(&outs[1]).all(|(a, b)| a.to_bits() == b.to_bits()), "{rows} rows");
            assert!(
                outs[0].chunks(stride).all(|row| row[NR..].iter().all(|v| *v == 0.5)),
                "{rows} rows spill"
            );
        }
    }
}
