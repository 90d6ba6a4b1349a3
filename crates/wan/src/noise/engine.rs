//! The Mersenne Twister as PyTorch's CPU generator runs it.
//!
//! Matsumoto and Nishimura, "Mersenne twister: a 623-dimensionally equidistributed uniform pseudo-random number
//! generator", 1998; the seeding is that of their 2002 revision.

const WORDS: usize = 624;
const SHIFT: usize = 397;

/// mt19937 with a 32-bit seed.
#[derive(Clone)]
pub(super) struct Mt19937 {
    state: Box<[u32; WORDS]>,
    /// The next word of `state` to hand out; `WORDS` when the state must be renewed first.
    next: usize,
}

impl std::fmt::Debug for Mt19937 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mt19937").field("next", &self.next).finish_non_exhaustive()
    }
}

impl Mt19937 {
    /// Only the low half of the seed is used.
    pub(super) fn new(seed: u64) -> Self {
        let mut state = Box::new([0; WORDS]);
        let [low @ .., _, _, _, _] = seed.to_le_bytes();
        let mut word = u32::from_le_bytes(low);
        for (index, slot) in (0u32..).zip(state.iter_mut()) {
            if index > 0 {
                word = (word ^ (word >> 30)).wrapping_mul(1_812_433_253).wrapping_add(index);
            }
            *slot = word;
        }
        Self { state, next: WORDS }
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == WORDS {
            self.renew();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn renew(&mut self) {
        for at in 0..WORDS {
            let (high, low) = (self.state[at], self.state[(at + 1) % WORDS]);
            let twisted = (((high & 0x8000_0000) | (low & 0x7fff_ffff)) >> 1) ^ ((low & 1) * 0x9908_b0df);
            self.state[at] = self.state[(at + SHIFT) % WORDS] ^ twisted;
        }
        self.next = 0;
    }

    /// A multiple of 2^-24 in 0..1, from the low bits of one word.
    pub(super) fn next_uniform(&mut self) -> f32 {
        const STEP: f32 = 1.0 / 16_777_216.0;
        (self.next_u32() & 0x00ff_ffff) as f32 * STEP
    }

    /// A multiple of 2^-53 in 0..1, from the low bits of two words, the first being the high half.
    pub(super) fn next_uniform_f64(&mut self) -> f64 {
        const STEP: f64 = 1.0 / 9_007_199_254_740_992.0;
        let word = (u64::from(self.next_u32()) << 32) | u64::from(self.next_u32());
        (word & ((1 << 53) - 1)) as f64 * STEP
    }
}
