//! What the engine's thread does while there is nothing to do: it waits for reports, looks again at what waits for memory, and
//! in the end gives back the memory that jobs have left behind.

use std::time::Duration;

use evanesce_engine::{Counters, Tier};

use super::{Event, RETRY_AFTER, Report, Worker};
use crate::clock::{Stopwatch, UnixMs};
use crate::journal::note;
use crate::pressure::Level;
use crate::schedule::Choice;

/// How long nothing is done before freed buffers go back to the machine; a job that comes sooner finds them in place.
const TRIM_AFTER: Duration = Duration::from_secs(5);

/// Bytes that tiers keep for reuse.
fn idle_bytes(counters: &Counters) -> u64 {
    Tier::ALL.iter().map(|tier| counters.tier(*tier).free_listed_bytes).sum()
}

/// How long freed buffers are still kept by a thread that has had nothing to do for `rested`; `None` where there are none.
fn until_trim(rested: Duration, idle_bytes: u64) -> Option<Duration> {
    (idle_bytes > 0).then(|| TRIM_AFTER.saturating_sub(rested))
}

impl Worker<'_> {
    /// Waits for a report, but not past the moment at which a job that waits for memory or space is looked at again, an ending
    /// written again, or freed memory given back.
    pub(super) fn rest(&mut self, now: UnixMs) -> Event {
        self.tell_memory(true);
        let rested = self.resting.get_or_insert_with(Stopwatch::start).elapsed();
        // What waits for memory is looked at again, whoever gave it back.
        let is_short = self.strain.level > Level::Calm;
        let until = |at: i64| Duration::from_millis(UnixMs(at).ms_since(now).unsigned_abs());
        let space = self.schedule.next_try(now.0).map(until);
        let soon = (is_short || !self.unwritten.is_empty()).then_some(RETRY_AFTER);
        let trim = until_trim(rested, idle_bytes(&self.model.counters()));
        let Some(patience) = [soon, space, trim].into_iter().flatten().min() else {
            return Event::Reported(self.inbox.blocking_recv().unwrap_or(Report::Shutdown));
        };
        if let Some(report) = self.hear(patience) {
            return Event::Reported(report);
        }
        if is_short {
            self.relieve(None);
        }
        if trim.is_some_and(|left| left <= patience) {
            let bytes = self.model.cache().trim();
            note("memory", format_args!("{bytes} bytes that were kept for reuse are given back"));
        }
        Event::Chosen(Choice::Idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_memory_is_kept_a_while_for_the_next_job_and_nothing_is_waited_for_where_there_is_none() {
        let rested = [0, 2, 5, 9].map(Duration::from_secs);
        let left = rested.map(|rested| until_trim(rested, 64));
        assert_eq!(left, [5, 3, 0, 0].map(|seconds| Some(Duration::from_secs(seconds))));
        assert_eq!(rested.map(|rested| until_trim(rested, 0)), [None; 4]);
    }
}
