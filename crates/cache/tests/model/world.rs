//! The cache, the reference, and the guards that a caller holds, side by side.

mod room;

use evanesce_cache::{
    Budgets, Cache, ContentKey, EntryKey, Fill, Flight, Job, JobId, Key, Kind, Lease, Lifetime, PerTier,
    PutError, PutSpec, Reservation, Stage, Tick, Tier, Uses, Workspace, Writer,
};

use crate::reference::{Death, JobModel, JobSerial, Phase, Reference, charge};
use crate::{KINDS, Op, Spec, Then};

const BUDGETS: Budgets = Budgets { device_bytes: 20 * 64, host_bytes: 10 * 64 };
const OPEN_JOBS: usize = 3;

pub(crate) struct World {
    cache: Cache,
    model: Reference,
    jobs: Vec<(Job, JobSerial)>,
    ids: Vec<JobId>,
    stages: Vec<(Stage, JobSerial, usize)>,
    writers: Vec<(Writer, usize)>,
    leases: Vec<(Lease, usize)>,
    flights: Vec<(Flight, usize)>,
    reservations: Vec<Reservation>,
    workspaces: Vec<Workspace>,
    /// The first disagreement that a call itself showed.
    fault: Option<String>,
}

fn key(n: usize) -> Key {
    let n = u32::try_from(n).expect("below 64");
    let kind = if n.is_multiple_of(2) { Kind::Latent } else { Kind::SelfKv };
    Key::new(kind).index(n / 2 % 2).frame(n / 4 % 4)
}

fn content(n: usize) -> ContentKey {
    ContentKey::of(Kind::TextEmbedding, &[&[u8::try_from(n % 4).expect("below 4")]])
}

fn put_spec(spec: Spec) -> PutSpec {
    PutSpec::new(spec.tier, spec.lifetime, spec.len_bytes).recover(spec.recover).fill(spec.fill)
}

impl World {
    pub(crate) fn new() -> Self {
        let cache = Cache::new(BUDGETS);
        let mut world = Self {
            cache,
            model: Reference { budgets: PerTier::from_fn(|tier| BUDGETS.of(tier)), ..Reference::default() },
            jobs: Vec::new(),
            ids: Vec::new(),
            stages: Vec::new(),
            writers: Vec::new(),
            leases: Vec::new(),
            flights: Vec::new(),
            reservations: Vec::new(),
            workspaces: Vec::new(),
            fault: None,
        };
        (0..OPEN_JOBS).for_each(|_| world.open_job());
        world
    }

    fn open_job(&mut self) {
        let job = self.cache.open_job();
        self.ids.push(job.id());
        self.jobs.push((job, self.model.jobs.len()));
        self.model.jobs.push(JobModel::default());
    }

    fn fault(&mut self, what: String) {
        self.fault.get_or_insert(what);
    }

