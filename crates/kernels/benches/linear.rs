//! Linear layers at the shapes of the shipped checkpoint and of Wan, and converted weights beside `f32` ones.

use divan::counter::ItemsCount;
use evanesce_kernels::{Dtype, LinearDims, Values, linear};

fn main() {
    divan::main();
}

const SHAPES: [(usize, usize, usize); 6] = [
    (336, 192, 512),
    (336, 512, 192),
    (1560, 1536, 1536),
    (512, 4096, 4096),
    (1, 5120, 5120),
    (336, 192, 192),
];

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 251) as f32 * 0.01 - 1.2).collect()
}

/// Items are multiply-adds.
#[divan::bench(args = SHAPES)]
fn f32_weights(bencher: divan::Bencher<'_, '_>, (rows, inputs, outputs): (usize, usize, usize)) {
    let (x, weight, bias) = (numbers(rows * inputs), numbers(outputs * inputs), numbers(outputs));
    let mut out = vec![0.0; rows * outputs];
    let dims = LinearDims { rows, inputs, outputs };
    bencher.counter(ItemsCount::new(rows * inputs * outputs)).bench_local(|| {
        linear(&x, Values::from(&weight[..]), Some(Values::from(&bias[..])), dims, &mut out);
    });
}

/// Items are multiply-adds.
#[divan::bench(args = SHAPES)]
fn bf16_weights(bencher: divan::Bencher<'_, '_>, (rows, inputs, outputs): (usize, usize, usize)) {
    let (x, bias) = (numbers(rows * inputs), numbers(outputs));
    let weight: Vec<u8> = numbers(outputs * inputs)
        .iter()
        .flat_map(|v| (v.to_bits() >> 16).to_le_bytes()[..2].to_vec())
        .collect();
    let mut out = vec![0.0; rows * outputs];
    let dims = LinearDims { rows, inputs, outputs };
    bencher.counter(ItemsCount::new(rows * inputs * outputs)).bench_local(|| {
        let weight = Values::new(Dtype::BF16, &weight).expect("an even number of bytes");
        linear(&x, weight, Some(Values::from(&bias[..])), dims, &mut out);
    });
}
