//! The cache as a whole, and its shared pool.

use std::fmt;
use std::sync::Arc;

use crate::draft::Draft;
use crate::entries::Cause;
use crate::fetch::get;
use crate::job::Job;
use crate::lease::Lease;
use crate::reservation::Reservation;
use crate::room::Shared;
use crate::{
    Access, Budgets, ContentKey, Counters, Disk, EntryKey, GetError, Inconsistency, JobId, OutOfBudget,
};
use crate::{Overdue, Owner, PutError, PutSpec, Tier, Usage, Writer};

/// Cached blocks of all jobs of one machine. Clones are handles to the same cache; it lives as long as any handle,
/// job, lease, writer or reservation of it.
#[derive(Clone)]
pub struct Cache {
    shared: Arc<Shared>,
}

impl Cache {
    /// An empty cache in memory alone. Memory is allocated as entries are put, never beyond the budgets.
    pub fn new(budgets: Budgets) -> Self {
        Self { shared: Arc::new(Shared::new(budgets, None)) }
    }

    /// An empty cache whose host tier sinks to a disk. The disk's file goes with the last handle of the cache.
    pub fn with_disk(budgets: Budgets, disk: Disk) -> Self {
        Self { shared: Arc::new(Shared::new(budgets, Some(disk))) }
    }

    /// A cache that counts and moves entries as another one would, and holds no bytes: leases and writers of it are empty,
    /// and there is no file under its disk tier. For planning: what a job will hold and move, by the same code.
    pub fn counting(budgets: Budgets, disk_bytes: u64) -> Self {
        let disk = (disk_bytes > 0).then(|| Disk::counting(disk_bytes));
        Self { shared: Arc::new(Shared::counting(budgets, disk)) }
    }

    /// The disk under the tiers in memory, if there is one.
    pub fn disk(&self) -> Option<&Disk> {
        self.shared.disk()
    }

    /// Opens a job. Everything it owns is freed when the guard is dropped (law 1).
    pub fn open_job(&self) -> Job {
        let id = self.shared.lock().open_job();
        Job::new(Arc::clone(&self.shared), id)
    }

    /// Begins an entry of the shared pool: immutable, counted once however many jobs lease it, persistent until it is
    /// removed or, unleased, evicted.
    ///
    /// # Errors
    /// If the key is taken or the tier cannot make room.
    pub fn shared_put(&self, key: ContentKey, tier: Tier, len_bytes: usize) -> Result<Writer, PutError> {
        self.shared_put_with(key, PutSpec::shared(tier, len_bytes))
    }

    /// As [`shared_put`](Self::shared_put) with everything said; see [`PutSpec::shared`].
    ///
    /// # Errors
    /// As [`shared_put`](Self::shared_put); and if the lifetime is not persistent.
    pub fn shared_put_with(&self, key: ContentKey, spec: PutSpec) -> Result<Writer, PutError> {
        Draft::begin(&self.shared, Owner::Shared, key.into(), spec).map(Writer::new)
    }

    /// Leases a shared entry on nobody's schedule. A job that announced its reads uses
    /// [`Job::shared_get`](crate::Job::shared_get).
    pub fn shared_get(&self, key: &ContentKey) -> Option<Lease> {
        self.try_shared_get(key).ok()
    }

    /// As [`shared_get`](Self::shared_get), and says why when there is no lease.
    ///
    /// # Errors
    /// If there is no such entry, or it is on disk and no tier in memory can make room for it. One that did not come back from disk as
    /// it was is gone: there is no such entry.
    pub fn try_shared_get(&self, key: &ContentKey) -> Result<Lease, GetError> {
        get(&self.shared, Owner::Shared, None, &EntryKey::Shared(*key))
    }

    /// Whether a shared entry is there. Not counted as a read.
    pub fn shared_contains(&self, key: &ContentKey) -> bool {
        self.shared.lock().find(Owner::Shared, &EntryKey::Shared(*key)).is_some()
    }

