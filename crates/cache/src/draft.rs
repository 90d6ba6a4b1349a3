//! Bytes that are charged and being written, and that nobody can read yet.

use std::sync::Arc;

use crate::arena::Account;
use crate::buffer::{Buffer, entry_bytes};
use crate::job_state::StageId;
use crate::room::Shared;
use crate::store::{Post, Store};
use crate::{Displace, EntryKey, Fill, Owner, PutError, PutSpec, Tier};

/// An entry before its commit. Dropping it returns its bytes.
pub(crate) struct Draft {
    shared: Arc<Shared>,
    owner: Owner,
    key: EntryKey,
    spec: PutSpec,
    stage: Option<StageId>,
    /// In `Account::Writing`; 0 once published.
    charged_bytes: u64,
    /// Empty until allocated, and again once published.
    buffer: Buffer,
}

/// Memory for a draft, before it may be seen.
struct Found {
    idle: Option<Buffer>,
    wipe: bool,
}

impl Draft {
    /// Charges an entry, evicting if needed, and finds memory for it.
    pub(crate) fn begin(
        shared: &Arc<Shared>,
        owner: Owner,
        key: EntryKey,
        spec: PutSpec,
    ) -> Result<Self, PutError> {
        let store = shared.lock();
        let stage = store.check_put(owner, &key, &spec)?;
        let (mut store, room) = shared.make_room(store, Store::needed([&spec].into_iter()), spec.displace);
        room?;
        let bytes = entry_bytes(spec.len_bytes);
        store.charge(Post::new(owner, Some(key.kind()), spec.tier, Account::Writing), bytes);
        let (mut draft, found) = Self::charged(shared, &mut store, owner, (key, spec, stage));
        store.shed(spec.tier);
        drop(store);
        draft.allocate(found)?;
        Ok(draft)
    }

    /// As [`begin`](Self::begin) for several entries: all are charged, or none (law 2).
    pub(crate) fn begin_group(
        shared: &Arc<Shared>,
        owner: Owner,
        entries: Vec<(EntryKey, PutSpec)>,
    ) -> Result<Vec<Self>, PutError> {
        let mut keys: Vec<_> = entries.iter().map(|(key, _)| *key).collect();
        keys.sort_unstable();
        if let Some(pair) = keys.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(PutError::Repeated { key: pair[0] });
        }
        let store = shared.lock();
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(key, spec)| Ok((key, spec, store.check_put(owner, &key, &spec)?)))
            .collect::<Result<_, PutError>>()?;
        let (mut store, room) = shared.make_room(
            store,
            Store::needed(entries.iter().map(|(_, spec, _)| spec)),
            Displace::Anything,
        );
        room?;
        for (key, spec, _) in &entries {
            let post = Post::new(owner, Some(key.kind()), spec.tier, Account::Writing);
            store.charge(post, entry_bytes(spec.len_bytes));
        }
        let drafts: Vec<_> =
            entries.into_iter().map(|entry| Self::charged(shared, &mut store, owner, entry)).collect();
        Tier::ALL.into_iter().for_each(|tier| store.shed(tier));
        drop(store);
        drafts.into_iter().map(|(mut draft, found)| draft.allocate(found).map(|()| draft)).collect()
    }

    /// As [`begin`](Self::begin) in room that was reserved and that the caller has found sufficient. After an error the room
    /// is reserved as before.
    pub(crate) fn begin_reserved(
        shared: &Arc<Shared>,
        mut store: crate::room::Locked<'_>,
        owner: Owner,
        entry: (EntryKey, PutSpec, Option<StageId>),
    ) -> Result<Self, PutError> {
        let (key, spec, _) = entry;
        let bytes = entry_bytes(spec.len_bytes);
        store.arenas[spec.tier].transfer(Account::Reserved, Account::Writing, bytes);
        store.kinds[key.kind() as usize].charge(spec.tier, bytes);
        let (mut draft, found) = Self::charged(shared, &mut store, owner, entry);
        drop(store);
        match draft.allocate(found) {
            Ok(()) => Ok(draft),
            Err(error) => {
                draft.reserve_again();
                Err(error)
            }
        }
    }

    /// The other way round: what stands in `Account::Writing` is reserved.
    fn reserve_again(mut self) {
        let bytes = std::mem::take(&mut self.charged_bytes);
        let mut store = self.shared.lock();
        store.arenas[self.spec.tier].transfer(Account::Writing, Account::Reserved, bytes);
        store.kinds[self.key.kind() as usize].bytes[self.spec.tier] -= bytes;
    }

    /// A draft of bytes that stand in `Account::Writing`. Must not be dropped under the lock; the caller sheds.
    fn charged(
        shared: &Arc<Shared>,
        store: &mut Store,
        owner: Owner,
        (key, spec, stage): (EntryKey, PutSpec, Option<StageId>),
    ) -> (Self, Found) {
        let charged_bytes = entry_bytes(spec.len_bytes);
        let (idle, foreign) = store.take_idle(spec.tier, charged_bytes, owner).unzip();
        let found = Found { idle, wipe: foreign == Some(true) || spec.fill == Fill::Zeros };
        let shared = Arc::clone(shared);
        (Self { shared, owner, key, spec, stage, charged_bytes, buffer: Buffer::default() }, found)
    }

    /// Without the lock: wipes an idle buffer if another owner wrote it (law 10), or allocates.
    fn allocate(&mut self, found: Found) -> Result<(), PutError> {
        self.buffer = match found.idle {
            Some(mut buffer) => {
                if found.wipe {
                    buffer.bytes_mut().fill(0);
                }
                buffer
            }
            None => self
                .shared
                .buffer(self.spec.len_bytes)
                .map_err(|_| PutError::NoMemory { key: self.key, needed_bytes: self.charged_bytes })?,
        };
        Ok(())
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn owner(&self) -> Owner {
        self.owner
    }

    pub(crate) fn key(&self) -> &EntryKey {
        &self.key
    }

    pub(crate) fn spec(&self) -> &PutSpec {
        &self.spec
    }

    pub(crate) fn stage(&self) -> Option<StageId> {
        self.stage
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer.first(self.spec.len_bytes)
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.first_mut(self.spec.len_bytes)
    }

    /// Hands the buffer over to the slot table; the draft owes nothing any more.
    pub(crate) fn take_buffer(&mut self) -> Buffer {
        self.charged_bytes = 0;
        std::mem::take(&mut self.buffer)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.charged_bytes > 0 {
            let buffer = std::mem::take(&mut self.buffer);
            let kind = self.key.kind();
            self.shared.lock().abandon(self.owner, kind, self.spec.tier, self.charged_bytes, buffer);
        }
    }
}
