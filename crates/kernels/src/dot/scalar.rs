//! The product as it is defined.

use super::{Columns, Finish, NR, Tile, Words};

pub(super) fn dot(left: &Words<'_>, right: &Columns<'_>, finish: Finish<'_>, out: &mut Tile<'_>) {
    for panel in 0..right.count {
        let columns = &right.words[panel * right.stride + right.from * NR..][..left.steps * NR];
        for row in 0..left.rows {
            let mut sums = [0_i32; NR];
            let mut at = left.first + row * left.row_stride;
            for columns in columns.as_chunks::<NR>().0 {
                let word = &left.bytes[at..at + 4];
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = sum.wrapping_add(product(finish, [word[0], word[1], word[2], word[3]], *column));
                }
                at += left.step_stride;
            }
            let to = &mut out.values[panel * out.panel_stride + row * NR..][..NR];
            for (lane, (to, sum)) in to.iter_mut().zip(sums).enumerate() {
                *to = finished(finish, row, panel * NR + lane, *to, sum);
            }
        }
    }
}

fn product(finish: Finish<'_>, row: [u8; 4], column: u32) -> i32 {
    let column = column.to_le_bytes();
    match finish {
        Finish::Grid { .. } => {
            row.iter().zip(column).map(|(a, b)| i32::from(*a) * i32::from(b.cast_signed())).sum()
        }
        Finish::Weighted { .. } => {
            let half = |bytes: [u8; 4], at: usize| i32::from(i16::from_le_bytes([bytes[at], bytes[at + 1]]));
            (half(row, 0) * half(column, 0)).wrapping_add(half(row, 2) * half(column, 2))
        }
    }
}

fn finished(finish: Finish<'_>, row: usize, lane: usize, before: f32, sum: i32) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "rounded to the nearest, as the vector conversions do")]
    let sum = sum as f32;
    match finish {
        Finish::Grid { steps, minima, column_sums, keep } => {
            let before = if keep { before } else { 0.0 };
            minima[row].mul_add(column_sums[lane], steps[row].mul_add(sum, before))
        }
        Finish::Weighted { decays, gains } => sum.mul_add(gains[lane], before * decays[lane]),
    }
}
