//! The product in AVX-512: a panel is one register wide, and 8 rows meet 3 panels in 24 sums.
//!
//! The sums, three columns and one number of a row take 28 of 32 registers. 24 independent chains cover the latency
//! of two multiply-adds a cycle, for 8 + 3 loads. Where there are fewer rows, more panels make up for it.

use std::arch::x86_64::{
    __m512, _mm512_add_ps, _mm512_and_si512, _mm512_castsi512_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_slli_epi32, _mm512_storeu_ps,
};

use super::{Keep, Left, NR, Out, Panels, Right, sized};

/// Rows that share one walk over some panels.
const ROWS: usize = 8;

/// Panels that `rows` rows meet at once when `count` are left.
fn panels_at_once(rows: usize, count: usize) -> usize {
    match (rows, count) {
        (1, 8..) => 8,
        (1 | 2, 4..) => 4,
        _ => count.min(3),
    }
}

/// # Safety
/// The machine has AVX-512 F; every row of `left` lies in its values, `right` holds its panels from `from` on as deep
/// as the rows, and `out` has room for all rows and panels.
#[target_feature(enable = "avx512f")]
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
    #[target_feature(enable = "avx512f")]
    unsafe fn run(mut self, count: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe {
            sized!(product, (self.starts.len(), count), (&mut self), [
                1 x [1, 2, 3, 4, 8], 2 x [1, 2, 3, 4], 3 x [1, 2, 3], 4 x [1, 2, 3],
                5 x [1, 2, 3], 6 x [1, 2, 3], 7 x [1, 2, 3], 8 x [1, 2, 3],
            ]);
        }
    }
}

/// # Safety
/// As [`multiply`], for `R` rows and `P` panels.
#[target_feature(enable = "avx512f")]
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
        for (panel, sum) in sums.into_iter().enumerate() {
            // SAFETY: `out` has room for NR = 16 numbers of every row and panel by the caller's promise.
            unsafe {
                let to = tile.out.as_mut_ptr().add(row * tile.stride + panel * tile.panel_stride);
                let kept = match tile.keep {
                    Keep::Nothing => sum,
                    Keep::Sum => _mm512_add_ps(_mm512_loadu_ps(to), sum),
                };
                _mm512_storeu_ps(to, kept);
            }
        }
    }
}

/// # Safety
/// As [`multiply`]: `rows` and the panels at `right`, `depth * NR` numbers apart, hold the whole depth of `left`.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn plain<const R: usize, const P: usize>(
    left: &Left<'_>,
    rows: [*const f32; R],
    mut right: *const f32,
    depth: usize,
) -> [[__m512; P]; R] {
    let mut sums = [[_mm512_setzero_ps(); P]; R];
    for &span in left.spans {
        let mut at = span;
        for _ in 0..left.span_len {
            // SAFETY: `right` advances by NR at most depth times, and `at` stays inside each row, both by the
            // caller's promise. Steps past the last read use wrapping arithmetic and are never read.
            unsafe {
                let mut columns = [_mm512_setzero_ps(); P];
                for (i, columns) in columns.iter_mut().enumerate() {
                    *columns = _mm512_loadu_ps(right.add(i * depth * NR));
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
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn pairs<const R: usize, const P: usize>(
    left: &Left<'_>,
    rows: [*const f32; R],
    mut right: *const u8,
    depth: usize,
) -> [[__m512; P]; R] {
    let upper = _mm512_set1_epi32(0xFFFF_0000_u32.cast_signed());
    let mut sums = [[_mm512_setzero_ps(); P]; R];
    let mut at = left.spans[0];
    for i in 0..left.span_len.div_ceil(2) {
        // SAFETY: a panel is whole pairs, so the last one is there even if its odd number is not used; the rest as in
        // `plain`.
        unsafe {
            // Loops, as a closure inside `map` is not always inlined, and a call would go through memory.
            let mut words = [_mm512_setzero_si512(); P];
            let mut columns = [_mm512_setzero_ps(); P];
            for (panel, (word, columns)) in words.iter_mut().zip(&mut columns).enumerate() {
                *word = _mm512_loadu_si512(right.add(panel * depth * NR * 2).cast());
                *columns = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(*word));
            }
            step(&mut sums, rows, at, columns);
            if 2 * i + 1 < left.span_len {
                for (word, columns) in words.iter().zip(&mut columns) {
                    *columns = _mm512_castsi512_ps(_mm512_and_si512(*word, upper));
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
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn step<const R: usize, const P: usize>(
    sums: &mut [[__m512; P]; R],
    rows: [*const f32; R],
    at: usize,
    columns: [__m512; P],
) {
    for (sums, row) in sums.iter_mut().zip(rows) {
        // SAFETY: the caller's promise.
        let value = _mm512_set1_ps(unsafe { *row.add(at) });
        for (sum, column) in sums.iter_mut().zip(columns) {
            *sum = _mm512_fmadd_ps(value, column, *sum);
        }
    }
}
