//! Which weights are in memory: groups as shared entries, read from the checkpoint when they are missing; ahead of their read
//! where an expert does not fit, and for the next expert while the last step of the other one runs.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use evanesce_cache::{Cache, ContentKey, Displace, Job, Lease, PutSpec, Recover, Tick, Tier};
use evanesce_wan::WanError;
use evanesce_wan::checkpoint::Checkpoint;
use evanesce_wan::weights::{Component, GroupId, GroupSpec, WeightGroup, WeightSource};

use crate::blueprint::Blueprint;
use crate::error::EngineError;
use crate::waits::{Wait, Waits};

type Result<T, E = WanError> = std::result::Result<T, E>;

/// Groups that may wait to be prefetched; a request beyond that is dropped and the group is read when it is needed.
const PREFETCH_QUEUE_GROUPS: usize = 4;

/// Reads groups of one checkpoint into one cache, each at most once at a time.
#[derive(Debug)]
struct Shelf {
    checkpoint: Arc<Checkpoint>,
    blueprint: Arc<Blueprint>,
    cache: Cache,
    /// Groups that some thread is reading right now.
    reading: Mutex<BTreeSet<GroupId>>,
    read: Condvar,
    /// Groups that wait to be prefetched, and that nobody has read since they were asked for: what is read sooner than in so many
    /// ticks must not leave for one.
    asked: Mutex<BTreeMap<GroupId, u64>>,
}

/// Removes a group from `reading` on every way out, and wakes whoever waits for it.
struct Reading<'a>(&'a Shelf, GroupId);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.reading().remove(&self.1);
        self.0.read.notify_all();
    }
}

impl Shelf {
    /// The set is consistent after every single operation on it, so a panic elsewhere cannot spoil it.
    fn reading(&self) -> MutexGuard<'_, BTreeSet<GroupId>> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Self::reading`].
    fn asked(&self) -> MutexGuard<'_, BTreeMap<GroupId, u64>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, id: GroupId) -> ContentKey {
        self.blueprint.weights_key(id)
    }

    fn spec(&self, id: GroupId) -> Result<&GroupSpec> {
        self.checkpoint.groups(id.component).get(id.index).ok_or_else(|| WanError::Store {
            what: format!("{id:?}"),
            message: "the checkpoint has no such group".to_owned(),
            source: None,
        })
    }

    /// Waits while another thread reads the group, then claims it.
    fn claim(&self, id: GroupId) -> Reading<'_> {
        let mut reading = self.reading();
        while !reading.insert(id) {
            reading = self.read.wait(reading).unwrap_or_else(PoisonError::into_inner);
        }
        Reading(self, id)
    }

    /// Copies the group from the checkpoint into an entry. The caller has claimed it.
    fn read_in(&self, id: GroupId, spec: PutSpec) -> Result<Lease> {
        let key = self.key(id);
        let mut writer =
            self.cache.shared_put_with(key, spec).map_err(|error| crate::store_error(&key, error))?;
        self.checkpoint.read_group(id, writer.bytes_mut())?;
        writer.commit().map_err(|error| crate::store_error(&key, error.refusal))
    }

    /// Reads a group in that is still asked for, if there is room now that needs nothing to leave, or only what nobody will read
    /// before.
    fn prefetch(&self, id: GroupId) {
        // Whoever reads a group takes it off the list: to bring it now would be too late for that read.
        let Some(distance_ticks) = self.asked().remove(&id) else { return };
        let _claim = self.claim(id);
        if self.cache.shared_contains(&self.key(id)) {
            return;
        }
        let Ok(group) = self.spec(id) else { return };
        let spec = weights_spec(group).displace(Displace::NeededAfter { ticks: distance_ticks });
        // A refusal is no failure: the group is read when it is needed, and that read reports what is wrong.
        drop(self.read_in(id, spec));
    }
}

/// How a group of weights is put; before encoding it is what the checkpoint stores.
pub(crate) fn weights_spec(group: &GroupSpec) -> PutSpec {
    let put = PutSpec::shared(Tier::Device, group.len_bytes).recover(Recover::Reload);
    put.raw_bytes(group.stored_bytes as u64)
}

