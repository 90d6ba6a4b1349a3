//! Sequences drawn by a fixed seed.

use proptest::prelude::ProptestConfig;
use proptest::test_runner::RngSeed;

/// The same sequences every time; `PROPTEST_RNG_SEED` and `PROPTEST_CASES` search elsewhere.
pub(crate) fn config() -> ProptestConfig {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(1);
    }
    config
}
