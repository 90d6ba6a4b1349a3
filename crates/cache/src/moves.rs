//! Copies between tiers: begun and ended under the lock, made without it (law 3).

use crate::arena::Account;
use crate::entries::Cause;
use crate::place::{Destination, MoveFault, OutOfMemory, Place};
use crate::room::{Locked, Shared};
use crate::slots::{Prefetch, SlotId, State};
use crate::store::{Post, Store};
use crate::{Displace, EntryKey, JobId, OutOfBudget, Owner, PerTier, Tier};

/// A copy between tiers under way, counted in `moves` of its slot, which therefore stays.
pub(crate) struct Move {
    id: SlotId,
    to: Tier,
    bytes: u64,
    source: Place,
    destination: Destination,
}

/// Moves that have begun; whatever a panic leaves of them is given up.
struct Underway<'a> {
    shared: &'a Shared,
    /// The next one last.
    moves: Vec<Move>,
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        for moving in self.moves.drain(..) {
            self.shared.lock().finish_move(moving, Err(MoveFault::NotMade));
            self.shared.tell_waiters();
        }
    }
}

/// An entry that is to change its tier while room is made for it there: not to be pushed out itself, and, by a panic in
/// between, not to be held for ever.
struct Pinned<'a> {
    shared: &'a Shared,
    id: SlotId,
    armed: bool,
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        if self.armed {
            let mut store = self.shared.lock();
            store.unpin(self.id);
            store.slots[self.id].relocating = false;
            store.settle(self.id);
            drop(store);
            self.shared.tell_waiters();
        }
    }
}

impl Shared {
    /// Makes the copies without the lock, and publishes each as it is done. Whether the machine had memory for all of them.
    pub(crate) fn run<'a>(
        &'a self,
        store: Locked<'a>,
        mut moves: Vec<Move>,
    ) -> (Locked<'a>, Result<(), OutOfMemory>) {
        if moves.is_empty() {
            return (store, Ok(()));
        }
        drop(store);
        moves.reverse();
        let mut underway = Underway { shared: self, moves };
        let mut memory = Ok(());
        while let Some(moving) = underway.moves.last_mut() {
            let result = self.copy(moving);
            if matches!(result, Err(MoveFault::NoMemory)) {
                memory = Err(OutOfMemory);
            }
            let moving = underway.moves.pop().expect("it was there a moment ago");
            self.lock().finish_move(moving, result);
            self.tell_waiters();
        }
        drop(underway);
        (self.lock(), memory)
    }

    /// One copy, unless nobody wants it any more: an entry that died or was leased since its move began stays where it
    /// is, and whoever ends its job waits for no more than what has begun.
    fn copy(&self, moving: &mut Move) -> Result<Place, MoveFault> {
        if !self.lock().is_wanted(moving) {
            return Err(MoveFault::NotMade);
        }
        moving.destination.fill(&moving.source, self)
    }

    /// Brings an entry that nobody holds to tier `to`, making room there from what `displace` allows. Under the lock that
    /// comes back the entry may be there, where it was, or gone. A disk that takes no more leaves it where it was.
    pub(crate) fn relocate<'a>(
        &'a self,
        mut store: Locked<'a>,
        id: SlotId,
        to: Tier,
        displace: Displace,
    ) -> (Locked<'a>, Result<(), OutOfBudget>) {
        if store.is_closed(to) {
            return (store, Ok(()));
        }
        store.pin(id);
        let mut pinned = Pinned { shared: self, id, armed: true };
        let need = PerTier::only(to, store.bytes_in(id, to));
        let (mut store, room) = self.make_room(store, need, displace);
        pinned.armed = false;
        let moving = if room.is_ok() { store.begin_move(id, to) } else { None };
        store.unpin(id);
        if let Some(moving) = moving {
            return (self.run(store, vec![moving]).0, room);
        }
        store.slots[id].relocating = false;
        store.settle(id);
        self.tell_waiters();
        (store, room)
    }

    /// Waits until no copy of the job's entries is under way: then all that it owned and nobody holds is back (law 1).
    pub(crate) fn wait_for_copies_of<'a>(&'a self, mut store: Locked<'a>, job: JobId) -> Locked<'a> {
        while store.jobs.get(&job).is_some_and(|job| job.copies > 0) {
            store = self.wait(store);
        }
        store
    }
}

impl Store {
    /// What an entry is charged in a tier.
    pub(crate) fn bytes_in(&self, id: SlotId, tier: Tier) -> u64 {
        let memory_bytes = self.slots[id].place.memory_bytes();
        if tier == Tier::Disk { self.extents.record_bytes(memory_bytes) } else { memory_bytes }
    }

