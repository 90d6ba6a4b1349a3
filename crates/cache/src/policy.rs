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
    /// What it is charged there.
    pub bytes: u64,
    /// What it is charged, or would be, on disk.
    pub disk_bytes: u64,
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
    /// Copy it to a tier below and give its room back. When there is no room there yet, the demotions named before it
    /// make it.
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
/// carried out; none when there is room already. What the device sends down may push what is read later from the host
/// to the disk, and goes to the disk itself where the host cannot take it.
///
/// # Errors
/// If going through the candidates in their order does not make all of the room; then nothing is chosen. Dropping all
/// that may be dropped is always tried; how best to pack irreplaceable entries into the tier below is not searched.
pub fn choose(view: &View, need: PerTier<u64>) -> Result<Vec<Action>, Shortfall> {
    let mut plan = Plan::new(view, need);
    for (tier, left) in [(Tier::Disk, plan.disk_left()), (Tier::Host, plan.host_left())] {
        if left < 0 {
            return Err(Shortfall { tier, missing_bytes: magnitude(left) });
        }
    }
    plan.relieve_device(need[Tier::Device].saturating_sub(view.room[Tier::Device]))?;
    plan.relieve_host();
    plan.relieve_disk();
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
    /// What its members in the host would take on disk.
    sunk_bytes: u64,
    /// What its members in the device would take on disk.
    deep_bytes: u64,
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
            sunk_bytes: disk_bytes_from(Tier::Host, candidate),
            deep_bytes: disk_bytes_from(Tier::Device, candidate),
            urgency: candidate.urgency(),
            value: candidate.value(),
            recover: candidate.recover,
        }
    }

    fn join(&mut self, candidate: &Candidate) {
        self.rest.push((candidate.id, candidate.tier));
        self.bytes[candidate.tier] += candidate.bytes;
        self.sunk_bytes = self.sunk_bytes.saturating_add(disk_bytes_from(Tier::Host, candidate));
        self.deep_bytes = self.deep_bytes.saturating_add(disk_bytes_from(Tier::Device, candidate));
        self.urgency = self.urgency.max(candidate.urgency());
        self.value += candidate.value();
        self.recover = self.recover.max(candidate.recover);
    }

    fn rank(&self) -> Rank {
        (self.urgency, self.value, self.first.0)
    }

    /// Its bytes in a tier, to reckon with.
    fn in_tier(&self, tier: Tier) -> i128 {
        i128::from(self.bytes[tier])
    }
}

fn disk_bytes_from(tier: Tier, candidate: &Candidate) -> u64 {
    if candidate.tier == tier { candidate.disk_bytes } else { 0 }
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

/// What is to become of a unit: all of it drops, or its members in some tiers go one tier down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Fate {
    drops: bool,
    sinks_from_device: bool,
    /// What leaves the device goes to the disk at once: the host cannot take it, not even in passing.
    skips_host: bool,
    sinks_from_host: bool,
}

impl Fate {
    const STAYS: Self =
        Self { drops: false, sinks_from_device: false, skips_host: false, sinks_from_host: false };
    const DROPS: Self = Self { drops: true, ..Self::STAYS };
    const SINKS: Self = Self { sinks_from_device: true, ..Self::STAYS };
    const SINKS_DEEP: Self = Self { skips_host: true, ..Self::SINKS };
}

/// Bytes of host and disk as a choice leaves them. `free` may be negative while a tier owes room.
#[derive(Clone, Copy, Debug, Default)]
struct Below {
    host_free: i128,
    /// Of units that stay so far but might drop.
    host_droppable: i128,
    /// Of irreplaceable units that stay so far but might sink, all of them together.
    host_sinkable: i128,
    disk_free: i128,
    disk_droppable: i128,
    /// What the sinkable ones would take on disk.
    disk_claimed: i128,
}

/// A choice in the making. Invariant: [`Plan::host_left`] and [`Plan::disk_left`] are never negative, so whatever host
/// and disk owe can be met by dropping and sinking there.
struct Plan {
    units: Vec<Unit>,
    fates: Vec<Fate>,
    /// Irreplaceable units in the host that find room on disk together, by the order in which they would leave.
    sinkable: Vec<bool>,
    below: Below,
}

