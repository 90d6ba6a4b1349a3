//! Initial noise equal to PyTorch's, so that a seed means the same video here and in Python pipelines; and noise that is
//! drawn later ([`step_noise`]), which has no order to be drawn in.
//!
//! [`Generator`] follows `torch.Generator("cpu")` and [`Generator::normal`] follows `torch.randn(.., dtype=float32)` as
//! PyTorch runs it on x86-64 with AVX2 (machines with AVX-512 use the same kernel). The algorithm was read in PyTorch's
//! `aten/src/ATen/core/MT19937RNGEngine.h`, `core/DistributionsHelper.h` and `native/cpu/DistributionTemplates.h`
//! (BSD-3-Clause) and written anew.
//!
//! How close: for 16 numbers or more, bit for bit, on every platform (only correctly rounded operations are used). For
//! fewer, PyTorch calls the system's `log1p`, `sin` and `cos` in double precision and rounds to `f32`; so do we, and the
//! bits agree wherever both use the same C library. PyTorch builds without AVX2 (ARM, `ATEN_CPU_CAPABILITY=default`)
//! differ from the AVX2 ones, and so from us, by at most about 2e-6.

mod approx;
mod counter;
mod engine;

pub use counter::step_noise;

use engine::Mt19937;

/// Numbers that the block form of Box-Muller makes at once.
const BLOCK: usize = 16;

/// A stream of random numbers: `torch.Generator("cpu").manual_seed(seed)`.
///
/// ```
/// use evanesce_wan::noise::Generator;
///
/// let mut noise = [0.0; 3];
/// Generator::new(0).normal(&mut noise);
/// assert_eq!(noise, [1.540_996_1, -0.293_428_9, -2.178_789_4]);
/// ```
#[derive(Clone, Debug)]
pub struct Generator {
    engine: Mt19937,
    /// The second number of the last double-precision pair, when it was not used yet.
    spare: Option<f64>,
}

impl Generator {
    /// Seeds a stream. PyTorch keeps only the low 32 bits of a seed, and so do we; a negative Python seed is its two's
    /// complement (`seed as u64`).
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { engine: Mt19937::new(seed), spare: None }
    }

    /// Fills `out` with what one call of `torch.randn(out.len(), generator=self)` returns.
    ///
    /// The shape of the tensor does not matter, its length does: 16 or more numbers take another path than fewer.
    pub fn normal(&mut self, out: &mut [f32]) {
        if out.len() < BLOCK {
            out.fill_with(|| self.next_normal());
            return;
        }
        out.fill_with(|| self.engine.next_uniform());
        let whole = out.len() / BLOCK * BLOCK;
        out[..whole].chunks_exact_mut(BLOCK).for_each(box_muller);
        if whole < out.len() {
            // The tail is not a block of its own: the last 16 numbers are drawn again, over some that were finished.
            let last = out.len() - BLOCK;
            let last = &mut out[last..];
            last.fill_with(|| self.engine.next_uniform());
            box_muller(last);
        }
    }

    /// One number in double precision, rounded: `at::normal_distribution<double>`.
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is what the reference does")]
    fn next_normal(&mut self) -> f32 {
        if let Some(spare) = self.spare.take() {
            return spare as f32;
        }
        let angle = std::f64::consts::TAU * self.engine.next_uniform_f64();
        let radius = (-2.0 * (-self.engine.next_uniform_f64()).ln_1p()).sqrt();
        self.spare = Some(radius * angle.sin());
        (radius * angle.cos()) as f32
    }
}

/// Initial noise of a job: `len` numbers for `seed`, in the order of a contiguous `[16, T, H/8, W/8]`.
#[must_use]
pub fn initial_noise(seed: u64, len: usize) -> Vec<f32> {
    let mut noise = vec![0.0; len];
    Generator::new(seed).normal(&mut noise);
    noise
}

/// Turns 16 uniform numbers into 16 normal ones: the first eight give radii, the last eight angles.
fn box_muller(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(BLOCK / 2);
    for (first, second) in radii.iter_mut().zip(angles) {
        (*first, *second) = box_muller_pair(*first, *second);
    }
}

/// Two normal numbers of two uniform ones in `[0, 1)`.
fn box_muller_pair(first: f32, second: f32) -> (f32, f32) {
    let radius = (-2.0 * approx::ln(1.0 - first)).sqrt();
    let (sin, cos) = approx::sin_cos(std::f32::consts::TAU * second);
    // The reference multiplies by a deviation of 1 and adds a mean of 0, which turns -0 into 0.
    (radius * cos + 0.0, radius * sin + 0.0)
}
