//! Jobs and their stages, as guards.

use std::fmt;
use std::sync::Arc;

use crate::cache::remove;
use crate::draft::Draft;
use crate::fetch::{Fetcher, get, peek, take};
use crate::job_state::StageId;
use crate::lease::Lease;
use crate::owned::Owned;
use crate::reservation::Reservation;
use crate::room::{Locked, Shared};
use crate::schedule::Uses;
use crate::{
    ContentKey, Displace, EntryKey, Expired, GetError, GroupWriter, JobId, Key, Lifetime, OutOfBudget, Owner,
};
use crate::{PutError, PutSpec, Tick, Tier, Usage, Workspace, WorkspaceError, Writer};

/// One job's part of the cache. Dropping it frees everything the job owns, also during a panic (law 1).
///
/// A job reads and writes nothing but its own entries and the shared pool (law 10).
pub struct Job {
    shared: Arc<Shared>,
    id: JobId,
}

impl Job {
    pub(crate) fn new(shared: Arc<Shared>, id: JobId) -> Self {
        Self { shared, id }
    }

    /// The job's number.
    pub fn id(&self) -> JobId {
        self.id
    }

    pub(crate) fn owner(&self) -> Owner {
        Owner::Job(self.id)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Another job of the same cache.
    pub(crate) fn open_beside(&self) -> Self {
        let id = self.shared.lock().open_job();
        Self::new(Arc::clone(&self.shared), id)
    }

    /// Begins an entry that cannot be brought back once lost, so that eviction may demote but never drop it.
    /// [`put_with`](Self::put_with) says more.
    ///
    /// # Errors
    /// If the key is taken, the lifetime does not suit, or the tier cannot make room.
    pub fn put(
        &self,
        key: Key,
        tier: Tier,
        lifetime: Lifetime,
        len_bytes: usize,
    ) -> Result<Writer, PutError> {
        self.put_with(key, PutSpec::new(tier, lifetime, len_bytes))
    }

    /// As [`put`](Self::put) with everything said.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn put_with(&self, key: Key, spec: PutSpec) -> Result<Writer, PutError> {
        Draft::begin(&self.shared, self.owner(), key.into(), spec).map(Writer::new)
    }

    /// Begins entries that become visible together or not at all (law 7): room for all of them, or none.
    ///
    /// # Errors
    /// As [`put`](Self::put), or if a key occurs twice.
    pub fn put_group(
        &self,
        entries: impl IntoIterator<Item = (Key, PutSpec)>,
    ) -> Result<GroupWriter, PutError> {
        let entries = entries.into_iter().map(|(key, spec)| (key.into(), spec)).collect();
        Draft::begin_group(&self.shared, self.owner(), entries).map(GroupWriter::new)
    }

    /// Leases an entry of this job. Counts a hit or a miss, and takes the next announced read off the schedule either
    /// way.
    ///
    /// A demoted entry is brought home first if room can be made there. If it cannot, or if another lease keeps the
    /// entry where it is, the lease is on the lower tier: [`Lease::tier`] says which. Nothing is read in place on disk.
    pub fn get(&self, key: &Key) -> Option<Lease> {
        self.try_get(key).ok()
    }

    /// As [`get`](Self::get), and says why when there is no lease.
    ///
    /// # Errors
    /// If there is no such entry, or it is on disk and no tier in memory can make room for it, or it did not come back
    /// from disk as it was; then it is lost, until it is put again.
    pub fn try_get(&self, key: &Key) -> Result<Lease, GetError> {
        get(&self.shared, self.owner(), Some(self.id), &EntryKey::Own(*key))
    }

    /// As [`try_get`](Self::try_get), and ends the entry when no later read of it is announced: it is gone from sight, and its
    /// bytes come back with the lease. What is dead would only be copied away to make room.
    ///
    /// # Errors
    /// As [`try_get`](Self::try_get).
    pub fn try_take(&self, key: &Key) -> Result<Lease, GetError> {
        take(&self.shared, self.id, &EntryKey::Own(*key))
    }

    /// As [`get`](Self::get) for an entry of the shared pool.
    pub fn shared_get(&self, key: &ContentKey) -> Option<Lease> {
        self.try_shared_get(key).ok()
    }

