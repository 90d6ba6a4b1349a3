//! Numbers to compute with, and what to demand of results.

use evanesce_kernels::Isa;

/// A small generator (xorshift64*), so that tests need no seed from outside.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Uniform in `[-1, 1)`.
    pub(crate) fn one(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40;
        bits as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn many(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.one()).collect()
    }
}

/// An output that no kernel may leave as it is.
pub(crate) fn poisoned(count: usize) -> Vec<f32> {
    vec![f32::NAN; count]
}

/// Asserts `||a - b|| <= bound ||b||` and that no single number is off by more than ten times its fair share.
pub(crate) fn assert_near(what: &str, result: &[f32], expected: &[f64], bound: f64) {
    assert_eq!(result.len(), expected.len(), "{what}");
    let norm = expected.iter().map(|b| b * b).sum::<f64>().sqrt();
    let error = result.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>().sqrt();
    assert!(error <= bound * norm + 1e-300, "{what}: relative error {:e} over {bound:e}", error / norm);
    let share = norm / (expected.len() as f64).sqrt();
    for (i, (a, b)) in result.iter().zip(expected).enumerate() {
        let error = (f64::from(*a) - b).abs();
        assert!(error <= 10.0 * bound * (share + b.abs()), "{what}: number {i} is {a}, should be {b}");
    }
}

pub(crate) fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|v| v.to_bits()).collect()
}

/// Runs `work` by every instruction set that is there and demands the bits of the scalar reference; NaNs are alike.
/// Gives that result.
pub(crate) fn on_every_isa(what: &str, work: impl Fn() -> Vec<f32>) -> Vec<f32> {
    let plain = |numbers: &[f32]| -> Vec<u32> {
        numbers.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
    };
    let scalar = Isa::SCALAR.run(&work);
    for isa in Isa::present() {
        assert!(plain(&isa.run(&work)) == plain(&scalar), "{what}: {isa} gives other bits than scalar");
    }
    scalar
}

/// Runs `work`, which fills its argument of `count` numbers, in pools of several sizes and by every instruction set, and
/// demands equal bits of all.
pub(crate) fn assert_alike_on_any_threads(what: &str, count: usize, work: impl Fn(&mut [f32]) + Sync) {
    let run = |isa: Isa, threads: usize| {
        let pool =
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
        let mut out = poisoned(count);
        pool.install(|| isa.run(|| work(&mut out)));
        bits(&out)
    };
    let alone = run(Isa::SCALAR, 1);
    assert!(alone.iter().all(|v| !f32::from_bits(*v).is_nan()), "{what}: a number was not written");
    for isa in Isa::present() {
        for threads in [1, 2, 3, 7] {
            assert!(run(isa, threads) == alone, "{what}: {isa} with {threads} threads gives other bits");
        }
    }
}

/// `numbers` as little-endian bfloat16, and what they are after that rounding.
pub(crate) fn as_bf16(numbers: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let halves: Vec<half::bf16> = numbers.iter().map(|v| half::bf16::from_f32(*v)).collect();
    (halves.iter().flat_map(|v| v.to_le_bytes()).collect(), halves.iter().map(|v| v.to_f32()).collect())
}

/// `numbers` as little-endian binary16, and what they are after that rounding.
pub(crate) fn as_f16(numbers: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let halves: Vec<half::f16> = numbers.iter().map(|v| half::f16::from_f32(*v)).collect();
    (halves.iter().flat_map(|v| v.to_le_bytes()).collect(), halves.iter().map(|v| v.to_f32()).collect())
}
