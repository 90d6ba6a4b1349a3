//! Guards over entries that are being written.

use std::fmt;
use std::sync::Arc;

use crate::draft::Draft;
use crate::lease::Lease;
use crate::{CommitError, EntryKey, Tier};

/// An entry that is charged to its owner and that nobody can read yet. Dropping it returns its bytes.
#[must_use = "an entry becomes visible by `commit`; dropping the writer gives it up"]
pub struct Writer {
    draft: Draft,
}

impl Writer {
    pub(crate) fn new(draft: Draft) -> Self {
        Self { draft }
    }

    /// The entry's key.
    pub fn key(&self) -> &EntryKey {
        self.draft.key()
    }

    /// Where the entry is.
    pub fn tier(&self) -> Tier {
        self.draft.spec().tier
    }

    /// What has been written so far.
    pub fn bytes(&self) -> &[u8] {
        self.draft.bytes()
    }

    /// The entry's bytes, 64-byte aligned and exactly as long as the put said.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.draft.bytes_mut()
    }

    /// Makes the entry visible and immutable, and leases it.
    ///
    /// # Errors
    /// If another writer was faster, or the owner or its stage has ended. The error holds the writer.
    pub fn commit(mut self) -> Result<Lease, CommitError<Self>> {
        let shared = Arc::clone(self.draft.shared());
        let mut store = shared.lock();
        if let Err(refusal) = store.check_commit(&self.draft) {
            drop(store);
            return Err(CommitError { refusal, writer: Box::new(self) });
        }
        let id = store.publish(&mut self.draft, None);
        let lease = Lease::adopt(&shared, &store, id);
        store.trim_window(id);
        drop(store);
        Ok(lease)
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Writer({}, {} bytes in {})", self.key(), self.bytes().len(), self.tier())
    }
}

/// Entries that become visible together or not at all, and that eviction demotes or drops together or not at all
/// (law 7). Each still ends by its own lifetime or removal. Dropping the writer returns all their bytes.
#[must_use = "entries become visible by `commit`; dropping the writer gives them up"]
pub struct GroupWriter {
    drafts: Vec<Draft>,
}

impl GroupWriter {
    pub(crate) fn new(drafts: Vec<Draft>) -> Self {
        Self { drafts }
    }

    /// How many entries the group has.
    pub fn len(&self) -> usize {
        self.drafts.len()
    }

    /// Whether the group has no entries.
    pub fn is_empty(&self) -> bool {
        self.drafts.is_empty()
    }

    /// The bytes of the entry at `position` in the put, 64-byte aligned.
    ///
    /// # Panics
    /// If `position` is not below [`len`](Self::len).
    pub fn bytes_mut(&mut self, position: usize) -> &mut [u8] {
        self.drafts[position].bytes_mut()
    }

    /// The bytes of every entry, in the order of the put: for writing several at once.
    pub fn all_bytes_mut(&mut self) -> Vec<&mut [u8]> {
        self.drafts.iter_mut().map(Draft::bytes_mut).collect()
    }

    /// Makes all entries visible in one moment, and leases them in the order of the put.
    ///
    /// # Errors
    /// If any of them cannot become visible; then none does, and the error holds the writer.
    pub fn commit(mut self) -> Result<Vec<Lease>, CommitError<Self>> {
        let Some(shared) = self.drafts.first().map(|draft| Arc::clone(draft.shared())) else {
            return Ok(Vec::new());
        };
        let mut store = shared.lock();
        if let Err(refusal) = self.drafts.iter().try_for_each(|draft| store.check_commit(draft)) {
            drop(store);
            return Err(CommitError { refusal, writer: Box::new(self) });
        }
        let group = Some(store.open_group());
        let ids: Vec<_> = self.drafts.iter_mut().map(|draft| store.publish(draft, group)).collect();
        let leases = ids.iter().map(|id| Lease::adopt(&shared, &store, *id)).collect();
        for id in ids {
            store.trim_window(id);
        }
        drop(store);
        Ok(leases)
    }
}

impl fmt::Debug for GroupWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.drafts.iter().map(Draft::key)).finish()
    }
}
