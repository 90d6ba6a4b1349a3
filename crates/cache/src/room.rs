//! Carrying out what the policy chose: the lock, eviction, and room (law 4: decisions are in `policy`, copies in `moves`).

use std::collections::{BTreeSet, TryReserveError};
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
#[cfg(not(test))]
use std::sync::{Condvar, Mutex, MutexGuard};

// Under test every lock and wait is a point where another thread may go on: see `interleavings`.
#[cfg(test)]
use shuttle::sync::{Condvar, Mutex, MutexGuard};

use crate::arena::Account;
use crate::buffer::Buffer;
use crate::disk::{Disk, Extents};
use crate::entries::Cause;
use crate::error::Held;
use crate::moves::Move;
use crate::policy::{self, Action, Candidate, GroupId, NextUse, View};
use crate::slots::{Slot, State};
use crate::store::Store;
use crate::{Budgets, Displace, EntryKey, OutOfBudget, Owner, PerTier, Recover, Tier};

/// The store and its lock, shared by all handles of one cache.
pub(crate) struct Shared {
    store: Mutex<Store>,
    /// Told whenever a move ends or is given up.
    moved: Condvar,
    disk: Option<Disk>,
    /// Whether there are no bytes behind what is counted.
    counts_only: bool,
}

/// The store, locked. Buffers that it threw away are dropped after the lock is.
pub(crate) struct Locked<'a> {
    // Fields drop in this order: unlock, then free. `None` only inside `Shared::wait`.
    store: Option<MutexGuard<'a, Store>>,
    debris: Vec<Buffer>,
}

const HELD: &str = "the lock is given up only while waiting";

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Some(store) = &mut self.store {
            self.debris = std::mem::take(&mut store.debris);
        }
    }
}

impl Deref for Locked<'_> {
    type Target = Store;

    fn deref(&self) -> &Store {
        self.store.as_ref().expect(HELD)
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Store {
        self.store.as_mut().expect(HELD)
    }
}

impl Shared {
    pub(crate) fn new(budgets: Budgets, disk: Option<Disk>) -> Self {
        let extents = disk.as_ref().map_or_else(Extents::default, Disk::extents);
        let store = Mutex::new(Store::new(budgets, extents));
        Self { store, moved: Condvar::new(), disk, counts_only: false }
    }

    /// As [`new`](Self::new), without bytes.
    pub(crate) fn counting(budgets: Budgets, disk: Option<Disk>) -> Self {
        Self { counts_only: true, ..Self::new(budgets, disk) }
    }

    /// Zeroed memory for an entry of `len_bytes`.
    pub(crate) fn buffer(&self, len_bytes: usize) -> Result<Buffer, TryReserveError> {
        if self.counts_only { Ok(Buffer::counted(len_bytes)) } else { Buffer::zeroed(len_bytes) }
    }

    pub(crate) fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// A panic can poison the lock only inside this crate, since no code of a caller runs under it; destructors
    /// during that panic must still give their bytes back instead of panicking again.
    pub(crate) fn lock(&self) -> Locked<'_> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { store: Some(store), debris: Vec::new() }
    }

    /// Waits until some move ends. A waiter has no copy under way itself, and a copy waits for nothing but its device, so
    /// that whoever waits while copies are under way is woken.
    pub(crate) fn wait<'a>(&'a self, mut store: Locked<'a>) -> Locked<'a> {
        let guard = store.store.take().expect(HELD);
        store.store = Some(self.moved.wait(guard).unwrap_or_else(PoisonError::into_inner));
        store
    }

    pub(crate) fn tell_waiters(&self) {
        self.moved.notify_all();
    }

    /// Evicts until `need` fits, or changes nothing and says what is in the way. The lock may be released in between;
    /// when the answer is `Ok` the room is there under the lock that comes back.
    pub(crate) fn make_room<'a>(
        &'a self,
        mut store: Locked<'a>,
        need: PerTier<u64>,
        displace: Displace,
    ) -> (Locked<'a>, Result<(), OutOfBudget>) {
        while !store.fits(&need) {
            if need[Tier::Disk] > 0 && store.is_closed(Tier::Disk) {
                // What is there can still be read, and nothing could be written in its place.
                let refusal = store.refusal(Tier::Disk, need[Tier::Disk]);
                return (store, Err(refusal));
            }
            let short = match policy::choose(&store.view(displace), need) {
                Ok(actions) => {
                    let (dropped, moves) = store.act(&actions);
                    if dropped == 0 && moves.is_empty() {
                        let refusal = store.shortage(&need);
                        return (store, Err(refusal));
                    }
                    let (locked, memory) = self.run(store, moves);
                    store = locked;
                    if memory.is_err() && !store.fits(&need) {
                        // The same choice would fail the same way again.
                        let refusal = OutOfBudget { memory_refuses: true, ..store.shortage(&need) };
                        return (store, Err(refusal));
                    }
                    continue;
                }
                Err(short) => short,
            };
            // Another thread's copies hold places at both their ends; soon they hold one.
            if displace == Displace::Anything && store.copies > 0 {
                store = self.wait(store);
                continue;
            }
            let refusal = store.refusal(short.tier, need[short.tier]);
            return (store, Err(refusal));
        }
        (store, Ok(()))
    }
}