    pub(crate) fn apply(&mut self, op: &Op) {
        let job = |n: usize| n % OPEN_JOBS;
        match op {
            Op::Put { job: n, key: k, spec, then } => self.put(job(*n), key(*k), *spec, *then),
            Op::PutGroup { job: n, members, commit } => self.put_group(job(*n), members, *commit),
            Op::SharedPut { content: k, spec, then } => self.shared_put(content(*k), *spec, *then),
            Op::PutReserved { reservation, key: k, spec } => self.put_reserved(*reservation, key(*k), *spec),
            Op::CommitWriter(n) => self.commit_writer(*n),
            Op::DropWriter(n) => {
                if let Some((writer, at)) = take(&mut self.writers, *n) {
                    drop(writer);
                    self.model.abandon(at);
                }
            }
            Op::Get { job: n, key: k, hold } => {
                let serial = self.jobs[job(*n)].1;
                self.get(job(*n), Some(serial), key(*k).into(), *hold);
            }
            Op::SharedGet { job: n, content: k, hold } => self.get(job(*n), None, content(*k).into(), *hold),
            Op::DropLease(n) => {
                if let Some((lease, at)) = take(&mut self.leases, *n) {
                    drop(lease);
                    self.model.entries[at].leases -= 1;
                    self.model.settle(at);
                }
            }
            Op::Reserve { job: n, tier, lines } => self.reserve(job(*n), *tier, *lines),
            Op::SplitReservation { reservation, lines } => self.split(*reservation, *lines),
            Op::DropReservation(n) => {
                if !self.reservations.is_empty() {
                    let at = n % self.reservations.len();
                    drop(self.reservations.swap_remove(at));
                    self.model.reserved.swap_remove(at);
                }
            }
            Op::Announce { job: n, key: k, period, count } => {
                self.jobs[job(*n)].0.announce(key(*k), Uses::every(*period, Tick(*period), *count));
            }
            Op::Tick { job: n, now } => self.jobs[job(*n)].0.tick(Tick(*now)),
            Op::Trim => _ = self.cache.trim(),
            Op::Workspace { job: n, tier, len_bytes } => self.workspace(job(*n), *tier, *len_bytes),
            Op::Demote { job: n, key: k } => self.demote(job(*n), key(*k)),
            Op::SetBudget { tier, lines } => self.set_budget(*tier, *lines),
            other => self.apply_end(other),
        }
    }

    /// Calls that end something.
    fn apply_end(&mut self, op: &Op) {
        match op {
            Op::BeginFlight(n) if !self.leases.is_empty() => {
                let (lease, at) = &self.leases[n % self.leases.len()];
                self.flights.push((lease.begin_flight(), *at));
                self.model.entries[*at].flights += 1;
            }
            Op::EndFlight { flight, landed } => {
                if let Some((flight, at)) = take(&mut self.flights, *flight) {
                    if *landed {
                        flight.landed()
                    } else {
                        drop(flight)
                    }
                    self.model.entries[at].flights -= 1;
                    self.model.entries[at].lost |= !landed;
                    self.model.settle(at);
                }
            }
            Op::Remove { job, key: k } => {
                let (job, serial) = &self.jobs[job % OPEN_JOBS];
                let (removed, serial) = (job.remove(&key(*k)), *serial);
                self.removed(removed, Some(serial), key(*k).into());
            }
            Op::SharedRemove(k) => {
                let removed = self.cache.shared_remove(&content(*k));
                self.removed(removed, None, content(*k).into());
            }
            Op::PruneOld { job, key: k, keep } => {
                let (job, serial) = &self.jobs[job % OPEN_JOBS];
                let (expired, serial) = (job.prune_old(&key(*k), *keep), *serial);
                let model = self.model.prune_old(serial, key(*k), *keep);
                if (expired.entries, expired.returned_bytes) != model {
                    self.fault(format!("pruning said {expired:?}, not {model:?}"));
                }
            }
            Op::Step(n) => {
                let (job, serial) = &self.jobs[n % OPEN_JOBS];
                let (expired, serial) = (job.step(), *serial);
                self.model.jobs[serial].step += 1;
                let step = self.model.jobs[serial].step;
                let model = self.model.expire(|e| e.job == Some(serial) && e.death == Death::AfterStep(step));
                if (expired.entries, expired.returned_bytes) != model {
                    self.fault(format!("step said {expired:?}, not {model:?}"));
                }
            }
            Op::OpenStage(n) => {
                let (job, serial) = &self.jobs[n % OPEN_JOBS];
                let id = self.model.stages_opened;
                self.stages.push((job.stage("stage"), *serial, id));
                self.model.stages_opened += 1;
                self.model.jobs[*serial].stages.push(id);
            }
            Op::EndStage(n) => {
                if let Some((stage, serial, id)) = take(&mut self.stages, *n) {
                    let expired = stage.finish();
                    self.model.jobs[serial].stages.retain(|s| *s != id);
                    let model =
                        self.model.expire(|e| e.job == Some(serial) && e.death == Death::WithStage(id));
                    if (expired.entries, expired.returned_bytes) != model {
                        self.fault(format!("the stage said {expired:?}, not {model:?}"));
                    }
                }
            }
            Op::EndJob(n) => {
                let (job, serial) = self.jobs.swap_remove(n % OPEN_JOBS);
                drop(job);
                self.end_job(serial);
                self.open_job();
            }
            Op::Sweep(patience) => self.sweep(*patience),
            Op::DropWorkspace(n) if !self.workspaces.is_empty() => {
                let at = n % self.workspaces.len();
                drop(self.workspaces.swap_remove(at));
                self.model.workspaces.swap_remove(at);
            }
            _ => {}
        }
    }

