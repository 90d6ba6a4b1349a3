//! A job that begins with what another one has.

use crate::{GetError, Job, Key, Owned, PutError, PutSpec, Tier};

/// Why a job was not forked. Nothing of the fork is left.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
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
    /// A second job with entries of the same keys, bytes and lifetimes, in the tiers where they are at home; reads are not
    /// announced there. From then on each goes its own way: what one puts, prunes or releases the other does not see (law
    /// 10). Bytes are copied, so that each job's bytes are its own and come back when it ends (law 1); room is made for all of
    /// them or for none (law 2).
    ///
    /// # Errors
    /// When there is no room, or an entry cannot be read.
    pub fn fork(&self) -> Result<Self, ForkError> {
        let fork = self.open_beside();
        // Frames of a window rise, so that none is trimmed that the window still has.
        let entries = self.entries();
        let specs = entries.iter().map(|entry| (entry.key, spec_of(entry)));
        let mut writers = fork.put_group(specs)?;
        for (at, entry) in entries.iter().enumerate() {
            let lease = self.peek(&entry.key).map_err(|error| gone(&entry.key, error))?;
            let bytes = writers.bytes_mut(at);
            if bytes.len() != lease.bytes().len() {
                return Err(ForkError::WentOn);
            }
            bytes.copy_from_slice(lease.bytes());
        }
        writers.commit().map_err(|_| ForkError::WentOn)?;
        Ok(fork)
    }
}

fn gone(key: &Key, error: GetError) -> ForkError {
    match error {
        GetError::Absent { key: absent } if absent == (*key).into() => ForkError::WentOn,
        error => ForkError::Get(error),
    }
}

fn spec_of(entry: &Owned) -> PutSpec {
    PutSpec::new(Tier::Device, entry.lifetime, entry.len_bytes).recover(entry.recover)
}
