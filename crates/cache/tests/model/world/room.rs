//! What is asked of whole tiers, and what happened to make room.

use evanesce_cache::{EntryKey, Key, PerTier, Tier, WorkspaceError};

use super::World;
use crate::reference::{JobSerial, Phase, charge};

/// What a job writes into its workspaces: no stamp of an entry, and seldom that of another job.
pub(super) fn workspace_stamp(serial: JobSerial) -> u8 {
    251 + u8::try_from(serial % 5).expect("below 5")
}

impl World {
    pub(super) fn reserve(&mut self, n: usize, tier: Tier, lines: u64) {
        let (job, serial) = &self.jobs[n];
        let (need, serial) = (PerTier::only(tier, lines * 64), *serial);
        match job.reserve(&[(tier, lines * 64)]) {
            Ok(reservation) => {
                self.followed(need, None);
                self.reservations.push(reservation);
                self.model.reserved.push((serial, need));
            }
            Err(_) => self.refused_room(need),
        }
    }

    pub(super) fn split(&mut self, n: usize, lines: u64) {
        if self.reservations.is_empty() {
            return;
        }
        let n = n % self.reservations.len();
        let (serial, left) = self.model.reserved[n];
        let result = self.reservations[n].split(Tier::Device, lines * 64);
        match result {
            Ok(part) if lines * 64 <= left[Tier::Device] => {
                self.model.reserved[n].1[Tier::Device] -= lines * 64;
                self.reservations.push(part);
                self.model.reserved.push((serial, PerTier::only(Tier::Device, lines * 64)));
            }
            Err(_) if lines * 64 > left[Tier::Device] => {}
            other => self.fault(format!("a split of {lines} lines from {left:?} said {other:?}")),
        }
    }

    /// Room was refused: it must not have been there for the dropping.
    pub(super) fn refused_room(&mut self, need: PerTier<u64>) {
        let budgets = self.model.budgets;
        let enough =
            |tier: Tier| need[tier] + self.model.used(tier) <= budgets[tier] + self.model.droppable(tier);
        if Tier::ALL.into_iter().all(enough) {
            self.fault(format!("{need:?} was refused though there was room or enough to drop"));
        }
    }

    /// Room was made: finds out how, and whether that was allowed and needed. `moved` is what it was made for, if that was there
    /// before.
    pub(super) fn followed(&mut self, need: PerTier<u64>, moved: Option<usize>) {
        let budgets = self.model.budgets;
        let fits = Tier::ALL.into_iter().all(|t| need[t] + self.model.used(t) <= budgets[t]);
        let possible =
            Tier::ALL.into_iter().all(|t| need[t] + self.model.used(t) <= budgets[t] + self.model.movable(t));
        if !possible {
            self.fault(format!("{need:?} was granted though leased and reserved bytes leave no room"));
        }
        // Checked against the state before the call, then applied.
        let mut changes = Vec::new();
        for at in 0..self.model.entries.len() {
            let now = self.tier_of(at);
            if self.model.entries[at].phase == Phase::Live && now != Some(self.model.entries[at].tier) {
                changes.push((at, now));
            }
        }
        changes.retain(|(at, _)| Some(*at) != moved);
        if fits && !changes.is_empty() {
            self.fault(format!("{changes:?} were evicted though {need:?} fitted"));
        }
        let before = self.model.entries.clone();
        for (at, now) in changes.iter().copied() {
            let mate_stays = before[at].group.is_some()
                && now.is_none()
                && before.iter().enumerate().any(|(i, e)| {
                    e.group == before[at].group && e.phase == Phase::Live && !changes.contains(&(i, None))
                });
            let result = match now {
                _ if mate_stays => Err(format!("{} left its group behind", before[at].key)),
                None => self.model.evicted(at),
                Some(tier) => self.model.demoted(at, tier),
            };
            if let Err(what) = result {
                self.fault(what);
            }
        }
    }

    /// As much as the job asks for, with nothing of another job's in it.
    pub(super) fn workspace(&mut self, n: usize, tier: Tier, len_bytes: usize) {
        let (job, serial) = &self.jobs[n];
        let (need, serial) = (PerTier::only(tier, charge(len_bytes)), *serial);
        match job.workspace(tier, len_bytes) {
            Ok(mut workspace) => {
                self.followed(need, None);
                let bytes = workspace.bytes_mut();
                if bytes.len() != len_bytes || !bytes.iter().all(|byte| self.is_own(Some(serial), *byte)) {
                    self.fault(format!("a workspace of {len_bytes} bytes shows {bytes:?}"));
                }
                workspace.bytes_mut().fill(workspace_stamp(serial));
                self.workspaces.push(workspace);
                self.model.workspaces.push((serial, need));
            }
            Err(WorkspaceError::OutOfBudget(_)) => self.refused_room(need),
            Err(error) => self.fault(format!("a workspace of {len_bytes} bytes in {tier}: {error}")),
        }
    }

    /// Without a disk the host is the lowest tier.
    pub(super) fn demote(&mut self, n: usize, key: Key) {
        let (job, serial) = &self.jobs[n];
        let (result, found) = (job.demote(&key), self.model.find(Some(*serial), &key.into()));
        let Some(at) = found else {
            if result != Ok(None) {
                self.fault(format!("demoting {key}, which is not there, said {result:?}"));
            }
            return;
        };
        let entry = &self.model.entries[at];
        let (tier, may_leave) = (entry.tier, entry.tier == Tier::Device && entry.free_to_go());
        let need = PerTier::only(Tier::Host, entry.charge());
        // The move holds it while room is made for it, and by it the group.
        self.model.entries[at].leases += 1;
        match result {
            Ok(Some(Tier::Host)) if may_leave => {
                self.followed(need, Some(at));
                self.model.sank(at);
            }
            Err(_) if may_leave => self.refused_room(need),
            Ok(Some(now)) if now == tier && !may_leave => {}
            result => self.fault(format!("demoting {key} from {tier} said {result:?}")),
        }
        self.model.entries[at].leases -= 1;
    }

    /// The budget falls to what was wanted, or as far as what must stay lets it, and takes nothing with it that could stay.
    pub(super) fn set_budget(&mut self, tier: Tier, lines: u64) {
        let wanted_bytes = lines * 64;
        let set_bytes = self.cache.set_budget(tier, wanted_bytes);
        let fell_bytes = self.model.budgets[tier].saturating_sub(set_bytes);
        self.followed(PerTier::only(tier, fell_bytes), None);
        self.model.budgets[tier] = set_bytes;
        let floor_bytes = self.model.used(tier).max(wanted_bytes);
        let droppable_bytes = self.model.droppable(tier);
        if set_bytes != floor_bytes || set_bytes > wanted_bytes && droppable_bytes > 0 {
            self.fault(format!(
                "the budget of {tier} is {set_bytes}, not {floor_bytes}, with {droppable_bytes} to drop"
            ));
        }
    }

    pub(super) fn tier_of(&self, at: usize) -> Option<Tier> {
        let entry = &self.model.entries[at];
        match (&entry.key, entry.job) {
            (EntryKey::Own(key), Some(serial)) => {
                let job = self.jobs.iter().find(|(_, s)| *s == serial);
                job.and_then(|(job, _)| job.tier_of(key))
            }
            (EntryKey::Shared(key), _) => self.cache.shared_tier_of(key),
            (EntryKey::Own(_), None) => None,
        }
    }
}