    /// Charges the destination, if it has room for the entry and the entry is still to be had.
    pub(crate) fn begin_move(&mut self, id: SlotId, to: Tier) -> Option<Move> {
        let bytes = self.bytes_in(id, to);
        let slot = &self.slots[id];
        if bytes > self.arenas[to].room_bytes() || !slot.may_move() {
            return None;
        }
        let (owner, kind, source) = (slot.owner, slot.key.kind(), slot.place.clone());
        let destination = match to {
            Tier::Disk => Destination::Disk(self.extents.take(source.memory_bytes())?),
            Tier::Device | Tier::Host => {
                Destination::Memory { idle: self.take_idle(to, bytes, owner).map(|(buffer, _)| buffer) }
            }
        };
        self.slots[id].moves += 1;
        self.count_copy(owner, 1);
        self.charge(Post::new(owner, Some(kind), to, Account::Moving), bytes);
        self.shed(to);
        Some(Move { id, to, bytes, source, destination })
    }

    /// Whether a move that has begun may still arrive.
    fn is_wanted(&self, moving: &Move) -> bool {
        self.slots[moving.id].may_move() && !self.is_closed(moving.to)
    }

    /// Publishes a copy, unless somebody leased the source or the entry died meanwhile: then the copy is dropped and
    /// the entry stays as it is, since a lease keeps it in place. What did not come back from disk is lost.
    fn finish_move(&mut self, moving: Move, result: Result<Place, MoveFault>) {
        let Move { id, to, bytes, source, destination } = moving;
        drop(source);
        let slot = &mut self.slots[id];
        slot.moves -= 1;
        slot.relocating = false;
        let (owner, kind, from) = (slot.owner, slot.key.kind(), slot.tier);
        self.count_copy(owner, -1);
        let stays = !self.slots[id].may_move();
        let arrived = match result {
            Ok(place) if stays => {
                self.give_up(destination, Some(place), to, owner);
                None
            }
            Ok(place) => {
                drop(destination);
                Some(place)
            }
            Err(fault) => {
                self.give_up(destination, None, to, owner);
                self.note(id, from, fault);
                None
            }
        };
        let Some(place) = arrived else {
            self.release(Post::new(owner, Some(kind), to, Account::Moving), bytes);
            self.settle(id);
            return;
        };
        let slot = &mut self.slots[id];
        let left_bytes = slot.charged_bytes();
        slot.tier = to;
        slot.prefetch = match slot.prefetch {
            Prefetch::UnderWay if to == slot.home => Prefetch::Arrived,
            _ => Prefetch::None,
        };
        let left = std::mem::replace(&mut slot.place, place);
        self.vacate(from, left, owner);
        self.arenas[to].transfer(Account::Moving, Account::Live, bytes);
        self.release(Post::new(owner, Some(kind), from, Account::Live), left_bytes);
        let counted = &mut self.kinds[kind as usize];
        if to > from {
            counted.demoted += 1;
            self.traffic[to].demoted += 1;
            self.traffic[to].demoted_bytes += bytes;
        } else {
            counted.promoted += 1;
            self.traffic[from].promoted += 1;
            self.traffic[from].promoted_bytes += left_bytes;
        }
    }

    /// Holds an entry that is about to move. Its job's end waits for that as for a copy.
    fn pin(&mut self, id: SlotId) {
        let slot = &mut self.slots[id];
        slot.moves += 1;
        slot.relocating = true;
        let owner = slot.owner;
        self.count_for_job(owner, 1);
    }

    fn unpin(&mut self, id: SlotId) {
        let slot = &mut self.slots[id];
        slot.moves -= 1;
        let owner = slot.owner;
        self.count_for_job(owner, -1);
    }

    fn count_copy(&mut self, owner: Owner, change: i64) {
        self.copies = self.copies.saturating_add_signed(change);
        self.count_for_job(owner, change);
    }

    fn count_for_job(&mut self, owner: Owner, change: i64) {
        if let Owner::Job(job) = owner
            && let Some(job) = self.jobs.get_mut(&job)
        {
            job.copies = job.copies.saturating_add_signed(change);
        }
    }

    /// Returns the destination of a move that did not arrive.
    fn give_up(&mut self, destination: Destination, made: Option<Place>, to: Tier, owner: Owner) {
        match destination {
            Destination::Memory { idle: Some(untouched) } => self.debris.push(untouched),
            Destination::Memory { idle: None } => {
                if let Some(made) = made {
                    self.vacate(to, made, owner);
                }
            }
            Destination::Disk(record) => {
                drop(made);
                self.extents.give(record);
            }
        }
    }

