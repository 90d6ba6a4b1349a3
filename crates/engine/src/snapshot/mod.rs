//! A job on disk, so that it goes on after a crash, and its video has the bits that an undisturbed run gives it.
//!
//! A snapshot is a set of parts and a manifest that names them. Parts are written and synced first, then the manifest replaces
//! the one before in one step (law 7): whatever moment the power fails at, there is the old snapshot or the new one. Entries
//! never change, so a part that an earlier snapshot wrote is named again instead of written again, and a snapshot costs
//! what is new since the last one. Every entry has a checksum that is verified on the way back (law 11).
//!
//! What is not kept is what follows from something that is: weights, noise (a function of seed and block), announcements,
//! text (from the prompt, or from the [shelf](crate::Model::keep_embeddings)), keys and values of the text.

mod capture;
mod directory;
mod inspect;
mod manifest;
mod parts;
mod resume;
mod rhythm;
mod shapes;
mod take;

use std::collections::BTreeSet;
use std::io::{self, Write};

pub use capture::{Capture, Written};
pub use directory::SnapshotDirectory;
pub use inspect::{Contents, KindContents, inspect};
pub use rhythm::{Rhythm, SinceKept};
pub use take::Captured;
pub(crate) use take::Kept;

/// How much a snapshot keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotMode {
    /// Everything that saves time when the job goes on, at every unit that it can be taken at.
    #[default]
    Full,
    /// Only what cannot be computed again: no keys and values of the text, and nothing of the decoding of a block, which
    /// is decoded again from its latents.
    Compact,
}

/// What a snapshot cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes that this snapshot wrote.
    pub written_bytes: u64,
    /// Bytes that it holds, those of earlier parts included.
    pub held_bytes: u64,
    /// Entries that it holds.
    pub entries: usize,
}

/// Why a job cannot go on from what is there. It can always begin anew.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The store refused.
    #[error("the snapshot cannot be {doing}: {source}")]
    Io {
        /// `written` or `read`.
        doing: &'static str,
        /// Why. Raw, or it would be the error's source too, and said twice.
        r#source: io::Error,
    },
    /// What is read is not what was written.
    #[error("the snapshot is damaged: {0}")]
    Damaged(String),
    /// It was made by other weights, other settings or another version.
    #[error("the snapshot is of {0}; begin the job anew")]
    Foreign(&'static str),
}

impl SnapshotError {
    fn read(source: io::Error) -> Self {
        Self::Io { doing: "read", source }
    }

    fn written(source: io::Error) -> Self {
        Self::Io { doing: "written", source }
    }
}

/// Keeps the snapshot of one job: named parts, and a manifest that appears in one step.
pub trait SnapshotStore {
    /// Writes a part, replacing one of that name. When it returns, the part survives a power cut.
    ///
    /// # Errors
    /// When the part cannot be written; there may be some of it then, which no manifest names.
    fn put_part(&self, name: &str, fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<()>;

    /// The length of a part.
    ///
    /// # Errors
    /// `NotFound` when there is no such part, `InvalidInput` or `InvalidData` when there can be none of this name.
    fn part_bytes(&self, name: &str) -> io::Result<u64>;

    /// Reads bytes of a part from `offset` on.
    ///
    /// # Errors
    /// As [`part_bytes`](Self::part_bytes), and `UnexpectedEof` when it is too short.
    fn read_part(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Replaces the manifest in one step. When it returns, it survives a power cut.
    ///
    /// # Errors
    /// When that fails: the manifest before is there then, or this one, if only the power cut is in doubt.
    fn publish(&self, manifest: &[u8]) -> io::Result<()>;

    /// The manifest; `None` when none was ever published.
    ///
    /// # Errors
    /// When it cannot be read.
    fn manifest(&self) -> io::Result<Option<Vec<u8>>>;

    /// Removes every part that is not named, and whatever a crash left.
    ///
    /// # Errors
    /// When something cannot be removed.
    fn retain(&self, names: &BTreeSet<String>) -> io::Result<()>;
}