    /// Where a shared entry is now. Not counted as a read.
    pub fn shared_tier_of(&self, key: &ContentKey) -> Option<Tier> {
        let store = self.shared.lock();
        store.find(Owner::Shared, &EntryKey::Shared(*key)).map(|id| store.slots[id].tier)
    }

    /// Removes a shared entry. Whether there was one.
    pub fn shared_remove(&self, key: &ContentKey) -> bool {
        remove(&self.shared, Owner::Shared, &EntryKey::Shared(*key))
    }

    /// Reserves room for the shared pool: all of it or none. [`Job::reserve`](crate::Job::reserve) is for jobs.
    ///
    /// # Errors
    /// If a tier cannot make the room even by evicting all that may be evicted.
    pub fn reserve(&self, wanted: &[(Tier, u64)]) -> Result<Reservation, OutOfBudget> {
        Reservation::begin(&self.shared, Owner::Shared, wanted)
    }

    /// Changes what a tier in memory may hold while jobs run, evicting and demoting what may leave. Bytes that must stay keep
    /// their room, so used never passes budget (law 2): the budget falls as far as it can, and further calls bring it
    /// down as those bytes leave. What it is then. The disk's budget is its file's size and stays.
    pub fn set_budget(&self, tier: Tier, wanted_bytes: u64) -> u64 {
        match tier {
            Tier::Device | Tier::Host => self.shared.set_budget(tier, wanted_bytes),
            Tier::Disk => self.shared.lock().arenas[tier].budget_bytes(),
        }
    }

    /// Gives all idle buffers back to the allocator. Bytes given back.
    pub fn trim(&self) -> u64 {
        let mut store = self.shared.lock();
        store.trim()
    }

    /// Gives up on flights that have not reported back: those of entries that were gone from sight before the last
    /// `patience_sweeps` calls of this function. Their bytes stay counted and are never used again. Calls are the
    /// only measure of time here; make them once per step.
    pub fn quarantine_overdue(&self, patience_sweeps: u64) -> Overdue {
        self.shared.lock().quarantine_overdue(patience_sweeps)
    }

    /// All counters, taken in one moment.
    pub fn counters(&self) -> Counters {
        self.shared.lock().counters()
    }

    /// All counters and what every job holds, taken in one moment: with what the shared pool holds, the jobs' bytes add up to what
    /// each tier has in use.
    pub fn ledger(&self) -> (Counters, Vec<(JobId, Usage)>) {
        let store = self.shared.lock();
        (store.counters(), store.usages())
    }

    /// What a job holds, also after its end: bytes that are still leased or in flight, or in open writers.
    pub fn owned_by(&self, job: JobId) -> Usage {
        self.shared.lock().usage_of(job)
    }

    /// Records from now on what is asked of the cache. It grows with every read: for tests and for looking closely at one job.
    pub fn record(&self) {
        self.shared.lock().trace.begin();
    }

    /// Ends a record and gives what it holds, in order.
    pub fn recorded(&self) -> Vec<Access> {
        self.shared.lock().trace.take()
    }

    /// Checks every invariant by walking everything. For tests and for doubt; takes time proportional to what is cached.
    ///
    /// # Errors
    /// If the cache contradicts itself, which is a bug in this crate.
    pub fn verify(&self) -> Result<(), Inconsistency> {
        self.shared.lock().verify().map_err(Inconsistency)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counters = self.counters();
        let mut debug = f.debug_struct("Cache");
        for tier in Tier::ALL {
            let tier_counters = counters.tier(tier);
            debug.field(
                tier.as_str(),
                &format_args!("{}/{}", tier_counters.used_bytes, tier_counters.budget_bytes),
            );
        }
        debug.finish_non_exhaustive()
    }
}

pub(crate) fn remove(shared: &Arc<Shared>, owner: Owner, key: &EntryKey) -> bool {
    let mut store = shared.lock();
    let found = store.find(owner, key);
    if let Some(id) = found {
        store.kill(id, Cause::Removed);
    }
    found.is_some()
}