    fn end_job(&mut self, serial: JobSerial) {
        self.model.jobs[serial].ended = true;
        self.model.jobs[serial].stages.clear();
        self.model.expire(|e| e.job == Some(serial));
    }

    fn sweep(&mut self, patience: u64) {
        let overdue = self.cache.quarantine_overdue(patience);
        self.model.sweeps += 1;
        let sweeps = self.model.sweeps;
        let mut entries = 0;
        for entry in &mut self.model.entries {
            if let Phase::Quiescing { sweep } = entry.phase
                && entry.flights > 0
                && sweeps - sweep > patience
            {
                entry.phase = Phase::Quarantined;
                entries += 1;
            }
        }
        if overdue.entries != entries {
            self.fault(format!("{overdue:?} are overdue, not {entries}"));
        }
    }

    fn removed(&mut self, removed: bool, job: Option<JobSerial>, key: EntryKey) {
        let found = self.model.find(job, &key);
        if let Some(at) = found {
            self.model.end(at);
            self.model.tally(key.kind()).removed += 1;
        }
        if removed != found.is_some() {
            self.fault(format!("removal of {key} said {removed}"));
        }
    }

    // ---- puts ----

    fn put(&mut self, n: usize, key: Key, spec: Spec, then: Then) {
        let (job, serial) = &self.jobs[n];
        let serial = *serial;
        let result = job.put_with(key, put_spec(spec));
        let refusal = self.lifetime_refusal(serial, key, spec);
        if let Some(writer) = self.begun(result, refusal, &[spec]) {
            let at = self.model.write(Some(serial), key.into(), spec);
            self.written(writer, at, then);
        }
    }

    fn shared_put(&mut self, key: ContentKey, spec: Spec, then: Then) {
        let spec = Spec { lifetime: Lifetime::Persistent, ..spec };
        let result = self.cache.shared_put_with(key, put_spec(spec));
        let exists = self.model.find(None, &key.into()).map(|_| PutError::Exists { key: key.into() });
        if let Some(writer) = self.begun(result, exists, &[spec]) {
            let at = self.model.write(None, key.into(), spec);
            self.written(writer, at, then);
        }
    }

    fn put_reserved(&mut self, n: usize, key: Key, spec: Spec) {
        if self.reservations.is_empty() {
            return;
        }
        let n = n % self.reservations.len();
        let (serial, left) = self.model.reserved[n];
        let result = self.reservations[n].put(key, put_spec(spec));
        let (needed_bytes, left_bytes) = (charge(spec.len_bytes), left[spec.tier]);
        let refusal = if self.model.jobs[serial].ended {
            Some(PutError::OwnerEnded { key: key.into() })
        } else {
            self.lifetime_refusal(serial, key, spec).or_else(|| {
                (needed_bytes > left_bytes).then_some(PutError::ReservationTooSmall {
                    tier: spec.tier,
                    needed_bytes,
                    left_bytes,
                })
            })
        };
        match (result, refusal) {
            (Ok(writer), None) => {
                self.model.reserved[n].1[spec.tier] -= needed_bytes;
                let at = self.model.write(Some(serial), key.into(), spec);
                self.written(writer, at, Then::Commit);
            }
            (Err(error), Some(refusal)) if error == refusal => {}
            (result, refusal) => self.fault(format!("{result:?} instead of {refusal:?}")),
        }
    }

