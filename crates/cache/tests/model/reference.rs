//! What the cache should hold, from a list of all entries that ever were.

use evanesce_cache::{EntryKey, Key, Kind, Lifetime, PerTier, Recover, Tier};

use crate::{KINDS, Spec};

pub(crate) type JobSerial = usize;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Death {
    AfterStep(u64),
    WithStage(usize),
    InWindow { sink: u32, recent: u32 },
    WithOwner,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Phase {
    Writing,
    Live,
    Quiescing { sweep: u64 },
    Quarantined,
    Gone,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) job: Option<JobSerial>,
    pub(crate) key: EntryKey,
    pub(crate) tier: Tier,
    pub(crate) spec: Spec,
    pub(crate) stage: Option<usize>,
    pub(crate) death: Death,
    pub(crate) group: Option<usize>,
    pub(crate) stamp: u8,
    pub(crate) phase: Phase,
    pub(crate) leases: usize,
    pub(crate) flights: usize,
    pub(crate) lost: bool,
}

impl Entry {
    pub(crate) fn charge(&self) -> u64 {
        charge(self.spec.len_bytes)
    }

    pub(crate) fn still(&self) -> bool {
        self.leases == 0 && self.flights == 0
    }

    pub(crate) fn free_to_go(&self) -> bool {
        self.still() && !self.lost
    }
}

