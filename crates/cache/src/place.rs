//! Where an entry's bytes are.

use std::sync::Arc;

use crate::buffer::Buffer;
use crate::disk::{DiskFault, Record};
use crate::room::Shared;

/// The bytes of an entry that is visible, or that quiesces. Every clone outside the slot table is counted in `leases`,
/// `flights` or `moves` of its slot.
#[derive(Clone)]
pub(crate) enum Place {
    /// In memory, read in place.
    Memory(Arc<Buffer>),
    /// In extents of a file.
    Disk(Arc<Record>),
}

impl Place {
    /// What the entry is charged here.
    pub(crate) fn charged_bytes(&self) -> u64 {
        match self {
            Self::Memory(buffer) => buffer.charged_bytes(),
            Self::Disk(record) => record.charged_bytes,
        }
    }

    /// What the entry is charged in memory, wherever it is.
    pub(crate) fn memory_bytes(&self) -> u64 {
        match self {
            Self::Memory(buffer) => buffer.charged_bytes(),
            Self::Disk(record) => record.payload_bytes,
        }
    }

    pub(crate) fn memory(&self) -> Option<&Arc<Buffer>> {
        match self {
            Self::Memory(buffer) => Some(buffer),
            Self::Disk(_) => None,
        }
    }
}

/// Where a move goes to: charged, and nobody else's until the move is done.
pub(crate) enum Destination {
    /// Memory, in an idle buffer if there was one of this size.
    Memory { idle: Option<Buffer> },
    /// Extents.
    Disk(Arc<Record>),
}

/// The machine had no memory for a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfMemory;

/// Why a move did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MoveFault {
    /// The bytes are where they were; the disk takes no more.
    NotWritten,
    /// The bytes are where they were: nobody wanted the copy any more, or it panicked.
    NotMade,
    /// The bytes are where they were; the machine has no memory for them.
    NoMemory,
    /// The bytes are gone.
    Lost(DiskFault),
}

impl Destination {
    /// Copies all of `source`, without the lock.
    pub(crate) fn fill(&mut self, source: &Place, shared: &Shared) -> Result<Place, MoveFault> {
        match (source, self) {
            (Place::Memory(from), Self::Memory { idle }) => {
                let copy = Buffer::copy(from, idle.take()).map_err(|_| MoveFault::NoMemory)?;
                Ok(Place::Memory(Arc::new(copy)))
            }
            (Place::Memory(from), Self::Disk(record)) => match shared.disk() {
                Some(disk) if disk.store(record, from.bytes()).is_ok() => Ok(Place::Disk(Arc::clone(record))),
                Some(_) | None => Err(MoveFault::NotWritten),
            },
            (Place::Disk(record), Self::Memory { idle }) => {
                let disk = shared.disk().ok_or(MoveFault::NotMade)?;
                let len = usize::try_from(record.payload_bytes).map_err(|_| MoveFault::NotMade)?;
                let buffer = idle.take().map_or_else(|| shared.buffer(len), Ok);
                let mut buffer = buffer.map_err(|_| MoveFault::NoMemory)?;
                // A buffer that was filled in part may show bytes of another owner: it is dropped, not reused (law 10).
                disk.load(record, buffer.bytes_mut()).map_err(MoveFault::Lost)?;
                Ok(Place::Memory(Arc::new(buffer)))
            }
            (Place::Disk(_), Self::Disk(_)) => Err(MoveFault::NotMade),
        }
    }
}
