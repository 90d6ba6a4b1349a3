//! Refusals. Whatever a failed transition consumed is inside its error.

use std::fmt;

use crate::{DiskFault, EntryKey, Tier};

/// A tier cannot make the room. Nothing was evicted in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the {tier} tier cannot hold {needed_bytes} bytes more: {used_bytes} of its {budget_bytes} bytes are used, of \
     which {held}; raise the budget of the {tier} tier or hold less at a time{}{}",
    if *.disk_refuses { "; the disk tier takes no more since a write to it failed" } else { "" },
    if *.memory_refuses { "; the machine has no memory for a copy that would have made the room" } else { "" }
)]
pub struct OutOfBudget {
    /// The tier that is short.
    pub tier: Tier,
    /// What was asked of it, in whole lines.
    pub needed_bytes: u64,
    /// What it may hold.
    pub budget_bytes: u64,
    /// What is in use.
    pub used_bytes: u64,
    /// What could not be evicted.
    pub held: Held,
    /// A write to disk failed, so nothing goes there any more.
    pub disk_refuses: bool,
    /// An entry was to make room and the machine had no memory for it in the tier below: the budgets are larger than what
    /// there is.
    pub memory_refuses: bool,
}

/// Why a read gave no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// There is no such entry.
    #[error("{key} is not cached")]
    Absent {
        /// The key.
        key: EntryKey,
    },
    /// The entry is on disk and stays there: no tier in memory can make room for it.
    #[error("{key} is on disk and finds no room in memory: {short}")]
    NoRoom {
        /// The key.
        key: EntryKey,
        /// What is in the way.
        short: OutOfBudget,
    },
    /// The entry was on disk and did not come back.
    #[error("{key} was on disk and is lost: {fault}")]
    Lost {
        /// The key.
        key: EntryKey,
        /// Why.
        fault: DiskFault,
    },
}

/// Bytes in use that eviction cannot touch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Of visible entries that are leased or in flight, or that a flight was lost on.
    pub leased_bytes: u64,
    /// Of visible entries that exist nowhere else and find no room in the tier below.
    pub irreplaceable_bytes: u64,
    /// Promised to reservations.
    pub reserved_bytes: u64,
    /// Of open writers and of moves under way.
    pub writing_bytes: u64,
    /// Of entries that are gone from sight but still leased or in flight, or quarantined.
    pub quiescing_bytes: u64,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} leased, {} irreplaceable, {} reserved, {} being written, {} quiescing",
            self.leased_bytes,
            self.irreplaceable_bytes,
            self.reserved_bytes,
            self.writing_bytes,
            self.quiescing_bytes
        )
    }
}

/// Why a put was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PutError {
    /// The tier cannot make the room.
    #[error(transparent)]
    OutOfBudget(#[from] OutOfBudget),
    /// The key is taken.
    #[error("{key} is cached already; remove it or use another key")]
    Exists {
        /// The key.
        key: EntryKey,
    },
    /// The group names a key twice.
    #[error("{key} occurs twice in one group; give each entry a key of its own")]
    Repeated {
        /// The key.
        key: EntryKey,
    },
    /// A job's key with room of the shared pool, or the other way round.
    #[error("{key} does not belong to the owner of the reservation; reserve for the owner of the entry")]
    OtherOwner {
        /// The key.
        key: EntryKey,
    },
    /// A stage lifetime outside any stage.
    #[error("the lifetime is that of a stage but the job has none open; open one with Job::stage")]
    NoStage,
    /// A put to the disk.
    #[error(
        "{key} cannot be written to disk at once; put it into the host tier, and it sinks when room is wanted"
    )]
    NotInMemory {
        /// The key.
        key: EntryKey,
    },
    /// The job has ended.
    #[error("{key} belongs to a job that has ended; put it into a job that is open")]
    OwnerEnded {
        /// The key.
        key: EntryKey,
    },
    /// A lifetime of no steps.
    #[error("a lifetime of 0 steps ends before the entry is seen; use at least 1")]
    NoSteps,
    /// A persistent entry of a job.
    #[error("an entry of a job dies with it; put persistent entries into the shared pool")]
    PersistentNeedsSharedPool,
    /// A mortal entry of the shared pool.
    #[error("entries of the shared pool are persistent; put entries with a lifetime into a job")]
    SharedIsPersistent,
    /// The budget would allow it but the allocator does not.
    #[error(
        "the machine has no {needed_bytes} bytes of memory left for {key}; lower the budgets to what it has"
    )]
    NoMemory {
        /// The key.
        key: EntryKey,
        /// What was asked.
        needed_bytes: u64,
    },
    /// The reservation holds too little.
    #[error("the reservation has {left_bytes} bytes left in the {tier} tier but {needed_bytes} are needed")]
    ReservationTooSmall {
        /// The tier that is short.
        tier: Tier,
        /// What was asked.
        needed_bytes: u64,
        /// What the reservation has left.
        left_bytes: u64,
    },
}

/// Why a commit was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommitRefusal {
    /// Another writer of the same key was faster.
    #[error("{key} was committed by another writer; drop this one and read that entry")]
    Exists {
        /// The key.
        key: EntryKey,
    },
    /// The job has ended.
    #[error("{key} belongs to a job that has ended; drop the writer")]
    OwnerEnded {
        /// The key.
        key: EntryKey,
    },
    /// The stage has ended.
    #[error("{key} belongs to a stage that has ended; drop the writer")]
    StageEnded {
        /// The key.
        key: EntryKey,
    },
}

/// A refused commit, with the writer and all that was written.
#[derive(Debug, thiserror::Error)]
#[error("{refusal}")]
pub struct CommitError<W: fmt::Debug> {
    /// Why.
    pub refusal: CommitRefusal,
    /// The writer, unchanged.
    pub writer: Box<W>,
}

/// What [`Cache::verify`](crate::Cache::verify) found wrong: a bug in this crate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cache contradicts itself: {0}")]
pub struct Inconsistency(pub(crate) String);
