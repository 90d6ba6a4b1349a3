//! The product as it is defined.

use super::{Keep, Left, NR, Out, Panels, Right};

pub(super) fn multiply(left: &Left<'_>, right: &Right<'_>, out: &mut Out<'_>) {
    for (row, start) in left.starts.iter().enumerate() {
        for panel in 0..right.count {
            let to = &mut out.values[row * out.stride + panel * out.panel_stride..][..NR];
            let mut sums = [0.0_f32; NR];
            let mut at = panel * right.depth + right.from;
            for span in left.spans {
                let numbers = left.values[start + span..].iter().step_by(left.stride);
                for value in numbers.take(left.span_len) {
                    let columns = columns(right.panels, at);
                    sums.iter_mut().zip(columns).for_each(|(sum, right)| *sum = value.mul_add(right, *sum));
                    at += 1;
                }
            }
            match out.keep {
                Keep::Nothing => to.copy_from_slice(&sums),
                Keep::Sum => to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum),
            }
        }
    }
}

/// Place `at` of all panels one after the other.
fn columns(panels: Panels<'_>, at: usize) -> [f32; NR] {
    match panels {
        Panels::F32(numbers) => std::array::from_fn(|i| numbers[at * NR + i]),
        Panels::Bf16(bytes) => std::array::from_fn(|i| {
            let place = 2 * (at / 2 * 2 * NR + 2 * i + at % 2);
            f32::from_bits(u32::from(u16::from_le_bytes([bytes[place], bytes[place + 1]])) << 16)
        }),
    }
}
