//! The limits of this machine, for comparing with: multiply-adds that never leave the registers, and copying memory.
#![expect(unsafe_code, reason = "calls loops compiled for the detected instruction set")]

use std::hint::black_box;

use rayon::prelude::*;

use crate::isa::{Isa, Kind};

/// Independent chains of a loop: they cover the latency of two multiply-adds a cycle and leave registers free.
const CHAINS: usize = 12;

/// Has every thread of the current pool do `rounds` rounds of independent fused multiply-adds of the current instruction
/// set; tells how many multiplications and additions that was, all threads together.
#[must_use]
pub fn multiply_adds(rounds: usize) -> f64 {
    let isa = Isa::current();
    rayon::broadcast(|_| burst(isa, rounds)).into_iter().sum()
}

/// Copies `from` to `to` with every thread of the current pool.
///
/// # Panics
/// When the lengths differ.
pub fn copy(from: &[f32], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "copy: both must be of one length");
    let share = from.len().div_ceil(rayon::current_num_threads()).max(1);
    from.par_chunks(share).zip(to.par_chunks_mut(share)).for_each(|(from, to)| to.copy_from_slice(from));
}

/// Threads of the current pool, which share out every operation.
#[must_use]
pub fn threads() -> usize {
    rayon::current_num_threads()
}

fn burst(isa: Isa, rounds: usize) -> f64 {
    let lanes = match isa.kind() {
        Kind::Scalar => scalar(rounds),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Kind::Avx2` exists only after its features were detected.
        Kind::Avx2 => unsafe { avx2(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Kind::Avx512` exists only after its features were detected.
        Kind::Avx512 => unsafe { avx512(rounds) },
    };
    2.0 * (lanes * CHAINS) as f64 * rounds as f64
}

fn scalar(rounds: usize) -> usize {
    let (factor, mut sums) = (black_box(0.5_f32), [1.0_f32; CHAINS]);
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = factor.mul_add(*sum, factor));
    }
    black_box(sums);
    1
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(rounds: usize) -> usize {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps};
    let factor = _mm256_set1_ps(black_box(0.5));
    let mut sums = [factor; CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(factor, *sum, factor);
        }
    }
    black_box(sums);
    8
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(rounds: usize) -> usize {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_set1_ps};
    let factor = _mm512_set1_ps(black_box(0.5));
    let mut sums = [factor; CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(factor, *sum, factor);
        }
    }
    black_box(sums);
    16
}

#[cfg(test)]
mod tests {
    use super::{CHAINS, copy, multiply_adds};
    use crate::isa::Isa;

    #[test]
    fn every_thread_does_its_multiply_adds() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for isa in Isa::present() {
            let lanes = match isa.as_str() {
                "scalar" => 1,
                "avx2" => 8,
                _ => 16,
            };
            let done = pool.install(|| isa.run(|| multiply_adds(10)));
            let expected = (2 * 3 * 10 * CHAINS * lanes) as f64;
            assert!((done - expected).abs() < 0.5, "{isa}: {done}");
        }
    }

    #[test]
    fn a_copy_is_whole() {
        let from: Vec<f32> = (0..1001).map(|i| i as f32).collect();
        let mut to = vec![-1.0; 1001];
        copy(&from, &mut to);
        assert_eq!(from, to);
    }
}
