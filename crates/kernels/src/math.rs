//! The exponential, written so that loops over it run in vector registers.

/// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, whose bits then lie at the bottom.
const ROUND: f32 = 12_582_912.0;

/// `e^x`, within 1.5 units in the last place. Overflows to infinity and underflows to zero as `f32::exp`; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // ln 2 in two parts: the first has trailing zeros, so that its products with small integers are exact.
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    // Beyond these, results overflow or are zero; comparisons keep NaN.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    // Minimax polynomial of e^r on [-ln 2 / 2, ln 2 / 2]: relative error below 4e-9 before rounding.
    let p = 1.386_375_7e-3_f32;
    let p = p.mul_add(r, 8.367_509e-3);
    let p = p.mul_add(r, 4.166_724e-2);
    let p = p.mul_add(r, 1.666_653_4e-1);
    let p = p.mul_add(r, 0.5);
    let p = (r * r).mul_add(p, r) + 1.0;
    // 2^n in two factors, so that denormal results are reached with one rounding and 2^128 never occurs.
    let n = shifted.to_bits().cast_signed().wrapping_sub(ROUND.to_bits().cast_signed());
    let half = n >> 1;
    p * power(half) * power(n.wrapping_sub(half))
}

/// `2^x` for `x` up to 0, within 1.5 units in the last place, with what is below the smallest normal number flushed
/// to zero; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp2_of_negative(x: f32) -> f32 {
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    // Minimax polynomial of 2^r on [-1/2, 1/2]: relative error below 2e-9 before rounding.
    let p = 1.535_33e-4_f32;
    let p = p.mul_add(r, 1.339_895_2e-3);
    let p = p.mul_add(r, 9.618_438e-3);
    let p = p.mul_add(r, 5.550_332_4e-2);
    let p = p.mul_add(r, 2.402_264_8e-1);
    let p = p.mul_add(r, std::f32::consts::LN_2);
    let p = p.mul_add(r, 1.0);
    // The bits of ROUND above the integer's are shifted out.
    let result = p * power(shifted.to_bits().cast_signed());
    if x < -126.0 { 0.0 } else { result }
}

/// `2^n` for `n` from -126 to 127.
#[inline(always)]
fn power(n: i32) -> f32 {
    f32::from_bits((n << 23).wrapping_add(127 << 23).cast_unsigned())
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// GELU in its tanh form. As `1 + tanh(u) = 2 sigmoid(2 u)`, small results keep their relative precision.
#[inline(always)]
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    // 2 sqrt(2 / pi), and that times 0.044715.
    const LINEAR: f32 = 1.595_769;
    const CUBIC: f32 = 0.071_354_814;
    let twice = x * (x * x).mul_add(CUBIC, LINEAR);
    x / (1.0 + exp(-twice))
}

#[cfg(test)]
mod tests {
    use super::{exp, exp2_of_negative};

    #[test]
    fn exponentials_are_right_everywhere() {
        for bits in (0..=u32::MAX).step_by(9973) {
            let x = f32::from_bits(bits);
            if x.is_nan() {
                assert!(exp(x).is_nan() && exp2_of_negative(x).is_nan());
                continue;
            }
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs();
            let overflow = expected > f64::from(f32::MAX);
            assert!(
                if overflow { exp(x) == f32::INFINITY } else { error <= 1.3e-7 * expected + 8e-46 },
                "{x:e}"
            );
            if x <= 0.0 {
                let expected = f64::from(x).exp2();
                let error = (f64::from(exp2_of_negative(x)) - expected).abs();
                assert!(error <= 1.3e-7 * expected + 1.2e-38, "{x:e}");
            }
        }
    }

    #[test]
    fn an_exponential_of_negative_infinity_is_zero() {
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp2_of_negative(f32::NEG_INFINITY).to_bits(), 0);
    }

    #[test]
    fn a_power_of_zero_is_one() {
        assert_eq!([exp(0.0), exp(-0.0), exp2_of_negative(0.0), exp2_of_negative(-0.0)], [1.0; 4]);
    }
}
