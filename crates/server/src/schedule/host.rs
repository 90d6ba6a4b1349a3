//! The host: what jobs that are parked there hold of it, what a job counts on for which the device was cut too small, and who makes way
//! where each waits for another.

use super::{Choice, Entry, Pause, Place, Schedule, Seq, order};
use crate::job::Class;

impl Schedule {
    /// Whether what a job counts on is there beside what others hold that are parked in the host. One that counts on the disk alone
    /// finds room there where these hold no more than the host has and the disk has to spare: what the host has no room for it hands down.
    pub(super) fn has_host_for(&self, entry: &Entry) -> bool {
        if !self.is_tight(entry) {
            return true;
        }
        let parked: u64 = self.jobs.values().map(held_in_host).sum();
        let others = parked.saturating_sub(held_in_host(entry));
        let spare = if entry.host_bytes == 0 { entry.disk_spare_bytes } else { 0 };
        others.saturating_add(entry.host_bytes) <= self.room.host_bytes.saturating_add(spare)
    }

    /// Whether the device has no room for all of a job, though it may do its units there beside the tiers below, now or with all that
    /// the rules give.
    fn is_tight(&self, entry: &Entry) -> bool {
        let may_fit = entry.least_bytes <= self.room.device_bytes
            || entry.least_ever_bytes <= self.rules.room.device_bytes;
        entry.needed_bytes > self.room.device_bytes && may_fit
    }

    /// Bytes of the host that a job counts on: none where the device has room for all of it, or never could have.
    fn counts_on(&self, entry: &Entry) -> u64 {
        if self.is_tight(entry) { entry.host_bytes } else { 0 }
    }

    fn parked_in_host(&self, class: Class) -> u64 {
        self.jobs.values().filter(|entry| entry.class == class).map(held_in_host).sum()
    }

    /// What must leave the host for the job that comes first: the last in order behind it that can be saved.
    pub(super) fn clear_host(&self, now: i64) -> Option<Choice> {
        if !self.jobs.values().any(|entry| self.is_tight(entry)) {
            return None;
        }
        // One that could not go on hides none that may, and has nobody saved for it.
        let counts = |entry: &Entry| entry.put_off == 0 || entry.place == Place::Device;
        let may_run = self.jobs.iter().filter(|(_, entry)| counts(entry) && self.could_run(entry, now));
        let (first, wanted) = may_run.min_by_key(|(seq, entry)| order(**seq, entry))?;
        if self.has_host_for(wanted) || wanted.put_off > 0 {
            return None;
        }
        let first = order(*first, wanted);
        let parked = self.jobs.iter().filter(|(seq, entry)| {
            entry.place == Place::Host
                && !entry.save_pause.is_some_and(|pause| pause.holds(now))
                && order(**seq, entry) > first
                && self.is_savable(**seq, entry)
        });
        let last = parked.max_by_key(|(seq, entry)| order(**seq, entry));
        last.map(|(seq, _)| Choice::Park(*seq, Place::Snapshot))
    }

    /// What makes way where nobody can do a unit for lack of what others hold: the last in order, in its snapshot, though it may be one
    /// that cannot be saved, so that the first goes on of those that could beside nobody.
    pub(super) fn make_way(&self, now: i64) -> Option<Choice> {
        let is_empty = self.on_device().next().is_none();
        let goes_on = |entry: &Entry| {
            if is_empty {
                self.can_run(entry, now)
            } else {
                entry.place == Place::Device && self.has_place(entry)
            }
        };
        if self.jobs.values().any(goes_on) {
            return None;
        }
        // Nobody is dropped for one that has given its place up and could not go on.
        let has_begun = |entry: &Entry| matches!(entry.place, Place::Device | Place::Host);
        let could_go_on = |entry: &Entry| {
            (entry.put_off == 0 || has_begun(entry))
                && entry.least_bytes <= self.room.device_bytes
                && self.counts_on(entry) <= self.room.host_bytes
                && self.could_run(entry, now)
        };
        let could = self.jobs.iter().filter(|(_, entry)| could_go_on(entry));
        let (first, wanted) = could.min_by_key(|(seq, entry)| (entry.put_off > 0, order(**seq, entry)))?;
        let has_host = self.has_host_for(wanted);
        let is_in_the_way =
            |entry: &Entry| entry.place == Place::Device || (!has_host && held_in_host(entry) > 0);
        let others = self.jobs.iter().filter(|(seq, entry)| *seq != first && is_in_the_way(entry));
        let last = others.max_by_key(|(seq, entry)| order(**seq, entry));
        last.map(|(seq, _)| Choice::Park(*seq, Place::Snapshot))
    }

    /// Lets a job that could not be parked do another unit before that is tried again, and one that could not be saved be in the host:
    /// it is asked again after `first`, then after twice as long each time, and never later than after `most`. Whether it is kept
    /// there: not where it can do no unit, or nobody can before it makes way.
    pub fn keep_there(&mut self, seq: Seq, now: i64, (first, most): (i64, i64)) -> bool {
        let Some(entry) = self.jobs.get(&seq) else { return false };
        let is_in_host = entry.place == Place::Host;
        let stays = if is_in_host {
            let leaves = self.relieve(now).or_else(|| self.make_way(now));
            leaves != Some(Choice::Park(seq, Place::Snapshot))
        } else {
            self.has_place(entry)
        };
        if let Some(entry) = self.jobs.get_mut(&seq) {
            if is_in_host {
                let twice = |last: Pause| last.until.saturating_sub(last.from).saturating_mul(2).min(most);
                let until = now.saturating_add(entry.save_pause.map_or(first, twice));
                entry.save_pause = Some(Pause { from: now, until });
            } else {
                entry.stays = stays;
            }
        }
        stays
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
