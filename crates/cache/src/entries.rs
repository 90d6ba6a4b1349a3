//! Every change that an entry can undergo, from put to the return of its bytes.

use std::sync::Arc;

use crate::arena::Account;
use crate::buffer::{Buffer, entry_bytes};
use crate::draft::Draft;
use crate::job_state::{JobState, StageId};
use crate::place::Place;
use crate::policy::GroupId;
use crate::slots::{Expiry, Prefetch, Slot, SlotId, State};
use crate::store::{Post, Store};
use crate::trace::Touch;
use crate::{
    CommitRefusal, EntryKey, Expired, JobId, Key, Kind, Lifetime, Overdue, Owner, PerTier, PutError, PutSpec,
    Tier,
};

/// Why an entry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Its step, stage or job is over, or its last read is made.
    Expired,
    /// It fell out of its window.
    Pruned,
    /// Its owner removed it.
    Removed,
    /// Its room was wanted.
    Evicted,
    /// It did not come back from disk.
    Lost,
}

impl Store {
    /// Ends entries whose list has been taken from its place already.
    pub(crate) fn expire(&mut self, ids: Vec<SlotId>) -> Expired {
        let mut expired = Expired::default();
        for id in ids {
            self.slots[id].expiry = Expiry::WithOwner;
            let bytes = self.slots[id].charged_bytes();
            let returned = self.kill(id, Cause::Expired);
            expired.entries += 1;
            *(if returned { &mut expired.returned_bytes } else { &mut expired.quiescing_bytes }) += bytes;
        }
        expired
    }

    pub(crate) fn find(&self, owner: Owner, key: &EntryKey) -> Option<SlotId> {
        match (owner, key) {
            (Owner::Job(job), EntryKey::Own(key)) => self.jobs.get(&job)?.index.get(key).copied(),
            (Owner::Shared, EntryKey::Shared(key)) => self.shared.get(key).copied(),
            (Owner::Job(_), EntryKey::Shared(_)) | (Owner::Shared, EntryKey::Own(_)) => None,
        }
    }

    /// Whether a put may begin, and the stage that its entry belongs to.
    pub(crate) fn check_put(
        &self,
        owner: Owner,
        key: &EntryKey,
        spec: &PutSpec,
    ) -> Result<Option<StageId>, PutError> {
        if matches!(owner, Owner::Shared) != matches!(key, EntryKey::Shared(_)) {
            return Err(PutError::OtherOwner { key: *key });
        }
        if self.find(owner, key).is_some() {
            return Err(PutError::Exists { key: *key });
        }
        if spec.tier == Tier::Disk {
            return Err(PutError::NotInMemory { key: *key });
        }
        let Owner::Job(job) = owner else {
            let persistent = spec.lifetime == Lifetime::Persistent;
            return if persistent { Ok(None) } else { Err(PutError::SharedIsPersistent) };
        };
        let job = self.jobs.get(&job).filter(|job| !job.ended).ok_or(PutError::OwnerEnded { key: *key })?;
        spec.lifetime.check_owned()?;
        match spec.lifetime {
            Lifetime::Stage => job.stages.last().map(|stage| Some(stage.id)).ok_or(PutError::NoStage),
            Lifetime::Steps(_) | Lifetime::Window { .. } | Lifetime::Job | Lifetime::Persistent => Ok(None),
        }
    }

    /// Whether the draft may become visible.
    pub(crate) fn check_commit(&self, draft: &Draft) -> Result<(), CommitRefusal> {
        let key = *draft.key();
        if self.find(draft.owner(), &key).is_some() {
            return Err(CommitRefusal::Exists { key });
        }
        let Owner::Job(job) = draft.owner() else { return Ok(()) };
        let job = self.jobs.get(&job).filter(|job| !job.ended).ok_or(CommitRefusal::OwnerEnded { key })?;
        match draft.stage() {
            Some(stage) if job.stage(stage).is_none() => Err(CommitRefusal::StageEnded { key }),
            Some(_) | None => Ok(()),
        }
    }

