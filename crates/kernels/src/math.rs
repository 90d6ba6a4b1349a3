//! The exponential, written so that loops over it run in vector registers.

/// `e^x`, within 1.5 units in the last place. Overflows to infinity and underflows to zero as `f32::exp`; NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Beyond these, results overflow or are zero; comparisons keep NaN.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let (p, n) = split(x);
    // 2^n in two factors, so that denormal results are reached with one rounding and 2^128 never occurs.
    let half = n >> 1;
    p * power(half) * power(n.wrapping_sub(half))
}

/// As [`exp`] for numbers up to 0, with results below the smallest normal number flushed to zero.
#[inline(always)]
pub(crate) fn exp_of_negative(x: f32) -> f32 {
    let x = if x < -104.0 { -104.0 } else { x };
    let (p, n) = split(x);
    // The bits of 2^-127 would be those of zero, and so are all below.
    p * power(if n < -127 { -127 } else { n })
}

/// `(p, n)` with `e^x = p * 2^n`, for moderate `x`.
#[inline(always)]
fn split(x: f32) -> (f32, i32) {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, whose bits then lie at the bottom.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: the first has trailing zeros, so that its products with small integers are exact.
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
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
    (p, shifted.to_bits().cast_signed().wrapping_sub(ROUND.to_bits().cast_signed()))
}

/// `2^n` for `n` from -126 to 127, and 0 for -127.
#[inline(always)]
fn power(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) << 23).cast_unsigned())
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
    use super::{exp, exp_of_negative};

    #[test]
    fn the_exponential_is_right_everywhere() {
        for bits in (0..=u32::MAX).step_by(9973) {
            let x = f32::from_bits(bits);
            if x.is_nan() {
                assert!(exp(x).is_nan() && exp_of_negative(x).is_nan());
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
                let error = (f64::from(exp_of_negative(x)) - expected).abs();
                assert!(error <= 1.3e-7 * expected + 1.2e-38, "{x:e}");
            }
        }
    }

    #[test]
    fn an_exponential_of_negative_infinity_is_zero() {
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp_of_negative(f32::NEG_INFINITY).to_bits(), 0);
    }
}
