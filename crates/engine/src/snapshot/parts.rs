//! Parts of a snapshot, read and verified (law 11). A manifest may say anything of them: nobody keeps its digest secret.

use std::io::{self, Read};

use super::manifest::{Extent, damaged};
use super::{SnapshotError, SnapshotStore};

type Outcome<T> = Result<T, SnapshotError>;

/// What is read at once of bytes that are verified and not kept.
const PIECE_BYTES: u64 = 1 << 20;

/// Fills `into`, which is as long as the extent.
pub(super) fn read(store: &dyn SnapshotStore, extent: &Extent, into: &mut [u8]) -> Outcome<()> {
    read_at(store, extent, extent.offset, into)?;
    extent.check(&blake3::hash(into))
}

/// All of an extent, in memory that is taken once it is sure that there is so much.
pub(super) fn read_whole(store: &dyn SnapshotStore, extent: &Extent) -> Outcome<Vec<u8>> {
    let Extent { part, offset, len_bytes, .. } = extent;
    let part_bytes = store.part_bytes(part).map_err(|error| fault(part, error))?;
    if offset.checked_add(*len_bytes).is_none_or(|end| end > part_bytes) {
        return Err(cut_short(part));
    }
    let mut bytes = vec![0; extent.len()?];
    read(store, extent, &mut bytes)?;
    Ok(bytes)
}

/// Verifies an extent and keeps nothing of it.
pub(super) fn verify(store: &dyn SnapshotStore, extent: &Extent) -> Outcome<()> {
    let (mut at, mut left_bytes) = (extent.offset, extent.len_bytes);
    let mut digest = blake3::Hasher::new();
    let mut piece: Vec<u8> = Vec::new();
    // Also of nothing there must be a part.
    loop {
        let piece_bytes = left_bytes.min(PIECE_BYTES);
        piece.resize(usize::try_from(piece_bytes).unwrap_or_default(), 0);
        read_at(store, extent, at, &mut piece)?;
        digest.update(&piece);
        left_bytes -= piece_bytes;
        if left_bytes == 0 {
            return extent.check(&digest.finalize());
        }
        at = at.checked_add(piece_bytes).ok_or_else(|| cut_short(&extent.part))?;
    }
}

fn read_at(store: &dyn SnapshotStore, extent: &Extent, at: u64, into: &mut [u8]) -> Outcome<()> {
    store.read_part(&extent.part, at, into).map_err(|error| fault(&extent.part, error))
}

fn fault(part: &str, error: io::Error) -> SnapshotError {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => cut_short(part),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => damaged(error.to_string()),
        _ => SnapshotError::read(error),
    }
}

fn cut_short(part: &str) -> SnapshotError {
    damaged(format!("{part} is missing or cut short"))
}

/// The stream of a video, extent by extent, each checked before any of it is given.
pub(super) struct Stream<'a> {
    store: &'a dyn SnapshotStore,
    left: std::slice::Iter<'a, Extent>,
    bytes: io::Cursor<Vec<u8>>,
    /// Why it ended early.
    pub(super) fault: Option<SnapshotError>,
}

impl<'a> Stream<'a> {
    pub(super) fn new(store: &'a dyn SnapshotStore, extents: &'a [Extent]) -> Self {
        Self { store, left: extents.iter(), bytes: io::Cursor::default(), fault: None }
    }

    fn next(&mut self) -> Outcome<Option<Vec<u8>>> {
        self.left.next().map(|extent| read_whole(self.store, extent)).transpose()
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.bytes.read(into)?;
            if n > 0 || into.is_empty() {
                return Ok(n);
            }
            match self.next() {
                Ok(Some(bytes)) => self.bytes = io::Cursor::new(bytes),
                Ok(None) => return Ok(0),
                Err(fault) => {
                    let said = io::Error::other(fault.to_string());
                    self.fault = Some(fault);
                    return Err(said);
                }
            }
        }
    }
}