    /// Makes a checked draft visible and leases it to the writer. Windows are trimmed by
    /// [`trim_window`](Self::trim_window) once the whole group is in.
    pub(crate) fn publish(&mut self, draft: &mut Draft, group: Option<GroupId>) -> SlotId {
        let (owner, key, spec, stage) = (draft.owner(), *draft.key(), *draft.spec(), draft.stage());
        let buffer = draft.take_buffer();
        self.arenas[spec.tier].transfer(Account::Writing, Account::Live, buffer.charged_bytes());
        let kind = &mut self.kinds[key.kind() as usize];
        kind.entries += 1;
        kind.puts += 1;
        kind.encoded_bytes += spec.len_bytes as u64;
        kind.raw_bytes += spec.raw_bytes;
        self.trace.note(owner, key, Touch::Put { bytes: buffer.charged_bytes() });
        self.reads += 1;
        let id = self.slots.insert(Slot {
            owner,
            key,
            group,
            tier: spec.tier,
            home: spec.tier,
            len_bytes: spec.len_bytes,
            raw_bytes: spec.raw_bytes,
            lifetime: spec.lifetime,
            expiry: Expiry::WithOwner,
            recover: spec.recover,
            cost_per_kib: spec.cost_per_kib,
            state: State::Live,
            leases: 1,
            flights: 0,
            moves: 0,
            flight_lost: false,
            relocating: false,
            prefetch: Prefetch::None,
            last_use: self.reads,
            place: Place::Memory(Arc::new(buffer)),
        });
        match (owner, key) {
            (Owner::Job(job), EntryKey::Own(key)) => {
                if let Some(job) = self.jobs.get_mut(&job) {
                    job.lost.remove(&key);
                    job.index.insert(key, id);
                    self.slots[id].expiry = enlist(job, id, key, spec.lifetime, stage);
                }
            }
            (_, EntryKey::Shared(key)) => _ = self.shared.insert(key, id),
            (Owner::Shared, EntryKey::Own(_)) => {}
        }
        id
    }

    /// Ends what the window that this entry belongs to no longer covers.
    pub(crate) fn trim_window(&mut self, id: SlotId) {
        let slot = &self.slots[id];
        let (Owner::Job(owner), EntryKey::Own(key), Lifetime::Window { recent, .. }) =
            (slot.owner, slot.key, slot.lifetime)
        else {
            return;
        };
        self.prune_old(owner, key.series(), recent);
    }

    /// Ends all but the `keep` highest frames of a series, one after another from the lowest.
    pub(crate) fn prune_old(&mut self, owner: JobId, series: Key, keep: u32) -> Expired {
        let mut oldest = Vec::new();
        if let Some(window) = self.jobs.get(&owner).and_then(|job| job.windows.get(&series)) {
            let excess = window.len().saturating_sub(keep as usize);
            oldest.extend(window.values().take(excess).copied());
        }
        let mut expired = Expired::default();
        for id in oldest {
            let bytes = self.slots[id].charged_bytes();
            let returned = self.kill(id, Cause::Pruned);
            expired.entries += 1;
            *(if returned { &mut expired.returned_bytes } else { &mut expired.quiescing_bytes }) += bytes;
        }
        expired
    }

    /// Counts a read of a live entry and leases it.
    pub(crate) fn lease(&mut self, id: SlotId) {
        self.reads += 1;
        let slot = &mut self.slots[id];
        slot.leases += 1;
        slot.last_use = self.reads;
        self.kinds[slot.key.kind() as usize].hits += 1;
    }

    /// Takes a live entry out of sight. Whether its bytes are back already; if not, they come back when the last
    /// lease and the last flight end (law 3).
    pub(crate) fn kill(&mut self, id: SlotId, cause: Cause) -> bool {
        self.unlist(id);
        let slot = &mut self.slots[id];
        slot.state = State::Quiescing { since_sweep: self.sweeps };
        let (owner, key, tier, bytes) = (slot.owner, slot.key, slot.tier, slot.charged_bytes());
        match (owner, key) {
            (Owner::Job(job), EntryKey::Own(key)) => {
                if let Some(job) = self.jobs.get_mut(&job) {
                    job.index.remove(&key);
                }
            }
            (_, EntryKey::Shared(key)) => _ = self.shared.remove(&key),
            (Owner::Shared, EntryKey::Own(_)) => {}
        }
        self.arenas[tier].transfer(Account::Live, Account::Quiescing, bytes);
        let kind = &mut self.kinds[key.kind() as usize];
        kind.entries -= 1;
        if matches!(cause, Cause::Expired | Cause::Pruned | Cause::Removed) {
            self.trace.note(owner, key, Touch::End);
        }
        match cause {
            Cause::Expired => kind.expired += 1,
            Cause::Pruned => kind.pruned += 1,
            Cause::Removed => kind.removed += 1,
            Cause::Evicted => kind.evicted += 1,
            Cause::Lost => kind.lost += 1,
        }
        self.quiescing.insert(id);
        self.settle(id)
    }

