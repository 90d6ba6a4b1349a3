//! Numbers that the golden scripts draw as well.

use evanesce_kernels::Dtype;
use half::{bf16, f16};

/// Uniform numbers in `offset ± scale / 2`: splitmix64 of the name's FNV-1a hash plus the index, upper 24 bits.
pub(crate) fn draw(name: &str, count: usize, scale: f32, offset: f32) -> Vec<f32> {
    let hash = |seed: u64, byte: u8| (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    let number = |index: usize| {
        let mut z = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        #[expect(clippy::cast_precision_loss, reason = "24 bits are exact in f32")]
        let unit = (z >> 40) as f32 * 2_f32.powi(-24) - 0.5;
        unit * scale + offset
    };
    (0..count).map(number).collect()
}

/// A drawn parameter: matrices keep a unit gain, norms lie around one, biases and tables around zero.
pub(crate) fn parameter(name: &str, shape: &[usize]) -> Vec<f32> {
    let count = shape.iter().product();
    if name.contains("norm") && name.ends_with("weight") {
        return draw(name, count, 1.0, 1.0);
    }
    if shape.len() == 1 || name.contains("scale_shift_table") {
        return draw(name, count, 0.6, 0.0);
    }
    #[expect(clippy::cast_precision_loss, reason = "small shapes")]
    let inputs = shape[1..].iter().product::<usize>() as f32;
    draw(name, count, 3.0 / inputs.sqrt(), 0.0)
}

/// Little-endian bytes of `numbers` in type `dtype`, rounded to nearest.
pub(crate) fn to_bytes(numbers: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::BF16 => numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
    }
}
