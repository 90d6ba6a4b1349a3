//! Which entries leave when room is wanted. Decides and does nothing else (law 4): no clock, no randomness, no I/O.
//!
//! Within one job the order is Belady's MIN: the entry whose next announced read lies farthest ahead leaves first
//! (L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", 1966).

use std::cmp::Reverse;

use crate::{PerTier, Recover, Tier};

/// One entry of one cache, as the policy names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(pub(crate) u64);

/// How far ahead an entry's next read lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextUse {
    /// So many ticks ahead of its job's position.
    In(u64),
    /// Nobody announced a read; `last_use` orders entries by recency (larger is later).
    Unknown {
        /// Position of the last read in the cache's sequence of reads.
        last_use: u64,
    },
}

/// An entry that nobody leases and nothing in flight touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which entry.
    pub id: EntryId,
    /// Where its bytes are.
    pub tier: Tier,
    /// What it is charged.
    pub bytes: u64,
    /// When it will be read again.
    pub next_use: NextUse,
    /// Whether it belongs to the shared pool.
    pub shared: bool,
    /// What may become of it.
    pub recover: Recover,
    /// Relative price of bringing 1 KiB of it back.
    pub cost_per_kib: u32,
}

impl Candidate {
    /// What leaving costs: bytes × price.
    fn value(&self) -> u128 {
        u128::from(self.bytes) * u128::from(self.cost_per_kib)
    }

    /// Sorts first what leaves first (law 5): a job's entries that it will not read again, cheapest first; then
    /// shared entries that no job announced, least recently used first; then the farthest next use, and among
    /// equally far ones the cheapest. Ids make the order total.
    fn rank(&self) -> (u8, Reverse<u64>, u128, EntryId) {
        match self.next_use {
            NextUse::Unknown { .. } if !self.shared => (0, Reverse(0), self.value(), self.id),
            NextUse::Unknown { last_use } => (1, Reverse(u64::MAX - last_use), self.value(), self.id),
            NextUse::In(distance) => (2, Reverse(distance), self.value(), self.id),
        }
    }
}

/// What the policy sees.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Bytes that each tier can hold beyond what it uses.
    pub room: PerTier<u64>,
    /// All entries that may leave, in any order.
    pub candidates: Vec<Candidate>,
}

/// One thing to do about one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Forget it.
    Drop(EntryId),
    /// Copy it to the tier below and give its room back.
    Demote {
        /// Which entry.
        id: EntryId,
        /// Where to.
        to: Tier,
    },
}

/// No choice of candidates makes the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// The tier that stays short.
    pub tier: Tier,
    /// By how much.
    pub missing_bytes: u64,
}

/// A candidate that has been picked, and what becomes of it.
struct Pick {
    candidate: Candidate,
    demote: bool,
}

/// The actions that make room for `need` bytes per tier beyond what is used, in the order in which they must be
/// carried out; none when there is room already. Nothing is chosen unless all of the need can be met.
pub fn choose(view: &View, need: PerTier<u64>) -> Result<Vec<Action>, Shortfall> {
    let host_candidates = ranked(view, Tier::Host);
    let host_droppable: u64 = host_candidates.iter().map(|c| c.bytes).sum();
    let host_total = view.room[Tier::Host].saturating_add(host_droppable);
    if need[Tier::Host] > host_total {
        return Err(Shortfall { tier: Tier::Host, missing_bytes: need[Tier::Host] - host_total });
    }
    let below = Below {
        free_bytes: view.room[Tier::Host].saturating_sub(need[Tier::Host]),
        total_bytes: host_total - need[Tier::Host],
    };
    let device_short = need[Tier::Device].saturating_sub(view.room[Tier::Device]);
    let device = pick_device(&ranked(view, Tier::Device), device_short, below)?;
    let demoted: u64 = device.iter().filter(|p| p.demote).map(|p| p.candidate.bytes).sum();
    let host_short = need[Tier::Host].saturating_add(demoted).saturating_sub(view.room[Tier::Host]);
    let host = pick_host(host_candidates, host_short);
    Ok(host.iter().chain(&device).map(Pick::action).collect())
}

/// Room below for demoted entries: without dropping anything there, and with everything dropped that may be.
#[derive(Clone, Copy)]
struct Below {
    free_bytes: u64,
    total_bytes: u64,
}

impl Pick {
    fn action(&self) -> Action {
        let id = self.candidate.id;
        if self.demote { Action::Demote { id, to: Tier::Host } } else { Action::Drop(id) }
    }
}

/// Candidates of one tier that may leave it, first to leave first.
fn ranked(view: &View, tier: Tier) -> Vec<Candidate> {
    let may_leave =
        |c: &&Candidate| c.tier == tier && (tier.below().is_some() || c.recover != Recover::Never);
    let mut ranked: Vec<_> = view.candidates.iter().filter(may_leave).copied().collect();
    ranked.sort_by_key(Candidate::rank);
    ranked
}

fn pick_device(ranked: &[Candidate], short_bytes: u64, below: Below) -> Result<Vec<Pick>, Shortfall> {
    let mut picks = Vec::new();
    let (mut freed_bytes, mut demoted_bytes) = (0, 0);
    for candidate in ranked {
        if freed_bytes >= short_bytes {
            break;
        }
        let lands_bytes = demoted_bytes + candidate.bytes;
        let demote = match (candidate.recover, candidate.next_use) {
            (Recover::Never, _) if lands_bytes > below.total_bytes => continue,
            (Recover::Never, _) => true,
            (Recover::Recompute, NextUse::In(_)) => lands_bytes <= below.free_bytes,
            (Recover::Recompute, NextUse::Unknown { .. }) | (Recover::Reload, _) => false,
        };
        if demote {
            demoted_bytes = lands_bytes;
        }
        freed_bytes += candidate.bytes;
        picks.push(Pick { candidate: *candidate, demote });
    }
    if freed_bytes < short_bytes {
        return Err(Shortfall { tier: Tier::Device, missing_bytes: short_bytes - freed_bytes });
    }
    spare(&mut picks, freed_bytes - short_bytes);
    Ok(picks)
}

/// The caller has checked that `ranked` holds `short_bytes`.
fn pick_host(ranked: Vec<Candidate>, short_bytes: u64) -> Vec<Pick> {
    let mut picks = Vec::new();
    let mut freed_bytes = 0;
    for candidate in ranked {
        if freed_bytes >= short_bytes {
            break;
        }
        freed_bytes += candidate.bytes;
        picks.push(Pick { candidate, demote: false });
    }
    spare(&mut picks, freed_bytes.saturating_sub(short_bytes));
    picks
}

/// Lets go of picks that the rest makes needless, soonest used first: a large late pick may cover small early ones.
fn spare(picks: &mut Vec<Pick>, mut surplus_bytes: u64) {
    for at in (0..picks.len()).rev() {
        let bytes = picks[at].candidate.bytes;
        if bytes <= surplus_bytes {
            surplus_bytes -= bytes;
            picks.remove(at);
        }
    }
}
