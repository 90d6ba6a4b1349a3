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
    /// Bytes of their entries.
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
        self.file_bytes += file_bytes;
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
        self.payload_bytes += payload_bytes;
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
    use super::*;
    use crate::disk::record::Header;
    use crate::{Budgets, Cache, Disk, Key, Kind, Lifetime, Tier};

    #[test]
    fn records_are_seen_from_outside_and_one_that_was_changed_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path(), 1 << 20).unwrap();
        let cache = Cache::with_disk(Budgets { device_bytes: 1 << 16, host_bytes: 1 << 16 }, disk);
        let job = cache.open_job();
        for (index, len_bytes) in [1000, 2000, 10_000].into_iter().enumerate() {
            let key = Key::new(Kind::Latent).index(u32::try_from(index).unwrap());
            let mut writer = job.put(key, Tier::Device, Lifetime::Job, len_bytes).unwrap();
            writer.bytes_mut().fill(7);
            drop(writer.commit().unwrap());
            assert_eq!(job.demote(&key).unwrap(), Some(Tier::Host));
            assert_eq!(job.demote(&key).unwrap(), Some(Tier::Disk));
        }
        let remains = DiskRemains::read(dir.path()).unwrap();
        let seen = (remains.files, remains.records, remains.verified, remains.damaged, remains.spread);
        assert_eq!(seen, (1, 3, 2, 0, 1), "{remains:?}");
        let path = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut header: Header = [0; HEADER_BYTES];
        let extents = 0..remains.file_bytes / 4096;
        let holds_one = |at: &u64| {
            file.read_exact_at(&mut header, at * 4096).unwrap();
            checked(&header).is_some_and(|(payload_bytes, _)| payload_bytes <= 2048)
        };
        let at = extents.into_iter().find(holds_one).unwrap();
        file.write_all_at(&[8], at * 4096 + HEADER_BYTES as u64).unwrap();
        let changed = DiskRemains::read(dir.path()).unwrap();
        assert_eq!((changed.verified, changed.damaged), (1, 1), "{changed:?}");
        drop((job, cache));
        assert_eq!(DiskRemains::read(dir.path()).unwrap(), DiskRemains::default());
    }
}