impl Plan {
    fn new(view: &View, need: PerTier<u64>) -> Self {
        let units = units(&view.candidates);
        let free = |tier: Tier| i128::from(view.room[tier]) - i128::from(need[tier]);
        let mut plan = Self {
            fates: vec![Fate::STAYS; units.len()],
            sinkable: vec![false; units.len()],
            below: Below { host_free: free(Tier::Host), disk_free: free(Tier::Disk), ..Below::default() },
            units,
        };
        for at in 0..plan.units.len() {
            plan.count(at, 1);
        }
        let mut queue = plan.queue(Tier::Host, |unit, _, _| unit.recover == Recover::Never);
        while let Some(Reverse((_, at))) = queue.pop() {
            if i128::from(plan.units[at].sunk_bytes) <= plan.disk_left() {
                plan.count(at, -1);
                plan.sinkable[at] = true;
                plan.count(at, 1);
            }
        }
        plan
    }

    /// Room that the host has, or can make.
    fn host_left(&self) -> i128 {
        self.below.host_free + self.below.host_droppable + self.below.host_sinkable
    }

    /// Room that the disk has, or can make, beyond what the host may send.
    fn disk_left(&self) -> i128 {
        self.below.disk_free + self.below.disk_droppable - self.below.disk_claimed
    }

    /// Adds what a unit is worth below with its fate, or takes it off.
    fn count(&mut self, at: usize, sign: i128) {
        let (unit, fate, below) = (&self.units[at], self.fates[at], &mut self.below);
        let [device, host, disk] = Tier::ALL.map(|tier| unit.in_tier(tier) * sign);
        let sunk = i128::from(unit.sunk_bytes) * sign;
        if fate.drops {
            below.host_free += host;
            below.disk_free += disk;
            return;
        }
        if fate == Fate::STAYS && unit.recover != Recover::Never {
            below.host_droppable += host;
            below.disk_droppable += disk;
        }
        if fate.skips_host {
            below.disk_free -= i128::from(unit.deep_bytes) * sign;
        } else if fate.sinks_from_device {
            below.host_free -= device;
        }
        if fate.sinks_from_host {
            below.host_free += host;
            below.disk_free -= sunk;
        } else if self.sinkable[at] {
            below.host_sinkable += host;
            below.disk_claimed += sunk;
        }
    }

    fn set(&mut self, at: usize, fate: Fate) {
        self.count(at, -1);
        self.fates[at] = fate;
        self.count(at, 1);
    }

    /// Sets a fate unless host or disk could then not be relieved any more.
    fn try_set(&mut self, at: usize, fate: Fate) -> bool {
        let before = self.fates[at];
        self.set(at, fate);
        let holds = self.host_left() >= 0 && self.disk_left() >= 0;
        if !holds {
            self.set(at, before);
        }
        holds
    }

    /// Units with bytes in `tier` that might leave it, first to leave on top.
    fn queue(
        &self,
        tier: Tier,
        may_leave: impl Fn(&Unit, Fate, bool) -> bool,
    ) -> BinaryHeap<Reverse<(Rank, usize)>> {
        let units = self.units.iter().zip(self.fates.iter().zip(&self.sinkable)).enumerate();
        units
            .filter(|(_, (unit, (fate, sinkable)))| {
                unit.bytes[tier] > 0 && may_leave(unit, **fate, **sinkable)
            })
            .map(|(at, (unit, _))| Reverse((unit.rank(), at)))
            .collect()
    }

    fn relieve_device(&mut self, short_bytes: u64) -> Result<(), Shortfall> {
        if short_bytes == 0 {
            return Ok(());
        }
        let mut queue = self.queue(Tier::Device, |_, _, _| true);
        let mut picks = Vec::new();
        let mut freed_bytes = 0;
        while freed_bytes < short_bytes {
            let Some(Reverse((_, at))) = queue.pop() else {
                return Err(Shortfall { tier: Tier::Device, missing_bytes: short_bytes - freed_bytes });
            };
            let unit = &self.units[at];
            let device_bytes = unit.bytes[Tier::Device];
            let fits_freely = i128::from(device_bytes) <= self.below.host_free;
            let sinks = match (unit.recover, unit.urgency) {
                (Recover::Never, _) => true,
                (Recover::Recompute, Urgency::In(_)) => fits_freely,
                (Recover::Recompute | Recover::Reload, _) => false,
            };
            let droppable = unit.recover != Recover::Never;
            if !(sinks && self.try_set(at, Fate::SINKS)) {
                if droppable {
                    self.set(at, Fate::DROPS);
                } else if !self.try_set(at, Fate::SINKS_DEEP) {
                    continue;
                }
            }
            freed_bytes += device_bytes;
            picks.push((at, Fate::STAYS));
        }
        self.spare(&picks, Tier::Device, freed_bytes - short_bytes);
        Ok(())
    }

