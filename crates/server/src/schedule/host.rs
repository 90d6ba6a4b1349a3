//! The host: what jobs that are parked there hold of it, and what a job counts on for which the device was cut too small.

use super::{Choice, Entry, Place, Schedule, Seq, order};
use crate::job::Class;

impl Schedule {
    /// Whether what a job counts on is there beside what others hold that are parked in the host.
    pub(super) fn has_host_for(&self, entry: &Entry) -> bool {
        let counts_on = self.counts_on(entry);
        if counts_on == 0 {
            return true;
        }
        let parked: u64 = self.jobs.values().map(held_in_host).sum();
        let others = parked.saturating_sub(held_in_host(entry));
        others.saturating_add(counts_on) <= self.room.host_bytes
    }

    /// Bytes of the host that a job counts on: none where the device has room for all of it, or never could have.
    fn counts_on(&self, entry: &Entry) -> u64 {
        let is_tight = entry.needed_bytes > self.room.device_bytes;
        let may_fit = entry.least_bytes <= self.rules.room.device_bytes;
        if is_tight && may_fit { entry.host_bytes } else { 0 }
    }

    fn parked_in_host(&self, class: Class) -> u64 {
        self.jobs.values().filter(|entry| entry.class == class).map(held_in_host).sum()
    }

    /// What must leave the host for the job that comes first: the last in order behind it that can be saved.
    pub(super) fn clear_host(&self, now: i64) -> Option<Choice> {
        if self.jobs.values().all(|entry| self.counts_on(entry) == 0) {
            return None;
        }
        let may_run = self.jobs.iter().filter(|(_, entry)| self.could_run(entry, now));
        let (first, wanted) = may_run.min_by_key(|(seq, entry)| order(**seq, entry))?;
        if self.has_host_for(wanted) {
            return None;
        }
        let first = order(*first, wanted);
        let parked = self.jobs.iter().filter(|(seq, entry)| {
            entry.place == Place::Host
                && !entry.stays
                && order(**seq, entry) > first
                && self.is_savable(**seq, entry)
        });
        let last = parked.max_by_key(|(seq, entry)| order(**seq, entry));
        last.map(|(seq, _)| Choice::Park(*seq, Place::Snapshot))
    }

    /// Where a job can be parked: in the host beside what jobs on the device and `wanted` count on there, else in its snapshot. A
    /// job that is parked for nobody goes to the host also where that leaves too little for others: they wait.
    pub(super) fn berth(&self, seq: Seq, entry: &Entry, wanted: Option<&Entry>) -> Option<Place> {
        if entry.stays {
            return None;
        }
        let own = self.parked_in_host(entry.class).saturating_add(entry.held_bytes);
        let others = Class::ALL.into_iter().filter(|class| *class != entry.class);
        let others: u64 = others.map(|class| self.parked_in_host(class).max(self.quota(class, true).0)).sum();
        let fits_beside = |kept: u64| {
            own <= self.quota(entry.class, true).1
                && own.saturating_add(others).saturating_add(kept) <= self.room.host_bytes
        };
        let there = self.on_device().filter(|(other, _)| *other != seq).map(|(_, entry)| entry);
        let still_wanted = |entry: &Entry| self.counts_on(entry).saturating_sub(held_in_host(entry));
        let kept = there.chain(wanted).map(still_wanted).max().unwrap_or(0);
        if fits_beside(kept) {
            Some(Place::Host)
        } else if self.is_savable(seq, entry) {
            Some(Place::Snapshot)
        } else {
            (wanted.is_none() && fits_beside(0)).then_some(Place::Host)
        }
    }

    fn is_savable(&self, seq: Seq, entry: &Entry) -> bool {
        entry.can_be_saved && self.has_disk_for(seq, entry)
    }
}

/// What a job holds in the host because it is parked there.
fn held_in_host(entry: &Entry) -> u64 {
    if entry.place == Place::Host { entry.held_bytes } else { 0 }
}
