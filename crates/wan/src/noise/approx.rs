//! Single-precision logarithm, sine and cosine with the very roundings of PyTorch's AVX2 kernel.
//!
//! The polynomials are those of the Cephes library by Stephen Moshier; PyTorch takes them from `avx_mathfun.h` by
//! Giovanni Garberoglio (after Julien Pommier's `sse_mathfun.h`, zlib licence) and compiles it with fused
//! multiply-add, which the compiler puts wherever a product meets a sum. Where one fuses matters for the last bit, so
//! every [`f32::mul_add`] below stands exactly where the compiled kernel has one, and nowhere else.

const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_LOW: f32 = -2.121_944_4e-4;
const LN: [f32; 9] = [
    7.037_683_6e-2,
    -1.151_461e-1,
    1.167_699_9e-1,
    -1.242_014_1e-1,
    1.424_932_3e-1,
    -1.666_805_7e-1,
    2.000_071_4e-1,
    -2.499_999_4e-1,
    3.333_333e-1,
];
const SIN: [f32; 3] = [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1];
const COS: [f32; 3] = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2];
/// Minus a quarter turn's half, π/4, in three parts.
const MINUS_QUARTER_PI: [f32; 3] = [-0.785_156_25, -2.418_756_5e-4, -3.774_895e-8];

/// Horner's rule with one fused operation per coefficient.
fn horner(coefficients: &[f32], x: f32) -> f32 {
    coefficients.iter().copied().reduce(|sum, next| sum.mul_add(x, next)).unwrap_or(0.0)
}

/// Natural logarithm of a normal number in 0..=1.
pub(super) fn ln(x: f32) -> f32 {
    let bits = x.to_bits();
    let mut exponent = (bits >> 23) as i32 - 126;
    let fraction = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    let mut x = fraction - 1.0;
    if fraction < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1;
        x += fraction;
    }
    let exponent = exponent as f32;
    let square = x * x;
    let tail = (horner(&LN, x) * x).mul_add(square, exponent * LN_2_LOW);
    let tail = (-square).mul_add(0.5, tail);
    exponent.mul_add(LN_2_HIGH, x + tail)
}

/// Sine and cosine of an angle in 0..=2π.
#[expect(clippy::cast_possible_truncation, reason = "there are eight octants")]
pub(super) fn sin_cos(angle: f32) -> (f32, f32) {
    const OCTANTS_PER_RADIAN: f32 = 1.273_239_5;
    let octant = ((angle * OCTANTS_PER_RADIAN) as i32 + 1) & !1;
    let turns = octant as f32;
    let x = MINUS_QUARTER_PI.iter().fold(angle, |rest, &part| turns.mul_add(part, rest));
    let square = x * x;
    let cos = (horner(&COS, square) * square).mul_add(square, -(square * 0.5)) + 1.0;
    let sin = (horner(&SIN, square) * square).mul_add(x, x);
    let (sin, cos) = if octant & 2 == 0 { (sin, cos) } else { (cos, sin) };
    let sin = if octant & 4 == 0 { sin } else { -sin };
    let cos = if (octant - 2) & 4 == 0 { -cos } else { cos };
    (sin, cos)
}
