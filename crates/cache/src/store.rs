//! The state behind the lock: the ledger of bytes, jobs and stages. `entries` has what happens to one entry, `room` what
//! happens when a tier is full.
//!
//! One mutex protects all of it: ledger, slots, indexes, schedules and counters change together, so whoever holds
//! the lock sees a consistent cache. Bytes are not behind the lock: leases and writers hold buffers of their own,
//! and copies between tiers, disk included, run unlocked. There is no second lock, hence no order of locks.

use std::collections::{BTreeMap, BTreeSet};

use crate::arena::{Account, Arena};
use crate::buffer::Buffer;
use crate::counters::{KindCounters, TierTraffic, Usage};
use crate::disk::Extents;
use crate::job_state::{JobState, Map, StageId, StageState};
use crate::policy::GroupId;
use crate::slots::{SlotId, Slots};
use crate::trace::Trace;
use crate::{Budgets, ContentKey, Expired, JobId, Kind, Owner, PerTier, Tier};

/// Where bytes stand in the ledger.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Post {
    pub(crate) owner: Owner,
    /// None for bytes without an entry.
    pub(crate) kind: Option<Kind>,
    pub(crate) tier: Tier,
    pub(crate) account: Account,
}

impl Post {
    pub(crate) fn new(owner: Owner, kind: Option<Kind>, tier: Tier, account: Account) -> Self {
        Self { owner, kind, tier, account }
    }
}

pub(crate) struct Store {
    pub(crate) arenas: PerTier<Arena>,
    /// Free places of the disk tier; none where there is no disk.
    pub(crate) extents: Extents,
    pub(crate) traffic: PerTier<TierTraffic>,
    /// Copies between tiers that are under way.
    pub(crate) copies: u64,
    pub(crate) slots: Slots,
    pub(crate) jobs: BTreeMap<JobId, JobState>,
    pub(crate) shared: Map<ContentKey, SlotId>,
    pub(crate) shared_usage: Usage,
    pub(crate) kinds: [KindCounters; Kind::ALL.len()],
    /// Slots that are `Quiescing`.
    pub(crate) quiescing: BTreeSet<SlotId>,
    /// Buffers to drop once the lock is free.
    pub(crate) debris: Vec<Buffer>,
    pub(crate) jobs_opened: u64,
    pub(crate) groups_opened: u64,
    /// Reads so far: the order behind least-recently-used.
    pub(crate) reads: u64,
    /// Calls of `quarantine_overdue` so far.
    pub(crate) sweeps: u64,
    pub(crate) trace: Trace,
}

impl Store {
    pub(crate) fn new(budgets: Budgets, extents: Extents) -> Self {
        let budget_bytes = |tier| if tier == Tier::Disk { extents.budget_bytes() } else { budgets.of(tier) };
        Self {
            arenas: PerTier::from_fn(|tier| Arena::new(budget_bytes(tier))),
            extents,
            traffic: PerTier::default(),
            copies: 0,
            slots: Slots::default(),
            jobs: BTreeMap::new(),
            shared: Map::default(),
            shared_usage: Usage::default(),
            kinds: [KindCounters::default(); Kind::ALL.len()],
            quiescing: BTreeSet::new(),
            debris: Vec::new(),
            jobs_opened: 0,
            groups_opened: 0,
            reads: 0,
            sweeps: 0,
            trace: Trace::default(),
        }
    }

    // ---- bytes (law 2: they come into use and leave it here; inside, `Arena::transfer` moves them) ----

    /// Charges an owner; the caller has checked the room.
    pub(crate) fn charge(&mut self, post: Post, bytes: u64) {
        let Post { owner, kind, tier, account } = post;
        self.arenas[tier].charge(account, bytes);
        self.usage_mut(owner).charge(tier, bytes);
        if let Some(kind) = kind {
            self.kinds[kind as usize].charge(tier, bytes);
        }
    }

