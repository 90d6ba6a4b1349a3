//! What a directory of the disk tier holds, as somebody sees it who is not the process that wrote it.
//!
//! Which extents belong to a record is known to that process alone, so only records of one extent can be verified from outside, and
//! records of entries that have ended since are seen as well until something is written over them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::extent_bytes;
use super::file::{NAME_END, NAME_START};
use super::record::{HEADER_BYTES, checked};

/// The files of the disk tier in one directory, read through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskRemains {
    /// Files of extents: one for each process that lives, and what processes left that were killed.
    pub files: u64,
    /// Their length.
    pub file_bytes: u64,
    /// Records whose header is whole.
    pub records: u64,
    /// Bytes of their entries, as the headers say: where that is too much to add up, the most there is.
    pub payload_bytes: u64,
    /// Records of one extent whose checksum matches.
    pub verified: u64,
    /// Records of one extent whose checksum does not.
    pub damaged: u64,
    /// Records of several extents.
    pub spread: u64,
}

impl DiskRemains {
    /// Reads every extent of every file of the tier in `directory`.
    ///
    /// # Errors
    /// When the directory or a file in it cannot be read.
    pub fn read(directory: &Path) -> io::Result<Self> {
        let mut remains = Self::default();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.starts_with(NAME_START) && name.ends_with(NAME_END)) {
                remains.add(&File::open(entry.path())?)?;
            }
        }
        Ok(remains)
    }

    fn add(&mut self, file: &File) -> io::Result<()> {
        let file_bytes = file.metadata()?.len();
        let extent = extent_bytes(file_bytes);
        self.files += 1;
        self.file_bytes = self.file_bytes.saturating_add(file_bytes);
        let mut bytes = vec![0; usize::try_from(extent).unwrap_or_default()];
        for at in 0..file_bytes / extent {
            file.read_exact_at(&mut bytes, at * extent)?;
            self.look_at(&bytes);
        }
        Ok(())
    }

    fn look_at(&mut self, extent: &[u8]) {
        let Some((header, payload)) = extent.split_first_chunk::<HEADER_BYTES>() else { return };
        let Some((payload_bytes, checksum)) = checked(header) else { return };
        self.records += 1;
        self.payload_bytes = self.payload_bytes.saturating_add(payload_bytes);
        let whole = usize::try_from(payload_bytes).ok().and_then(|n_bytes| payload.get(..n_bytes));
        match whole {
            Some(payload) if crc32fast::hash(payload) == checksum => self.verified += 1,
            Some(_) => self.damaged += 1,
            None => self.spread += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::header_of;
    use super::*;

    #[test]
    fn lengths_that_nobody_can_add_up_are_counted_as_the_most_there_is() {
        let mut remains = DiskRemains::default();
        for payload_bytes in [u64::MAX, 7] {
            remains.look_at(&header_of(1, payload_bytes, 0));
        }
        let expected =
            DiskRemains { records: 2, payload_bytes: u64::MAX, spread: 2, ..DiskRemains::default() };
        assert_eq!(remains, expected);
    }
}
