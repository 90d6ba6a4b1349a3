//! Room that is promised before it is used.

use std::fmt;
use std::sync::Arc;

use crate::arena::Account;
use crate::buffer::{charged_bytes, entry_bytes};
use crate::draft::Draft;
use crate::room::Shared;
use crate::store::Post;
use crate::{Displace, EntryKey, OutOfBudget, Owner, PerTier, PutError, PutSpec, Tier, Writer};

/// Bytes of some tiers, counted as used, with no entry behind them: room for entries to come, or for workspace that
/// lives outside the cache. Dropping it returns what is left.
#[must_use = "dropping the reservation gives the room up"]
pub struct Reservation {
    shared: Arc<Shared>,
    owner: Owner,
    left: PerTier<u64>,
}

/// A reservation was asked for more than it has left. Nothing was taken from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the reservation has {left_bytes} bytes left in the {tier} tier but {asked_bytes} are asked of it")]
pub struct ReservationShort {
    /// The tier that is short.
    pub tier: Tier,
    /// What was asked.
    pub asked_bytes: u64,
    /// What is left.
    pub left_bytes: u64,
}

impl Reservation {
    /// All of `wanted`, or nothing (law 2).
    pub(crate) fn begin(
        shared: &Arc<Shared>,
        owner: Owner,
        wanted: &[(Tier, u64)],
    ) -> Result<Self, OutOfBudget> {
        let mut left = PerTier::default();
        for (tier, bytes) in wanted {
            let sum: &mut u64 = &mut left[*tier];
            *sum = sum.saturating_add(charged_bytes(*bytes));
        }
        let (mut store, room) = shared.make_room(shared.lock(), left, Displace::Anything);
        room?;
        for (tier, bytes) in left.iter() {
            store.charge(Post::new(owner, None, tier, Account::Reserved), *bytes);
            store.shed(tier);
        }
        drop(store);
        Ok(Self { shared: Arc::clone(shared), owner, left })
    }

    /// Bytes left in one tier.
    pub fn bytes(&self, tier: Tier) -> u64 {
        self.left[tier]
    }

    /// Takes `bytes` of one tier out as a reservation of their own, rounded up to whole lines.
    ///
    /// # Errors
    /// If less is left; then this reservation is as before.
    pub fn split(&mut self, tier: Tier, bytes: u64) -> Result<Self, ReservationShort> {
        let asked_bytes = charged_bytes(bytes);
        let left_bytes = self.left[tier];
        if asked_bytes > left_bytes {
            return Err(ReservationShort { tier, asked_bytes, left_bytes });
        }
        self.left[tier] -= asked_bytes;
        let left = PerTier::only(tier, asked_bytes);
        Ok(Self { shared: Arc::clone(&self.shared), owner: self.owner, left })
    }

    /// Puts an entry of the reservation's owner (a [`Key`](crate::Key) for a job, a
    /// [`ContentKey`](crate::ContentKey) for the shared pool) into its room: needs no other room and evicts nothing.
    /// When the entry dies its bytes go to the tier, not back here.
    ///
    /// # Errors
    /// If too little is left, or as [`Job::put`](crate::Job::put); then this reservation is as before.
    pub fn put(&mut self, key: impl Into<EntryKey>, spec: PutSpec) -> Result<Writer, PutError> {
        let key = key.into();
        let store = self.shared.lock();
        let stage = store.check_put(self.owner, &key, &spec)?;
        let (needed_bytes, left_bytes) = (entry_bytes(spec.len_bytes), self.left[spec.tier]);
        if needed_bytes > left_bytes {
            return Err(PutError::ReservationTooSmall { tier: spec.tier, needed_bytes, left_bytes });
        }
        self.left[spec.tier] -= needed_bytes;
        let draft = Draft::begin_reserved(&self.shared, store, self.owner, (key, spec, stage));
        if draft.is_err() {
            self.left[spec.tier] += needed_bytes;
        }
        draft.map(Writer::new)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut store = self.shared.lock();
        for (tier, bytes) in self.left.iter().filter(|(_, bytes)| **bytes > 0) {
            store.release(Post::new(self.owner, None, tier, Account::Reserved), *bytes);
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation")
            .field("owner", &self.owner)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}
