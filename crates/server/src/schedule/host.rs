//! Who leaves the device or the host, and for whom.
//!
//! A job for which the device was cut too small counts on the host, and may find it taken by others that are parked there. Then:
//!
//! - While anybody can go on, those behind the job that comes first are saved for it, if that is enough.
//! - Where nobody can, those that can be parked without loss are, for the first job for which that is enough.
//! - Where it is enough for nobody, and still is not after a pause in which whoever could not be saved has been asked again, jobs make
//!   way for the first though what they did is lost.
//!
//! Of those that may leave the last in order do, and of these at once only the one without whom it would not be enough: whoever
//! leaves helps, and nobody leaves for a job behind it unless all of those behind that one do not make the room.

use std::cmp::Reverse;

use super::{Choice, Entry, Pause, Place, Schedule, Seq, order};
use crate::job::Class;

/// A job that may leave its place, and where it is kept then; `None` where that is as its last snapshot has it.
type Leaver<'a> = (Seq, &'a Entry, Option<Place>);

impl Schedule {
    /// Whether what a job counts on is there beside what others hold that are parked in the host. One that counts on the disk alone
    /// finds room there where these hold no more than the host has and the disk has to spare: what the host has no room for it hands down.
    pub(super) fn has_host_for(&self, entry: &Entry) -> bool {
        self.has_host_without(entry, &[])
    }

    /// The same if those in `without` were not parked there.
    fn has_host_without(&self, entry: &Entry, without: &[Seq]) -> bool {
        if !self.is_tight(entry) {
            return true;
        }
        let stay = self.jobs.iter().filter(|(seq, _)| !without.contains(seq));
        let parked: u64 = stay.map(|(_, entry)| held_in_host(entry)).sum();
        let others = parked.saturating_sub(held_in_host(entry));
        let spare = if entry.host_bytes == 0 { entry.disk_spare_bytes } else { 0 };
        others.saturating_add(entry.host_bytes) <= self.room.host_bytes.saturating_add(spare)
    }

    /// Whether a job is on the device, or could go there if those in `without` were not.
    fn has_device_without(&self, entry: &Entry, without: &[Seq]) -> bool {
        entry.place == Place::Device
            || self.has_room_for(entry, without)
            || self.on_device().all(|(seq, _)| without.contains(&seq))
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

    /// What must leave the host for the job that comes first, whoever goes on meanwhile: jobs behind it that can be saved.
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
        let behind = self.jobs.iter().filter(|(seq, entry)| {
            entry.place == Place::Host && order(**seq, entry) > first && self.is_savable(**seq, entry)
        });
        let behind = behind.filter(|(_, entry)| !self.is_let_be(entry, now));
        let leavers = behind.map(|(seq, entry)| (*seq, entry, Some(Place::Snapshot))).collect();
        one_of(leavers, |without| self.has_host_without(wanted, without))
    }

    /// What must leave the device because its budget was cut.
    pub(super) fn relieve(&self, now: i64) -> Option<Choice> {
        let claimed: u64 = self.on_device().map(|(_, entry)| self.claim(entry)).sum();
        let fits = |entry: &Entry| self.can_run(entry, now);
        if claimed <= self.room.device_bytes && self.on_device().all(|(_, entry)| fits(entry)) {
            return None;
        }
        // A job that can run stays if it is alone.
        let one_stays = usize::from(self.on_device().any(|(_, entry)| fits(entry)));
        let leaves = |entry: &Entry| !fits(entry) || self.on_device().count() > one_stays;
        let may_leave = self.on_device().filter(|(_, entry)| leaves(entry) && !self.is_let_be(entry, now));
        let last = may_leave.filter_map(|(seq, entry)| {
            Some(((!fits(entry), order(seq, entry)), Choice::Park(seq, self.berth(seq, entry, None)?)))
        });
        last.max_by_key(|(rank, _)| *rank).map(|(_, choice)| choice)
    }

