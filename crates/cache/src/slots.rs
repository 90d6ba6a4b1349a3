//! The slot table: one slot per entry that holds bytes.

use crate::job_state::StageId;
use crate::place::Place;
use crate::policy::{EntryId, GroupId};
use crate::{EntryKey, Lifetime, Owner, Recover, Tier};
use std::ops::{Index, IndexMut};

/// A row of the slot table, with the count of its earlier tenants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SlotId {
    index: u32,
    generation: u32,
}

impl From<SlotId> for EntryId {
    fn from(id: SlotId) -> Self {
        Self(u64::from(id.index) << 32 | u64::from(id.generation))
    }
}

impl From<EntryId> for SlotId {
    #[expect(clippy::cast_possible_truncation, reason = "splits the u64 into the two halves it was made of")]
    fn from(id: EntryId) -> Self {
        Self { index: (id.0 >> 32) as u32, generation: id.0 as u32 }
    }
}

/// Where a slot stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// In the index: reads find it.
    Live,
    /// Gone from sight; its bytes come back when the last lease and the last flight end (law 3).
    Quiescing {
        /// The sweep after which it went.
        since_sweep: u64,
    },
    /// Gone for good: a flight never reported back, so its bytes are never used again.
    Quarantined,
}

/// Which list will end this entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expiry {
    /// None but the owner's end.
    WithOwner,
    /// The job's list for this step, at this position.
    AtStep { step: u64, position: usize },
    /// The stage's list, at this position.
    InStage { stage: StageId, position: usize },
    /// The window of its series.
    InWindow,
}

/// How an entry that left its home comes back before anybody asks for it. The next read ends it, in time or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Prefetch {
    /// Nobody brings or brought it ahead of a read.
    #[default]
    None,
    /// It is on its way, and nobody has asked for it yet.
    UnderWay,
    /// It came home, and nobody has read it since.
    Arrived,
}

/// One entry.
pub(crate) struct Slot {
    pub(crate) owner: Owner,
    pub(crate) key: EntryKey,
    /// What it was put with: eviction takes all or none (law 7).
    pub(crate) group: Option<GroupId>,
    pub(crate) tier: Tier,
    /// Where it was put, and where reads bring it back to.
    pub(crate) home: Tier,
    pub(crate) len_bytes: usize,
    /// Its length before encoding.
    pub(crate) raw_bytes: u64,
    pub(crate) lifetime: Lifetime,
    pub(crate) expiry: Expiry,
    pub(crate) recover: Recover,
    pub(crate) cost_per_kib: u32,
    pub(crate) state: State,
    pub(crate) leases: u32,
    pub(crate) flights: u32,
    pub(crate) moves: u32,
    /// A flight was dropped before it reported back: whatever it did may still be going on.
    pub(crate) flight_lost: bool,
    /// Somebody is bringing it to another tier at somebody's wish, or is making room for that: whoever wants to read it
    /// waits.
    pub(crate) relocating: bool,
    pub(crate) prefetch: Prefetch,
    pub(crate) last_use: u64,
    pub(crate) place: Place,
}

impl Slot {
    pub(crate) fn charged_bytes(&self) -> u64 {
        self.place.charged_bytes()
    }

    /// Its bytes can leave this place and the place be used again.
    pub(crate) fn is_free_to_go(&self) -> bool {
        self.is_still() && !self.flight_lost
    }

    /// A move of it that has begun, or is about to, may still arrive: it is visible, and nobody but the move holds it.
    pub(crate) fn may_move(&self) -> bool {
        let is_held = self.leases > 0 || self.flights > 0 || self.flight_lost;
        self.state == State::Live && !is_held
    }

    /// It is on its way to another tier, or room is being made for that.
    pub(crate) fn is_moving(&self) -> bool {
        self.relocating || self.moves > 0
    }

    /// Nothing outside the table reads or moves it, as far as is known.
    pub(crate) fn is_still(&self) -> bool {
        self.leases == 0 && self.flights == 0 && self.moves == 0
    }
}

#[derive(Default)]
struct Row {
    generation: u32,
    slot: Option<Slot>,
}

/// Slots by id; vacant rows are used again.
#[derive(Default)]
pub(crate) struct Slots {
    rows: Vec<Row>,
    vacant: Vec<u32>,
}

impl Slots {
    pub(crate) fn insert(&mut self, slot: Slot) -> SlotId {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.rows.push(Row::default());
            u32::try_from(self.rows.len() - 1).expect("four billion entries take more memory than there is")
        });
        let row = &mut self.rows[index as usize];
        row.slot = Some(slot);
        SlotId { index, generation: row.generation }
    }

    pub(crate) fn remove(&mut self, id: SlotId) -> Slot {
        let row = &mut self.rows[id.index as usize];
        assert_eq!(row.generation, id.generation, "a slot id outlived its slot");
        row.generation = row.generation.wrapping_add(1);
        self.vacant.push(id.index);
        row.slot.take().expect("a row of this generation is taken")
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (SlotId, &Slot)> {
        let id = |(index, generation)| SlotId { index, generation };
        (0..)
            .zip(&self.rows)
            .filter_map(move |(index, row)| row.slot.as_ref().map(|slot| (id((index, row.generation)), slot)))
    }
}

impl Index<SlotId> for Slots {
    type Output = Slot;

    /// Ids are held by leases, flights and lists that keep their slot, so a stale one is a bug in this crate.
    fn index(&self, id: SlotId) -> &Slot {
        let row = &self.rows[id.index as usize];
        assert_eq!(row.generation, id.generation, "a slot id outlived its slot");
        row.slot.as_ref().expect("a row of this generation is taken")
    }
}

impl IndexMut<SlotId> for Slots {
    fn index_mut(&mut self, id: SlotId) -> &mut Slot {
        let row = &mut self.rows[id.index as usize];
        assert_eq!(row.generation, id.generation, "a slot id outlived its slot");
        row.slot.as_mut().expect("a row of this generation is taken")
    }
}