    /// Cannot fall short, by the plan's invariant.
    fn relieve_host(&mut self) {
        if self.below.host_free >= 0 {
            return;
        }
        let may_leave = |unit: &Unit, fate: Fate, sinkable: bool| {
            sinkable || (fate == Fate::STAYS && unit.recover != Recover::Never)
        };
        let mut queue = self.queue(Tier::Host, may_leave);
        let mut picks = Vec::new();
        while self.below.host_free < 0
            && let Some(Reverse((_, at))) = queue.pop()
        {
            let (unit, before) = (&self.units[at], self.fates[at]);
            let sunk = Fate { sinks_from_host: true, ..before };
            let room_to_spare = self.below.disk_free - self.below.disk_claimed;
            let expected = unit.recover == Recover::Recompute && matches!(unit.urgency, Urgency::In(_));
            if self.sinkable[at] {
                self.set(at, sunk);
            } else if !(expected && i128::from(unit.sunk_bytes) <= room_to_spare && self.try_set(at, sunk)) {
                self.set(at, Fate::DROPS);
            }
            picks.push((at, before));
        }
        self.spare(&picks, Tier::Host, magnitude(self.below.host_free));
    }

    /// Cannot fall short, by the plan's invariant.
    fn relieve_disk(&mut self) {
        if self.below.disk_free >= 0 {
            return;
        }
        let may_drop =
            |unit: &Unit, fate: Fate, _: bool| fate == Fate::STAYS && unit.recover != Recover::Never;
        let mut queue = self.queue(Tier::Disk, may_drop);
        let mut picks = Vec::new();
        while self.below.disk_free < 0
            && let Some(Reverse((_, at))) = queue.pop()
        {
            self.set(at, Fate::DROPS);
            picks.push((at, Fate::STAYS));
        }
        self.spare(&picks, Tier::Disk, magnitude(self.below.disk_free));
    }

    /// Lets picks go back to what they were that the others make needless, soonest read first: a large pick may cover
    /// small earlier ones.
    fn spare(&mut self, picks: &[(usize, Fate)], tier: Tier, mut surplus_bytes: u64) {
        for &(at, before) in picks.iter().rev() {
            let bytes = self.units[at].bytes[tier];
            if bytes <= surplus_bytes {
                surplus_bytes -= bytes;
                self.set(at, before);
            }
        }
    }

    /// Drops first, then what leaves the host: each demotion lands in room that those before it leave.
    fn actions(&self) -> Vec<Action> {
        let members = |wanted: fn(Fate) -> bool| {
            let picked = self.units.iter().zip(&self.fates).filter(move |(_, fate)| wanted(**fate));
            picked.flat_map(|(unit, _)| std::iter::once(unit.first).chain(unit.rest.iter().copied()))
        };
        let sinks = |from: Tier, to: Tier, wanted: fn(Fate) -> bool| {
            let leaving = members(wanted).filter(move |(_, tier)| *tier == from);
            leaving.map(move |(id, _)| Action::Demote { id, to })
        };
        let drops = members(|fate| fate.drops).map(|(id, _)| Action::Drop(id));
        let from_host = sinks(Tier::Host, Tier::Disk, |fate| fate.sinks_from_host);
        let deep = sinks(Tier::Device, Tier::Disk, |fate| fate.skips_host);
        let from_device = sinks(Tier::Device, Tier::Host, |fate| fate.sinks_from_device && !fate.skips_host);
        drops.chain(from_host).chain(deep).chain(from_device).collect()
    }
}

fn magnitude(bytes: i128) -> u64 {
    u64::try_from(bytes.unsigned_abs()).unwrap_or(u64::MAX)
}
