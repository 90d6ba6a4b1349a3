//! What the store knows of one job: its index, the lists by which its entries die, and its future.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};

use crate::counters::Usage;
use crate::disk::DiskFault;
use crate::schedule::Schedule;
use crate::slots::SlotId;
use crate::{EntryKey, Key, Tick};

/// Hashes without a random seed: two runs do the same.
pub(crate) type Map<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// One opening of a stage in one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StageId(pub(crate) u64);

/// An open stage and the entries that die with it.
pub(crate) struct StageState {
    pub(crate) id: StageId,
    pub(crate) entries: Vec<SlotId>,
}

/// Invariant: every live entry of the job is in `index`, and in the list that its `Expiry` names.
#[derive(Default)]
pub(crate) struct JobState {
    /// The guard is gone; the record stays until the last of its bytes is back.
    pub(crate) ended: bool,
    /// Steps done.
    pub(crate) step: u64,
    /// Position in the job's sequence of reads.
    pub(crate) now: Tick,
    pub(crate) index: Map<Key, SlotId>,
    /// Entries by the step whose end is theirs (law 6: a step takes its list and looks at nothing else).
    pub(crate) dying: BTreeMap<u64, Vec<SlotId>>,
    /// Open stages, innermost last.
    pub(crate) stages: Vec<StageState>,
    pub(crate) stages_opened: u64,
    /// Members of windows by series and frame, sinks left out.
    pub(crate) windows: BTreeMap<Key, BTreeMap<u32, SlotId>>,
    pub(crate) schedule: Map<EntryKey, Schedule>,
    /// Entries that did not come back from disk, until they are put again.
    pub(crate) lost: BTreeMap<Key, DiskFault>,
    /// Copies of the job's entries between tiers that are under way.
    pub(crate) copies: u64,
    pub(crate) usage: Usage,
}

impl JobState {
    pub(crate) fn stage(&self, id: StageId) -> Option<usize> {
        self.stages.iter().rposition(|stage| stage.id == id)
    }

    /// Ticks from the job's position to its next announced read of `key`.
    pub(crate) fn distance(&mut self, key: &EntryKey) -> Option<u64> {
        if self.schedule.is_empty() {
            return None;
        }
        let tick = self.schedule.get_mut(key)?.next(self.now)?;
        Some(tick.0 - self.now.0)
    }

    /// Forgets announced reads before the job's position, of all entries.
    pub(crate) fn forget_past(&mut self) {
        let now = self.now;
        self.schedule.retain(|_, schedule| schedule.next(now).is_some());
    }

    pub(crate) fn consume(&mut self, key: &EntryKey) {
        if let Some(schedule) = self.schedule.get_mut(key) {
            schedule.consume(self.now);
            if schedule.is_empty() {
                self.schedule.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Uses;
    use crate::{Key, Kind};

    #[test]
    fn reads_that_nobody_made_are_forgotten_and_those_to_come_are_not() {
        let mut job = JobState::default();
        for tick in 0..10 {
            let key = EntryKey::from(Key::new(Kind::SelfKv).frame(tick));
            job.schedule.entry(key).or_default().add(Uses::once(Tick(u64::from(tick))));
        }
        job.now = Tick(7);
        job.forget_past();
        assert_eq!(job.schedule.len(), 3);
        assert_eq!(job.distance(&Key::new(Kind::SelfKv).frame(9).into()), Some(2));
    }
}
