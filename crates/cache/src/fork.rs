//! A job that begins with what another one has.

use std::collections::BTreeMap;

use crate::draft::Draft;
use crate::policy::GroupId;
use crate::room::Shared;
use crate::{CommitRefusal, EntryKey, GetError, Job, Key, Lifetime, Owned, PutError, PutSpec};

/// Why a job was not forked. Nothing of the fork is left.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// An entry dies with a stage that is open, and a fork begins with none.
    #[error("{key} belongs to an open stage, which a fork would not have; fork before the stage or after it")]
    InStage {
        /// The entry.
        key: EntryKey,
    },
    /// There is no room for a second one of every entry.
    #[error("no room for the fork's entries")]
    Put(#[from] PutError),
    /// An entry did not come back from a lower tier.
    #[error("an entry to fork cannot be read")]
    Get(#[from] GetError),
    /// An entry ended meanwhile: a step was taken, or a window moved.
    #[error("the job went on while it was forked")]
    WentOn,
}

impl Job {
    /// A second job with entries of the same keys, bytes and lifetimes, in the tiers where they are at home; what became visible
    /// as one group is one there too. Reads are not announced there. From then on each goes its own way: what one puts, prunes
    /// or releases the other does not see (law 10). Bytes are copied, so that each job's bytes are its own and come back when
    /// it ends (law 1); room is made for all of them or for none (law 2).
    ///
    /// # Errors
    /// When there is no room, an entry cannot be read, or one belongs to an open stage.
    pub fn fork(&self) -> Result<Self, ForkError> {
        let entries = self.entries();
        if let Some(entry) = entries.iter().find(|entry| entry.lifetime == Lifetime::Stage) {
            return Err(ForkError::InStage { key: entry.key.into() });
        }
        let fork = self.open_beside();
        let specs = entries.iter().map(|entry| (entry.key.into(), spec_of(entry))).collect();
        let mut drafts = Draft::begin_group(fork.shared(), fork.owner(), specs)?;
        for (entry, draft) in entries.iter().zip(&mut drafts) {
            let lease = self.peek(&entry.key).map_err(|error| gone(&entry.key, error))?;
            if draft.bytes().len() != lease.bytes().len() {
                return Err(ForkError::WentOn);
            }
            draft.bytes_mut().copy_from_slice(lease.bytes());
        }
        publish(fork.shared(), drafts, &entries).map_err(|_| ForkError::WentOn)?;
        Ok(fork)
    }
}

/// Makes copies visible in one moment, each with the copies of what became visible with its original: leases and evictions
/// then concern as much as they do there. Windows are as they were, so that nothing is trimmed.
fn publish(shared: &Shared, mut drafts: Vec<Draft>, originals: &[Owned]) -> Result<(), CommitRefusal> {
    let mut store = shared.lock();
    if let Err(refusal) = drafts.iter().try_for_each(|draft| store.check_commit(draft)) {
        // Drafts that go return their bytes, which takes the lock.
        drop(store);
        return Err(refusal);
    }
    let mut groups: BTreeMap<GroupId, GroupId> = BTreeMap::new();
    for (draft, original) in drafts.iter_mut().zip(originals) {
        let group = original.group.map(|group| *groups.entry(group).or_insert_with(|| store.open_group()));
        let id = store.publish(draft, group);
        // Nobody reads it yet.
        store.slots[id].leases -= 1;
    }
    Ok(())
}

fn gone(key: &Key, error: GetError) -> ForkError {
    match error {
        GetError::Absent { key: absent } if absent == (*key).into() => ForkError::WentOn,
        error => ForkError::Get(error),
    }
}

fn spec_of(entry: &Owned) -> PutSpec {
    PutSpec::new(entry.home, entry.lifetime, entry.len_bytes)
        .recover(entry.recover)
        .cost_per_kib(entry.cost_per_kib)
        .raw_bytes(entry.raw_bytes)
}
