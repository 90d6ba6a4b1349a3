//! Operations over any sizes and any slices: they compute, or refuse in words, and never touch what is not theirs. To be run
//! with the address sanitizer, which cargo-fuzz switches on; `crates/kernels/tests/operations` has seeded shapes.
#![no_main]

use std::panic::{AssertUnwindSafe, catch_unwind};

use arbitrary::{Arbitrary, Unstructured};
use evanesce_kernels::{
    AttentionDims, Codec, Conv3d, EncodedRows, Isa, KvSegment, LinearDims, Rows, Turn, Values, attend, conv3d_causal,
    encode, linear,
};

/// Sizes beside what slices are as long as: `off` numbers are missing or too many.
#[derive(Arbitrary, Debug)]
struct Shape {
    isa: u8,
    operation: u8,
    sizes: [u8; 5],
    codecs: [u8; 2],
    turn: Option<(u8, u8)>,
    off: [i8; 3],
}

fn numbers(count: usize, off: i8) -> Vec<f32> {
    // Exactly as long as said: the sanitizer sees one number more.
    (0..count.saturating_add_signed(isize::from(off))).map(|i| (i % 17) as f32 * 0.25 - 2.0).collect()
}

fn linear_of(shape: &Shape) {
    let [rows, inputs, outputs, ..] = shape.sizes.map(|size| usize::from(size % 70));
    let dims = LinearDims { rows, inputs, outputs };
    let [x, weight] = [rows * inputs, outputs * inputs];
    let (x, weight) = (numbers(x, shape.off[0]), numbers(weight, shape.off[1]));
    let mut out = numbers(rows * outputs, shape.off[2]);
    linear(&x, Values::from(&weight[..]), None, dims, &mut out);
}

fn attention_of(shape: &Shape) {
    let [queries, keys, heads, head_dim, _] = shape.sizes.map(usize::from);
    let (heads, head_dim, keys) = (heads % 5, head_dim % 140, keys % 130);
    let width = heads * head_dim;
    let dims = AttentionDims { queries: queries % 120, heads, head_dim, scale: 0.25 };
    let q = numbers(dims.queries * width, shape.off[0]);
    let [keys, values] = [shape.off[1], shape.off[2]].map(|off| numbers(keys * width, off));
    let encoded = |x: &[f32], codec: u8| {
        let codec = Codec::ALL[usize::from(codec) % Codec::ALL.len()];
        let mut bytes = vec![0; x.len() / width.max(1) * codec.row_bytes(width)];
        encode(codec, x, width, &mut bytes);
        (codec, bytes)
    };
    let pages = [encoded(&keys, shape.codecs[0]), encoded(&values, shape.codecs[1])];
    let rows = pages.each_ref().map(|(codec, bytes)| EncodedRows::new(*codec, bytes, width).map(Rows::from));
    let [Some(keys), Some(values)] = rows else { return };
    let (cos, sin) = (vec![0.6; 900], vec![0.8; 900]);
    let turn = shape.turn.map(|(pairs, queries_per_row)| Turn {
        cos: &cos,
        sin: &sin,
        pairs: usize::from(pairs),
        queries_per_row: usize::from(queries_per_row),
    });
    let mut out = vec![0.0; q.len()];
    attend(&q, &[KvSegment { keys, values, logit_bias: 0.0, turn }], dims, &mut out);
}

fn convolution_of(shape: &Shape) {
    let [cin, cout, frames, height, width] = shape.sizes.map(|size| usize::from(size % 20));
    let [kt, kh, kw] = [shape.codecs[0] % 4, shape.codecs[1] % 6, shape.codecs[1] / 6 % 4].map(usize::from);
    let weight = numbers(cout * cin * kt * kh * kw, shape.off[0]);
    let conv = Conv3d { weight: Values::from(&weight[..]), bias: None, cin, cout, kt, kh, kw };
    let x = numbers(frames * height * width * cin, shape.off[1]);
    let past = numbers(height * width * cin, 0);
    let stride = usize::from(shape.isa / 16 % 4);
    let mut out = numbers(frames.div_ceil(stride.max(1)) * height * width * cout, shape.off[2]);
    conv3d_causal(&x, &[&past, &past], frames, height, width, conv, stride, &mut out);
}

// Refusals are panics, and caught: they must not end the process.
libfuzzer_sys::fuzz_target!(init: std::panic::set_hook(Box::new(|_| ())), |input: &[u8]| {
    let Ok(shape) = Shape::arbitrary(&mut Unstructured::new(input)) else { return };
    let present = Isa::present();
    let isa = present[usize::from(shape.isa) % present.len()];
    let result = catch_unwind(AssertUnwindSafe(|| {
        isa.run(|| match shape.operation % 3 {
            0 => linear_of(&shape),
            1 => attention_of(&shape),
            _ => convolution_of(&shape),
        });
    }));
    if let Err(panic) = result {
        let words = panic.downcast_ref::<String>().cloned();
        let words = words.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let words = words.unwrap_or_default();
        // What an operation refuses, it refuses by its own name.
        let refused = ["linear: ", "attend: ", "encode: ", "conv3d_causal: "].iter().any(|name| words.contains(name));
        if !refused {
            eprintln!("{shape:?}: {words}");
            std::process::abort();
        }
    }
});
