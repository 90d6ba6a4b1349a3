//! Guards over entries that are being read (law 3).

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::buffer::Buffer;
use crate::room::Shared;
use crate::slots::SlotId;
use crate::store::Store;
use crate::{EntryKey, Tier};

/// Keeps an entry alive and in place; its bytes are read without any lock. Clones share one lease.
///
/// An entry that dies while leased is gone from sight at once; its bytes come back with the last lease.
#[derive(Clone)]
#[must_use = "dropping the lease gives the entry up"]
pub struct Lease {
    held: Arc<Held>,
}

struct Held {
    // Fields drop in this order: the buffer is given up before the count of its holders goes down.
    buffer: Arc<Buffer>,
    pin: Pin,
    key: EntryKey,
    tier: Tier,
    len_bytes: usize,
}

/// One count in `leases` of a slot.
struct Pin {
    shared: Arc<Shared>,
    id: SlotId,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut store = self.shared.lock();
        store.slots[self.id].leases -= 1;
        store.settle(self.id);
    }
}

impl Lease {
    /// Takes over a count in `leases` that the slot has already. The entry is in memory.
    pub(crate) fn adopt(shared: &Arc<Shared>, store: &Store, id: SlotId) -> Self {
        let slot = &store.slots[id];
        let pin = Pin { shared: Arc::clone(shared), id };
        let buffer = Arc::clone(slot.place.memory().expect("only what is in memory is leased"));
        Self {
            held: Arc::new(Held { buffer, pin, key: slot.key, tier: slot.tier, len_bytes: slot.len_bytes }),
        }
    }

    /// The entry's bytes, 64-byte aligned.
    pub fn bytes(&self) -> &[u8] {
        self.held.buffer.first(self.held.len_bytes)
    }

    /// The entry's key.
    pub fn key(&self) -> &EntryKey {
        &self.held.key
    }

    /// Where the bytes are, for as long as the lease is held.
    pub fn tier(&self) -> Tier {
        self.held.tier
    }

    /// Says that something which the borrow checker cannot see (a kernel, a transfer) will touch the bytes.
    /// They are not used for anything else until [`Flight::landed`] is called, whatever becomes of this lease.
    pub fn begin_flight(&self) -> Flight {
        let pin = &self.held.pin;
        pin.shared.lock().slots[pin.id].flights += 1;
        Flight {
            landed: false,
            buffer: Some(Arc::clone(&self.held.buffer)),
            shared: Arc::clone(&pin.shared),
            id: pin.id,
        }
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes()
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({}, {} bytes in {})", self.key(), self.bytes().len(), self.tier())
    }
}

/// Something in flight touches an entry's bytes. Only [`landed`](Self::landed) proves that it is over: a flight that is
/// dropped instead may still be going on, so the bytes are quarantined when the entry dies.
#[must_use = "a flight that is dropped without `landed` quarantines the bytes it touched"]
pub struct Flight {
    landed: bool,
    buffer: Option<Arc<Buffer>>,
    shared: Arc<Shared>,
    id: SlotId,
}

impl Flight {
    /// Reports that nothing touches the bytes on this flight's behalf any more.
    pub fn landed(mut self) {
        self.landed = true;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.buffer = None;
        let mut store = self.shared.lock();
        let slot = &mut store.slots[self.id];
        slot.flights -= 1;
        slot.flight_lost |= !self.landed;
        store.settle(self.id);
    }
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight").field("landed", &self.landed).finish_non_exhaustive()
    }
}
