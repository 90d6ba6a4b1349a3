//! Turning rows into panels: `[NR rows, k]`, of any element type, into `[k, NR]`.

use crate::isa::{Isa, by_isa};
use crate::micro::NR;
use crate::values::Values;

/// Columns turned at a time: two lines of the nearest cache from each row.
const STRIP: usize = 32;

/// Writes `count` rows (at most [`NR`]) of `length` numbers into `panel` such that number `i` of row `r` comes to
/// `panel[i * NR + r]`. Rows that are missing become zeros.
pub(crate) fn from_rows<'a>(
    isa: Isa,
    count: usize,
    length: usize,
    row: impl Fn(usize) -> &'a [f32],
    panel: &mut [f32],
) {
    let mut strips = [[0.0_f32; STRIP]; NR];
    for start in (0..length).step_by(STRIP) {
        let columns = STRIP.min(length - start);
        for (i, strip) in strips.iter_mut().enumerate().take(count) {
            strip[..columns].copy_from_slice(&row(i)[start..start + columns]);
        }
        turn(isa, &strips, &mut panel[start * NR..][..columns * NR]);
    }
}

/// As [`from_rows`] for the rows `first..first + count` of a matrix of `values` with rows of `length`;
/// number `i` of each row comes to place `place(i)` of the panel.
pub(crate) fn from_values(
    isa: Isa,
    values: Values<'_>,
    length: usize,
    rows: std::ops::Range<usize>,
    panel: &mut [f32],
    place: impl Fn(usize) -> usize,
) {
    let mut strips = [[0.0_f32; STRIP]; NR];
    let mut turned = [0.0_f32; STRIP * NR];
    for start in (0..length).step_by(STRIP) {
        let count = STRIP.min(length - start);
        for (strip, row) in strips.iter_mut().zip(rows.clone()) {
            values.read(row * length + start, &mut strip[..count]);
        }
        turn(isa, &strips, &mut turned[..count * NR]);
        for (i, column) in turned[..count * NR].chunks_exact(NR).enumerate() {
            panel[place(start + i) * NR..][..NR].copy_from_slice(column);
        }
    }
}

by_isa! {
    fn turn(strips: &[[f32; STRIP]; NR], panel: &mut [f32]) = turn_inner
}

#[inline(always)]
fn turn_inner(strips: &[[f32; STRIP]; NR], panel: &mut [f32]) {
    for (i, column) in panel.chunks_exact_mut(NR).enumerate() {
        for (value, strip) in column.iter_mut().zip(strips) {
            *value = strip[i];
        }
    }
}
