//! What a job used and gave back, read off the cache's own counters.

use evanesce_cache::{Counters, Kind, PerTier, Tier, TierTraffic, Usage};

/// One tier over the life of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierReport {
    /// `device`, `host` or `disk`.
    pub tier: &'static str,
    /// What it may hold.
    pub budget_bytes: u64,
    /// The most it held at once.
    pub peak_bytes: u64,
    /// What the job still owned when it had ended: 0, always.
    pub owned_at_end_bytes: u64,
    /// What went down into it and up out of it.
    pub traffic: TierTraffic,
}

/// One kind of entries over the life of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindReport {
    /// The kind's name, such as `cross_kv`.
    pub kind: &'static str,
    /// The most bytes at once, over all tiers.
    pub peak_bytes: u64,
    /// Entries that became visible.
    pub puts: u64,
    /// Reads that found their entry.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Entries that ended with their step, stage or job.
    pub expired: u64,
    /// Entries that fell out of their window.
    pub pruned: u64,
    /// Entries that were dropped to make room.
    pub evicted: u64,
    /// Moves to the tier below.
    pub demoted: u64,
    /// Moves back up.
    pub promoted: u64,
    /// Entries that did not come back from disk.
    pub lost: u64,
    /// Reads of an entry that had left its tier and was brought back before the read.
    pub arrived_before_use: u64,
    /// Reads of an entry that was not back yet.
    pub arrived_late: u64,
    /// Bytes that came back.
    pub returned_bytes: u64,
    /// Bytes that were kept.
    pub encoded_bytes: u64,
    /// What they were before encoding.
    pub raw_bytes: u64,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryReport {
    /// By tier, nearest to the arithmetic first.
    pub tiers: Vec<TierReport>,
    /// By kind, those that were used.
    pub kinds: Vec<KindReport>,
}

impl MemoryReport {
    /// Reads the counters after a job whose last usage is `owned_at_end`.
    pub(crate) fn new(counters: &Counters, owned_at_end: &Usage) -> Self {
        let owned: &PerTier<u64> = &owned_at_end.bytes;
        let tiers = Tier::ALL.map(|tier| TierReport {
            tier: tier.as_str(),
            budget_bytes: counters.tier(tier).budget_bytes,
            peak_bytes: counters.tier(tier).peak_bytes,
            owned_at_end_bytes: owned[tier],
            traffic: counters.tier(tier).traffic,
        });
        let used = Kind::ALL.into_iter().filter(|kind| counters.kind(*kind).puts > 0);
        Self { tiers: tiers.to_vec(), kinds: used.map(|kind| KindReport::new(kind, counters)).collect() }
    }
}

/// What the cache holds at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryNow {
    /// By tier, nearest to the arithmetic first.
    pub tiers: Vec<TierNow>,
}

/// What one tier holds at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierNow {
    /// `device`, `host`, and so on.
    pub tier: &'static str,
    /// Bytes in use; scratch is promised bytes behind no kind, and is held within a unit of work only.
    pub used_bytes: u64,
    /// Bytes by kind, every kind in the same order.
    pub kinds: Vec<(&'static str, u64)>,
}

impl MemoryNow {
    /// Reads the counters.
    pub(crate) fn new(counters: &Counters) -> Self {
        let kinds = |tier| Kind::ALL.map(|kind| (kind.as_str(), counters.kind(kind).bytes[tier])).to_vec();
        let now = Tier::ALL.map(|tier| TierNow {
            tier: tier.as_str(),
            used_bytes: counters.tier(tier).used_bytes,
            kinds: kinds(tier),
        });
        Self { tiers: now.to_vec() }
    }
}

impl KindReport {
    fn new(kind: Kind, counters: &Counters) -> Self {
        let counted = counters.kind(kind);
        Self {
            kind: kind.as_str(),
            peak_bytes: counted.peak_total_bytes,
            puts: counted.puts,
            hits: counted.hits,
            misses: counted.misses,
            expired: counted.expired,
            pruned: counted.pruned,
            evicted: counted.evicted,
            demoted: counted.demoted,
            promoted: counted.promoted,
            lost: counted.lost,
            arrived_before_use: counted.arrived_before_use,
            arrived_late: counted.arrived_late,
            returned_bytes: counted.returned_bytes,
            encoded_bytes: counted.encoded_bytes,
            raw_bytes: counted.raw_bytes,
        }
    }
}