    /// As [`shared_get`](Self::shared_get), and says why when there is no lease.
    ///
    /// # Errors
    /// As [`Cache::try_shared_get`](crate::Cache::try_shared_get).
    pub fn try_shared_get(&self, key: &ContentKey) -> Result<Lease, GetError> {
        get(&self.shared, Owner::Shared, Some(self.id), &EntryKey::Shared(*key))
    }

    /// Whether the job has an entry of this key. Not counted as a read.
    pub fn contains(&self, key: &Key) -> bool {
        self.shared.lock().find(self.owner(), &EntryKey::Own(*key)).is_some()
    }

    /// Where an entry of this job is now. Not counted as a read.
    pub fn tier_of(&self, key: &Key) -> Option<Tier> {
        let store = self.shared.lock();
        store.find(self.owner(), &EntryKey::Own(*key)).map(|id| store.slots[id].tier)
    }

    /// Sends an entry to the tier below the one it is in, making room there. Where it is afterwards; `None` if there is
    /// no such entry. It stays where it is if somebody holds it, there is no tier below, or the disk below takes no more. If it
    /// is on its way somewhere, that is waited for.
    ///
    /// # Errors
    /// If the tier below cannot make room.
    pub fn demote(&self, key: &Key) -> Result<Option<Tier>, OutOfBudget> {
        self.demote_if(key, |_| true)
    }

    /// As [`demote`](Self::demote), if the entry is in `tier` then.
    ///
    /// # Errors
    /// As [`demote`](Self::demote).
    pub fn demote_from(&self, tier: Tier, key: &Key) -> Result<Option<Tier>, OutOfBudget> {
        self.demote_if(key, |now| now == tier)
    }

    fn demote_if(&self, key: &Key, leaves: impl Fn(Tier) -> bool) -> Result<Option<Tier>, OutOfBudget> {
        let mut store = self.shared.lock();
        let id = loop {
            let Some(id) = store.find(self.owner(), &EntryKey::Own(*key)) else { return Ok(None) };
            if !store.slots[id].is_moving() {
                break id;
            }
            store = self.shared.wait(store);
        };
        let slot = &store.slots[id];
        let below = store.tier_below(slot.tier).filter(|_| slot.is_free_to_go() && leaves(slot.tier));
        let Some(below) = below else { return Ok(Some(slot.tier)) };
        let (store, room) = self.shared.relocate(store, id, below, Displace::Anything);
        let found = store.find(self.owner(), &EntryKey::Own(*key)).map(|id| store.slots[id].tier);
        room.map(|()| found)
    }

    /// Leases an entry where it is, or, from disk, in the host, for somebody who copies it elsewhere: not counted as a read, and
    /// nothing is taken off the schedule. Only where the host has no room for it is it brought to the device.
    ///
    /// # Errors
    /// As [`try_get`](Self::try_get).
    pub fn peek(&self, key: &Key) -> Result<Lease, GetError> {
        peek(&self.shared, self.owner(), &EntryKey::Own(*key))
    }

    /// What the job owns and can read, by key. Takes time proportional to it.
    pub fn entries(&self) -> Vec<Owned> {
        self.shared.lock().owned(self.id)
    }

    /// A handle for a thread that brings entries of this job home before they are read.
    pub fn fetcher(&self) -> Fetcher {
        Fetcher::new(Arc::clone(&self.shared), self.id)
    }

    /// Removes an entry of this job. Whether there was one.
    pub fn remove(&self, key: &Key) -> bool {
        remove(&self.shared, self.owner(), &EntryKey::Own(*key))
    }

    /// Ends what a series of [`Lifetime::Window`] entries holds beyond its `keep` highest frames; sinks stay. `member` names
    /// the series: any of its keys, whatever the frame. Takes time for what ends, and copies nothing. Other threads may read meanwhile: what they
    /// hold is out of sight at once, and its bytes come back with the last lease.
    pub fn prune_old(&self, member: &Key, keep: u32) -> Expired {
        self.shared.lock().prune_old(self.id, member.series(), keep)
    }

    /// Ends the current step and the entries whose last step it was, in time proportional to them (law 6).
    pub fn step(&self) -> Expired {
        self.shared.lock().step(self.id)
    }

    /// Opens a stage inside the stages that are open. Puts with [`Lifetime::Stage`] belong to the innermost one.
    pub fn stage(&self, name: &'static str) -> Stage {
        let id = self.shared.lock().open_stage(self.id);
        Stage { shared: Arc::clone(&self.shared), job: self.id, id, name }
    }

