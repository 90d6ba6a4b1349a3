//! Reading the store: counters, and a walk that proves that they tell the truth.

use std::collections::BTreeMap;

use crate::arena::Account;
use crate::counters::TierCounters;
use crate::slots::{Expiry, Slot, SlotId, State};
use crate::store::Store;
use crate::{Counters, EntryKey, JobId, Kind, Owner, PerTier, Tier, Usage};

impl Store {
    pub(crate) fn counters(&self) -> Counters {
        let tiers = PerTier::from_fn(|tier| {
            let arena = &self.arenas[tier];
            TierCounters {
                budget_bytes: arena.budget_bytes(),
                used_bytes: arena.used_bytes(),
                peak_bytes: arena.peak_bytes(),
                live_bytes: arena.in_account(Account::Live),
                writing_bytes: arena.in_account(Account::Writing),
                reserved_bytes: arena.in_account(Account::Reserved),
                moving_bytes: arena.in_account(Account::Moving),
                quiescing_bytes: arena.in_account(Account::Quiescing),
                quarantined_bytes: arena.in_account(Account::Quarantined),
                free_listed_bytes: arena.free_listed_bytes(),
                traffic: self.traffic[tier],
            }
        });
        Counters::new(tiers, self.kinds, self.shared_usage, self.jobs.len() as u64)
    }

    pub(crate) fn usage_of(&self, job: JobId) -> Usage {
        self.jobs.get(&job).map_or_else(Usage::default, |job| job.usage)
    }

    pub(crate) fn usages(&self) -> Vec<(JobId, Usage)> {
        self.jobs.iter().map(|(id, job)| (*id, job.usage)).collect()
    }

    pub(crate) fn trim(&mut self) -> u64 {
        let before: u64 = Tier::ALL.into_iter().map(|tier| self.arenas[tier].free_listed_bytes()).sum();
        for tier in Tier::ALL {
            self.arenas[tier].shed_to(0, &mut self.debris);
        }
        before
    }

    /// Every invariant of the store.
    pub(crate) fn verify(&self) -> Result<(), String> {
        for tier in Tier::ALL {
            self.verify_tier(tier).map_err(|what| format!("{tier} tier: {what}"))?;
        }
        self.verify_kinds()?;
        self.verify_extents()?;
        for (id, slot) in self.slots.iter() {
            self.verify_slot(id, slot).map_err(|what| format!("{}: {what}", slot.key))?;
        }
        self.verify_indexes()
    }

    /// Law 2: what the slots and owners hold is what the ledger says.
    fn verify_tier(&self, tier: Tier) -> Result<(), String> {
        let arena = &self.arenas[tier];
        arena.check()?;
        let held = |wanted: fn(State) -> bool| -> u64 {
            let slots = self.slots.iter().map(|(_, slot)| slot);
            slots.filter(|s| s.tier == tier && wanted(s.state)).map(Slot::charged_bytes).sum()
        };
        let owned: u64 = self.jobs.values().map(|job| job.usage.bytes[tier]).sum();
        let reserved = arena.in_account(Account::Reserved);
        let by_kind: u64 = self.kinds.iter().map(|kind| kind.bytes[tier]).sum();
        same("live bytes", held(|s| s == State::Live), arena.in_account(Account::Live))?;
        same(
            "quiescing bytes",
            held(|s| matches!(s, State::Quiescing { .. })),
            arena.in_account(Account::Quiescing),
        )?;
        same("quarantined bytes", held(|s| s == State::Quarantined), arena.in_account(Account::Quarantined))?;
        same("owned bytes", owned + self.shared_usage.bytes[tier], arena.used_bytes())?;
        same("bytes by kind and reserved", by_kind + reserved, arena.used_bytes())
    }

    /// Extents that are not free are behind entries on disk, or are being written.
    fn verify_extents(&self) -> Result<(), String> {
        let arena = &self.arenas[Tier::Disk];
        let taken = arena.used_bytes() - arena.in_account(Account::Reserved);
        same("bytes of taken extents", self.extents.budget_bytes() - self.extents.free_bytes(), taken)
    }

    fn verify_kinds(&self) -> Result<(), String> {
        for kind in Kind::ALL {
            let live = |(_, slot): &(SlotId, &Slot)| slot.state == State::Live && slot.key.kind() == kind;
            let counted = self.kinds[kind as usize].entries;
            same(kind.as_str(), self.slots.iter().filter(live).count() as u64, counted)?;
        }
        Ok(())
    }

    fn verify_slot(&self, id: SlotId, slot: &Slot) -> Result<(), String> {
        if slot.place.memory().is_none() != (slot.tier == Tier::Disk) {
            return Err(format!("its bytes are not in its tier, {}", slot.tier));
        }
        let indexed = self.find(slot.owner, &slot.key) == Some(id);
        if indexed != (slot.state == State::Live) {
            return Err(format!("{:?} but indexed: {indexed}", slot.state));
        }
        if matches!(slot.state, State::Quiescing { .. }) != self.quiescing.contains(&id) {
            return Err("the set of quiescing slots is wrong about it".to_owned());
        }
        if matches!(slot.state, State::Quiescing { .. }) && slot.is_still() {
            return Err("nothing holds it but its bytes are not back".to_owned());
        }
        if slot.state == State::Live && !self.is_listed(id, slot) {
            return Err(format!("is not where {:?} says", slot.expiry));
        }
        Ok(())
    }

    fn is_listed(&self, id: SlotId, slot: &Slot) -> bool {
        let (Owner::Job(job), EntryKey::Own(key)) = (slot.owner, slot.key) else { return true };
        let Some(job) = self.jobs.get(&job) else { return false };
        match slot.expiry {
            Expiry::WithOwner => true,
            Expiry::InWindow => job.windows.get(&key.series()).and_then(|w| w.get(&key.frame)) == Some(&id),
            Expiry::AtStep { step, position } => {
                step > job.step && job.dying.get(&step).and_then(|list| list.get(position)) == Some(&id)
            }
            Expiry::InStage { stage, position } => {
                job.stage(stage).and_then(|at| job.stages[at].entries.get(position)) == Some(&id)
            }
        }
    }

    /// Indexes and lists hold nothing but live slots (those that hold a slot were checked from the slot's side).
    fn verify_indexes(&self) -> Result<(), String> {
        let mut listed: BTreeMap<SlotId, u32> = BTreeMap::new();
        let mut indexed = self.shared.len();
        for job in self.jobs.values() {
            indexed += job.index.len();
            let windows = job.windows.values().flat_map(BTreeMap::values);
            let stages = job.stages.iter().flat_map(|stage| &stage.entries);
            for id in job.dying.values().flatten().chain(stages).chain(windows) {
                *listed.entry(*id).or_default() += 1;
            }
        }
        let live = || self.slots.iter().filter(|(_, slot)| slot.state == State::Live);
        let mortal = |(id, slot): (SlotId, &Slot)| (slot.expiry != Expiry::WithOwner).then_some(id);
        same("indexed entries", indexed as u64, live().count() as u64)?;
        if listed.values().any(|count| *count > 1)
            || !listed.into_keys().eq(sorted(live().filter_map(mortal)))
        {
            return Err("a list of dying entries names a slot that is not on it".to_owned());
        }
        Ok(())
    }
}

fn sorted(ids: impl Iterator<Item = SlotId>) -> Vec<SlotId> {
    let mut ids: Vec<_> = ids.collect();
    ids.sort_unstable();
    ids
}

fn same(what: &str, found: u64, counted: u64) -> Result<(), String> {
    if found == counted { Ok(()) } else { Err(format!("{what}: {found} found but {counted} counted")) }
}
