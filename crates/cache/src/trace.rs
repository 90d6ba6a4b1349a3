//! What was asked of a cache, in order: recorded on request, for replays that compare evictions.

use crate::{EntryKey, JobId, Owner, Tick};

/// One thing that was asked of an entry. Evictions and moves are not recorded: they are what a replay decides anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Whose entry.
    pub owner: Owner,
    /// Which entry.
    pub key: EntryKey,
    /// What was asked.
    pub touch: Touch,
}

/// What is asked of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// It became visible.
    Put {
        /// What it is charged in memory.
        bytes: u64,
    },
    /// It was read.
    Read {
        /// The position that the reading job was at; none for a read on nobody's schedule.
        now: Option<Tick>,
        /// When the job had announced this read for.
        announced: Option<Tick>,
    },
    /// Its lifetime ended, or its owner removed it.
    End,
}

/// The record, while one is made.
#[derive(Debug, Default)]
pub(crate) struct Trace(Option<Vec<Access>>);

impl Trace {
    pub(crate) fn begin(&mut self) {
        self.0 = Some(Vec::new());
    }

    pub(crate) fn take(&mut self) -> Vec<Access> {
        self.0.take().unwrap_or_default()
    }

    pub(crate) fn note(&mut self, owner: Owner, key: EntryKey, touch: Touch) {
        if let Some(accesses) = &mut self.0 {
            accesses.push(Access { owner, key, touch });
        }
    }
}

impl crate::store::Store {
    /// Takes a read off the reader's schedule.
    pub(crate) fn consume(&mut self, owner: Owner, reader: Option<JobId>, key: &EntryKey) {
        let reader = reader.and_then(|job| self.jobs.get_mut(&job));
        let (mut now, mut announced) = (None, None);
        if let Some(reader) = reader {
            now = Some(reader.now);
            announced = reader.distance(key).map(|ticks| Tick(reader.now.0 + ticks));
            reader.consume(key);
        }
        self.trace.note(owner, *key, Touch::Read { now, announced });
    }
}