    fn put_group(&mut self, n: usize, members: &[(usize, Spec)], commit: bool) {
        let (job, serial) = &self.jobs[n];
        let serial = *serial;
        let members: Vec<_> = members.iter().map(|(k, spec)| (key(*k), *spec)).collect();
        let result = job.put_group(members.iter().map(|(key, spec)| (*key, put_spec(*spec))));
        let mut keys: Vec<_> = members.iter().map(|(key, _)| *key).collect();
        keys.sort_unstable();
        let repeated = keys
            .windows(2)
            .find(|pair| pair[0] == pair[1])
            .map(|pair| PutError::Repeated { key: pair[0].into() });
        let refusal = repeated
            .or_else(|| members.iter().find_map(|(key, spec)| self.lifetime_refusal(serial, *key, *spec)));
        let specs: Vec<_> = members.iter().map(|(_, spec)| *spec).collect();
        let Some(mut writer) = self.begun(result, refusal, &specs) else { return };
        let group: Vec<usize> =
            members.iter().map(|(key, spec)| self.model.write(Some(serial), (*key).into(), *spec)).collect();
        for (position, &at) in group.iter().enumerate() {
            writer.bytes_mut(position).fill(self.model.entries[at].stamp);
        }
        if !commit {
            drop(writer);
            group.into_iter().for_each(|at| self.model.abandon(at));
            return;
        }
        let leases = writer.commit().expect("the keys were free a moment ago");
        self.model.groups += 1;
        group.iter().for_each(|&at| self.model.entries[at].group = Some(self.model.groups));
        self.model.commit(&group);
        drop(leases);
        for at in group {
            self.model.entries[at].leases -= 1;
            self.model.settle(at);
        }
    }

    fn lifetime_refusal(&self, serial: JobSerial, key: Key, spec: Spec) -> Option<PutError> {
        if self.model.find(Some(serial), &key.into()).is_some() {
            return Some(PutError::Exists { key: key.into() });
        }
        match spec.lifetime {
            Lifetime::Steps(0) => Some(PutError::NoSteps),
            Lifetime::Persistent => Some(PutError::PersistentNeedsSharedPool),
            Lifetime::Stage if self.model.jobs[serial].stages.is_empty() => Some(PutError::NoStage),
            Lifetime::Steps(_) | Lifetime::Window { .. } | Lifetime::Stage | Lifetime::Job => None,
        }
    }

    /// A put's answer, compared with what it had to be; follows what it evicted.
    fn begun<W: std::fmt::Debug>(
        &mut self,
        result: Result<W, PutError>,
        refusal: Option<PutError>,
        specs: &[Spec],
    ) -> Option<W> {
        let need = PerTier::from_fn(|tier| {
            specs.iter().filter(|s| s.tier == tier).map(|s| charge(s.len_bytes)).sum::<u64>()
        });
        match (result, refusal) {
            (Err(PutError::OutOfBudget(_)), None) => {
                self.refused_room(need);
                None
            }
            (Ok(writer), None) => {
                self.followed(need, None);
                Some(writer)
            }
            (Err(error), Some(refusal)) if error == refusal => None,
            (result, refusal) => {
                self.fault(format!("{result:?} instead of {refusal:?}"));
                None
            }
        }
    }