/// A group to prefetch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) id: GroupId,
    /// What is read sooner than in so many ticks must not leave for it.
    pub(crate) distance_ticks: u64,
}

/// The weights of one model, and the thread that prefetches them.
#[derive(Debug)]
pub(crate) struct Weights {
    shelf: Arc<Shelf>,
    /// `None` once nothing more is asked for.
    wanted: Option<SyncSender<GroupId>>,
    thread: Option<JoinHandle<()>>,
}

impl Weights {
    pub(crate) fn new(
        checkpoint: Arc<Checkpoint>,
        blueprint: Arc<Blueprint>,
        cache: Cache,
    ) -> Result<Self, EngineError> {
        let (reading, asked) = (Mutex::default(), Mutex::default());
        let shelf = Shelf { checkpoint, blueprint, cache, reading, read: Condvar::new(), asked };
        let shelf = Arc::new(shelf);
        let (sender, receiver) = sync_channel(PREFETCH_QUEUE_GROUPS);
        let for_thread = Arc::clone(&shelf);
        let thread = std::thread::Builder::new()
            .name("weights".to_owned())
            .spawn(move || serve(&for_thread, &receiver))
            .map_err(|error| {
                EngineError::Cache(format!("cannot start the thread that reads weights: {error}"))
            })?;
        Ok(Self { shelf, wanted: Some(sender), thread: Some(thread) })
    }

    /// The weights as one job reads them.
    pub(crate) fn for_job<'a>(
        &'a self,
        job: &'a Job,
        position: Position,
        waits: &'a Waits,
    ) -> JobWeights<'a> {
        JobWeights { weights: self, job, reads: PassReads::new(position), waits }
    }

    fn request(&self, wanted: Wanted) {
        let Wanted { id, distance_ticks } = wanted;
        let shelf = &*self.shelf;
        if shelf.cache.shared_contains(&shelf.key(id)) {
            return;
        }
        let mut asked = shelf.asked();
        // What waits already is not asked for twice: it comes for the soonest read that it was asked for.
        if let Some(waiting) = asked.get_mut(&id) {
            *waiting = distance_ticks.min(*waiting);
            return;
        }
        asked.insert(id, distance_ticks);
        drop(asked);
        // A full queue drops the request: see PREFETCH_QUEUE_GROUPS.
        if self.wanted.as_ref().is_none_or(|sender| sender.try_send(id).is_err()) {
            shelf.asked().remove(&id);
        }
    }

    /// Waits until the thread has gone through what it was asked for, and ends it.
    fn finish(&mut self) {
        self.wanted = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Drop for Weights {
    fn drop(&mut self) {
        // What still waits would be read for nobody.
        self.shelf.asked().clear();
        self.finish();
    }
}

fn serve(shelf: &Shelf, wanted: &Receiver<GroupId>) {
    while let Ok(id) = wanted.recv() {
        shelf.prefetch(id);
    }
}

/// Where a forward pass stands in its job's sequence of reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    /// Tick at which group 0 is read.
    pub(crate) first: Tick,
    /// The component that the next pass will read, when it is another one, and the tick of its group 0: prefetched
    /// behind this pass.
    pub(crate) next: Option<(Component, Tick)>,
}

impl Position {
    /// What is read ahead while a pass that stands here has `group` in use, what is needed sooner first: the group after it, and
    /// that of the next pass's component for which there is room, the groups before `group` having been read for the last time.
    ///
    /// The group after it is read ahead by experts, and where there are two of them: admission keeps room for one group more than
    /// the one in use there, and nowhere else.
    fn read_ahead(&self, blueprint: &Blueprint, group: GroupId) -> impl Iterator<Item = Wanted> {
        let GroupId { component, index } = group;
        let now = self.first.0 + index as u64;
        let [high, low] = blueprint.experts();
        let is_one_of_two = high != low && [high, low].contains(&component);
        // What is read together with it must not leave for it either.
        let after = Wanted { id: GroupId { component, index: index + 1 }, distance_ticks: 2 };
        let next = self.next.map(|(component, first)| Wanted {
            id: GroupId { component, index },
            distance_ticks: (first.0 + index as u64).saturating_sub(now),
        });
        let n_groups = move |component| blueprint.group_bytes(component).len();
        let exists = move |wanted: &Wanted| wanted.id.index < n_groups(wanted.id.component);
        [is_one_of_two.then_some(after), next].into_iter().flatten().filter(exists)
    }
}

