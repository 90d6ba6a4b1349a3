//! Throughput of the heavy operations at shapes of the shipped checkpoint and of Wan. Items are multiply-adds.

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use evanesce_kernels::{
    AttentionDims, Codec, Conv2dMode, Conv3d, Dtype, EncodedRows, KvSegment, LinearDims, Values, attend,
    conv2d, conv3d_causal, encode, linear,
};

fn main() {
    divan::main();
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 251) as f32 * 0.01 - 1.2).collect()
}

const LINEAR: [[usize; 3]; 6] = [
    [336, 192, 512],
    [336, 512, 192],
    [336, 192, 192],
    [1560, 1536, 1536],
    [512, 4096, 4096],
    [1, 5120, 5120],
];

/// Rows, inputs, outputs.
#[divan::bench(args = LINEAR, consts = [false, true])]
fn linears<const HALVES: bool>(bencher: Bencher<'_, '_>, [rows, inputs, outputs]: [usize; 3]) {
    let (x, weight, bias) = (numbers(rows * inputs), numbers(outputs * inputs), numbers(outputs));
    let halves: Vec<u8> = weight.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    let dims = LinearDims { rows, inputs, outputs };
    let mut out = vec![0.0; rows * outputs];
    bencher.counter(ItemsCount::new(rows * inputs * outputs)).bench_local(|| {
        let halves = Values::new(Dtype::BF16, &halves).expect("an even number of bytes");
        let weight = if HALVES { halves } else { Values::from(&weight[..]) };
        linear(&x, weight, Some(Values::from(&bias[..])), dims, &mut out);
    });
}

const ATTENTION: [[usize; 4]; 5] =
    [[336, 336, 6, 32], [336, 27, 6, 32], [1560, 1560, 12, 128], [1560, 512, 40, 128], [3600, 3600, 1, 384]];

/// Queries, keys, heads, head dimension.
#[divan::bench(args = ATTENTION)]
fn attention(bencher: Bencher<'_, '_>, [queries, keys, heads, head_dim]: [usize; 4]) {
    let width = heads * head_dim;
    let (q, k, v) = (numbers(queries * width), numbers(keys * width), numbers(keys * width));
    let dims = AttentionDims { queries, heads, head_dim, scale: 0.1 };
    let segments = [KvSegment { keys: k[..].into(), values: v[..].into(), logit_bias: 0.0, turn: None }];
    let mut out = vec![0.0; queries * width];
    bencher
        .counter(ItemsCount::new(2 * queries * keys * width))
        .bench_local(|| attend(&q, &segments, dims, &mut out));
}

/// Codec of the pages, over 20 heads of 128, 1560 queries and two pages of 1560 keys.
#[divan::bench(args = Codec::ALL)]
fn pages(bencher: Bencher<'_, '_>, codec: Codec) {
    let (heads, head_dim, tokens) = (20, 128, 1560);
    let width = heads * head_dim;
    let numbers = numbers(tokens * width);
    let mut bytes = vec![0; tokens * codec.row_bytes(width)];
    encode(codec, &numbers, width, &mut bytes);
    let rows = EncodedRows::new(codec, &bytes, width).expect("whole rows").into();
    let dims = AttentionDims { queries: tokens, heads, head_dim, scale: 0.1 };
    let segments = [KvSegment { keys: rows, values: rows, logit_bias: 0.0, turn: None }; 2];
    let mut out = vec![0.0; tokens * width];
    bencher
        .counter(ItemsCount::new(4 * tokens * tokens * width))
        .bench_local(|| attend(&numbers, &segments, dims, &mut out));
}

/// Codec, over 1560 tokens of 5120 numbers. Bytes are those read and written.
#[divan::bench(args = Codec::ALL)]
fn encoding(bencher: Bencher<'_, '_>, codec: Codec) {
    let numbers = numbers(1560 * 5120);
    let mut bytes = vec![0; 1560 * codec.row_bytes(5120)];
    bencher
        .counter(BytesCount::new(4 * numbers.len() + bytes.len()))
        .bench_local(|| encode(codec, &numbers, 5120, &mut bytes));
}

const CONVOLUTION: [[usize; 7]; 7] = [
    [4, 64, 64, 32, 32, 3, 3],
    [4, 128, 128, 96, 96, 3, 3],
    [1, 60, 104, 384, 384, 3, 3],
    [4, 64, 64, 32, 3, 3, 3],
    [1, 8, 8, 64, 64, 3, 3],
    [2, 32, 32, 64, 128, 3, 1],
    [4, 64, 64, 64, 32, 1, 1],
];

/// Frames, height, width, input and output channels, taps in time and space; all past frames are there.
#[divan::bench(args = CONVOLUTION)]
fn causal_convolution(bencher: Bencher<'_, '_>, [frames, h, w, cin, cout, kt, side]: [usize; 7]) {
    let (weight, bias) = (numbers(cout * cin * kt * side * side), numbers(cout));
    let (x, frame) = (numbers(frames * h * w * cin), numbers(h * w * cin));
    let past = vec![&frame[..]; kt - 1];
    let (kernel, bias) = (Values::from(&weight[..]), Some(Values::from(&bias[..])));
    let conv = Conv3d { weight: kernel, bias, cin, cout, kt, kh: side, kw: side };
    let mut out = vec![0.0; frames * h * w * cout];
    bencher
        .counter(ItemsCount::new(frames * h * w * weight.len()))
        .bench_local(|| conv3d_causal(&x, &past, frames, h, w, conv, 1, &mut out));
}

/// Frames, height, width, input and output channels; multiply-adds as if the enlarged picture were convolved.
#[divan::bench(args = [[4, 32, 32, 64, 32], [1, 120, 208, 384, 192]])]
fn enlarging_convolution(bencher: Bencher<'_, '_>, [frames, h, w, cin, cout]: [usize; 5]) {
    let (x, weight) = (numbers(frames * h * w * cin), numbers(cout * cin * 9));
    let conv = Conv3d { weight: Values::from(&weight[..]), bias: None, cin, cout, kt: 1, kh: 3, kw: 3 };
    let mut out = vec![0.0; 4 * frames * h * w * cout];
    bencher
        .counter(ItemsCount::new(4 * frames * h * w * weight.len()))
        .bench_local(|| conv2d(&x, frames, h, w, conv, Conv2dMode::UpNearest2, &mut out));
}