    /// What makes way where nobody can do a unit for lack of what others hold: what can be kept, for the first of those that could
    /// beside nobody for which that is enough; else what cannot, for the first, once that has been waited for.
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
        let could_go_on = |entry: &Entry| {
            entry.least_bytes <= self.room.device_bytes
                && self.counts_on(entry) <= self.room.host_bytes
                && self.could_run(entry, now)
        };
        let could = self.jobs.iter().filter(|(_, entry)| could_go_on(entry));
        let mut wanted: Vec<_> = could.map(|(seq, entry)| (*seq, entry)).collect();
        // One that has given its place up and could not go on may not be able to yet.
        let gave_up = |entry: &Entry| entry.put_off > 0 && !holds_a_place(entry);
        wanted.sort_by_key(|(seq, entry)| (gave_up(entry), order(*seq, entry)));
        let kept = |leaver: &Leaver<'_>| leaver.2.is_some();
        let (first, waited) = (wanted.first(), !self.stuck.is_some_and(|pause| pause.holds(now)));
        wanted
            .iter()
            .find_map(|(seq, entry)| {
                let leavers = self.leavers(*seq, entry, now).into_iter().filter(kept).collect();
                self.leaves_for(entry, leavers)
            })
            .or_else(|| {
                let (seq, entry) = first.filter(|_| waited)?;
                self.leaves_for(entry, self.leavers(*seq, entry, now))
            })
    }

    /// All that may leave for a job.
    fn leavers(&self, wanted_seq: Seq, wanted: &Entry, now: i64) -> Vec<Leaver<'_>> {
        let others = self.jobs.iter().filter(|(seq, entry)| **seq != wanted_seq && holds_a_place(entry));
        let leavers = others.map(|(seq, entry)| {
            let to = if entry.place == Place::Device {
                self.berth(*seq, entry, Some(wanted))
            } else {
                self.is_savable(*seq, entry).then_some(Place::Snapshot)
            };
            (*seq, entry, to.filter(|_| !self.is_let_be(entry, now)))
        });
        leavers.collect()
    }

    /// Who of these leaves first so that a job can go on, if it can then.
    fn leaves_for(&self, wanted: &Entry, leavers: Vec<Leaver<'_>>) -> Option<Choice> {
        one_of(leavers, |without| {
            self.has_host_without(wanted, without) && self.has_device_without(wanted, without)
        })
    }

    /// Whether a job is not asked to leave its place, because it could not.
    pub(super) fn is_let_be(&self, entry: &Entry, now: i64) -> bool {
        let is_asked_later = entry.save_pause.is_some_and(|pause| pause.holds(now));
        is_asked_later || (entry.stays && self.has_place(entry))
    }

    /// Lets a job that could not be parked do another unit before that is tried again. One that can do none where it is, or is in the
    /// host, is asked again after `first`, then after twice as long each time, and never later than after `most`. Whether it is kept
    /// where it is: not where nobody can go on before it makes way, and that has been waited for once.
    pub fn keep_there(&mut self, seq: Seq, now: i64, (first, most): (i64, i64)) -> bool {
        let Some(entry) = self.jobs.get(&seq) else { return false };
        let does_another = entry.place == Place::Device && self.has_place(entry);
        let twice = |last: Pause| last.until.saturating_sub(last.from).saturating_mul(2).min(most);
        let until = now.saturating_add(entry.save_pause.map_or(first, twice));
        let Some(entry) = self.jobs.get_mut(&seq) else { return false };
        entry.stays = does_another;
        if does_another {
            return true;
        }
        entry.save_pause = Some(Pause { from: now, until });
        let leaves = self.clear_host(now).or_else(|| self.relieve(now)).or_else(|| self.make_way(now));
        if !matches!(leaves, Some(Choice::Park(named, _)) if named == seq) {
            return true;
        }
        // It was waited for already.
        if self.stuck.is_some() {
            return false;
        }
        // Whoever could not be saved is asked once more before that.
        let pauses = self.jobs.values().filter_map(|entry| entry.save_pause);
        let pauses = pauses.filter(|pause| pause.holds(now));
        let until = pauses.map(|pause| pause.until).fold(until, i64::max);
        self.stuck = Some(Pause { from: now, until });
        true
    }

    /// Where a job can be parked: in the host beside what jobs on the device and `wanted` count on there, else in its snapshot. A
    /// job that is parked for nobody goes to the host also where that leaves too little for others: they wait.
    pub(super) fn berth(&self, seq: Seq, entry: &Entry, wanted: Option<&Entry>) -> Option<Place> {
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

/// Whether a job is on the device or parked in the host.
fn holds_a_place(entry: &Entry) -> bool {
    matches!(entry.place, Place::Device | Place::Host)
}

/// Of jobs that leave until it is enough, the first to do so: those that are kept before others, the last in order before those that
/// come before them. It is the one with whom it is enough, so that nobody leaves without whom it would be too.
fn one_of(mut leavers: Vec<Leaver<'_>>, is_enough: impl Fn(&[Seq]) -> bool) -> Option<Choice> {
    leavers.sort_by_key(|(seq, entry, to)| (to.is_none(), Reverse(order(*seq, entry))));
    let mut without = Vec::new();
    leavers.into_iter().find_map(|(seq, _, to)| {
        without.push(seq);
        is_enough(&without).then_some(Choice::Park(seq, to.unwrap_or(Place::Snapshot)))
    })
}

/// What a job holds in the host because it is parked there.
fn held_in_host(entry: &Entry) -> u64 {
    if entry.place == Place::Host { entry.held_bytes } else { 0 }
}
