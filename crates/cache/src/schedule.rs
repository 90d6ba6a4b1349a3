//! The announced future of a job: when it will read which entry (law 5).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Logical time: a position in a job's own sequence of reads. Never the wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub u64);

/// An arithmetic progression of ticks at which one entry will be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uses {
    first: Tick,
    period_ticks: u64,
    count: u64,
}

impl Uses {
    /// One read at `tick`.
    pub const fn once(tick: Tick) -> Self {
        Self { first: tick, period_ticks: 1, count: 1 }
    }

    /// `count` reads, `period_ticks` apart, the first at `first`: a layer that every step reads.
    pub const fn every(period_ticks: u64, first: Tick, count: u64) -> Self {
        Self { first, period_ticks, count }
    }

    /// First tick, ticks between two reads, and how many reads.
    pub const fn parts(&self) -> (Tick, u64, u64) {
        (self.first, self.period_ticks, self.count)
    }
}

/// Ordered by the next tick first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Run {
    next: Tick,
    period_ticks: u64,
    remaining: u64,
}

impl Run {
    /// The run without its first `uses`, if anything is left of it.
    fn after(self, uses: u64) -> Option<Self> {
        let remaining = self.remaining.checked_sub(uses).filter(|left| *left > 0)?;
        let next = self.next.0.checked_add(self.period_ticks.checked_mul(uses)?)?;
        Some(Self { next: Tick(next), remaining, ..self })
    }

    /// The run without the uses that lie before `now`.
    fn from(self, now: Tick) -> Option<Self> {
        let late_ticks = now.0.saturating_sub(self.next.0);
        if late_ticks == 0 {
            return Some(self);
        }
        if self.period_ticks == 0 {
            return None;
        }
        self.after(late_ticks.div_ceil(self.period_ticks))
    }
}

/// The reads still expected of one entry. A periodic announcement costs one item however many reads it stands for.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    runs: BinaryHeap<Reverse<Run>>,
}

impl Schedule {
    pub(crate) fn add(&mut self, uses: Uses) {
        if uses.count > 0 {
            let run = Run { next: uses.first, period_ticks: uses.period_ticks, remaining: uses.count };
            self.runs.push(Reverse(run));
        }
    }

    /// The first expected read at `now` or later; earlier ones are forgotten.
    pub(crate) fn next(&mut self, now: Tick) -> Option<Tick> {
        while let Some(Reverse(run)) = self.runs.peek().copied() {
            if run.next >= now {
                return Some(run.next);
            }
            self.runs.pop();
            self.runs.extend(run.from(now).map(Reverse));
        }
        None
    }

    /// Takes the first expected read at `now` or later.
    pub(crate) fn consume(&mut self, now: Tick) {
        if self.next(now).is_some()
            && let Some(Reverse(run)) = self.runs.pop()
        {
            self.runs.extend(run.after(1).map(Reverse));
        }
    }

    /// What is still expected, in no particular order.
    pub(crate) fn uses(&self) -> Vec<Uses> {
        let runs = self.runs.iter().map(|Reverse(run)| run);
        let mut uses: Vec<_> =
            runs.map(|run| Uses::every(run.period_ticks, run.next, run.remaining)).collect();
        uses.sort_by_key(Uses::parts);
        uses
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut schedule: Schedule) -> Vec<u64> {
        let mut ticks = Vec::new();
        while let Some(tick) = schedule.next(Tick(0)) {
            ticks.push(tick.0);
            schedule.consume(Tick(0));
        }
        ticks
    }

    #[test]
    fn interleaved_runs_come_out_in_order() {
        let mut schedule = Schedule::default();
        schedule.add(Uses::every(10, Tick(3), 3));
        schedule.add(Uses::every(10, Tick(8), 2));
        schedule.add(Uses::once(Tick(14)));
        assert_eq!(all(schedule), [3, 8, 13, 14, 18, 23]);
    }

    #[test]
    fn reads_before_now_are_forgotten_without_walking_them() {
        let mut schedule = Schedule::default();
        schedule.add(Uses::every(2, Tick(1), u64::MAX / 2));
        assert_eq!(schedule.next(Tick(1_000_000_000_000)), Some(Tick(1_000_000_000_001)));
        schedule.add(Uses::every(0, Tick(5), 9));
        assert_eq!(schedule.next(Tick(u64::MAX)), None);
        assert!(schedule.is_empty());
    }
}