    fn written(&mut self, mut writer: Writer, at: usize, then: Then) {
        let entry = &self.model.entries[at];
        let own = |byte: &u8| self.is_own(entry.job, *byte);
        let clean = match entry.spec.fill {
            Fill::Zeros => writer.bytes().iter().all(|byte| *byte == 0),
            Fill::Any => writer.bytes().iter().all(own),
        };
        let aligned = writer.bytes().as_ptr().addr().is_multiple_of(64);
        let (stamp, len) = (entry.stamp, entry.spec.len_bytes);
        if !clean || !aligned || writer.bytes().len() != len {
            self.fault(format!("a new writer of {len} bytes shows {:?}", writer.bytes()));
        }
        writer.bytes_mut().fill(stamp);
        match then {
            Then::Keep => self.writers.push((writer, at)),
            Then::Abandon => {
                drop(writer);
                self.model.abandon(at);
            }
            Then::Commit | Then::CommitAndHold => {
                self.commit(writer, at, matches!(then, Then::CommitAndHold))
            }
        }
    }

    /// Whether memory of this owner may show a byte: zero, or what the owner wrote.
    fn is_own(&self, owner: Option<JobSerial>, byte: u8) -> bool {
        byte == 0
            || owner.is_some_and(|serial| room::workspace_stamp(serial) == byte)
            || self.model.entries.iter().any(|entry| entry.job == owner && entry.stamp == byte)
    }

    fn commit_writer(&mut self, n: usize) {
        if let Some((writer, at)) = take(&mut self.writers, n) {
            self.commit(writer, at, false);
        }
    }

    fn commit(&mut self, writer: Writer, at: usize, hold: bool) {
        match (writer.commit(), self.model.may_commit(at)) {
            (Ok(lease), true) => {
                self.model.commit(&[at]);
                self.leases.push((lease, at));
                if !hold {
                    self.apply(&Op::DropLease(self.leases.len() - 1));
                }
            }
            (Err(error), false) => self.writers.push((*error.writer, at)),
            (result, may) => self.fault(format!("commit said {result:?} but may be: {may}")),
        }
    }

    // ---- reads ----

    fn get(&mut self, n: usize, owner: Option<JobSerial>, key: EntryKey, hold: bool) {
        let job = &self.jobs[n].0;
        let lease = match &key {
            EntryKey::Own(key) => job.get(key),
            EntryKey::Shared(key) => job.shared_get(key),
        };
        let found = self.model.find(owner, &key);
        match (lease, found) {
            (None, None) => self.model.tally(key.kind()).misses += 1,
            (Some(lease), Some(at)) => {
                let entry = &self.model.entries[at];
                let may_come = entry.tier != entry.spec.tier && entry.free_to_go();
                let came = lease.tier() != entry.tier;
                let need = PerTier::only(entry.spec.tier, entry.charge());
                // The read holds it while room is made for it, and by it the group.
                self.model.entries[at].leases += 1;
                if came {
                    self.followed(need, Some(at));
                    self.model.came_home(at);
                } else if may_come {
                    self.refused_room(need);
                }
                self.model.tally(key.kind()).hits += 1;
                self.leases.push((lease, at));
                if !hold {
                    self.apply(&Op::DropLease(self.leases.len() - 1));
                }
            }
            (lease, found) => self.fault(format!("a read of {key} found {lease:?}, not {found:?}")),
        }
    }

    // ---- checks ----

    pub(crate) fn check(&self) -> Result<(), String> {
        if let Some(what) = &self.fault {
            return Err(what.clone());
        }
        self.cache.verify().map_err(|e| e.to_string())?;
        self.check_tiers()?;
        self.check_kinds()?;
        self.check_visibility()?;
        for (lease, at) in &self.leases {
            let entry = &self.model.entries[*at];
            let whole = lease.len() == entry.spec.len_bytes && lease.iter().all(|b| *b == entry.stamp);
            if !whole || lease.tier() != entry.tier {
                return Err(format!("{lease:?} does not show what was written"));
            }
        }
        Ok(())
    }

