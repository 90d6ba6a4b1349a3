//! Carrying out what the policy chose: the lock, eviction, demotion and promotion (law 4: decisions are in `policy`).

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::arena::Account;
use crate::buffer::Buffer;
use crate::entries::Cause;
use crate::error::Held;
use crate::policy::{self, Action, Candidate, GroupId, NextUse, View};
use crate::slots::{Slot, SlotId, State};
use crate::store::Store;
use crate::{Displace, EntryKey, OutOfBudget, Owner, PerTier, Recover, Tier};

/// The store and its lock, shared by all handles of one cache.
pub(crate) struct Shared {
    store: Mutex<Store>,
}

/// The store, locked. Buffers that it threw away are dropped after the lock is.
pub(crate) struct Locked<'a> {
    // Fields drop in this order: unlock, then free.
    store: MutexGuard<'a, Store>,
    debris: Vec<Buffer>,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.debris = std::mem::take(&mut self.store.debris);
    }
}

impl Deref for Locked<'_> {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Store {
        &mut self.store
    }
}

/// A copy between tiers under way, counted in `moves` of its slot, which therefore stays.
pub(crate) struct Move {
    id: SlotId,
    to: Tier,
    source: Arc<Buffer>,
    destination: Option<Buffer>,
}

impl Move {
    /// Copies, without the lock. The result no longer holds the source.
    fn run(self) -> Moved {
        let destination = Buffer::copy(&self.source, self.destination);
        Moved { id: self.id, to: self.to, destination }
    }
}

/// A copy that is done.
pub(crate) struct Moved {
    id: SlotId,
    to: Tier,
    destination: Buffer,
}

impl Shared {
    pub(crate) fn new(store: Store) -> Self {
        Self { store: Mutex::new(store) }
    }

    /// A panic can poison the lock only inside this crate, since no code of a caller runs under it; destructors
    /// during that panic must still give their bytes back instead of panicking again.
    pub(crate) fn lock(&self) -> Locked<'_> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { store, debris: Vec::new() }
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
            let actions = match policy::choose(&store.view(displace), need) {
                Ok(actions) => actions,
                Err(short) => {
                    let refusal = store.refusal(short.tier, need[short.tier]);
                    return (store, Err(refusal));
                }
            };
            let moves = store.act(&actions);
            if !moves.is_empty() {
                store = self.run(store, moves);
            }
        }
        (store, Ok(()))
    }

    fn run<'a>(&'a self, store: Locked<'a>, moves: Vec<Move>) -> Locked<'a> {
        drop(store);
        let moved: Vec<_> = moves.into_iter().map(Move::run).collect();
        let mut store = self.lock();
        for moved in moved {
            store.finish_move(moved);
        }
        store
    }

    /// Brings a demoted entry home if room can be made there and nobody reads it where it is.
    pub(crate) fn promote<'a>(&'a self, mut store: Locked<'a>, id: SlotId) -> Locked<'a> {
        let slot = &mut store.slots[id];
        if slot.tier == slot.home || !slot.is_free_to_go() {
            return store;
        }
        // Pinned, so that making room does not push it out.
        slot.moves += 1;
        let (home, bytes) = (slot.home, slot.charged_bytes());
        let (mut store, room) = self.make_room(store, PerTier::only(home, bytes), Displace::Anything);
        let moving = room.is_ok().then(|| store.begin_move(id, home));
        store.slots[id].moves -= 1;
        match moving {
            Some(moving) => self.run(store, vec![moving]),
            None => {
                store.settle(id);
                store
            }
        }
    }
}

impl Store {
    pub(crate) fn fits(&self, need: &PerTier<u64>) -> bool {
        need.iter().all(|(tier, bytes)| *bytes <= self.arenas[tier].room_bytes())
    }

