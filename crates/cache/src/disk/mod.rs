//! The disk tier: bytes that wait for a distant next use, in extents of one preallocated file.
//!
//! The file is cut into extents of equal size, so any free extents hold any entry and nothing fragments. An entry's record
//! is a header and its payload, spread over its extents in order. Transfers are synchronous: whoever moves an entry holds
//! its place until the last byte is in (law 3), several extents being on their way at once, and what comes back is checked against its header (law 11).

mod extents;
mod file;
mod lanes;
mod record;
mod remains;
mod staging;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

pub use file::BlockFile;
pub use remains::DiskRemains;

use file::ExtentFile;
use staging::Staging;

pub(crate) use extents::{Extents, Record};

/// What every offset and length on disk is a multiple of: the page of memory and of most devices.
pub(crate) const BLOCK_BYTES: u64 = 4096;
/// The largest extent, which is also the largest single read or write.
const EXTENT_BYTES_MAX: u64 = 1 << 20;
/// Extents that a file has at least, where it is large enough.
const EXTENTS_WANTED: u64 = 1024;
/// Extents of an entry that are written at once, at most.
const WRITE_LANES: usize = 4;
/// Extents of an entry that are read at once: while one is copied the next is with the device, and what the device is asked for
/// stays in order, which those that read ahead want.
const READ_LANES: usize = 2;
/// Bytes that are summed and copied at a time.
const SUMMED_BYTES: usize = 64 << 10;
/// Staging buffers kept for the next transfer.
const STAGING_KEPT: usize = 4;

/// The disk tier cannot be opened: what, where, and what would be right.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {message}", path = path.display())]
pub struct DiskError {
    /// The directory.
    pub path: PathBuf,
    message: String,
}

/// Why an entry did not come back from disk. It is lost; nothing of it was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskFault {
    /// The system refused to read it.
    #[error("it cannot be read: {0}")]
    Read(io::ErrorKind),
    /// What was read is not what was written.
    #[error("what was read is not what was written")]
    Damaged,
}

/// A file of extents under a budget of its own, for [`Cache::with_disk`](crate::Cache::with_disk).
pub struct Disk {
    file: Box<dyn BlockFile>,
    extent_bytes: u64,
    extents: u32,
    /// Idle staging buffers. One transfer uses one.
    staging: Mutex<Vec<Staging>>,
}

impl Disk {
    /// Makes a file of `bytes` bytes, rounded down to whole extents, in `directory`, and removes files there that ended
    /// processes left. The file goes with this value. It is read and written past the system's page cache where the
    /// directory allows it.
    ///
    /// # Errors
    /// When the directory cannot be written or has not that much room.
    pub fn open(directory: &Path, bytes: u64) -> Result<Self, DiskError> {
        let extent_bytes = extent_bytes(bytes);
        let extents = u32::try_from(bytes / extent_bytes).unwrap_or(u32::MAX);
        let fail = |message: String| DiskError { path: directory.to_owned(), message };
        if extents == 0 {
            let message =
                format!("a disk tier of {bytes} bytes holds nothing; give it {BLOCK_BYTES} at least");
            return Err(fail(message));
        }
        let file = ExtentFile::create(directory, u64::from(extents) * extent_bytes)
            .map_err(|(message, source)| fail(format!("{message}: {source}")))?;
        Ok(Self { file: Box::new(file), extent_bytes, extents, staging: Mutex::default() })
    }

    /// A tier of `bytes` bytes, rounded down to whole extents, without a file: for entries that have no bytes.
    pub(crate) fn counting(bytes: u64) -> Self {
        let extent_bytes = extent_bytes(bytes);
        let extents = u32::try_from(bytes / extent_bytes).unwrap_or(u32::MAX);
        Self { file: Box::new(NoFile), extent_bytes, extents, staging: Mutex::default() }
    }

    /// The same tier over another file, made of its own: a decorator that counts, delays, or fails.
    #[must_use]
    pub fn decorated(self, decorate: impl FnOnce(Box<dyn BlockFile>) -> Box<dyn BlockFile>) -> Self {
        Self { file: decorate(self.file), ..self }
    }

    /// What the tier may hold.
    pub fn budget_bytes(&self) -> u64 {
        u64::from(self.extents) * self.extent_bytes
    }

    /// What an entry of `len_bytes` takes here: whole extents for its header and its bytes in whole lines.
    pub fn entry_bytes(&self, len_bytes: usize) -> u64 {
        extents::record_bytes(self.extent_bytes, crate::entry_bytes(len_bytes))
    }

    pub(crate) fn extents(&self) -> Extents {
        Extents::new(self.extents, self.extent_bytes)
    }

    /// Writes a record. Its extents belong to the caller until this returns.
    pub(crate) fn store(&self, record: &Record, payload: &[u8]) -> io::Result<()> {
        if payload.is_empty() {
            // An entry of a cache that only counts: any other has a line at least.
            return Ok(());
        }
        let (first, rest) = payload.split_at(self.first_bytes().min(payload.len()));
        let mut rest = rest.chunks(self.piece_bytes());
        let pieces = record.extents.iter().enumerate().map(|(at, extent)| {
            (*extent, at == 0, if at == 0 { first } else { rest.next().unwrap_or_default() })
        });
        lanes::each(WRITE_LANES, pieces.collect(), |(extent, is_first, piece)| {
            // Whoever writes the first extent sums the whole payload while others write theirs.
            let header = if is_first { &record::header(record.sequence, payload)[..] } else { &[] };
            self.write_extent(extent, header, piece)
        })
    }

