//! What a job owns, as whoever keeps it for later needs to know it.

use crate::policy::{EntryId, GroupId};
use crate::slots::{Expiry, State};
use crate::store::Store;
use crate::{EntryKey, JobId, Key, Lifetime, Recover, Tier, Uses};

/// One visible entry of a job. Entries never change between their commit and their end, so whoever has copied the bytes
/// of an `id` need not look at them again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Owned {
    /// Which entry of the cache it is; never used again for other bytes.
    pub id: EntryId,
    /// Its name in the job.
    pub key: Key,
    /// The entries that became visible with it.
    pub group: Option<GroupId>,
    /// Where it is.
    pub tier: Tier,
    /// Where it was put, and where reads bring it back to.
    pub home: Tier,
    /// Whether it is on its way to another tier.
    pub is_moving: bool,
    /// Its length.
    pub len_bytes: usize,
    /// Its length before encoding.
    pub raw_bytes: u64,
    /// What is left of its lifetime: putting it with this lifetime into a job that has done no step ends it when
    /// this one ends here.
    pub lifetime: Lifetime,
    /// What may become of it.
    pub recover: Recover,
    /// Relative price of bringing 1 KiB of it back.
    pub cost_per_kib: u32,
    /// The reads that are still announced.
    pub uses: Vec<Uses>,
}

impl Store {
    /// What a job owns and can read, by key.
    pub(crate) fn owned(&self, id: JobId) -> Vec<Owned> {
        let Some(job) = self.jobs.get(&id) else { return Vec::new() };
        let mut ids: Vec<_> = job.index.iter().map(|(key, id)| (*key, *id)).collect();
        ids.sort_unstable_by_key(|(key, _)| *key);
        let entry = |(key, id)| {
            let slot = &self.slots[id];
            let lifetime = match (slot.lifetime, slot.expiry) {
                (Lifetime::Steps(_), Expiry::AtStep { step, .. }) => {
                    Lifetime::Steps(u32::try_from(step - job.step).unwrap_or(u32::MAX))
                }
                (lifetime, _) => lifetime,
            };
            let uses =
                job.schedule.get(&EntryKey::Own(key)).map_or_else(Vec::new, crate::schedule::Schedule::uses);
            (slot.state == State::Live).then(|| Owned {
                id: id.into(),
                key,
                group: slot.group,
                tier: slot.tier,
                home: slot.home,
                is_moving: slot.is_moving(),
                len_bytes: slot.len_bytes,
                raw_bytes: slot.raw_bytes,
                lifetime,
                recover: slot.recover,
                cost_per_kib: slot.cost_per_kib,
                uses,
            })
        };
        ids.into_iter().filter_map(entry).collect()
    }
}
