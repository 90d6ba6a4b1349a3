//! Noise drawn later than a video's beginning: a pure function of its place, so that a job that goes on after a break, or
//! draws its blocks in another order, draws the same.
//!
//! Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011): the key is the job's seed, the
//! counter is (place, block, step), and every four words of it give four normal numbers.

use super::box_muller_pair;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Four random words of a counter.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let [a, b] = [0, 1].map(|at| u64::from(MULTIPLIERS[at]) * u64::from(counter[2 * at]));
        #[expect(clippy::cast_possible_truncation, reason = "both halves of a product are used")]
        let halves = |product: u64| ((product >> 32) as u32, product as u32);
        let ((a_high, a_low), (b_high, b_low)) = (halves(a), halves(b));
        counter = [b_high ^ counter[1] ^ key[0], b_low, a_high ^ counter[3] ^ key[1], a_low];
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    counter
}

/// `len` standard normal numbers for step `step` of block `block` of the job with seed `seed`, in the order of the
/// block's latents `[channels, frames, height, width]`.
#[must_use]
pub fn step_noise(seed: u64, block: u32, step: u32, len: usize) -> Vec<f32> {
    let [low, high] = [seed, seed >> 32].map(|half| u32::try_from(half & 0xFFFF_FFFF).unwrap_or_default());
    let mut noise = vec![0.0; len];
    for (at, four) in noise.chunks_mut(4).enumerate() {
        let place =
            [at as u64, at as u64 >> 32].map(|half| u32::try_from(half & 0xFFFF_FFFF).unwrap_or_default());
        // A latent has fewer than 2^34 numbers, so the upper half of a place never meets a step.
        let words = philox([place[0], block, step, place[1]], [low, high]);
        let [a, b, c, d] = words.map(|word| f32::from_bits(0x3F80_0000 | word >> 9) - 1.0);
        let pairs = [box_muller_pair(a, b), box_muller_pair(c, d)];
        let numbers = pairs.iter().flat_map(|(first, second)| [*first, *second]);
        four.iter_mut().zip(numbers).for_each(|(to, number)| *to = number);
    }
    noise
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that come with the authors' own code (Random123, `kat_vectors`).
    #[test]
    fn the_words_are_those_of_the_reference() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD]
        );
        assert_eq!(
            philox([0x243F_6A88, 0x85A3_08D3, 0x1319_8A2E, 0x0370_7344], [0xA409_3822, 0x299F_31D0]),
            [0xD16C_FE09, 0x94FD_CCEB, 0x5001_E420, 0x2412_6EA1]
        );
    }

    #[test]
    fn every_seed_block_and_step_has_noise_of_its_own_and_a_shorter_one_is_its_beginning() {
        let noise = |seed, block, step| step_noise(seed, block, step, 1001);
        let all =
            [noise(7, 0, 0), noise(8, 0, 0), noise(7 + (1 << 32), 0, 0), noise(7, 1, 0), noise(7, 0, 1)];
        for (at, one) in all.iter().enumerate() {
            assert!(all[..at].iter().all(|other| other != one), "{at}");
        }
        assert_eq!(step_noise(7, 0, 0, 6), all[0][..6]);
    }

    #[test]
    fn the_numbers_are_normal() {
        let noise = step_noise(3, 2, 1, 40_000);
        let n = noise.len() as f64;
        let moment = |power| noise.iter().map(|x| f64::from(*x).powi(power)).sum::<f64>() / n;
        assert!(moment(1).abs() < 0.02 && (moment(2) - 1.0).abs() < 0.03, "{} {}", moment(1), moment(2));
        assert!(moment(3).abs() < 0.06 && (moment(4) - 3.0).abs() < 0.15, "{} {}", moment(3), moment(4));
    }
}