    fn check_tiers(&self) -> Result<(), String> {
        let counters = self.cache.counters();
        for tier in Tier::ALL {
            let (c, m) = (counters.tier(tier), &self.model);
            let expected = [
                m.used(tier),
                m.sum(tier, |e| e.phase == Phase::Live),
                m.sum(tier, |e| e.phase == Phase::Writing),
                m.sum(tier, |e| matches!(e.phase, Phase::Quiescing { .. })),
                m.sum(tier, |e| e.phase == Phase::Quarantined),
                m.reserved(tier),
            ];
            let counted = [
                c.used_bytes,
                c.live_bytes,
                c.writing_bytes,
                c.quiescing_bytes,
                c.quarantined_bytes,
                c.reserved_bytes,
            ];
            if expected != counted {
                return Err(format!("{tier}: {counted:?} counted, {expected:?} expected"));
            }
            let is_over = c.used_bytes + c.free_listed_bytes > c.budget_bytes;
            if is_over || c.peak_bytes < c.used_bytes || c.budget_bytes != m.budgets[tier] {
                return Err(format!("{tier}: {c:?}"));
            }
            for (serial, id) in self.ids.iter().enumerate() {
                let (owned, usage) = (self.model.owned(serial, tier), self.cache.owned_by(*id));
                if usage.bytes[tier] != owned {
                    return Err(format!("{id} owns {owned} in {tier}, counted {usage:?}"));
                }
            }
        }
        Ok(())
    }

    fn check_kinds(&self) -> Result<(), String> {
        let counters = self.cache.counters();
        for (kind, expected) in KINDS.iter().zip(&self.model.tallies) {
            let c = counters.kind(*kind);
            let counted = crate::reference::Tally {
                puts: c.puts,
                hits: c.hits,
                misses: c.misses,
                expired: c.expired,
                pruned: c.pruned,
                removed: c.removed,
                evicted: c.evicted,
                demoted: c.demoted,
                promoted: c.promoted,
                returned_bytes: c.returned_bytes,
                encoded_bytes: c.encoded_bytes,
            };
            if counted != *expected {
                return Err(format!("{kind}: {counted:?} counted, {expected:?} expected"));
            }
        }
        Ok(())
    }

    /// Every key of every open job, and every shared key.
    fn check_visibility(&self) -> Result<(), String> {
        for (job, serial) in &self.jobs {
            for k in (0..16).map(key) {
                let expected =
                    self.model.find(Some(*serial), &k.into()).map(|at| self.model.entries[at].tier);
                if job.tier_of(&k) != expected {
                    return Err(format!("{k} of {job:?} is in {:?}, not {expected:?}", job.tier_of(&k)));
                }
            }
        }
        for k in (0..4).map(content) {
            let expected = self.model.find(None, &k.into()).map(|at| self.model.entries[at].tier);
            if self.cache.shared_tier_of(&k) != expected {
                return Err(format!("{k} is in {:?}, not {expected:?}", self.cache.shared_tier_of(&k)));
            }
        }
        Ok(())
    }

    /// Lets everything go; what is left is the shared pool and the quarantine.
    pub(crate) fn end(mut self) {
        for (_, serial) in self.jobs.drain(..).collect::<Vec<_>>() {
            self.end_job(serial);
        }
        for (flight, _) in self.flights.drain(..) {
            flight.landed();
        }
        self.leases.clear();
        self.writers.clear();
        self.reservations.clear();
        self.workspaces.clear();
        assert_eq!(self.cache.verify(), Ok(()));
        let counters = self.cache.counters();
        for tier in Tier::ALL {
            let quarantined = self.model.sum(tier, |e| e.phase == Phase::Quarantined);
            let shared = self.model.sum(tier, |e| e.phase == Phase::Live);
            let lost = self.model.sum(tier, |e| matches!(e.phase, Phase::Quiescing { .. }) && e.lost);
            assert_eq!(counters.tier(tier).used_bytes, quarantined + shared + lost, "{counters:?}");
        }
    }
}

fn take<T>(items: &mut Vec<T>, n: usize) -> Option<T> {
    (!items.is_empty()).then(|| items.swap_remove(n % items.len()))
}