impl Shared {
    /// Changes what a tier in memory may hold, evicting what may leave for it. What must stay keeps its room, so that law 2
    /// holds at every moment: the budget falls as far as it can. What it is then.
    pub(crate) fn set_budget(&self, tier: Tier, wanted_bytes: u64) -> u64 {
        let mut store = self.lock();
        let arena = &store.arenas[tier];
        if arena.used_bytes() > wanted_bytes {
            let mut need = PerTier::only(tier, arena.budget_bytes() - wanted_bytes);
            if let Err(short) = policy::choose(&store.view(Displace::Anything), need)
                && short.tier == tier
            {
                need[tier] = need[tier].saturating_sub(short.missing_bytes);
            }
            // What cannot be met now is met by a later call.
            (store, _) = self.make_room(store, need, Displace::Anything);
        }
        store.arenas[tier].set_budget_bytes(wanted_bytes);
        store.shed(tier);
        store.arenas[tier].budget_bytes()
    }
}

impl Store {
    pub(crate) fn fits(&self, need: &PerTier<u64>) -> bool {
        need.iter().all(|(tier, bytes)| *bytes <= self.arenas[tier].room_bytes())
    }

    /// Whether nothing can be written to a tier any more, whatever room it has.
    pub(crate) fn is_closed(&self, tier: Tier) -> bool {
        tier == Tier::Disk && self.extents.refuses()
    }

    /// What the policy may know: one pass over the slot table.
    pub(crate) fn view(&mut self, displace: Displace) -> View {
        let room =
            PerTier::from_fn(|tier| if self.is_closed(tier) { 0 } else { self.arenas[tier].room_bytes() });
        // Where nothing can be written nothing fits, so that no entry there is dropped for one that would not arrive.
        let closed = self.is_closed(Tier::Disk);
        let extents = &self.extents;
        let disk_bytes = |slot: &Slot| {
            if closed { u64::MAX } else { extents.record_bytes(slot.place.memory_bytes()) }
        };
        let jobs = &mut self.jobs;
        let mut distance = |owner: Owner, key: &EntryKey| match owner {
            Owner::Job(job) => jobs.get_mut(&job)?.distance(key),
            Owner::Shared => jobs.values_mut().filter_map(|job| job.distance(key)).min(),
        };
        let live = || self.slots.iter().filter(|(_, slot)| slot.state == State::Live);
        let held = |slot: &Slot| if slot.is_free_to_go() { None } else { slot.group };
        let held_groups: BTreeSet<GroupId> = live().filter_map(|(_, slot)| held(slot)).collect();
        let may_leave =
            |slot: &Slot| slot.is_free_to_go() && slot.group.is_none_or(|g| !held_groups.contains(&g));
        let candidates = live().filter(|(_, slot)| may_leave(slot)).map(|(id, slot)| Candidate {
            id: id.into(),
            group: slot.group,
            tier: slot.tier,
            bytes: slot.charged_bytes(),
            disk_bytes: disk_bytes(slot),
            next_use: distance(slot.owner, &slot.key)
                .map_or(NextUse::Unknown { last_use: slot.last_use }, NextUse::In),
            shared: slot.owner == Owner::Shared,
            recover: slot.recover,
            cost_per_kib: slot.cost_per_kib,
        });
        let mut candidates: Vec<Candidate> = candidates.collect();
        // Members of a group leave together, so one that must stay keeps the others.
        let kept = candidates.iter().filter(|candidate| !displace.allows(candidate));
        let kept: BTreeSet<GroupId> = kept.filter_map(|candidate| candidate.group).collect();
        candidates.retain(|candidate| {
            displace.allows(candidate) && candidate.group.is_none_or(|group| !kept.contains(&group))
        });
        View { room, candidates }
    }

    /// Drops at once, and begins the moves for which there is room now; they are to be run without the lock. How many
    /// entries were dropped, and the moves. What waits for room that these moves make is chosen again after them.
    fn act(&mut self, actions: &[Action]) -> (usize, Vec<Move>) {
        let (mut dropped, mut moves) = (0, Vec::new());
        for action in actions {
            match *action {
                Action::Drop(id) => {
                    self.kill(id.into(), Cause::Evicted);
                    dropped += 1;
                }
                Action::Demote { id, to } => moves.extend(self.begin_move(id.into(), to)),
            }
        }
        (dropped, moves)
    }

    /// What to say of room that is not there after all.
    fn shortage(&self, need: &PerTier<u64>) -> OutOfBudget {
        let short = need.iter().find(|(tier, bytes)| **bytes > self.arenas[*tier].room_bytes());
        let (tier, needed_bytes) = short.map_or((Tier::Device, 0), |(tier, bytes)| (tier, *bytes));
        self.refusal(tier, needed_bytes)
    }

    pub(crate) fn refusal(&self, tier: Tier, needed_bytes: u64) -> OutOfBudget {
        let arena = &self.arenas[tier];
        let live =
            || self.slots.iter().map(|(_, slot)| slot).filter(|s| s.tier == tier && s.state == State::Live);
        let held = Held {
            leased_bytes: live().filter(|s| !s.is_free_to_go()).map(|s| s.charged_bytes()).sum(),
            irreplaceable_bytes: live()
                .filter(|s| s.is_free_to_go() && s.recover == Recover::Never)
                .map(|s| s.charged_bytes())
                .sum(),
            reserved_bytes: arena.in_account(Account::Reserved),
            writing_bytes: arena.in_account(Account::Writing) + arena.in_account(Account::Moving),
            quiescing_bytes: arena.in_account(Account::Quiescing) + arena.in_account(Account::Quarantined),
        };
        OutOfBudget {
            tier,
            needed_bytes,
            budget_bytes: arena.budget_bytes(),
            used_bytes: arena.used_bytes(),
            held,
            disk_refuses: self.extents.refuses(),
            memory_refuses: false,
        }
    }
}
