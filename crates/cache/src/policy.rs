//! Which entries leave when room is wanted. Decides and does nothing else (law 4): no clock, no randomness, no I/O.
//!
//! Within one job the order is Belady's MIN: the entry whose next announced read lies farthest ahead leaves first
//! (L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", 1966).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use crate::{PerTier, Recover, Tier};

/// One entry of one cache, as the policy names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(pub(crate) u64);

impl EntryId {
    /// A name for an entry of a view that was made by hand.
    pub const fn new(id: u64) -> Self {
        Self(id)
    }
}

/// Entries that were put as one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub(crate) u64);

impl GroupId {
    /// A name for a group of a view that was made by hand.
    pub const fn new(id: u64) -> Self {
        Self(id)
    }
}

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
    /// The entries that it leaves with.
    pub group: Option<GroupId>,
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

/// What the policy sees.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Bytes that each tier can hold beyond what it uses.
    pub room: PerTier<u64>,
    /// All entries that may leave, in any order. A group is listed whole or not at all.
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

/// The actions that make room for `need` bytes per tier beyond what is used, in the order in which they must be
/// carried out; none when there is room already.
///
/// # Errors
/// If going through the candidates in their order does not make all of the room; then nothing is chosen. Dropping all
/// that may be dropped is always tried; how best to pack irreplaceable entries into the tier below is not searched.
pub fn choose(view: &View, need: PerTier<u64>) -> Result<Vec<Action>, Shortfall> {
    let units = units(&view.candidates);
    let mut plan = Plan {
        fates: vec![Fate::Stays; units.len()],
        host_free_bytes: i128::from(view.room[Tier::Host]) - i128::from(need[Tier::Host]),
        host_droppable_bytes: units.iter().map(Unit::droppable_host_bytes).sum(),
        units,
    };
    let host_after_all = plan.host_free_bytes + plan.host_droppable_bytes;
    if host_after_all < 0 {
        return Err(Shortfall { tier: Tier::Host, missing_bytes: magnitude(host_after_all) });
    }
    plan.relieve_device(need[Tier::Device].saturating_sub(view.room[Tier::Device]))?;
    plan.relieve_host();
    Ok(plan.actions())
}

/// What leaves first sorts first (law 5): a job's entries that it will not read again, cheapest first; then shared
/// entries that no job announced, least recently used first; then the farthest next use, and among equally far ones
/// the cheapest. Ids make the order total.
type Rank = (Urgency, u128, EntryId);

/// How soon a read is expected, later first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    Never,
    Recency { last_use: u64 },
    In(Reverse<u64>),
}

impl Candidate {
    fn urgency(&self) -> Urgency {
        match self.next_use {
            NextUse::Unknown { .. } if !self.shared => Urgency::Never,
            NextUse::Unknown { last_use } => Urgency::Recency { last_use },
            NextUse::In(ticks) => Urgency::In(Reverse(ticks)),
        }
    }

    /// What leaving costs: bytes × price.
    fn value(&self) -> u128 {
        u128::from(self.bytes) * u128::from(self.cost_per_kib)
    }
}

/// What leaves as one (law 7): an entry by itself, or a group.
struct Unit {
    first: (EntryId, Tier),
    /// The rest of a group; an entry by itself allocates nothing.
    rest: Vec<(EntryId, Tier)>,
    bytes: PerTier<u64>,
    /// That of the member that is read soonest.
    urgency: Urgency,
    value: u128,
    /// The strictest of the members'.
    recover: Recover,
}

impl Unit {
    fn new(candidate: &Candidate) -> Self {
        Self {
            first: (candidate.id, candidate.tier),
            rest: Vec::new(),
            bytes: PerTier::only(candidate.tier, candidate.bytes),
            urgency: candidate.urgency(),
            value: candidate.value(),
            recover: candidate.recover,
        }
    }

    fn join(&mut self, candidate: &Candidate) {
        self.rest.push((candidate.id, candidate.tier));
        self.bytes[candidate.tier] += candidate.bytes;
        self.urgency = self.urgency.max(candidate.urgency());
        self.value += candidate.value();
        self.recover = self.recover.max(candidate.recover);
    }

    fn rank(&self) -> Rank {
        (self.urgency, self.value, self.first.0)
    }

    fn droppable_host_bytes(&self) -> i128 {
        if self.recover == Recover::Never { 0 } else { i128::from(self.bytes[Tier::Host]) }
    }
}

fn units(candidates: &[Candidate]) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::with_capacity(candidates.len());
    let mut groups: BTreeMap<GroupId, usize> = BTreeMap::new();
    for candidate in candidates {
        match candidate.group.and_then(|group| groups.get(&group)) {
            Some(&at) => units[at].join(candidate),
            None => {
                groups.extend(candidate.group.map(|group| (group, units.len())));
                units.push(Unit::new(candidate));
            }
        }
    }
    units
}

