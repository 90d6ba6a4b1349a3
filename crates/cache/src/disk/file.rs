//! The file under the disk tier: made, locked, preallocated, and removed at the end.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::staging::Staging;
use super::{BLOCK_BYTES, block};

/// Reads and writes at offsets, all multiples of 4096. One call may do less than was asked, as calls of the system may;
/// the disk tier goes on where it stopped. Implemented by the tier's own file, and by decorators of it that count,
/// delay, or fail.
pub trait BlockFile: Send + Sync + fmt::Debug {
    /// Reads into `bytes` from `offset` on. How many bytes were read; 0 at the end of the file.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes `bytes` to `offset` on. How many bytes were written.
    ///
    /// # Errors
    /// What the system says.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
}

/// Calls that may make no progress in a row before the tier gives up.
const IDLE_CALLS_MAX: usize = 16;

/// Writes all of `bytes`. What was written is rounded down to whole blocks before going on, as direct I/O wants.
pub(super) fn write_all(file: &dyn BlockFile, bytes: &[u8], offset: u64) -> io::Result<()> {
    all(bytes.len(), io::ErrorKind::WriteZero, |done| file.write_at(&bytes[done..], offset + done as u64))
}

/// Reads all of `bytes`, or fails.
pub(super) fn read_all(file: &dyn BlockFile, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let len = bytes.len();
    let kind = io::ErrorKind::UnexpectedEof;
    all(len, kind, |done| file.read_at(&mut bytes[done..], offset + done as u64))
}

fn all(
    len: usize,
    idle_kind: io::ErrorKind,
    mut call: impl FnMut(usize) -> io::Result<usize>,
) -> io::Result<()> {
    let (mut done, mut idle_calls) = (0, 0);
    while done < len {
        let count = match call(done) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        let whole = if done + count >= len { count } else { count / block() * block() };
        done += whole;
        idle_calls = if whole == 0 { idle_calls + 1 } else { 0 };
        if idle_calls == IDLE_CALLS_MAX {
            return Err(idle_kind.into());
        }
    }
    Ok(())
}

pub(super) const NAME_START: &str = "evanesce-";
pub(super) const NAME_END: &str = ".extents";

/// A preallocated file that goes with this value.
#[derive(Debug)]
pub(super) struct ExtentFile {
    path: PathBuf,
    /// Holds the lock that says its process is alive.
    locked: File,
    /// The same file past the page cache, where that works.
    direct: Option<File>,
}

impl ExtentFile {
    /// A file of `bytes` bytes, whose blocks the file system has set aside.
    pub(super) fn create(directory: &Path, bytes: u64) -> Result<Self, (String, io::Error)> {
        sweep(directory)
            .map_err(|error| ("the directory of the disk tier cannot be read".to_owned(), error))?;
        let mut new = Self::claim(directory, File::lock)
            .map_err(|error| ("the disk tier cannot make its file".to_owned(), error))?;
        preallocate(&new.locked, bytes).map_err(|error| {
            (format!("the file system has no room for {bytes} bytes of disk tier"), error)
        })?;
        new.direct = new.probe_direct();
        Ok(new)
    }

    /// Makes a new file and locks it. A sweep by another process may come between the two; then another file is made. A file
    /// that cannot be locked is removed.
    fn claim(directory: &Path, lock: impl Fn(&File) -> io::Result<()>) -> io::Result<Self> {
        let mut number = 0_u32;
        loop {
            let path = directory.join(format!("{NAME_START}{}-{number}{NAME_END}", std::process::id()));
            number += 1;
            let file = match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            };
            let new = Self { path, locked: file, direct: None };
            lock(&new.locked)?;
            if std::fs::metadata(&new.path).is_ok_and(|there| is_same(&there, &new.locked)) {
                return Ok(new);
            }
        }
    }

    /// The same file past the page cache, if a block can really be written and read so.
    fn probe_direct(&self) -> Option<File> {
        let direct = open_direct(&self.path).ok()?;
        let mut staging = Staging::new(block());
        staging.bytes_mut().fill(0xA5);
        write_all(&direct, staging.bytes_mut(), 0).ok()?;
        staging.bytes_mut().fill(0);
        read_all(&direct, staging.bytes_mut(), 0).ok()?;
        staging.bytes_mut().iter().all(|byte| *byte == 0xA5).then_some(direct)
    }

    fn io(&self) -> &File {
        self.direct.as_ref().unwrap_or(&self.locked)
    }
}

impl Drop for ExtentFile {
    fn drop(&mut self) {
        // Somebody may have removed it, or its whole directory; and nobody can be told here.
        if std::fs::metadata(&self.path).is_ok_and(|there| is_same(&there, &self.locked)) {
            drop(std::fs::remove_file(&self.path));
        }
    }
}

impl BlockFile for ExtentFile {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self.io(), bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self.io(), bytes, offset)
    }
}

impl BlockFile for File {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, offset)
    }
}

fn is_same(there: &std::fs::Metadata, file: &File) -> bool {
    file.metadata().is_ok_and(|open| (open.dev(), open.ino()) == (there.dev(), there.ino()))
}

/// Removes extent files whose process has ended: a living one holds the lock of its file.
fn sweep(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.starts_with(NAME_START) || !name.ends_with(NAME_END) {
            continue;
        }
        // Whatever cannot be opened belongs to somebody else or is gone.
        let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else { continue };
        match file.try_lock() {
            Ok(()) if std::fs::metadata(&path).is_ok_and(|there| is_same(&there, &file)) => {
                drop(std::fs::remove_file(&path));
            }
            Ok(()) | Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
    Ok(())
}

#[cfg(target_os = "linux")]
fn preallocate(file: &File, bytes: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;

    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Ok(()) => Ok(()),
        // Some file systems cannot set blocks aside: there a full disk shows at the first write.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(bytes),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn preallocate(file: &File, bytes: u64) -> io::Result<()> {
    file.set_len(bytes)
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).map_err(io::Error::other)?;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_path: &Path) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

const _: () = assert!(BLOCK_BYTES.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_locked_does_not_stay_behind() {
        let directory = tempfile::tempdir().unwrap();
        let no_locks = |_: &File| Err(io::ErrorKind::Unsupported.into());
        assert_eq!(
            ExtentFile::claim(directory.path(), no_locks).unwrap_err().kind(),
            io::ErrorKind::Unsupported
        );
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
