//! A snapshot in a local directory.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::SnapshotStore;

/// The manifest, and what it is called while it is written.
const MANIFEST: &str = "manifest";
const MANIFEST_NEW: &str = "manifest.new";
/// Bytes that gather before they are written.
const BUFFER_BYTES: usize = 1 << 20;

/// The snapshot of one job in a directory of its own.
#[derive(Clone, Debug)]
pub struct SnapshotDirectory {
    path: PathBuf,
}

impl SnapshotDirectory {
    /// The snapshot in `path`, which need not exist before something is written.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of all that is in it, as far as it can be seen.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        let files = fs::read_dir(&self.path).into_iter().flatten().flatten();
        files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    }

    /// Removes all of it; there need not be anything.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }

    /// Where the file of this name is. What a manifest says is a name in here and no path.
    fn place(&self, name: &str) -> io::Result<PathBuf> {
        if Path::new(name).file_name() == Some(OsStr::new(name)) {
            return Ok(self.path.join(name));
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no name of a file")))
    }

    /// Opens a file to be read; its length.
    fn open(&self, name: &str) -> io::Result<(File, u64)> {
        let path = self.place(name)?;
        // Looked at before it is opened, which of a pipe takes until somebody writes to it.
        let found = fs::symlink_metadata(&path)?;
        if !found.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name:?} is no plain file")));
        }
        Ok((File::open(path)?, found.len()))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn write(&self, name: &str, fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, File::create(self.place(name)?)?);
        fill(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

impl SnapshotStore for SnapshotDirectory {
    fn put_part(&self, name: &str, fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        self.write(name, fill)
    }

    fn part_bytes(&self, name: &str) -> io::Result<u64> {
        Ok(self.open(name)?.1)
    }

    fn read_part(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let (mut file, _) = self.open(name)?;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(into)
    }

    fn publish(&self, manifest: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        self.write(MANIFEST_NEW, &mut |file| file.write_all(manifest))?;
        // The names of all parts are on disk before the manifest that names them is.
        self.sync()?;
        fs::rename(self.path.join(MANIFEST_NEW), self.path.join(MANIFEST))?;
        // Where this fails the manifest is in place all the same, and a power cut may bring back the one before.
        self.sync()
    }

    fn manifest(&self) -> io::Result<Option<Vec<u8>>> {
        let mut file = match self.open(MANIFEST) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?.0,
        };
        let mut manifest = Vec::new();
        file.read_to_end(&mut manifest)?;
        Ok(Some(manifest))
    }

    fn retain(&self, names: &BTreeSet<String>) -> io::Result<()> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            if !name.to_str().is_some_and(|name| name == MANIFEST || names.contains(name)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}
