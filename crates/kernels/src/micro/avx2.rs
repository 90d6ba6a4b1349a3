//! The product in AVX2: a panel is two registers wide, and 6 rows meet one panel in 12 sums.
//!
//! The sums, two columns and one number of a row take 15 of 16 registers; bfloat16 needs the last one for a mask. 12
//! independent chains cover the latency of two multiply-adds a cycle. Fewer rows meet more panels.

use std::arch::x86_64::{
    __m256, _mm256_add_ps, _mm256_and_si256, _mm256_castsi256_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256,
    _mm256_slli_epi32, _mm256_storeu_ps,
};

use super::{Keep, Left, NR, Out, Panels, Right, sized};

/// Rows that share one walk over some panels.
const ROWS: usize = 6;
/// Numbers of a register: half a panel.
const LANES: usize = NR / 2;

/// Panels that `rows` rows meet at once when `count` are left.
fn panels_at_once(rows: usize, count: usize) -> usize {
    match (rows, count) {
        (1, 4..) => 4,
        (1..=3, 2..) => 2,
        _ => 1,
    }
}

/// # Safety
/// The machine has AVX2 and FMA; every row of `left` lies in its values, `right` holds its panels from `from` on as deep
/// as the rows, and `out` has room for all rows and panels.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply(left: &Left<'_>, right: &Right<'_>, out: &mut Out<'_>) {
    let rows = left.starts.len();
    let mut panel = 0;
    while panel < right.count {
        let count = panels_at_once(rows, right.count - panel);
        for (group, starts) in left.starts.chunks(ROWS).enumerate() {
            let at = group * ROWS * out.stride + panel * out.panel_stride;
            let tile = Tile {
                left,
                starts,
                right,
                panel,
                out: &mut out.values[at..],
                stride: out.stride,
                panel_stride: out.panel_stride,
                keep: out.keep,
            };
            // SAFETY: the caller's promise covers every group of rows and panels.
            unsafe { tile.run(count) };
        }
        panel += count;
    }
}

/// Some rows that meet some panels.
struct Tile<'a, 'b> {
    left: &'a Left<'b>,
    starts: &'a [usize],
    right: &'a Right<'b>,
    panel: usize,
    out: &'a mut [f32],
    stride: usize,
    panel_stride: usize,
    keep: Keep,
}

impl Tile<'_, '_> {
    /// # Safety
    /// As [`multiply`], for `count` panels.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn run(mut self, count: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe {
            sized!(product, (self.starts.len(), count), (&mut self), [
                1 x [1, 2, 4], 2 x [1, 2], 3 x [1, 2], 4 x [1], 5 x [1], 6 x [1],
            ]);
        }
    }
}

/// # Safety
/// As [`multiply`], for `R` rows and `P` panels.
#[target_feature(enable = "avx2,fma")]
unsafe fn product<const R: usize, const P: usize>(tile: &mut Tile<'_, '_>) {
    let left = tile.left;
    let base = left.values.as_ptr();
    // SAFETY: each start lies inside the values by the caller's promise.
    let rows: [*const f32; R] = std::array::from_fn(|i| unsafe { base.add(tile.starts[i]) });
    let first = tile.panel * tile.right.depth + tile.right.from;
    // SAFETY: the panels lie in the slice by the caller's promise.
    let sums = unsafe {
        match tile.right.panels {
            Panels::F32(numbers) => {
                plain::<R, P>(left, rows, numbers.as_ptr().add(first * NR), tile.right.depth)
            }
            Panels::Bf16(bytes) => {
                pairs::<R, P>(left, rows, bytes.as_ptr().add(2 * first * NR), tile.right.depth)
            }
        }
    };
    for (row, sums) in sums.into_iter().enumerate() {
        for (half, sum) in sums.into_iter().flatten().enumerate() {
            // SAFETY: `out` has room for NR = 16 numbers of every row and panel by the caller's promise.
            unsafe {
                let panel = half / 2 * tile.panel_stride + half % 2 * LANES;
                let to = tile.out.as_mut_ptr().add(row * tile.stride + panel);
                let kept = match tile.keep {
                    Keep::Nothing => sum,
                    Keep::Sum => _mm256_add_ps(_mm256_loadu_ps(to), sum),
                };
                _mm256_storeu_ps(to, kept);
            }
        }
    }
}