/// What is to become of a unit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    Drops,
    Sinks,
}

/// A choice in the making. Invariant: `host_free_bytes + host_droppable_bytes` is never negative, so whatever the host
/// owes can be met by dropping there.
struct Plan {
    units: Vec<Unit>,
    fates: Vec<Fate>,
    /// Host room left after the need and all demotions so far; negative while the host owes room.
    host_free_bytes: i128,
    /// Host bytes of units that stay so far but might drop.
    host_droppable_bytes: i128,
}

impl Plan {
    /// Units with bytes in `tier` that might leave it, first to leave on top.
    fn queue(&self, tier: Tier) -> BinaryHeap<Reverse<(Rank, usize)>> {
        let units = self.units.iter().enumerate().zip(&self.fates);
        let may_leave = |unit: &Unit| tier.below().is_some() || unit.recover != Recover::Never;
        units
            .filter(|((_, unit), fate)| **fate == Fate::Stays && unit.bytes[tier] > 0 && may_leave(unit))
            .map(|((at, unit), _)| Reverse((unit.rank(), at)))
            .collect()
    }

    fn set(&mut self, at: usize, fate: Fate) {
        let unit = &self.units[at];
        let device_bytes = i128::from(unit.bytes[Tier::Device]);
        let host_bytes = i128::from(unit.bytes[Tier::Host]);
        let effect = |fate| match fate {
            Fate::Stays => (0, unit.droppable_host_bytes()),
            Fate::Drops => (host_bytes, 0),
            Fate::Sinks => (-device_bytes, 0),
        };
        let ((was_free, was_droppable), (free, droppable)) = (effect(self.fates[at]), effect(fate));
        self.host_free_bytes += free - was_free;
        self.host_droppable_bytes += droppable - was_droppable;
        self.fates[at] = fate;
    }

    fn relieve_device(&mut self, short_bytes: u64) -> Result<(), Shortfall> {
        let mut queue = if short_bytes > 0 { self.queue(Tier::Device) } else { BinaryHeap::new() };
        let mut picks = Vec::new();
        let mut freed_bytes = 0;
        while freed_bytes < short_bytes {
            let Some(Reverse((_, at))) = queue.pop() else {
                return Err(Shortfall { tier: Tier::Device, missing_bytes: short_bytes - freed_bytes });
            };
            let unit = &self.units[at];
            let device_bytes = unit.bytes[Tier::Device];
            let fits_freely = i128::from(device_bytes) <= self.host_free_bytes;
            let fits = i128::from(device_bytes) <= self.host_free_bytes + self.host_droppable_bytes;
            let fate = match (unit.recover, unit.urgency) {
                (Recover::Never, _) if !fits => continue,
                (Recover::Never, _) => Fate::Sinks,
                (Recover::Recompute, Urgency::In(_)) if fits_freely => Fate::Sinks,
                (Recover::Recompute | Recover::Reload, _) => Fate::Drops,
            };
            self.set(at, fate);
            freed_bytes += device_bytes;
            picks.push(at);
        }
        self.spare(&picks, Tier::Device, freed_bytes - short_bytes);
        Ok(())
    }

    /// Cannot fall short, by the plan's invariant.
    fn relieve_host(&mut self) {
        let mut queue = if self.host_free_bytes < 0 { self.queue(Tier::Host) } else { BinaryHeap::new() };
        let mut picks = Vec::new();
        while self.host_free_bytes < 0
            && let Some(Reverse((_, at))) = queue.pop()
        {
            self.set(at, Fate::Drops);
            picks.push(at);
        }
        if !picks.is_empty() {
            self.spare(&picks, Tier::Host, magnitude(self.host_free_bytes));
        }
    }

    /// Lets picks stay that the others make needless, soonest read first: a large pick may cover small earlier ones.
    fn spare(&mut self, picks: &[usize], tier: Tier, mut surplus_bytes: u64) {
        for &at in picks.iter().rev() {
            let bytes = self.units[at].bytes[tier];
            if bytes <= surplus_bytes {
                surplus_bytes -= bytes;
                self.set(at, Fate::Stays);
            }
        }
    }

    /// Drops first: demotions land in the room that they leave.
    fn actions(&self) -> Vec<Action> {
        let members = |wanted| {
            let picked = self.units.iter().zip(&self.fates).filter(move |(_, fate)| **fate == wanted);
            picked.flat_map(|(unit, _)| std::iter::once(unit.first).chain(unit.rest.iter().copied()))
        };
        let drops = members(Fate::Drops).map(|(id, _)| Action::Drop(id));
        let sinks =
            members(Fate::Sinks).filter_map(|(id, tier)| tier.below().map(|to| Action::Demote { id, to }));
        drops.chain(sinks).collect()
    }
}

fn magnitude(bytes: i128) -> u64 {
    u64::try_from(bytes.unsigned_abs()).unwrap_or(u64::MAX)
}