    pub(crate) fn release(&mut self, post: Post, bytes: u64) {
        let Post { owner, kind, tier, account } = post;
        self.arenas[tier].release(account, bytes);
        self.usage_mut(owner).release(tier, bytes);
        if let Some(kind) = kind {
            self.kinds[kind as usize].bytes[tier] -= bytes;
        }
        if let Owner::Job(job) = owner {
            self.forget_job_without_bytes(job);
        }
    }

    fn usage_mut(&mut self, owner: Owner) -> &mut Usage {
        match owner {
            Owner::Shared => &mut self.shared_usage,
            Owner::Job(job) => {
                &mut self.jobs.get_mut(&job).expect("a job's record stays while bytes of it are out").usage
            }
        }
    }

    /// An idle buffer of this size, and whether it must be wiped before `owner` may see it (law 10). All that is charged
    /// together is taken before the first [`shed`](Self::shed), which might give up what the rest could use.
    pub(crate) fn take_idle(&mut self, tier: Tier, bytes: u64, owner: Owner) -> Option<(Buffer, bool)> {
        let idle = self.arenas[tier].take(bytes);
        idle.map(|(buffer, last_owner)| (buffer, last_owner != owner))
    }

    /// Gives up idle buffers that no longer fit beside what is used.
    pub(crate) fn shed(&mut self, tier: Tier) {
        self.arenas[tier].shed(&mut self.debris);
    }

    /// Where entries of a tier are demoted to.
    pub(crate) fn tier_below(&self, tier: Tier) -> Option<Tier> {
        tier.below().filter(|below| *below != Tier::Disk || self.extents.budget_bytes() > 0)
    }

    // ---- jobs and stages ----

    pub(crate) fn open_job(&mut self) -> JobId {
        let id = JobId(self.jobs_opened);
        self.jobs_opened += 1;
        self.jobs.insert(id, JobState::default());
        id
    }

    /// Ends a job and all it owns (law 1), in time proportional to what it owns.
    pub(crate) fn end_job(&mut self, id: JobId) -> Expired {
        let Some(job) = self.jobs.get_mut(&id) else { return Expired::default() };
        let owned = std::mem::take(&mut job.index);
        *job = JobState { ended: true, usage: job.usage, copies: job.copies, ..JobState::default() };
        let mut ids: Vec<SlotId> = owned.into_values().collect();
        ids.sort_unstable();
        let expired = self.expire(ids);
        self.forget_job_without_bytes(id);
        expired
    }

    fn forget_job_without_bytes(&mut self, id: JobId) {
        if self.jobs.get(&id).is_some_and(|job| job.ended && job.usage.bytes.total() == 0) {
            self.jobs.remove(&id);
        }
    }

    /// A name for entries that are about to be published together.
    pub(crate) fn open_group(&mut self) -> GroupId {
        self.groups_opened += 1;
        GroupId(self.groups_opened)
    }

    pub(crate) fn open_stage(&mut self, job: JobId) -> Option<StageId> {
        let job = self.jobs.get_mut(&job)?;
        let id = StageId(job.stages_opened);
        job.stages_opened += 1;
        job.stages.push(StageState { id, entries: Vec::new() });
        Some(id)
    }

    pub(crate) fn end_stage(&mut self, job: JobId, stage: StageId) -> Expired {
        let Some(job) = self.jobs.get_mut(&job) else { return Expired::default() };
        let Some(at) = job.stage(stage) else { return Expired::default() };
        let entries = job.stages.remove(at).entries;
        self.expire(entries)
    }

    /// Ends the entries whose last step this is (law 6).
    pub(crate) fn step(&mut self, job: JobId) -> Expired {
        let Some(job) = self.jobs.get_mut(&job) else { return Expired::default() };
        job.step += 1;
        let dying = job.dying.remove(&job.step).unwrap_or_default();
        self.expire(dying)
    }
}
