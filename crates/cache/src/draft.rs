//! Bytes that are charged and being written, and that nobody can read yet.

use std::sync::Arc;

use crate::arena::Account;
use crate::buffer::{Buffer, charged_bytes};
use crate::job_state::StageId;
use crate::room::Shared;
use crate::store::Store;
use crate::{EntryKey, Fill, Owner, PutError, PutSpec};

/// An entry before its commit. Dropping it returns its bytes.
pub(crate) struct Draft {
    shared: Arc<Shared>,
    owner: Owner,
    key: EntryKey,
    spec: PutSpec,
    stage: Option<StageId>,
    /// Empty once published.
    buffer: Buffer,
}

/// A draft that is charged but has no memory yet: allocating and wiping happen without the lock.
pub(crate) struct Outline {
    owner: Owner,
    key: EntryKey,
    spec: PutSpec,
    stage: Option<StageId>,
    idle: Option<(Buffer, bool)>,
}

impl Store {
    /// Turns room that is charged to `Writing` into an outline.
    pub(crate) fn outline(
        &mut self,
        owner: Owner,
        key: EntryKey,
        spec: PutSpec,
        stage: Option<StageId>,
    ) -> Outline {
        let idle = self.take_idle(spec.tier, charged_bytes(spec.len_bytes as u64), owner);
        Outline { owner, key, spec, stage, idle }
    }
}

impl Outline {
    /// Finds memory: an idle buffer of the same size, wiped if another owner wrote it (law 10), or new memory.
    pub(crate) fn allocate(self, shared: &Arc<Shared>) -> Draft {
        let Self { owner, key, spec, stage, idle } = self;
        let buffer = match idle {
            Some((mut buffer, foreign)) => {
                if foreign || spec.fill == Fill::Zeros {
                    buffer.bytes_mut().fill(0);
                }
                buffer
            }
            None => Buffer::zeroed(spec.len_bytes),
        };
        Draft { shared: Arc::clone(shared), owner, key, spec, stage, buffer }
    }
}

impl Draft {
    /// Charges `specs` all or none, evicting if needed, and finds memory for them.
    pub(crate) fn begin(
        shared: &Arc<Shared>,
        owner: Owner,
        key: EntryKey,
        spec: PutSpec,
    ) -> Result<Self, PutError> {
        let store = shared.lock();
        let stage = store.check_put(owner, &key, &spec)?;
        let (mut store, room) = shared.make_room(store, Store::needed([&spec].into_iter()));
        room?;
        let bytes = charged_bytes(spec.len_bytes as u64);
        store.charge(owner, Some(key.kind()), spec.tier, Account::Writing, bytes);
        let outline = store.outline(owner, key, spec, stage);
        drop(store);
        Ok(outline.allocate(shared))
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
        let stages: Vec<_> =
            entries.iter().map(|(key, spec)| store.check_put(owner, key, spec)).collect::<Result<_, _>>()?;
        let (mut store, room) = shared.make_room(store, Store::needed(entries.iter().map(|(_, spec)| spec)));
        room?;
        for (key, spec) in &entries {
            let bytes = charged_bytes(spec.len_bytes as u64);
            store.charge(owner, Some(key.kind()), spec.tier, Account::Writing, bytes);
        }
        let outlines: Vec<_> = entries
            .into_iter()
            .zip(stages)
            .map(|((key, spec), stage)| store.outline(owner, key, spec, stage))
            .collect();
        drop(store);
        Ok(outlines.into_iter().map(|outline| outline.allocate(shared)).collect())
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
        &self.buffer.bytes()[..self.spec.len_bytes]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer.bytes_mut()[..self.spec.len_bytes]
    }

    /// Hands the buffer over to the slot table; the draft owes nothing any more.
    pub(crate) fn take_buffer(&mut self) -> Buffer {
        std::mem::take(&mut self.buffer)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let buffer = self.take_buffer();
        if buffer.charged_bytes() > 0 {
            self.shared.lock().abandon(self.owner, self.key.kind(), self.spec.tier, buffer);
        }
    }
}
