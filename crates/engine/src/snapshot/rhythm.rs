//! When a job is kept again. There is no clock here: whoever has one says how long things took.

use std::time::Duration;

/// How often a job is kept: so often that little is lost, and so seldom that it costs little.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rhythm {
    /// After so many units of work; besides, at the end of every block.
    pub every_units: u32,
    /// After so many seconds of work.
    pub every_seconds: f64,
    /// The largest share of the job's own time that keeping it may take; from 1 on it may take any.
    pub share_max: f64,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self { every_units: 10, every_seconds: 60.0, share_max: 0.1 }
    }
}

impl Rhythm {
    /// Whether a job that is in this block now is to be kept.
    #[must_use]
    pub fn is_due(&self, since: &SinceKept, block: usize) -> bool {
        let wanted = since.units >= self.every_units
            || since.worked.as_secs_f64() >= self.every_seconds
            || block != since.block;
        let affordable =
            self.share_max >= 1.0 || since.took.as_secs_f64() <= self.share_max * since.worked.as_secs_f64();
        wanted && affordable
    }
}

/// How much a job has done since it was kept, and what that cost. What it waited does not count: nothing more would be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinceKept {
    units: u32,
    worked: Duration,
    took: Duration,
    block: usize,
}

impl SinceKept {
    /// Of a job that begins or goes on in this block.
    #[must_use]
    pub const fn new(block: usize) -> Self {
        Self::after(block, Duration::ZERO)
    }

    /// Of a job that was just kept in this block, which took so long.
    #[must_use]
    pub const fn after(block: usize, took: Duration) -> Self {
        Self { units: 0, worked: Duration::ZERO, took, block }
    }

    /// Counts a unit.
    pub fn count(&mut self, took: Duration) {
        self.units += 1;
        self.worked += took;
    }

    /// Counts what keeping it took besides.
    pub fn add_cost(&mut self, took: Duration) {
        self.took += took;
    }

    /// Whether more would be lost of a job that ends here than keeping it took the last time.
    #[must_use]
    pub fn is_worth_keeping(&self) -> bool {
        self.worked > self.took
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_job_is_kept_after_some_units_or_seconds_or_a_block_and_never_for_more_than_its_share() {
        let rhythm = Rhythm::default();
        let since = |n_units: u64, unit_ms: u64, took_ms: u64| {
            let mut since = SinceKept::after(0, ms(took_ms));
            (0..n_units).for_each(|_| since.count(ms(unit_ms)));
            since
        };
        assert!(!rhythm.is_due(&since(9, 1000, 0), 0));
        assert!(rhythm.is_due(&since(10, 1000, 0), 0), "ten units");
        assert!(rhythm.is_due(&since(2, 30_000, 0), 0), "a minute");
        assert!(rhythm.is_due(&since(1, 1000, 0), 1), "another block");
        assert!(rhythm.is_due(&since(10, 1000, 1000), 0));
        assert!(!rhythm.is_due(&since(10, 1000, 1001), 0), "more than a tenth of the time");
        assert!(Rhythm { share_max: 1.0, ..rhythm }.is_due(&since(10, 1000, 60_000), 0));
        let mut late = since(10, 1000, 999);
        late.add_cost(ms(2));
        assert!(!rhythm.is_due(&late, 0));
    }

    #[test]
    fn a_job_that_ends_is_worth_keeping_if_that_takes_less_than_what_it_has_done() {
        let mut since = SinceKept::after(3, ms(50));
        assert!(!since.is_worth_keeping());
        since.count(ms(51));
        assert!(since.is_worth_keeping());
        assert!(!SinceKept::new(0).is_worth_keeping(), "nothing was done yet");
    }
}
