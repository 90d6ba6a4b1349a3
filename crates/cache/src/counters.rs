//! Numbers that users see: read from the ledger, never estimated (law 2).

use crate::{Kind, PerTier, Tier};

/// Bytes that one owner holds, whatever the account they stand in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Now, by tier.
    pub bytes: PerTier<u64>,
    /// The most at any time, by tier.
    pub peak_bytes: PerTier<u64>,
}

/// One tier's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierCounters {
    /// What it may hold.
    pub budget_bytes: u64,
    /// What is in use: the sum of the accounts below. Never more than the budget.
    pub used_bytes: u64,
    /// The most that was in use at any time.
    pub peak_bytes: u64,
    /// Behind visible entries.
    pub live_bytes: u64,
    /// Behind open writers.
    pub writing_bytes: u64,
    /// Promised to reservations.
    pub reserved_bytes: u64,
    /// Destinations of demotions and promotions under way.
    pub moving_bytes: u64,
    /// Behind entries that are gone from sight but still leased or in flight.
    pub quiescing_bytes: u64,
    /// Behind entries whose flight never reported back.
    pub quarantined_bytes: u64,
    /// Freed buffers kept for reuse; not in use, and given up as soon as room is wanted.
    pub free_listed_bytes: u64,
    /// What went in and out by moves.
    pub traffic: TierTraffic,
}

/// Moves between a tier and those above it, and the moves that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierTraffic {
    /// Entries that came down into this tier.
    pub demoted: u64,
    /// Their bytes, as this tier counts them.
    pub demoted_bytes: u64,
    /// Entries that left this tier upwards.
    pub promoted: u64,
    /// Their bytes, as this tier counts them.
    pub promoted_bytes: u64,
    /// Writes that failed: the entry stayed above, and the tier takes no more.
    pub write_faults: u64,
    /// Reads that failed or brought back something else: the entry is lost.
    pub read_faults: u64,
}

/// What happened to entries of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindCounters {
    /// Visible entries now.
    pub entries: u64,
    /// Bytes now, by tier: of visible entries, open writers, moves, and what quiesces.
    pub bytes: PerTier<u64>,
    /// The most bytes at any time, by tier.
    pub peak_bytes: PerTier<u64>,
    /// The most bytes at any time over all tiers.
    pub peak_total_bytes: u64,
    /// Entries that became visible.
    pub puts: u64,
    /// Reads that found their entry.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Entries that ended with their step, stage or job, or with the last read that was announced of them.
    pub expired: u64,
    /// Entries that fell out of their window: newer frames came, or [`Job::prune_old`](crate::Job::prune_old) was asked.
    pub pruned: u64,
    /// Entries that the owner removed.
    pub removed: u64,
    /// Entries that were dropped to make room.
    pub evicted: u64,
    /// Entries that did not come back from disk.
    pub lost: u64,
    /// Moves to the tier below.
    pub demoted: u64,
    /// Moves back home, or towards it.
    pub promoted: u64,
    /// Reads of an entry that had left its home and was prefetched back before the read.
    pub arrived_before_use: u64,
    /// Reads of an entry that was not home yet: they waited, or read it where it was.
    pub arrived_late: u64,
    /// Bytes that came back, from entries and from writers that were given up.
    pub returned_bytes: u64,
    /// Bytes that were committed.
    pub encoded_bytes: u64,
    /// What those bytes were before encoding.
    pub raw_bytes: u64,
}

impl KindCounters {
    pub(crate) fn charge(&mut self, tier: Tier, bytes: u64) {
        self.bytes[tier] += bytes;
        self.peak_bytes[tier] = self.peak_bytes[tier].max(self.bytes[tier]);
        self.peak_total_bytes = self.peak_total_bytes.max(self.bytes.total());
    }
}

impl Usage {
    pub(crate) fn charge(&mut self, tier: Tier, bytes: u64) {
        self.bytes[tier] += bytes;
        self.peak_bytes[tier] = self.peak_bytes[tier].max(self.bytes[tier]);
    }

    pub(crate) fn release(&mut self, tier: Tier, bytes: u64) {
        self.bytes[tier] -= bytes;
    }
}

/// All counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    tiers: PerTier<TierCounters>,
    kinds: [KindCounters; Kind::ALL.len()],
    /// What the shared pool holds.
    pub shared: Usage,
    /// Jobs that are open, or have ended and still have bytes out.
    pub jobs: u64,
}

impl Counters {
    pub(crate) fn new(
        tiers: PerTier<TierCounters>,
        kinds: [KindCounters; Kind::ALL.len()],
        shared: Usage,
        jobs: u64,
    ) -> Self {
        Self { tiers, kinds, shared, jobs }
    }

    /// One tier's bytes.
    pub fn tier(&self, tier: Tier) -> &TierCounters {
        &self.tiers[tier]
    }

    /// What happened to entries of one kind.
    pub fn kind(&self, kind: Kind) -> &KindCounters {
        &self.kinds[kind as usize]
    }
}

/// What ended when a step, a stage or a job did, or when a window moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// Entries that are gone from sight.
    pub entries: u64,
    /// Bytes that came back with them.
    pub returned_bytes: u64,
    /// Bytes that come back when the last lease and flight end.
    pub quiescing_bytes: u64,
}

/// Flights that were given up on, over all tiers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overdue {
    /// Entries that were quarantined.
    pub entries: u64,
    /// Their bytes, which stay counted and are never used again.
    pub bytes: u64,
}
