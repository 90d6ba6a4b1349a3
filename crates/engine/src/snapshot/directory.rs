//! A snapshot in a local directory.

use std::collections::BTreeSet;
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

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn write(&self, name: &str, fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, File::create(self.path.join(name))?);
        fill(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

impl SnapshotStore for SnapshotDirectory {
    fn put_part(&self, name: &str, fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        self.write(name, fill)
    }

    fn read_part(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let mut file = File::open(self.path.join(name))?;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(into)
    }

    fn publish(&self, manifest: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        self.write(MANIFEST_NEW, &mut |file| file.write_all(manifest))?;
        // The names of all parts are on disk before the manifest that names them is.
        self.sync()?;
        fs::rename(self.path.join(MANIFEST_NEW), self.path.join(MANIFEST))?;
        self.sync()
    }

    fn manifest(&self) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.path.join(MANIFEST)) {
            Ok(manifest) => Ok(Some(manifest)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
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
