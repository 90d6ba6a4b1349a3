//! The product in AVX2: 4 rows meet one panel. Bytes are widened to halves first: the instruction that multiplies bytes
//! saturates.

use std::arch::x86_64::{
    __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_mul_ps, _mm256_set1_epi16, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_slli_epi16, _mm256_srai_epi16,
    _mm256_srli_epi16, _mm256_storeu_ps,
};

use super::{Columns, Finish, NR, Tile, Words};

/// Rows that share one walk over a panel.
const ROWS: usize = 4;
/// Lanes of a register: half a panel.
const LANES: usize = NR / 2;

/// # Safety
/// The machine has AVX2 and FMA; every row lies in its bytes, every panel in its words, `finish` and `out` hold all rows and
/// panels.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn dot(left: &Words<'_>, right: &Columns<'_>, finish: Finish<'_>, out: &mut Tile<'_>) {
    for panel in 0..right.count {
        for row in (0..left.rows).step_by(ROWS) {
            let mut part = Part {
                left,
                right,
                finish,
                out: &mut *out.values,
                panel_stride: out.panel_stride,
                row,
                panel,
            };
            // SAFETY: the caller's promise covers every group of rows and every panel.
            unsafe {
                match (finish, ROWS.min(left.rows - row)) {
                    (Finish::Grid { .. }, 1) => part.run::<1, false>(),
                    (Finish::Grid { .. }, 2) => part.run::<2, false>(),
                    (Finish::Grid { .. }, 3) => part.run::<3, false>(),
                    (Finish::Grid { .. }, _) => part.run::<4, false>(),
                    (Finish::Weighted { .. }, 1) => part.run::<1, true>(),
                    (Finish::Weighted { .. }, 2) => part.run::<2, true>(),
                    (Finish::Weighted { .. }, 3) => part.run::<3, true>(),
                    (Finish::Weighted { .. }, _) => part.run::<4, true>(),
                }
            }
        }
    }
}

/// Some rows that meet a panel.
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
    /// As [`dot`], for `R` rows.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn run<const R: usize, const HALVES: bool>(&mut self) {
        let Self { left, right, row, panel, .. } = *self;
        let mut sums = [[_mm256_setzero_si256(); 2]; R];
        // SAFETY: the rows and the panel lie in their slices by the caller's promise; steps past the last read use
        // wrapping arithmetic and are never read.
        unsafe {
            let base = left.bytes.as_ptr().add(left.first + row * left.row_stride);
            let rows: [*const u8; R] = std::array::from_fn(|i| base.add(i * left.row_stride));
            let mut columns = right.words.as_ptr().add(panel * right.stride + right.from * NR);
            let mut at = 0;
            for _ in 0..left.steps {
                let halves =
                    [_mm256_loadu_si256(columns.cast()), _mm256_loadu_si256(columns.add(LANES).cast())];
                for (sums, row) in sums.iter_mut().zip(rows) {
                    let value = _mm256_set1_epi32(row.add(at).cast::<i32>().read_unaligned());
                    for (sum, columns) in sums.iter_mut().zip(halves) {
                        *sum = if HALVES {
                            _mm256_add_epi32(*sum, _mm256_madd_epi16(value, columns))
                        } else {
                            add_bytes(*sum, value, columns)
                        };
                    }
                }
                columns = columns.wrapping_add(NR);
                at += left.step_stride;
            }
            for (i, sums) in sums.into_iter().enumerate() {
                for (half, sum) in sums.into_iter().enumerate() {
                    self.finish(row + i, half, sum);
                }
            }
        }
    }

    /// # Safety
    /// As [`dot`]: the row and this half of the panel are part of it.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn finish(&mut self, row: usize, half: usize, sum: __m256i) {
        let lane = self.panel * NR + half * LANES;
        // SAFETY: `finish` and `out` hold this row and these lanes by the caller's promise.
        unsafe {
            let at = self.panel * self.panel_stride + row * NR + half * LANES;
            let to = self.out.as_mut_ptr().add(at);
            let sum = _mm256_cvtepi32_ps(sum);
            let result = match self.finish {
                Finish::Grid { steps, minima, column_sums, keep } => {
                    let before = if keep { _mm256_loadu_ps(to) } else { _mm256_setzero_ps() };
                    let scaled = _mm256_fmadd_ps(_mm256_set1_ps(*steps.as_ptr().add(row)), sum, before);
                    let lanes = _mm256_loadu_ps(column_sums.as_ptr().add(lane));
                    _mm256_fmadd_ps(_mm256_set1_ps(*minima.as_ptr().add(row)), lanes, scaled)
                }
                Finish::Weighted { decays, gains } => {
                    let decay = _mm256_loadu_ps(decays.as_ptr().add(lane));
                    let gain = _mm256_loadu_ps(gains.as_ptr().add(lane));
                    _mm256_fmadd_ps(sum, gain, _mm256_mul_ps(_mm256_loadu_ps(to), decay))
                }
            };
            _mm256_storeu_ps(to, result);
        }
    }
}

/// Adds four products of an unsigned and a signed byte to every lane. What does not depend on both is hoisted by the
/// compiler.
#[target_feature(enable = "avx2")]
#[inline]
fn add_bytes(sum: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
    let even = [
        _mm256_and_si256(unsigned, _mm256_set1_epi16(0xFF)),
        _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(signed)),
    ];
    let odd = [_mm256_srli_epi16::<8>(unsigned), _mm256_srai_epi16::<8>(signed)];
    let both = _mm256_add_epi32(_mm256_madd_epi16(even[0], even[1]), _mm256_madd_epi16(odd[0], odd[1]));
    _mm256_add_epi32(sum, both)
}
