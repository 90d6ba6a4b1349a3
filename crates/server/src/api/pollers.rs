//! When clients that poll are asked to come back. Each gets a place in one of the moments to come, so however many there are, what they cost
//! together is bounded. In between nobody comes: arithmetic that runs on all processors is disturbed four times a second, not at every poll.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Stopwatch;

/// The longest pause that a client would rather have.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Polls that are asked for in one second, as long as nobody need come more than [`LATER_MAX`] late for it.
const POLLS_PER_SECOND: u64 = 256;
const SLOT_MS: u64 = 250;
const POLLS_PER_SLOT: u64 = POLLS_PER_SECOND * SLOT_MS / 1000;
/// Beyond the pause that a client would rather have, how much later it may be told to come.
const LATER_MAX: Duration = Duration::from_millis(4500);
/// More slots than the longest pause has, so that none is the past's and the future's at once.
const N_SLOTS: usize = 64;

/// How many are to come at one moment; moments are numbered from the start of the service.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    number: u64,
    polls: u64,
}

/// Who is to come back when.
#[derive(Debug)]
pub(crate) struct Pollers {
    since: Stopwatch,
    slots: Mutex<[Slot; N_SLOTS]>,
}

impl Pollers {
    pub(crate) fn new() -> Self {
        Self { since: Stopwatch::start(), slots: Mutex::new([Slot::default(); N_SLOTS]) }
    }

    /// How long a client should wait that would rather ask again after `wanted`: a little longer, or as long as it takes until fewer come.
    pub(super) fn pause(&self, wanted: Duration) -> Duration {
        self.pause_at(self.since.elapsed(), wanted)
    }

    fn pause_at(&self, now: Duration, wanted: Duration) -> Duration {
        let number_of = |at: Duration| u64::try_from(at.as_millis()).unwrap_or(u64::MAX) / SLOT_MS;
        let wanted = wanted.min(PAUSE_MAX);
        let first = number_of(now + wanted) + 1;
        let last = number_of(now + wanted + LATER_MAX) + 1;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let index = |number: u64| usize::try_from(number).unwrap_or(0) % N_SLOTS;
        let polls = |number: u64| {
            let slot = slots[index(number)];
            if slot.number == number { slot.polls } else { 0 }
        };
        let has_room = (first..=last).find(|number| polls(*number) < POLLS_PER_SLOT);
        let number = has_room.or_else(|| (first..=last).min_by_key(|number| polls(*number))).unwrap_or(first);
        let before = polls(number);
        slots[index(number)] = Slot { number, polls: before + 1 };
        drop(slots);
        Duration::from_millis(number * SLOT_MS).saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When each of some clients comes back, who all ask at `now` and would rather wait for `wanted`.
    fn returns(pollers: &Pollers, n_clients: usize, now: Duration, wanted: Duration) -> Vec<Duration> {
        (0..n_clients).map(|_| now + pollers.pause_at(now, wanted)).collect()
    }

    fn most_in_a_second(mut at: Vec<Duration>) -> usize {
        at.sort();
        (0..at.len())
            .map(|from| {
                at[from..].iter().take_while(|later| **later < at[from] + Duration::from_secs(1)).count()
            })
            .max()
            .unwrap_or(0)
    }

    #[test]
    fn a_few_come_back_when_they_want() {
        let pollers = Pollers::new();
        let wanted = Duration::from_millis(700);
        for at in returns(&pollers, 5, Duration::from_secs(3), wanted) {
            let pause = at - Duration::from_secs(3);
            assert!((wanted..=wanted + Duration::from_millis(2 * SLOT_MS)).contains(&pause), "{pause:?}");
        }
    }

    #[test]
    fn many_come_back_one_after_the_other() {
        let pollers = Pollers::new();
        for (now, wanted) in [(3, Duration::from_millis(250)), (20, PAUSE_MAX), (40, Duration::from_hours(1))]
        {
            let now = Duration::from_secs(now);
            let at = returns(&pollers, 1000, now, wanted);
            let latest = *at.iter().max().unwrap();
            let soonest = now + wanted.min(PAUSE_MAX);
            assert!(at.iter().all(|at| *at >= soonest));
            assert!(latest < soonest + Duration::from_millis(4500), "1000 at 256 a second, until {latest:?}");
            let most = most_in_a_second(at);
            assert!((200..=320).contains(&most), "{most} in one second");
        }
    }

    #[test]
    fn a_slot_is_free_again_when_its_time_is_over() {
        let pollers = Pollers::new();
        let wanted = Duration::from_secs(1);
        for round in 0..100 {
            let now = Duration::from_secs(16 * round);
            let at = returns(&pollers, 256, now, wanted);
            assert!(at.iter().all(|at| *at < now + Duration::from_millis(2300)), "round {round}");
        }
    }

    #[test]
    fn more_than_there_is_room_for_are_spread_over_all_of_it() {
        let pollers = Pollers::new();
        let now = Duration::from_secs(1);
        let at = returns(&pollers, 10_000, now, Duration::from_millis(250));
        assert!(at.iter().all(|at| *at <= now + LATER_MAX + Duration::from_millis(500)));
        let most = most_in_a_second(at);
        assert!(most <= 2700, "{most} in one second, where 2200 is even");
    }
}
