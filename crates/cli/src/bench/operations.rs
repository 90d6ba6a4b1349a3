//! The operations to measure, over drawn numbers.

use evanesce_engine::kernels::{
    AttentionDims, Conv3d, Dtype, EncodedRows, KvSegment, LinearDims, PackedWeights, Rows, Scratch, Values,
    Weight, attend, conv3d_causal, encode, linear, pack_weights, peak,
};
use evanesce_engine::{Codec, KvCodec, LoneBlock};

use super::measure::{Measured, Timing, measure};
use super::{LinearShape, ModelSizes, WeightType, What};

/// Rounds of multiply-adds in one run.
const PEAK_ROUNDS: usize = 2_000_000;
/// Tokens of a page: those of a latent frame of 832 x 480 pixels.
const PAGE_ROWS: usize = 1560;
/// Numbers that are copied in one run: far more than caches hold.
const COPIED_NUMBERS: usize = 32 << 20;

/// What the machine can do at most.
pub(super) struct Peak {
    pub(super) multiply_adds: Measured,
}

pub(super) fn peak(timing: Timing) -> anyhow::Result<Peak> {
    let short = Timing { seconds: timing.seconds.min(0.5) };
    let flop = peak::multiply_adds(1) * PEAK_ROUNDS as f64;
    let multiply_adds = measure(short, flop, || {
        std::hint::black_box(peak::multiply_adds(PEAK_ROUNDS));
        Ok(())
    })?;
    Ok(Peak { multiply_adds })
}

/// Bytes read and written a second when memory is copied, in billions.
pub(super) fn copy_gb_per_s(timing: Timing) -> anyhow::Result<f64> {
    let (from, mut to) = (drawn(COPIED_NUMBERS), vec![0.0; COPIED_NUMBERS]);
    let bytes = 2.0 * 4.0 * COPIED_NUMBERS as f64;
    let measured = measure(timing, bytes, || {
        peak::copy(&from, &mut to);
        Ok(())
    })?;
    Ok(measured.gflops())
}

/// Name and times of what was asked for.
pub(super) fn run(what: &What, timing: Timing) -> anyhow::Result<(String, Measured)> {
    match *what {
        What::Linear { shape, weights } => run_linear(shape, weights, timing),
        What::Attention { heads, queries, keys, head_dim, codec } => {
            let (heads, head_dim) = (usize::from(heads), usize::from(head_dim));
            run_attention([heads, queries as usize, keys as usize, head_dim], codec, timing)
        }
        What::Encode { rows, width, codec } => run_encode(rows as usize, width as usize, codec, timing),
        What::Conv3d { cin, cout, frames, height, width } => {
            run_conv3d([cin, cout, frames, height, width].map(usize::from), timing)
        }
        What::Block { model: ModelSizes::Wan22T2vA14b, tokens, context_tokens } => {
            let config = LoneBlock::wan22_t2v_a14b();
            let mut block = LoneBlock::new(config, tokens as usize, context_tokens as usize);
            let flop = block.flop();
            let measured = measure(timing, flop, || block.run().map_err(Into::into))?;
            Ok((format!("block wan2.2-t2v-a14b tokens={tokens} context_tokens={context_tokens}"), measured))
        }
        What::Peak => peak(timing).map(|peak| ("peak".to_owned(), peak.multiply_adds)),
    }
}

/// Numbers between -1 and 1.
fn drawn(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let draw = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(draw).collect()
}

fn run_linear(shape: LinearShape, kind: WeightType, timing: Timing) -> anyhow::Result<(String, Measured)> {
    let LinearShape { rows, inputs, outputs } = shape;
    let dims = LinearDims { rows, inputs, outputs };
    let (x, bias, numbers) = (drawn(rows * inputs), drawn(outputs), drawn(outputs * inputs));
    // As entries of the cache and tensors of PyTorch do, weights and outputs begin with a cache line.
    let memory = Scratch::default();
    let mut words = memory.take(numbers.len());
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    let (dtype, name, bytes) = match kind {
        WeightType::F32 => {
            bytes.copy_from_slice(bytemuck::cast_slice(&numbers));
            (Dtype::F32, "f32", bytes)
        }
        WeightType::Bf16 => {
            let halves = &mut bytes[..2 * numbers.len()];
            for (to, number) in halves.chunks_exact_mut(2).zip(&numbers) {
                to.copy_from_slice(&upper_half(*number).to_le_bytes());
            }
            (Dtype::BF16, "bf16", halves)
        }
    };
    let weight: Weight<'_> = if PackedWeights::fits(dtype, outputs, inputs) {
        pack_weights(dtype, bytes, outputs, inputs);
        PackedWeights::new(dtype, bytes, outputs, inputs).map(Weight::from)
    } else {
        Values::new(dtype, bytes).map(Weight::from)
    }
    .ok_or_else(|| anyhow::anyhow!("weights of {outputs} x {inputs} cannot be laid out"))?;
    let mut out = memory.take(rows * outputs);
    let flop = 2.0 * rows as f64 * inputs as f64 * outputs as f64;
    let measured = measure(timing, flop, || {
        linear(&x, weight, Some(Values::from(&bias[..])), dims, &mut out);
        Ok(())
    })?;
    Ok((format!("linear {rows}x{inputs}x{outputs} weights={name}"), measured))
}