pub(crate) fn charge(len_bytes: usize) -> u64 {
    (len_bytes as u64).div_ceil(64).max(1) * 64
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Tally {
    pub(crate) puts: u64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    pub(crate) expired: u64,
    pub(crate) pruned: u64,
    pub(crate) removed: u64,
    pub(crate) evicted: u64,
    pub(crate) demoted: u64,
    pub(crate) promoted: u64,
    pub(crate) returned_bytes: u64,
    pub(crate) encoded_bytes: u64,
}

#[derive(Debug, Default)]
pub(crate) struct JobModel {
    pub(crate) ended: bool,
    pub(crate) step: u64,
    /// Open stages, innermost last.
    pub(crate) stages: Vec<usize>,
}

#[derive(Debug, Default)]
pub(crate) struct Reference {
    pub(crate) entries: Vec<Entry>,
    pub(crate) jobs: Vec<JobModel>,
    /// Bytes reserved: whose, and by tier.
    pub(crate) reserved: Vec<(JobSerial, PerTier<u64>)>,
    /// Bytes of workspaces, which count as reserved: whose, and by tier.
    pub(crate) workspaces: Vec<(JobSerial, PerTier<u64>)>,
    pub(crate) budgets: PerTier<u64>,
    pub(crate) tallies: [Tally; KINDS.len()],
    pub(crate) stages_opened: usize,
    pub(crate) groups: usize,
    pub(crate) sweeps: u64,
}

impl Reference {
    pub(crate) fn tally(&mut self, kind: Kind) -> &mut Tally {
        let at = KINDS.iter().position(|k| *k == kind).expect("only these kinds are used");
        &mut self.tallies[at]
    }

    pub(crate) fn find(&self, job: Option<JobSerial>, key: &EntryKey) -> Option<usize> {
        self.entries.iter().position(|e| e.phase == Phase::Live && e.job == job && e.key == *key)
    }

    pub(crate) fn write(&mut self, job: Option<JobSerial>, key: EntryKey, spec: Spec) -> usize {
        let stage = match spec.lifetime {
            Lifetime::Stage => job.and_then(|job| self.jobs[job].stages.last().copied()),
            _ => None,
        };
        let stamp = u8::try_from(self.entries.len() % 250 + 1).expect("at most 250");
        self.entries.push(Entry {
            job,
            key,
            tier: spec.tier,
            spec,
            stage,
            death: Death::WithOwner,
            group: None,
            stamp,
            phase: Phase::Writing,
            leases: 0,
            flights: 0,
            lost: false,
        });
        self.entries.len() - 1
    }

    pub(crate) fn may_commit(&self, at: usize) -> bool {
        let entry = &self.entries[at];
        let open = entry.job.is_none_or(|job| !self.jobs[job].ended);
        let staged =
            entry.stage.is_none_or(|s| entry.job.is_some_and(|job| self.jobs[job].stages.contains(&s)));
        open && staged && self.find(entry.job, &entry.key).is_none()
    }

    /// Commits and leases a whole group.
    pub(crate) fn commit(&mut self, group: &[usize]) {
        for &at in group {
            let entry = &self.entries[at];
            let step = entry.job.map_or(0, |job| self.jobs[job].step);
            let death = match entry.spec.lifetime {
                Lifetime::Steps(n) => Death::AfterStep(step + u64::from(n)),
                Lifetime::Window { sink, recent } => Death::InWindow { sink, recent },
                Lifetime::Stage => Death::WithStage(entry.stage.expect("a stage was open")),
                Lifetime::Job | Lifetime::Persistent => Death::WithOwner,
            };
            let (kind, len) = (entry.key.kind(), entry.spec.len_bytes as u64);
            let entry = &mut self.entries[at];
            (entry.death, entry.phase, entry.leases) = (death, Phase::Live, 1);
            let tally = self.tally(kind);
            tally.puts += 1;
            tally.encoded_bytes += len;
        }
        for &at in group {
            self.trim_window(at);
        }
    }

    fn trim_window(&mut self, at: usize) {
        let (Death::InWindow { recent, .. }, EntryKey::Own(key)) =
            (self.entries[at].death, self.entries[at].key)
        else {
            return;
        };
        self.end_old(self.entries[at].job, key, recent);
    }

    /// Ends all but the `keep` highest frames of a series. How many, and the bytes that came back.
    pub(crate) fn prune_old(&mut self, job: JobSerial, key: Key, keep: u32) -> (u64, u64) {
        let ended = self.end_old(Some(job), key, keep);
        let gone = ended.iter().filter(|at| self.entries[**at].phase == Phase::Gone);
        (ended.len() as u64, gone.map(|at| self.entries[*at].charge()).sum())
    }

    fn end_old(&mut self, job: Option<JobSerial>, key: Key, keep: u32) -> Vec<usize> {
        let mut members: Vec<(u32, usize)> = Vec::new();
        for (i, e) in self.entries.iter().enumerate() {
            if let (Death::InWindow { sink, .. }, EntryKey::Own(k)) = (e.death, e.key)
                && e.phase == Phase::Live
                && e.job == job
                && k.frame(0) == key.frame(0)
                && k.frame >= sink
            {
                members.push((k.frame, i));
            }
        }
        members.sort_unstable_by(|a, b| b.cmp(a));
        let old: Vec<usize> = members.into_iter().skip(keep as usize).map(|(_, at)| at).collect();
        for &at in &old {
            self.end(at);
            let kind = self.entries[at].key.kind();
            self.tally(kind).pruned += 1;
        }
        old
    }

    /// Out of sight, and gone if nothing holds it.
    pub(crate) fn end(&mut self, at: usize) {
        self.entries[at].phase = Phase::Quiescing { sweep: self.sweeps };
        self.settle(at);
    }

    pub(crate) fn settle(&mut self, at: usize) {
        let entry = &mut self.entries[at];
        if matches!(entry.phase, Phase::Quiescing { .. }) && entry.still() {
            if entry.lost {
                entry.phase = Phase::Quarantined;
            } else {
                entry.phase = Phase::Gone;
                let (kind, bytes) = (entry.key.kind(), entry.charge());
                self.tally(kind).returned_bytes += bytes;
            }
        }
    }

    pub(crate) fn abandon(&mut self, at: usize) {
        self.entries[at].phase = Phase::Gone;
        let (kind, bytes) = (self.entries[at].key.kind(), self.entries[at].charge());
        self.tally(kind).returned_bytes += bytes;
    }

    /// Ends all live entries that `dies` picks. How many, and the bytes that came back.
    pub(crate) fn expire(&mut self, dies: impl Fn(&Entry) -> bool) -> (u64, u64) {
        let dying: Vec<usize> = (0..self.entries.len())
            .filter(|&i| self.entries[i].phase == Phase::Live && dies(&self.entries[i]))
            .collect();
        let mut returned = 0;
        for &at in &dying {
            self.end(at);
            let kind = self.entries[at].key.kind();
            self.tally(kind).expired += 1;
            if self.entries[at].phase == Phase::Gone {
                returned += self.entries[at].charge();
            }
        }
        (dying.len() as u64, returned)
    }

    pub(crate) fn sum(&self, tier: Tier, wanted: impl Fn(&Entry) -> bool) -> u64 {
        self.entries.iter().filter(|e| e.tier == tier && wanted(e)).map(Entry::charge).sum()
    }

    pub(crate) fn reserved(&self, tier: Tier) -> u64 {
        self.reserved_by(|_| true, tier)
    }

    fn reserved_by(&self, wanted: impl Fn(JobSerial) -> bool, tier: Tier) -> u64 {
        let all = self.reserved.iter().chain(&self.workspaces);
        all.filter(|(job, _)| wanted(*job)).map(|(_, bytes)| bytes[tier]).sum()
    }

    pub(crate) fn used(&self, tier: Tier) -> u64 {
        self.sum(tier, |e| e.phase != Phase::Gone) + self.reserved(tier)
    }

    pub(crate) fn owned(&self, job: JobSerial, tier: Tier) -> u64 {
        let reserved_bytes = self.reserved_by(|owner| owner == job, tier);
        self.sum(tier, |e| e.job == Some(job) && e.phase != Phase::Gone) + reserved_bytes
    }

    /// Whether no member of the entry's group is leased or in flight.
    fn group_free_to_go(&self, entry: &Entry) -> bool {
        entry.free_to_go()
            && self.entries.iter().all(|e| {
                entry.group.is_none() || e.group != entry.group || e.phase != Phase::Live || e.free_to_go()
            })
    }

    fn group_droppable(&self, entry: &Entry) -> bool {
        let strict = |e: &Entry| e.spec.recover == Recover::Never;
        !strict(entry)
            && !self.entries.iter().any(|e| {
                entry.group.is_some() && e.group == entry.group && e.phase == Phase::Live && strict(e)
            })
    }

    /// Bytes that eviction may always drop.
    pub(crate) fn droppable(&self, tier: Tier) -> u64 {
        self.sum(tier, |e| e.phase == Phase::Live && self.group_free_to_go(e) && self.group_droppable(e))
    }

    /// Bytes that eviction may take from the tier one way or the other.
    pub(crate) fn movable(&self, tier: Tier) -> u64 {
        let sinks = |e: &Entry| tier == Tier::Device || self.group_droppable(e);
        self.sum(tier, |e| e.phase == Phase::Live && self.group_free_to_go(e) && sinks(e))
    }

    /// Applies what eviction did to an entry, if it was allowed.
    pub(crate) fn evicted(&mut self, at: usize) -> Result<(), String> {
        let entry = self.entries[at].clone();
        if !self.group_free_to_go(&entry) || !self.group_droppable(&entry) {
            return Err(format!("{} was dropped: {entry:?}", entry.key));
        }
        self.end(at);
        self.tally(entry.key.kind()).evicted += 1;
        Ok(())
    }

    pub(crate) fn demoted(&mut self, at: usize, to: Tier) -> Result<(), String> {
        let entry = self.entries[at].clone();
        if !self.group_free_to_go(&entry) || entry.spec.recover == Recover::Reload && entry.group.is_none() {
            return Err(format!("{} was demoted: {entry:?}", entry.key));
        }
        self.entries[at].tier = to;
        self.tally(entry.key.kind()).demoted += 1;
        Ok(())
    }

    /// Its job sent it down.
    pub(crate) fn sank(&mut self, at: usize) {
        let entry = &mut self.entries[at];
        entry.tier = Tier::Host;
        let kind = entry.key.kind();
        self.tally(kind).demoted += 1;
    }

    /// A read brought it home.
    pub(crate) fn came_home(&mut self, at: usize) {
        let entry = &mut self.entries[at];
        entry.tier = entry.spec.tier;
        let kind = entry.key.kind();
        self.tally(kind).promoted += 1;
    }
}