    /// Writes one extent: what stands before the payload, a piece of it, and zeros up to a whole block.
    fn write_extent(&self, extent: u32, header: &[u8], piece: &[u8]) -> io::Result<()> {
        let mut staging = self.take_staging();
        let bytes = staging.bytes_mut();
        let len = header.len() + piece.len();
        bytes[..header.len()].copy_from_slice(header);
        bytes[header.len()..len].copy_from_slice(piece);
        let padded = len.next_multiple_of(block());
        bytes[len..padded].fill(0);
        file::write_all(&*self.file, &bytes[..padded], self.offset(extent))?;
        self.give_staging(staging);
        Ok(())
    }

    /// Reads a record back and verifies it. After an error `into` holds no bytes that may be shown.
    pub(crate) fn load(&self, record: &Record, into: &mut [u8]) -> Result<(), DiskFault> {
        if into.is_empty() {
            return Ok(());
        }
        let len_bytes = into.len();
        let (first, rest) = into.split_at_mut(self.first_bytes().min(len_bytes));
        let mut rest = rest.chunks_mut(self.piece_bytes());
        let mut header = record::EMPTY;
        let mut sums = vec![crc32fast::Hasher::new(); record.extents.len()];
        let (mut first, mut header_once) = (Some(first), Some(&mut header[..]));
        let pieces = record.extents.iter().zip(&mut sums).map(|(extent, sum)| {
            let piece = first.take().or_else(|| rest.next()).unwrap_or_default();
            (*extent, header_once.take().unwrap_or_default(), piece, sum)
        });
        lanes::each(READ_LANES, pieces.collect(), |(extent, header, piece, sum)| {
            self.read_extent(extent, header, piece, sum)
        })
        .map_err(|error: io::Error| DiskFault::Read(error.kind()))?;
        let checksum = sums.iter().skip(1).fold(sums[0].clone(), |mut all, piece| {
            all.combine(piece);
            all
        });
        let expected = record::header_of(record.sequence, len_bytes as u64, checksum.finalize());
        if expected == header { Ok(()) } else { Err(DiskFault::Damaged) }
    }

    /// Reads one extent: what stands before the payload, and a piece of it, which is added to `sum`.
    fn read_extent(
        &self,
        extent: u32,
        header: &mut [u8],
        piece: &mut [u8],
        sum: &mut crc32fast::Hasher,
    ) -> io::Result<()> {
        let mut staging = self.take_staging();
        let bytes = staging.bytes_mut();
        let len = header.len() + piece.len();
        file::read_all(&*self.file, &mut bytes[..len.next_multiple_of(block())], self.offset(extent))?;
        header.copy_from_slice(&bytes[..header.len()]);
        // Bit by bit, so that what is summed is still in the processor's cache when it is copied.
        let read = bytes[header.len()..len].chunks(SUMMED_BYTES);
        for (to, from) in piece.chunks_mut(SUMMED_BYTES).zip(read) {
            sum.update(from);
            to.copy_from_slice(from);
        }
        self.give_staging(staging);
        Ok(())
    }

    fn offset(&self, extent: u32) -> u64 {
        u64::from(extent) * self.extent_bytes
    }

    /// Bytes of a payload in an extent that holds nothing else.
    fn piece_bytes(&self) -> usize {
        usize::try_from(self.extent_bytes).unwrap_or(usize::MAX)
    }

    /// Bytes of a payload in the first extent of its record.
    fn first_bytes(&self) -> usize {
        self.piece_bytes() - record::HEADER_BYTES
    }

    /// A panic elsewhere cannot spoil a list of buffers.
    fn take_staging(&self) -> Staging {
        let kept = self.staging.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| Staging::new(usize::try_from(self.extent_bytes).unwrap_or(usize::MAX)))
    }

    fn give_staging(&self, staging: Staging) {
        let mut kept = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < STAGING_KEPT {
            kept.push(staging);
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("file", &self.file)
            .field("extent_bytes", &self.extent_bytes)
            .field("extents", &self.extents)
            .finish_non_exhaustive()
    }
}

/// Under a tier that only counts.
#[derive(Debug)]
struct NoFile;

impl BlockFile for NoFile {
    fn read_at(&self, _bytes: &mut [u8], _offset: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn block() -> usize {
    usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX)
}

/// A power of two of blocks: small where the file is small, so that small entries waste little of it.
fn extent_bytes(file_bytes: u64) -> u64 {
    let share = (file_bytes / EXTENTS_WANTED).max(1);
    (1 << share.ilog2()).clamp(BLOCK_BYTES, EXTENT_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_whole_blocks_and_grow_with_the_file() {
        let sizes = [0, 4096, 1 << 20, 64 << 20, 100 << 20, 1 << 30, 1 << 40].map(extent_bytes);
        assert_eq!(sizes, [4096, 4096, 4096, 65536, 65536, 1 << 20, 1 << 20]);
    }
}