/// # Safety
/// As [`multiply`]: `rows` and the panels at `right`, `depth * NR` numbers apart, hold the whole depth of `left`.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn plain<const R: usize, const P: usize>(
    left: &Left<'_>,
    rows: [*const f32; R],
    mut right: *const f32,
    depth: usize,
) -> [[[__m256; 2]; P]; R] {
    let mut sums = [[[_mm256_setzero_ps(); 2]; P]; R];
    for &span in left.spans {
        let mut at = span;
        for _ in 0..left.span_len {
            // SAFETY: `right` advances by NR at most depth times, and `at` stays inside each row, both by the
            // caller's promise. Steps past the last read use wrapping arithmetic and are never read.
            unsafe {
                let mut columns = [[_mm256_setzero_ps(); 2]; P];
                for (i, columns) in columns.iter_mut().enumerate() {
                    let panel = right.add(i * depth * NR);
                    *columns = [_mm256_loadu_ps(panel), _mm256_loadu_ps(panel.add(LANES))];
                }
                step(&mut sums, rows, at, columns);
            }
            right = right.wrapping_add(NR);
            at += left.stride;
        }
    }
    sums
}

/// # Safety
/// As [`plain`], for bytes of bfloat16 pairs.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn pairs<const R: usize, const P: usize>(
    left: &Left<'_>,
    rows: [*const f32; R],
    mut right: *const u8,
    depth: usize,
) -> [[[__m256; 2]; P]; R] {
    let upper = _mm256_set1_epi32(0xFFFF_0000_u32.cast_signed());
    let mut sums = [[[_mm256_setzero_ps(); 2]; P]; R];
    let mut at = left.spans[0];
    for i in 0..left.span_len.div_ceil(2) {
        // SAFETY: a panel is whole pairs, so the last one is there even if its odd number is not used; the rest as in
        // `plain`.
        unsafe {
            // Loops, as a closure inside `map` is not always inlined, and a call would go through memory.
            let mut words = [[_mm256_setzero_si256(); 2]; P];
            let mut columns = [[_mm256_setzero_ps(); 2]; P];
            for (panel, (words, columns)) in words.iter_mut().zip(&mut columns).enumerate() {
                for (half, (word, column)) in words.iter_mut().zip(columns).enumerate() {
                    let place = right.add(panel * depth * NR * 2 + half * LANES * 4);
                    *word = _mm256_loadu_si256(place.cast());
                    *column = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(*word));
                }
            }
            step(&mut sums, rows, at, columns);
            if 2 * i + 1 < left.span_len {
                for (words, columns) in words.iter().zip(&mut columns) {
                    for (word, column) in words.iter().zip(columns) {
                        *column = _mm256_castsi256_ps(_mm256_and_si256(*word, upper));
                    }
                }
                step(&mut sums, rows, at + left.stride, columns);
            }
        }
        right = right.wrapping_add(4 * NR);
        at += 2 * left.stride;
    }
    sums
}

/// One place of the depth.
///
/// # Safety
/// `at` lies inside each row.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn step<const R: usize, const P: usize>(
    sums: &mut [[[__m256; 2]; P]; R],
    rows: [*const f32; R],
    at: usize,
    columns: [[__m256; 2]; P],
) {
    for (sums, row) in sums.iter_mut().zip(rows) {
        // SAFETY: the caller's promise.
        let value = _mm256_set1_ps(unsafe { *row.add(at) });
        for (sums, columns) in sums.iter_mut().zip(columns) {
            sums[0] = _mm256_fmadd_ps(value, columns[0], sums[0]);
            sums[1] = _mm256_fmadd_ps(value, columns[1], sums[1]);
        }
    }
}
