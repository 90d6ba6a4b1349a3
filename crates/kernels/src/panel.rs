//! Turning rows into panels: `[NR rows, k]`, of any element type, into `[k, NR]`.
#![expect(unsafe_code, reason = "vector loads and stores in loops whose bounds are checked once")]

use std::ops::Range;

use crate::isa::{Isa, Kind};
use crate::micro::NR;
use crate::values::Values;

/// Columns turned at a time where rows must be converted first.
const STRIP: usize = 128;

const ZEROS: [f32; STRIP] = [0.0; STRIP];

/// Writes `count` rows (at most [`NR`]) of `length` numbers into `panel` such that number `i` of row `r` comes to
/// `panel[i * NR + r]`. Rows that are missing become zeros.
pub(crate) fn from_rows<'a>(
    isa: Isa,
    count: usize,
    length: usize,
    row: impl Fn(usize) -> &'a [f32],
    panel: &mut [f32],
) {
    for start in (0..length).step_by(STRIP) {
        let columns = STRIP.min(length - start);
        let strip = |i: usize| if i < count { &row(i)[start..start + columns] } else { &ZEROS[..columns] };
        turn(isa, std::array::from_fn(strip), &mut panel[start * NR..][..columns * NR]);
    }
}

/// As [`from_rows`], for columns `columns` of the rows `rows` of a matrix of `values` with rows of `length`.
pub(crate) fn from_values(
    isa: Isa,
    values: Values<'_>,
    length: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    panel: &mut [f32],
) {
    if let Some(numbers) = values.as_f32() {
        let row = |i: usize| &numbers[(rows.start + i) * length..][columns.clone()];
        from_rows(isa, rows.len(), columns.len(), row, panel);
        return;
    }
    let mut strips = [[0.0_f32; STRIP]; NR];
    for (start, panel) in columns.clone().step_by(STRIP).zip(panel.chunks_mut(STRIP * NR)) {
        let count = STRIP.min(columns.end - start);
        for (strip, row) in strips.iter_mut().zip(rows.clone()) {
            values.read_with(isa, row * length + start, &mut strip[..count]);
        }
        turn(isa, std::array::from_fn(|i| &strips[i][..count]), &mut panel[..count * NR]);
    }
}

/// As [`from_values`] for all columns, where column `i` comes to place `place(i)` of the panel.
pub(crate) fn from_values_in_order(
    isa: Isa,
    values: Values<'_>,
    length: usize,
    rows: Range<usize>,
    panel: &mut [f32],
    place: impl Fn(usize) -> usize,
) {
    let mut turned = [0.0_f32; STRIP * NR];
    for start in (0..length).step_by(STRIP) {
        let columns = start..length.min(start + STRIP);
        let turned = &mut turned[..columns.len() * NR];
        from_values(isa, values, length, rows.clone(), columns.clone(), turned);
        for (i, column) in columns.zip(turned.chunks_exact(NR)) {
            panel[place(i) * NR..][..NR].copy_from_slice(column);
        }
    }
}

/// Turns whole rows, all as long as `panel` has columns. Numbers are moved, never computed with: any 32 bits will do.
pub(crate) fn turn(isa: Isa, rows: [&[f32]; NR], panel: &mut [f32]) {
    let columns = panel.len() / NR;
    assert!(rows.iter().all(|row| row.len() == columns), "rows and panel are of one length");
    let done = match isa.kind() {
        Kind::Scalar => 0,
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 | Kind::Avx512 => {
            // SAFETY: both kinds exist only after AVX2 was detected; rows and panel are long enough by the assertion
            // above.
            unsafe { turn_avx2(rows, panel, columns / 8) };
            columns / 8 * 8
        }
    };
    for (i, column) in panel.chunks_exact_mut(NR).enumerate().skip(done) {
        for (value, row) in column.iter_mut().zip(rows) {
            *value = row[i];
        }
    }
}

/// Turns the first `blocks` times 8 columns.
///
/// # Safety
/// Each row has at least `8 * blocks` numbers, and `panel` NR times as many.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn turn_avx2(rows: [&[f32]; NR], panel: &mut [f32], blocks: usize) {
    use std::arch::x86_64::{
        _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_unpackhi_ps,
        _mm256_unpacklo_ps,
    };
    for block in 0..blocks {
        for half in 0..2 {
            // SAFETY: `block` is below `blocks`, by which the caller bounds the rows.
            let row: [_; 8] = std::array::from_fn(|i| unsafe {
                _mm256_loadu_ps(rows[half * 8 + i].as_ptr().add(block * 8))
            });
            // Pairs, then fours, then the two halves of each register.
            let pair: [_; 8] = std::array::from_fn(|i| {
                let (a, b) = (row[i / 2 * 2], row[i / 2 * 2 + 1]);
                if i % 2 == 0 { _mm256_unpacklo_ps(a, b) } else { _mm256_unpackhi_ps(a, b) }
            });
            let four: [_; 8] = std::array::from_fn(|i| {
                let (a, b) = (pair[i / 4 * 4 + i % 4 / 2], pair[i / 4 * 4 + i % 4 / 2 + 2]);
                if i % 2 == 0 { _mm256_shuffle_ps::<0x44>(a, b) } else { _mm256_shuffle_ps::<0xEE>(a, b) }
            });
            for i in 0..8 {
                let (a, b) = (four[i % 4], four[i % 4 + 4]);
                let column = if i < 4 {
                    _mm256_permute2f128_ps::<0x20>(a, b)
                } else {
                    _mm256_permute2f128_ps::<0x31>(a, b)
                };
                // SAFETY: column `block * 8 + i` lies in the panel by the caller's promise.
                unsafe { _mm256_storeu_ps(panel.as_mut_ptr().add((block * 8 + i) * NR + half * 8), column) };
            }
        }
    }
}
