//! Repeating an operation and looking at the clock.

use std::time::Instant;

const RUNS_MIN: usize = 3;
const RUNS_MAX: usize = 10_000;

/// How long to repeat.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub(crate) seconds: f64,
}

/// Times of one operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) median_s: f64,
    pub(crate) min_s: f64,
    pub(crate) runs: usize,
    flop: f64,
}

impl Measured {
    /// Billions of multiplications and additions a second, by the median.
    pub(crate) fn gflops(&self) -> f64 {
        self.flop / self.median_s * 1e-9
    }

    /// By the fastest run.
    pub(crate) fn best_gflops(&self) -> f64 {
        self.flop / self.min_s * 1e-9
    }
}

/// Runs `work`, which does `flop` multiplications and additions, once to warm up and then for the time given.
#[expect(clippy::disallowed_methods, reason = "the command line may look at the clock")]
pub(crate) fn measure(
    timing: Timing,
    flop: f64,
    mut work: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Measured> {
    work()?;
    let started = Instant::now();
    let mut seconds = Vec::new();
    while seconds.len() < RUNS_MIN
        || (seconds.len() < RUNS_MAX && started.elapsed().as_secs_f64() < timing.seconds)
    {
        let begun = Instant::now();
        work()?;
        seconds.push(begun.elapsed().as_secs_f64().max(1e-9));
    }
    seconds.sort_by(f64::total_cmp);
    Ok(Measured { median_s: seconds[seconds.len() / 2], min_s: seconds[0], runs: seconds.len(), flop })
}