/// The bfloat16 that a number begins with.
fn upper_half(number: f32) -> u16 {
    (number.to_bits() >> 16) as u16
}

fn encoded(codec: Codec, numbers: &[f32], width: usize) -> Vec<u8> {
    let mut bytes = vec![0; numbers.len() / width * codec.row_bytes(width)];
    encode(codec, numbers, width, &mut bytes);
    bytes
}

fn run_attention(
    sizes: [usize; 4],
    codec: Option<KvCodec>,
    timing: Timing,
) -> anyhow::Result<(String, Measured)> {
    let [heads, queries, keys, head_dim] = sizes;
    let width = heads * head_dim;
    let (q, k, v) = (drawn(queries * width), drawn(keys * width), drawn(keys * width));
    let dims = AttentionDims { queries, heads, head_dim, scale: (head_dim as f32).sqrt().recip() };
    let segment = |keys, values| KvSegment { keys, values, logit_bias: 0.0, turn: None };
    let pages: Vec<_> = match codec {
        None => Vec::new(),
        Some(KvCodec { keys, values }) => {
            let page = PAGE_ROWS * width;
            let encode = |(k, v)| (encoded(keys, k, width), encoded(values, v, width));
            k.chunks(page).zip(v.chunks(page)).map(encode).collect()
        }
    };
    let segments: Vec<_> = match codec {
        None => vec![segment(k[..].into(), v[..].into())],
        Some(KvCodec { keys, values }) => {
            let rows = |codec, bytes| EncodedRows::new(codec, bytes, width).map(Rows::from);
            let segments = pages.iter().map(|(k, v)| Some(segment(rows(keys, k)?, rows(values, v)?)));
            segments.collect::<Option<_>>().ok_or_else(|| anyhow::anyhow!("pages are not whole rows"))?
        }
    };
    let mut out = Scratch::default().take(q.len());
    let flop = 4.0 * queries as f64 * keys as f64 * width as f64;
    let measured = measure(timing, flop, || {
        attend(&q, &segments, dims, &mut out);
        Ok(())
    })?;
    let codec = codec.map_or_else(String::new, |KvCodec { keys, values }| format!(" codec={keys}/{values}"));
    let op = format!("attention heads={heads} queries={queries} keys={keys} head_dim={head_dim}{codec}");
    Ok((op, measured))
}

/// Times of encoding; what is counted are bytes read and written.
fn run_encode(rows: usize, width: usize, codec: Codec, timing: Timing) -> anyhow::Result<(String, Measured)> {
    let numbers = drawn(rows * width);
    let mut bytes = vec![0; rows * codec.row_bytes(width)];
    let moved = (size_of_val(&numbers[..]) + bytes.len()) as f64;
    let measured = measure(timing, moved, || {
        encode(codec, &numbers, width, &mut bytes);
        Ok(())
    })?;
    Ok((format!("encode rows={rows} width={width} codec={codec}"), measured))
}

fn run_conv3d(sizes: [usize; 5], timing: Timing) -> anyhow::Result<(String, Measured)> {
    let [cin, cout, frames, height, width] = sizes;
    let pixels = height * width;
    let (x, past) = (drawn(frames * pixels * cin), drawn(pixels * cin));
    let (weight, bias) = (drawn(cout * cin * 27), drawn(cout));
    let bias = Some(Values::from(&bias[..]));
    let conv = Conv3d { weight: Values::from(&weight[..]), bias, cin, cout, kt: 3, kh: 3, kw: 3 };
    let mut out = vec![0.0; frames * pixels * cout];
    let flop = 2.0 * 27.0 * (cin * cout) as f64 * (frames * pixels) as f64;
    let measured = measure(timing, flop, || {
        conv3d_causal(&x, &[&past, &past], frames, height, width, conv, 1, &mut out);
        Ok(())
    })?;
    Ok((format!("conv3d {cin} {cout} {frames} {height} {width}"), measured))
}