/// The reads of one forward pass: group after group, and in between group 0 again, where keys and values of the text are missing in a
/// later layer.
#[derive(Debug)]
pub(crate) struct PassReads {
    position: Position,
    /// The last group in order that was read.
    furthest: Cell<Option<usize>>,
}

impl PassReads {
    pub(crate) fn new(position: Position) -> Self {
        Self { position, furthest: Cell::new(None) }
    }

    /// When group `index` is read.
    pub(crate) fn tick(&self, index: usize) -> Tick {
        Tick(self.position.first.0 + index as u64)
    }

    /// What is read ahead while `group` is in use, as [`Position::read_ahead`] says, if the pass gets on with it: what follows a group
    /// that is read again has been read as well.
    pub(crate) fn read_ahead(&self, blueprint: &Blueprint, group: GroupId) -> impl Iterator<Item = Wanted> {
        let gets_on = self.furthest.get().is_none_or(|furthest| furthest < group.index);
        if gets_on {
            self.furthest.set(Some(group.index));
        }
        gets_on.then(|| self.position.read_ahead(blueprint, group)).into_iter().flatten()
    }
}

/// Leases groups for one forward pass of one job.
#[derive(Debug)]
pub(crate) struct JobWeights<'a> {
    weights: &'a Weights,
    job: &'a Job,
    reads: PassReads,
    waits: &'a Waits,
}

struct LeasedGroup<'a> {
    spec: &'a GroupSpec,
    lease: Lease,
}

impl WeightGroup for LeasedGroup<'_> {
    fn spec(&self) -> &GroupSpec {
        self.spec
    }

    fn bytes(&self) -> &[u8] {
        self.lease.bytes()
    }
}

impl WeightSource for JobWeights<'_> {
    fn lease(&self, id: GroupId) -> Result<Box<dyn WeightGroup + '_>> {
        let shelf = &*self.weights.shelf;
        let spec = shelf.spec(id)?;
        self.job.tick(self.reads.tick(id.index));
        let key = shelf.key(id);
        shelf.asked().remove(&id);
        let is_missing = !shelf.cache.shared_contains(&key);
        let lease = self.waits.around(Wait::Weights, is_missing, || {
            let _claim = shelf.claim(id);
            match self.job.shared_get(&key) {
                Some(lease) => Ok(lease),
                None => shelf.read_in(id, weights_spec(spec)),
            }
        })?;
        for wanted in self.reads.read_ahead(&shelf.blueprint, id) {
            self.weights.request(wanted);
        }
        Ok(Box::new(LeasedGroup { spec, lease }))
    }
}

#[cfg(test)]
mod tests {
    use evanesce_cache::{Budgets, Uses, entry_bytes};

    use super::*;
    use crate::model::Model;

    const BUDGETS: Budgets = Budgets { device_bytes: 1 << 30, host_bytes: 0 };
    const POSITION: Position = Position { first: Tick(100), next: None };

    /// A group of the expert that comes first.
    fn expert(index: usize) -> GroupId {
        GroupId { component: Component::HighNoise, index }
    }