    /// Law 11: what failed is counted, and what is lost is gone from sight.
    fn note(&mut self, id: SlotId, from: Tier, fault: MoveFault) {
        match fault {
            MoveFault::NotMade | MoveFault::NoMemory => {}
            MoveFault::NotWritten => {
                self.traffic[Tier::Disk].write_faults += 1;
                self.extents.refuse();
            }
            MoveFault::Lost(fault) => {
                self.traffic[from].read_faults += 1;
                let slot = &self.slots[id];
                if slot.state != State::Live {
                    return;
                }
                let (owner, key) = (slot.owner, slot.key);
                // Nothing leases what is on disk, so only this move holds it.
                self.slots[id].moves += 1;
                self.kill(id, Cause::Lost);
                self.slots[id].moves -= 1;
                if let (Owner::Job(job), EntryKey::Own(key)) = (owner, key)
                    && let Some(job) = self.jobs.get_mut(&job)
                {
                    job.lost.insert(key, fault);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    //! What may happen to an entry between the two halves of its move, which no caller can time.

    use std::sync::Arc;

    use super::*;
    use crate::draft::Draft;
    use crate::fetch::get;
    use crate::{Budgets, Key, Kind, Lease, Lifetime, PutSpec, Writer};

    const KEY: EntryKey = EntryKey::Own(Key::new(Kind::Latent));

    /// The locks of this crate's own tests are those of a scheduler, which must be there.
    fn alone(scene: impl Fn() + Send + Sync + 'static) {
        shuttle::check_random(scene, 1);
    }

    struct Scene {
        shared: Arc<Shared>,
        owner: Owner,
        id: SlotId,
    }

    impl Scene {
        /// One unleased entry on the device, one line of sevens.
        fn new() -> Self {
            let budgets = Budgets { device_bytes: 64, host_bytes: 64 };
            let shared = Arc::new(Shared::new(budgets, None));
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
            let mut moving = self.shared.lock().begin_move(self.id, Tier::Host).expect("there is room");
            let result = meanwhile();
            let place = moving.destination.fill(&moving.source, &self.shared);
            let mut store = self.shared.lock();
            store.finish_move(moving, place);
            assert_eq!(store.verify(), Ok(()));
            result
        }

        fn get(&self) -> Option<Lease> {
            get(&self.shared, self.owner, None, &KEY).ok()
        }

        fn end_job(&self) {
            if let Owner::Job(job) = self.owner {
                self.shared.lock().end_job(job);
            }
        }

        fn used(&self) -> [u64; 2] {
            [Tier::Device, Tier::Host].map(|tier| self.shared.lock().arenas[tier].used_bytes())
        }
    }

    #[test]
    fn an_entry_that_nobody_touches_arrives_as_it_was() {
        alone(|| {
            let scene = Scene::new();
            scene.demote(|| assert_eq!(scene.used(), [64, 64]));
            assert_eq!(scene.used(), [0, 64]);
            let store = scene.shared.lock();
            assert_eq!(store.slots[scene.id].place.memory().expect("the host is memory").bytes(), [7; 64]);
        });
    }

    #[test]
    fn an_entry_that_is_leased_meanwhile_stays_in_place() {
        alone(|| {
            let scene = Scene::new();
            let lease = scene.demote(|| scene.get()).expect("it is visible while it moves");
            assert_eq!((lease.tier(), scene.used()), (Tier::Device, [64, 0]));
            assert_eq!(scene.shared.lock().slots[scene.id].tier, Tier::Device);
            assert_eq!(lease.bytes(), [7; 64]);
        });
    }

    #[test]
    fn an_entry_that_dies_meanwhile_returns_both_its_places() {
        alone(|| {
            let scene = Scene::new();
            scene.demote(|| scene.end_job());
            assert_eq!(scene.used(), [0, 0]);
        });
    }

    /// A copy that was made and came too late would leave its memory idle.
    fn assert_nothing_was_copied(scene: &Scene, meanwhile: impl FnOnce()) {
        let moving = scene.shared.lock().begin_move(scene.id, Tier::Host).expect("there is room");
        meanwhile();
        let (store, memory) = scene.shared.run(scene.shared.lock(), vec![moving]);
        assert_eq!(memory, Ok(()));
        let host = &store.arenas[Tier::Host];
        assert_eq!((host.used_bytes(), host.free_listed_bytes()), (0, 0));
        assert_eq!(store.verify(), Ok(()));
    }

    #[test]
    fn an_entry_that_died_or_was_leased_before_its_copy_began_is_not_copied() {
        alone(|| {
            let scene = Scene::new();
            let mut lease = None;
            assert_nothing_was_copied(&scene, || lease = scene.get());
            assert_eq!(scene.used(), [64, 0]);
            drop(lease);
            assert_nothing_was_copied(&scene, || scene.end_job());
            assert_eq!(scene.used(), [0, 0]);
        });
    }

    #[test]
    fn no_move_begins_of_an_entry_that_died_while_room_was_made_for_it() {
        alone(|| {
            let scene = Scene::new();
            scene.shared.lock().pin(scene.id);
            scene.end_job();
            let mut store = scene.shared.lock();
            assert!(store.begin_move(scene.id, Tier::Host).is_none());
            store.unpin(scene.id);
            assert!(store.settle(scene.id));
            assert_eq!(store.verify(), Ok(()));
        });
    }

    #[test]
    fn an_entry_that_dies_meanwhile_is_not_taken_for_one_whose_flight_is_overdue() {
        alone(|| {
            let scene = Scene::new();
            scene.demote(|| {
                scene.end_job();
                assert_eq!(scene.shared.lock().quarantine_overdue(0).entries, 0);
            });
            assert_eq!(scene.used(), [0, 0]);
        });
    }
}