    /// Takes an entry off the list that would have ended it, in constant time but for the search of the list.
    fn unlist(&mut self, id: SlotId) {
        let slot = &self.slots[id];
        let (Owner::Job(job), EntryKey::Own(key)) = (slot.owner, slot.key) else { return };
        let Some(job) = self.jobs.get_mut(&job) else { return };
        let moved = match slot.expiry {
            Expiry::WithOwner => None,
            Expiry::InWindow => {
                if let Some(window) = job.windows.get_mut(&key.series()) {
                    window.remove(&key.frame);
                    if window.is_empty() {
                        job.windows.remove(&key.series());
                    }
                }
                None
            }
            Expiry::AtStep { step, position } => job.dying.get_mut(&step).and_then(|list| {
                list.swap_remove(position);
                list.get(position).copied()
            }),
            Expiry::InStage { stage, position } => job.stage(stage).and_then(|at| {
                job.stages[at].entries.swap_remove(position);
                job.stages[at].entries.get(position).copied()
            }),
        };
        if let Expiry::AtStep { step, .. } = slot.expiry
            && job.dying.get(&step).is_some_and(Vec::is_empty)
        {
            job.dying.remove(&step);
        }
        if let Some(moved) = moved {
            self.slots[moved].expiry = slot.expiry;
        }
    }

    /// Gives a quiescing entry's bytes back if nothing holds them any more. Whether it did.
    pub(crate) fn settle(&mut self, id: SlotId) -> bool {
        let slot = &self.slots[id];
        if !matches!(slot.state, State::Quiescing { .. }) || !slot.is_still() {
            return false;
        }
        if slot.flight_lost {
            self.quarantine(id);
            return false;
        }
        self.quiescing.remove(&id);
        let slot = self.slots.remove(id);
        let bytes = slot.charged_bytes();
        self.vacate(slot.tier, slot.place, slot.owner);
        self.kinds[slot.key.kind() as usize].returned_bytes += bytes;
        let post = Post::new(slot.owner, Some(slot.key.kind()), slot.tier, Account::Quiescing);
        self.release(post, bytes);
        true
    }

    /// Keeps a place whose bytes are released for reuse. Nobody else holds it.
    pub(crate) fn vacate(&mut self, tier: Tier, place: Place, last_owner: Owner) {
        match place {
            Place::Memory(buffer) => {
                if let Some(buffer) = Arc::into_inner(buffer) {
                    self.arenas[tier].give(buffer, last_owner);
                }
            }
            Place::Disk(record) => self.extents.give(record),
        }
    }

    fn quarantine(&mut self, id: SlotId) {
        self.quiescing.remove(&id);
        let slot = &mut self.slots[id];
        slot.state = State::Quarantined;
        self.arenas[slot.tier].transfer(Account::Quiescing, Account::Quarantined, slot.charged_bytes());
    }

    /// Gives up on flights of entries that were gone before the last `patience` sweeps (law 3).
    pub(crate) fn quarantine_overdue(&mut self, patience_sweeps: u64) -> Overdue {
        self.sweeps += 1;
        let mut overdue = Overdue::default();
        for id in self.quiescing.clone() {
            let slot = &self.slots[id];
            let State::Quiescing { since_sweep } = slot.state else { continue };
            if slot.flights > 0 && self.sweeps - since_sweep > patience_sweeps {
                overdue.entries += 1;
                overdue.bytes += slot.charged_bytes();
                self.quarantine(id);
            }
        }
        overdue
    }

    /// Returns what a draft was charged, and its buffer.
    pub(crate) fn abandon(&mut self, owner: Owner, kind: Kind, tier: Tier, bytes: u64, buffer: Buffer) {
        self.kinds[kind as usize].returned_bytes += bytes;
        self.arenas[tier].give(buffer, owner);
        self.release(Post::new(owner, Some(kind), tier, Account::Writing), bytes);
    }

    /// What a list of puts is charged, by tier.
    pub(crate) fn needed<'a>(specs: impl Iterator<Item = &'a PutSpec>) -> PerTier<u64> {
        let mut need = PerTier::default();
        for spec in specs {
            let bytes: &mut u64 = &mut need[spec.tier];
            *bytes = bytes.saturating_add(entry_bytes(spec.len_bytes));
        }
        need
    }
}

/// Puts a new entry on the list that will end it.
fn enlist(job: &mut JobState, id: SlotId, key: Key, lifetime: Lifetime, stage: Option<StageId>) -> Expiry {
    match lifetime {
        Lifetime::Steps(steps) => {
            let step = job.step + u64::from(steps);
            let list = job.dying.entry(step).or_default();
            list.push(id);
            Expiry::AtStep { step, position: list.len() - 1 }
        }
        Lifetime::Window { sink, .. } if key.frame >= sink => {
            job.windows.entry(key.series()).or_default().insert(key.frame, id);
            Expiry::InWindow
        }
        Lifetime::Stage => match stage.and_then(|stage| job.stage(stage).map(|at| (stage, at))) {
            Some((stage, at)) => {
                job.stages[at].entries.push(id);
                Expiry::InStage { stage, position: job.stages[at].entries.len() - 1 }
            }
            None => Expiry::WithOwner,
        },
        Lifetime::Window { .. } | Lifetime::Job | Lifetime::Persistent => Expiry::WithOwner,
    }
}
