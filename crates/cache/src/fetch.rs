//! Reading entries, and bringing them home before they are read.

use std::fmt;
use std::sync::Arc;

use crate::entries::Cause;
use crate::lease::Lease;
use crate::room::{Locked, Shared};
use crate::slots::{Prefetch, SlotId};
use crate::{Displace, EntryKey, GetError, JobId, Key, Owner, Tier};

/// Reads an entry: counts a hit or miss, takes the read off the reader's schedule, brings a demoted entry home if it
/// can, and leases it.
pub(crate) fn get(
    shared: &Arc<Shared>,
    owner: Owner,
    reader: Option<JobId>,
    key: &EntryKey,
) -> Result<Lease, GetError> {
    let mut store = shared.lock();
    store.consume(owner, reader, key);
    if let Some(id) = store.find(owner, key) {
        store.count_arrival(id);
    }
    let (mut store, found) = bring(shared, store, owner, key, [Tier::Device, Tier::Host]);
    match found {
        Ok(id) => {
            store.lease(id);
            Ok(Lease::adopt(shared, &store, id))
        }
        Err(error) => {
            store.kinds[key.kind() as usize].misses += 1;
            Err(error)
        }
    }
}

/// As [`get`], and ends the entry when its job announced no later read of it: its bytes come back with the lease.
pub(crate) fn take(shared: &Arc<Shared>, job: JobId, key: &EntryKey) -> Result<Lease, GetError> {
    let owner = Owner::Job(job);
    let lease = get(shared, owner, Some(job), key)?;
    let mut store = shared.lock();
    let is_last = store.jobs.get_mut(&job).is_some_and(|job| job.distance(key).is_none());
    if let Some(id) = store.find(owner, key).filter(|_| is_last) {
        store.kill(id, Cause::Expired);
    }
    drop(store);
    Ok(lease)
}

/// Leases an entry where it is, or, from disk, in the host, and in the device only where the host has no room: a copy to
/// elsewhere must not push out what is about to be read. Counts nothing.
pub(crate) fn peek(shared: &Arc<Shared>, owner: Owner, key: &EntryKey) -> Result<Lease, GetError> {
    let (mut store, found) = bring(shared, shared.lock(), owner, key, [Tier::Host, Tier::Device]);
    let id = found?;
    store.slots[id].leases += 1;
    Ok(Lease::adopt(shared, &store, id))
}

/// The entry, in memory: at home or in the first tier of `order`, if room can be made there, else in the next; never above its
/// home. The lock may be open meanwhile.
fn bring<'a>(
    shared: &'a Shared,
    mut store: Locked<'a>,
    owner: Owner,
    key: &EntryKey,
    order: [Tier; 2],
) -> (Locked<'a>, Result<SlotId, GetError>) {
    let mut untried = order.into_iter();
    let mut short = None;
    loop {
        let Some(id) = store.find(owner, key) else {
            let error = store.absence(owner, key);
            return (store, Err(error));
        };
        let slot = &store.slots[id];
        let (tier, home) = (slot.tier, slot.home);
        if tier == home || tier == order[0] {
            return (store, Ok(id));
        }
        if slot.relocating {
            store = shared.wait(store);
            continue;
        }
        // What somebody holds, or is on its way down, is read where it is.
        match if slot.is_free_to_go() { untried.next() } else { None } {
            Some(to) if to < home || to >= tier => {}
            Some(to) => {
                let (locked, room) = shared.relocate(store, id, to, Displace::Anything);
                store = locked;
                short = short.or(room.err());
            }
            None if tier == Tier::Disk => {
                let short = short.unwrap_or_else(|| store.refusal(home, store.bytes_in(id, home)));
                return (store, Err(GetError::NoRoom { key: *key, short }));
            }
            None => return (store, Ok(id)),
        }
    }
}

impl crate::store::Store {
    /// Counts whether an entry that had left its home is back in time for this read.
    fn count_arrival(&mut self, id: SlotId) {
        let slot = &mut self.slots[id];
        let kind = &mut self.kinds[slot.key.kind() as usize];
        kind.arrived_late += u64::from(slot.tier != slot.home);
        // What is still on its way is late for this read and not in time for the next.
        let prefetch = std::mem::take(&mut slot.prefetch);
        kind.arrived_before_use += u64::from(prefetch == Prefetch::Arrived);
    }

    fn absence(&self, owner: Owner, key: &EntryKey) -> GetError {
        let lost = match (owner, key) {
            (Owner::Job(job), EntryKey::Own(own)) => self.jobs.get(&job).and_then(|job| job.lost.get(own)),
            (Owner::Job(_) | Owner::Shared, _) => None,
        };
        match lost {
            Some(fault) => GetError::Lost { key: *key, fault: *fault },
            None => GetError::Absent { key: *key },
        }
    }
}

/// Brings entries of a job home before they are read: a handle for the thread that does it. It owns nothing, keeps
/// nothing alive, and does nothing once the job has ended.
#[derive(Clone)]
pub struct Fetcher {
    shared: Arc<Shared>,
    job: JobId,
}

impl Fetcher {
    pub(crate) fn new(shared: Arc<Shared>, job: JobId) -> Self {
        Self { shared, job }
    }

    /// Brings an entry home from whatever tier it is in, if it has an announced read, nobody holds it, and there is room
    /// or what must leave for it is read later. Whether it came. Not counted as a read.
    pub fn prefetch(&self, key: &Key) -> bool {
        let (owner, key) = (Owner::Job(self.job), EntryKey::Own(*key));
        let mut store = self.shared.lock();
        let Some(id) = store.find(owner, &key) else { return false };
        let (home, tier) = (store.slots[id].home, store.slots[id].tier);
        if tier == home || !store.slots[id].is_free_to_go() {
            return false;
        }
        let distance = store.jobs.get_mut(&self.job).and_then(|job| job.distance(&key));
        let Some(ticks) = distance.and_then(|ticks| ticks.checked_add(1)) else { return false };
        store.slots[id].prefetch = Prefetch::UnderWay;
        let (mut store, _) = self.shared.relocate(store, id, home, Displace::NeededAfter { ticks });
        // The lock was open meanwhile: another entry may have the key.
        if store.find(owner, &key) != Some(id) {
            return false;
        }
        let slot = &mut store.slots[id];
        if slot.prefetch == Prefetch::UnderWay {
            slot.prefetch = Prefetch::None;
        }
        slot.tier == home
    }
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fetcher({})", self.job)
    }
}
