//! How an entry is put: where, for how long, and how it may be brought back.

use crate::policy::{Candidate, NextUse};
use crate::{PutError, Tier};

/// How long an entry may live. It may leave earlier by removal, or by eviction where [`Recover`] allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until the end of the n-th [`step`](crate::Job::step) after its commit; n is at least 1.
    Steps(u32),
    /// Member of a series (equal keys but for the frame). A commit to the series ends every member whose frame
    /// is neither below the `sink` of its own put nor among the `recent` highest frames, by the latest commit's
    /// `recent`.
    Window {
        /// Frames below this number stay as long as the job.
        sink: u32,
        /// How many of the highest frames stay.
        recent: u32,
    },
    /// Until the innermost [`Stage`](crate::Stage) that was open at the put is dropped.
    Stage,
    /// Until the job ends.
    Job,
    /// As long as the cache: entries of the shared pool.
    Persistent,
}

impl Lifetime {
    pub(crate) fn check_owned(self) -> Result<(), PutError> {
        match self {
            Self::Steps(0) => Err(PutError::NoSteps),
            Self::Persistent => Err(PutError::PersistentNeedsSharedPool),
            Self::Steps(_) | Self::Window { .. } | Self::Stage | Self::Job => Ok(()),
        }
    }
}

/// What becomes of an entry whose room is wanted while nobody leases it. The stricter is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Recover {
    /// Its bytes lie at their source, no farther than the tier below: dropped.
    Reload,
    /// Its bytes can be computed again: demoted if it has a next use and the tier below has room, else dropped.
    Recompute,
    /// Its bytes exist nowhere else: never dropped; demoted when the tier below has or can make room.
    Never,
}

/// What a [`Writer`](crate::Writer)'s bytes hold before the first write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Zeros.
    Zeros,
    /// Unspecified: zeros, or what the same owner left there. Saves a pass over bytes that will all be written.
    Any,
}

/// Which entries may leave to make room for a put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Displace {
    /// Whatever the policy picks: the put is needed now.
    #[default]
    Anything,
    /// Only entries that no job announced, or whose next use is at least this many ticks away: the put is a prefetch
    /// for a read that far ahead, and must not push out what is read before.
    NeededAfter {
        /// Ticks until the prefetched entry is read.
        ticks: u64,
    },
}

impl Displace {
    pub(crate) fn allows(self, candidate: &Candidate) -> bool {
        match (self, candidate.next_use) {
            (Self::Anything, _) | (Self::NeededAfter { .. }, NextUse::Unknown { .. }) => true,
            (Self::NeededAfter { ticks }, NextUse::In(distance)) => distance >= ticks,
        }
    }
}

/// All there is to say about an entry at its put, but for its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PutSpec {
    /// Where the entry lives.
    pub tier: Tier,
    /// How long it may live.
    pub lifetime: Lifetime,
    /// Its length. The budget is charged in whole lines of 64 bytes, one at least.
    pub len_bytes: usize,
    /// What may be done when its room is wanted.
    pub recover: Recover,
    /// Relative price of bringing 1 KiB of it back; between equally distant entries the cheapest goes first.
    pub cost_per_kib: u32,
    /// What the bytes start as.
    pub fill: Fill,
    /// Its length before encoding, for the counters.
    pub raw_bytes: u64,
    /// What may leave to make room for it.
    pub displace: Displace,
}

impl PutSpec {
    /// An entry of `len_bytes` that cannot be brought back.
    pub const fn new(tier: Tier, lifetime: Lifetime, len_bytes: usize) -> Self {
        Self {
            tier,
            lifetime,
            len_bytes,
            recover: Recover::Never,
            cost_per_kib: 1,
            fill: Fill::Zeros,
            raw_bytes: len_bytes as u64,
            displace: Displace::Anything,
        }
    }

    /// An entry of the shared pool, which can be computed again.
    pub const fn shared(tier: Tier, len_bytes: usize) -> Self {
        Self::new(tier, Lifetime::Persistent, len_bytes).recover(Recover::Recompute)
    }

    /// The same with another way to bring it back.
    #[must_use]
    pub const fn recover(self, recover: Recover) -> Self {
        Self { recover, ..self }
    }

    /// The same with another price per KiB of bringing it back.
    #[must_use]
    pub const fn cost_per_kib(self, cost_per_kib: u32) -> Self {
        Self { cost_per_kib, ..self }
    }

    /// The same with other bytes to start from.
    #[must_use]
    pub const fn fill(self, fill: Fill) -> Self {
        Self { fill, ..self }
    }

    /// The same with a limit to what may leave for it.
    #[must_use]
    pub const fn displace(self, displace: Displace) -> Self {
        Self { displace, ..self }
    }

    /// The same with the length that its content had before encoding.
    #[must_use]
    pub const fn raw_bytes(self, raw_bytes: u64) -> Self {
        Self { raw_bytes, ..self }
    }
}
