//! The product in AVX-512 VNNI: 8 rows meet 3 panels in 24 sums, four bytes or two halves of each lane at a time.

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_dpwssd_epi32,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_ps,
};

use super::{Columns, Finish, NR, Tile, Words};
use crate::micro::sized;

/// Rows that share one walk over some panels.
const ROWS: usize = 8;
/// Panels that they meet at once.
const PANELS: usize = 3;

/// # Safety
/// The machine has AVX-512 F and VNNI; every row lies in its bytes, every panel in its words, `finish` and `out` hold all
/// rows and panels.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) unsafe fn dot(left: &Words<'_>, right: &Columns<'_>, finish: Finish<'_>, out: &mut Tile<'_>) {
    for panel in (0..right.count).step_by(PANELS) {
        let panels = PANELS.min(right.count - panel);
        let panel_stride = out.panel_stride;
        let mut part = Part { left, right, finish, out: &mut *out.values, panel_stride, row: 0, panel };
        while part.row < left.rows {
            let rows = ROWS.min(left.rows - part.row);
            // SAFETY: the caller's promise covers every group of rows and panels.
            unsafe {
                if (rows, panels) == (ROWS, PANELS) {
                    product::<ROWS, PANELS>(&mut part);
                } else {
                    part.run((rows, panels));
                }
            }
            part.row += rows;
        }
    }
}

/// Some rows that meet some panels.
struct Part<'a, 'b> {
    left: &'a Words<'b>,
    right: &'a Columns<'b>,
    finish: Finish<'b>,
    out: &'a mut [f32],
    panel_stride: usize,
    row: usize,
    panel: usize,
}

impl Part<'_, '_> {
    /// # Safety
    /// As [`dot`], for so many rows and panels.
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn run(&mut self, (rows, panels): (usize, usize)) {
        // SAFETY: the caller's promise is the same.
        unsafe {
            sized!(product, (rows, panels), (self), [
                1 x [1, 2, 3], 2 x [1, 2, 3], 3 x [1, 2, 3], 4 x [1, 2, 3],
                5 x [1, 2, 3], 6 x [1, 2, 3], 7 x [1, 2, 3], 8 x [1, 2, 3],
            ]);
        }
    }
}

/// # Safety
/// As [`dot`], for `R` rows and `P` panels.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn product<const R: usize, const P: usize>(part: &mut Part<'_, '_>) {
    let stride = part.panel_stride;
    // SAFETY: `finish` and `out` hold these rows and the NR = 16 lanes of these panels by the caller's promise, which covers
    // the sums as well. One loop for each finish, so that sums never leave their registers.
    unsafe {
        let to = part.out.as_mut_ptr().add(part.panel * stride + part.row * NR);
        match part.finish {
            Finish::Grid { steps, minima, column_sums, keep } => {
                let sums = sums::<R, P, false>(part);
                let (steps, minima) = (steps.as_ptr().add(part.row), minima.as_ptr().add(part.row));
                for (i, sums) in sums.into_iter().enumerate() {
                    let (step, minimum) = (_mm512_set1_ps(*steps.add(i)), _mm512_set1_ps(*minima.add(i)));
                    for (p, sum) in sums.into_iter().enumerate() {
                        let to = to.add(p * stride + i * NR);
                        let before = if keep { _mm512_loadu_ps(to) } else { _mm512_setzero_ps() };
                        let lanes = _mm512_loadu_ps(column_sums.as_ptr().add((part.panel + p) * NR));
                        let scaled = _mm512_fmadd_ps(step, _mm512_cvtepi32_ps(sum), before);
                        _mm512_storeu_ps(to, _mm512_fmadd_ps(minimum, lanes, scaled));
                    }
                }
            }
            Finish::Weighted { decays, gains } => {
                // What is there already comes from a farther cache while the sums are made.
                for i in 0..R * P {
                    _mm_prefetch::<_MM_HINT_T0>(to.wrapping_add(i / R * stride + i % R * NR).cast());
                }
                let sums = sums::<R, P, true>(part);
                for (i, sums) in sums.into_iter().enumerate() {
                    for (p, sum) in sums.into_iter().enumerate() {
                        let (to, lane) = (to.add(p * stride + i * NR), (part.panel + p) * NR);
                        let faded =
                            _mm512_mul_ps(_mm512_loadu_ps(to), _mm512_loadu_ps(decays.as_ptr().add(lane)));
                        let gain = _mm512_loadu_ps(gains.as_ptr().add(lane));
                        _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), gain, faded));
                    }
                }
            }
        }
    }
}

/// # Safety
/// As [`dot`], for `R` rows and `P` panels.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
unsafe fn sums<const R: usize, const P: usize, const HALVES: bool>(part: &Part<'_, '_>) -> [[__m512i; P]; R] {
    let Part { left, right, row, panel, .. } = *part;
    let mut sums = [[_mm512_setzero_si512(); P]; R];
    // SAFETY: the rows and panels lie in their slices by the caller's promise; steps past the last read use wrapping
    // arithmetic and are never read.
    unsafe {
        let base = left.bytes.as_ptr().add(left.first + row * left.row_stride);
        let rows: [*const u8; R] = std::array::from_fn(|i| base.add(i * left.row_stride));
        let mut columns = right.words.as_ptr().add(panel * right.stride + right.from * NR);
        let mut at = 0;
        for _ in 0..left.steps {
            let mut words = [_mm512_setzero_si512(); P];
            for (i, word) in words.iter_mut().enumerate() {
                *word = _mm512_loadu_si512(columns.add(i * right.stride).cast());
            }
            for (sums, row) in sums.iter_mut().zip(rows) {
                let value = _mm512_set1_epi32(row.add(at).cast::<i32>().read_unaligned());
                for (sum, word) in sums.iter_mut().zip(words) {
                    *sum = if HALVES {
                        _mm512_dpwssd_epi32(*sum, value, word)
                    } else {
                        _mm512_dpbusd_epi32(*sum, value, word)
                    };
                }
            }
            columns = columns.wrapping_add(NR);
            at += left.step_stride;
        }
    }
    sums
}