    /// What the policy may know: one pass over the slot table.
    pub(crate) fn view(&mut self, displace: Displace) -> View {
        let room = PerTier::from_fn(|tier| self.arenas[tier].room_bytes());
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
            next_use: distance(slot.owner, &slot.key)
                .map_or(NextUse::Unknown { last_use: slot.last_use }, NextUse::In),
            shared: slot.owner == Owner::Shared,
            recover: slot.recover,
            cost_per_kib: slot.cost_per_kib,
        });
        let displaceable = candidates.filter(|candidate| displace.allows(candidate));
        View { room, candidates: displaceable.collect() }
    }

    /// Drops at once, and begins the moves, which are to be run without the lock.
    fn act(&mut self, actions: &[Action]) -> Vec<Move> {
        let mut moves = Vec::new();
        for action in actions {
            match *action {
                Action::Drop(id) => _ = self.kill(id.into(), Cause::Evicted),
                Action::Demote { id, to } => moves.push(self.begin_move(id.into(), to)),
            }
        }
        moves
    }

    /// Charges the destination, whose room the caller has checked.
    fn begin_move(&mut self, id: SlotId, to: Tier) -> Move {
        let slot = &mut self.slots[id];
        slot.moves += 1;
        let source = Arc::clone(&slot.buffer);
        let (owner, kind, bytes) = (slot.owner, slot.key.kind(), slot.charged_bytes());
        self.charge(owner, Some(kind), to, Account::Moving, bytes);
        let destination = self.take_idle(to, bytes, owner).map(|(buffer, _)| buffer);
        Move { id, to, source, destination }
    }

    /// Publishes a copy, unless somebody leased the source or the entry died meanwhile: then the copy is dropped and
    /// the entry stays as it is, since a lease keeps it in place.
    fn finish_move(&mut self, moved: Moved) {
        let Moved { id, to, destination } = moved;
        let slot = &mut self.slots[id];
        slot.moves -= 1;
        let (owner, kind, from) = (slot.owner, slot.key.kind(), slot.tier);
        let bytes = destination.charged_bytes();
        if slot.state != State::Live || !slot.is_free_to_go() {
            self.arenas[to].give(destination, owner);
            self.release(owner, Some(kind), to, Account::Moving, bytes);
            self.settle(id);
            return;
        }
        slot.tier = to;
        let direction = if to == slot.home { Direction::Home } else { Direction::Down };
        let source = std::mem::replace(&mut slot.buffer, Arc::new(destination));
        if let Some(source) = Arc::into_inner(source) {
            self.arenas[from].give(source, owner);
        }
        self.arenas[to].transfer(Account::Moving, Account::Live, bytes);
        self.release(owner, Some(kind), from, Account::Live, bytes);
        let kind = &mut self.kinds[kind as usize];
        match direction {
            Direction::Home => kind.promoted += 1,
            Direction::Down => kind.demoted += 1,
        }
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
        }
    }
}

enum Direction {
    Home,
    Down,
}

#[cfg(test)]
mod tests {
    //! What may happen to an entry between the two halves of its move, which no caller can time.

    use super::*;
    use crate::cache::get;
    use crate::draft::Draft;
    use crate::{Budgets, Key, Kind, Lease, Lifetime, PutSpec, Writer};

    const KEY: EntryKey = EntryKey::Own(Key::new(Kind::Latent));

    struct Scene {
        shared: Arc<Shared>,
        owner: Owner,
        id: SlotId,
    }

    impl Scene {
        /// One unleased entry on the device, one line of sevens.
        fn new() -> Self {
            let budgets = Budgets { device_bytes: 64, host_bytes: 64 };
            let shared = Arc::new(Shared::new(Store::new(budgets)));
            let owner = Owner::Job(shared.lock().open_job());
            let spec = PutSpec::new(Tier::Device, Lifetime::Job, 64);
            let mut writer = Writer::new(Draft::begin(&shared, owner, KEY, spec).expect("there is room"));
            writer.bytes_mut().fill(7);
            drop(writer.commit().expect("the key is free"));
            let id = shared.lock().find(owner, &KEY).expect("it was committed");
            Self { shared, owner, id }
        }

        /// Demotes the entry, with `meanwhile` during the copy.
        fn demote<T>(&self, meanwhile: impl FnOnce() -> T) -> T {
            let moving = self.shared.lock().begin_move(self.id, Tier::Host);
            let result = meanwhile();
            let moved = moving.run();
            let mut store = self.shared.lock();
            store.finish_move(moved);
            assert_eq!(store.verify(), Ok(()));
            result
        }

        fn get(&self) -> Option<Lease> {
            get(&self.shared, self.owner, None, &KEY)
        }

        fn end_job(&self) {
            if let Owner::Job(job) = self.owner {
                self.shared.lock().end_job(job);
            }
        }

        fn used(&self) -> [u64; 2] {
            Tier::ALL.map(|tier| self.shared.lock().arenas[tier].used_bytes())
        }
    }

    #[test]
    fn an_entry_that_nobody_touches_arrives_as_it_was() {
        let scene = Scene::new();
        scene.demote(|| assert_eq!(scene.used(), [64, 64]));
        assert_eq!(scene.used(), [0, 64]);
        let store = scene.shared.lock();
        assert_eq!(store.slots[scene.id].buffer.bytes(), [7; 64]);
    }

    #[test]
    fn an_entry_that_is_leased_meanwhile_stays_in_place() {
        let scene = Scene::new();
        let lease = scene.demote(|| scene.get()).expect("it is visible while it moves");
        assert_eq!((lease.tier(), scene.used()), (Tier::Device, [64, 0]));
        assert_eq!(scene.shared.lock().slots[scene.id].tier, Tier::Device);
        assert_eq!(lease.bytes(), [7; 64]);
    }

    #[test]
    fn an_entry_that_dies_meanwhile_returns_both_its_places() {
        let scene = Scene::new();
        scene.demote(|| scene.end_job());
        assert_eq!(scene.used(), [0, 0]);
    }

    #[test]
    fn an_entry_that_dies_meanwhile_is_not_taken_for_one_whose_flight_is_overdue() {
        let scene = Scene::new();
        scene.demote(|| {
            scene.end_job();
            assert_eq!(scene.shared.lock().quarantine_overdue(0).entries, 0);
        });
        assert_eq!(scene.used(), [0, 0]);
    }
}