    /// Has the thread of `weights` wait for a group that no checkpoint has, so that what is asked for stays asked for.
    fn hold_up(weights: &Weights) -> Reading<'_> {
        let id = expert(99);
        let held = weights.shelf.claim(id);
        weights.request(Wanted { id, distance_ticks: 1 });
        held
    }

    /// The groups of `component` that are there when `group` of it was read, and all that was asked for then has come.
    fn there_after(component: Component, group: usize) -> Vec<usize> {
        let mut model = Model::golden(BUDGETS);
        let (job, waits) = (model.cache.open_job(), Waits::default());
        let weights = model.weights.for_job(&job, POSITION, &waits);
        drop(weights.lease(GroupId { component, index: group }).unwrap());
        model.weights.finish();
        let (cache, blueprint) = (&model.cache, &model.blueprint);
        let is_there = |index: &usize| {
            let key = blueprint.weights_key(GroupId { component, index: *index });
            cache.shared_contains(&key)
        };
        (0..blueprint.group_bytes(component).len()).filter(is_there).collect()
    }

    #[test]
    fn the_group_of_an_expert_behind_the_one_in_use_is_asked_for_before_it_is_read() {
        for expert in [Component::HighNoise, Component::LowNoise] {
            assert_eq!(there_after(expert, 0), [0, 1]);
            assert_eq!(there_after(expert, 1), [1, 2]);
            // Nothing follows the last.
            let last = Model::golden(BUDGETS).blueprint.group_bytes(expert).len() - 1;
            assert_eq!(there_after(expert, last), [last]);
        }
        // There is no room to count on for a second group of these.
        assert_eq!(there_after(Component::TextEncoder, 0), [0]);
    }

    #[test]
    fn behind_a_group_that_a_pass_reads_again_nothing_is_read_ahead() {
        let model = Model::golden(BUDGETS);
        let (job, waits) = (model.cache.open_job(), Waits::default());
        let _held_up = hold_up(&model.weights);
        let weights = model.weights.for_job(&job, POSITION, &waits);
        (0..2).for_each(|index| drop(weights.lease(expert(index)).unwrap()));
        // It has left the device since.
        assert!(model.cache.shared_remove(&model.blueprint.weights_key(expert(1))));
        drop(weights.lease(expert(0)).unwrap());
        let asked = model.weights.shelf.asked().clone();
        assert!(asked.contains_key(&expert(2)) && !asked.contains_key(&expert(1)), "{asked:?}");
    }

    #[test]
    fn what_was_asked_for_and_is_read_before_it_comes_is_not_brought_again() {
        let model = Model::golden(BUDGETS);
        let shelf = &*model.weights.shelf;
        let id = expert(1);
        shelf.prefetch(id);
        assert!(!shelf.cache.shared_contains(&shelf.key(id)), "nobody asks for it any more");
        shelf.asked().insert(id, 2);
        shelf.prefetch(id);
        assert!(shelf.cache.shared_contains(&shelf.key(id)) && shelf.asked().is_empty());
    }

    #[test]
    fn what_still_waits_when_its_model_goes_is_read_for_nobody() {
        let model = Model::golden(BUDGETS);
        let shelf = Arc::clone(&model.weights.shelf);
        shelf.asked().insert(expert(1), 2);
        drop(model);
        // As the thread does with what is left in its queue.
        shelf.prefetch(expert(1));
        assert!(!shelf.cache.shared_contains(&shelf.key(expert(1))));
    }

    #[test]
    fn what_is_asked_for_again_comes_for_the_sooner_of_its_reads() {
        let group_bytes = Model::golden(BUDGETS).blueprint.group_bytes(Component::HighNoise).nth(1).unwrap();
        // Room for one layer: another one is there, and is read in fifty ticks.
        let model = Model::golden(Budgets { device_bytes: entry_bytes(group_bytes), host_bytes: 0 });
        let (shelf, job) = (&*model.weights.shelf, model.cache.open_job());
        let there = shelf.spec(expert(2)).unwrap();
        drop(shelf.read_in(expert(2), weights_spec(there)).unwrap());
        job.announce(shelf.key(expert(2)), Uses::once(Tick(50)));
        let _held_up = hold_up(&model.weights);
        let request = |distance_ticks| model.weights.request(Wanted { id: expert(1), distance_ticks });
        let comes = || {
            shelf.prefetch(expert(1));
            shelf.cache.shared_contains(&shelf.key(expert(1)))
        };
        request(100);
        assert!(!comes(), "what is there is read before");
        [100, 2, 100].into_iter().for_each(request);
        assert!(comes());
    }
}