    /// Reserves room in this job's name: all of it or none.
    ///
    /// # Errors
    /// If a tier cannot make the room even by evicting all that may be evicted.
    pub fn reserve(&self, wanted: &[(Tier, u64)]) -> Result<Reservation, OutOfBudget> {
        Reservation::begin(&self.shared, self.owner(), wanted)
    }

    /// Memory to work in, counted as reserved until it is dropped, in whole lines and one at least. One that is as large as the
    /// last one is the same memory, unless its room was needed in between.
    ///
    /// # Errors
    /// If it is to be on disk, the tier cannot make the room even by evicting all that may be evicted, or the system has no such memory.
    pub fn workspace(&self, tier: Tier, len_bytes: usize) -> Result<Workspace, WorkspaceError> {
        Workspace::begin(&self.shared, self.owner(), tier, len_bytes)
    }

    /// Announces when the job will read an entry, which need not exist yet (law 5). Announcements of one entry add up.
    /// Announce every read of an entry or none: each [`get`](Self::get) takes the earliest one off.
    pub fn announce(&self, key: impl Into<EntryKey>, uses: Uses) {
        let mut store = self.shared.lock();
        if let Some(job) = store.jobs.get_mut(&self.id) {
            job.schedule.entry(key.into()).or_default().add(uses);
        }
    }

    /// Announces single reads in any order.
    pub fn announce_all(&self, reads: impl IntoIterator<Item = (EntryKey, Tick)>) {
        // Collected first: the caller's iterator must not run under the lock.
        let reads: Vec<_> = reads.into_iter().collect();
        let mut store = self.shared.lock();
        if let Some(job) = store.jobs.get_mut(&self.id) {
            for (key, tick) in reads {
                job.schedule.entry(key).or_default().add(Uses::once(tick));
            }
        }
    }

    /// Forgets announced reads that are past. They have no effect any more but to take memory, where the entry is gone that they
    /// were of; those of an entry that is read are forgotten without this.
    pub fn forget_past(&self) {
        if let Some(job) = self.shared.lock().jobs.get_mut(&self.id) {
            job.forget_past();
        }
    }

    /// Forgets all announcements: the plan has changed.
    pub fn withdraw(&self) {
        if let Some(job) = self.shared.lock().jobs.get_mut(&self.id) {
            job.schedule.clear();
        }
    }

    /// The next announced read of an entry.
    pub fn next_use(&self, key: impl Into<EntryKey>) -> Option<Tick> {
        let mut store = self.shared.lock();
        let job = store.jobs.get_mut(&self.id)?;
        let distance = job.distance(&key.into())?;
        Some(Tick(job.now.0 + distance))
    }

    /// Moves the job's position forward to `now`. Announced reads before it are past. Entries of several jobs are
    /// compared by their distance from their job's position, so a job that shares a budget should say where it is.
    pub fn tick(&self, now: Tick) {
        if let Some(job) = self.shared.lock().jobs.get_mut(&self.id) {
            job.now = job.now.max(now);
        }
    }

    /// What the job holds now, and the most it ever held, by tier.
    pub fn usage(&self) -> Usage {
        self.shared.lock().usage_of(self.id)
    }

    /// Ends the job as dropping it does, and says what it still holds: bytes under leases, flights, open writers and
    /// reservations that outlive it.
    pub fn finish(self) -> Usage {
        self.end().usage_of(self.id)
    }

    /// Ends the job. Copies of its entries that are under way on other threads are waited for, so that what nobody holds
    /// is back when this returns.
    fn end(&self) -> Locked<'_> {
        let mut store = self.shared.lock();
        store.end_job(self.id);
        self.shared.wait_for_copies_of(store, self.id)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        drop(self.end());
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({})", self.id)
    }
}

/// A stretch of a job. Entries with [`Lifetime::Stage`] die when it is dropped, on every path out.
#[must_use = "the stage ends when this is dropped"]
pub struct Stage {
    shared: Arc<Shared>,
    job: JobId,
    id: Option<StageId>,
    name: &'static str,
}

impl Stage {
    /// The stage's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Ends the stage as dropping it does, and says what ended with it.
    pub fn finish(mut self) -> Expired {
        self.end()
    }

    fn end(&mut self) -> Expired {
        self.id.take().map_or_else(Expired::default, |id| self.shared.lock().end_stage(self.job, id))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stage({} of {})", self.name, self.job)
    }
}
