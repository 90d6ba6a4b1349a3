//! Embeddings of prompts on disk: named by what they follow from, checked when they are read, and the oldest removed when there
//! are too many. A shelf is a help and never a need: what cannot be read is computed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use evanesce_cache::ContentKey;

const DIGEST_BYTES: usize = 32;
const SUFFIX: &str = "embedding";

#[derive(Debug)]
pub(crate) struct Shelf {
    directory: PathBuf,
    limit_bytes: u64,
}

impl Shelf {
    pub(crate) fn open(directory: &Path, limit_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let shelf = Self { directory: directory.to_path_buf(), limit_bytes };
        // What a crash left half written has another suffix.
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_none_or(|suffix| suffix != SUFFIX) {
                fs::remove_file(path)?;
            }
        }
        Ok(shelf)
    }

    fn path(&self, key: &ContentKey) -> PathBuf {
        let hex: String = key.hash().iter().map(|byte| format!("{byte:02x}")).collect();
        self.directory.join(hex).with_extension(SUFFIX)
    }

    /// The `len_bytes` bytes of an embedding, if they are there as they were kept for this key (law 11). Whatever else is in their
    /// place is removed.
    pub(crate) fn load(&self, key: &ContentKey, len_bytes: usize) -> Option<Vec<u8>> {
        let path = self.path(key);
        let bytes = read_kept(&path, key.hash(), len_bytes);
        if bytes.is_none() {
            drop(fs::remove_file(path));
        }
        bytes
    }

    /// Keeps an embedding, if the disk takes it.
    pub(crate) fn keep(&self, key: &ContentKey, bytes: &[u8]) {
        drop(self.write(key, bytes).and_then(|()| self.trim()));
    }

    fn write(&self, key: &ContentKey, bytes: &[u8]) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        file.write_all(digest_of(key.hash(), bytes).as_bytes())?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(self.path(key))?;
        Ok(())
    }

    /// Removes the oldest until the rest is within the limit.
    fn trim(&self) -> io::Result<()> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            kept.push((metadata.modified()?, entry.path(), metadata.len()));
        }
        kept.sort();
        let mut all_bytes: u64 = kept.iter().map(|(_, _, bytes)| bytes).sum();
        for (_, path, bytes) in kept {
            if all_bytes <= self.limit_bytes {
                break;
            }
            fs::remove_file(path)?;
            all_bytes -= bytes;
        }
        Ok(())
    }
}

/// The digest of an embedding. It says as well which prompt it is of: a file under another one's name is not whole.
fn digest_of(hash: &[u8; DIGEST_BYTES], bytes: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(hash).update(bytes).finalize()
}

/// The bytes in a file, if it is a plain one of this length that was kept for the key of this hash.
fn read_kept(path: &Path, hash: &[u8; DIGEST_BYTES], len_bytes: usize) -> Option<Vec<u8>> {
    // Looked at before it is opened, which of a pipe takes until somebody writes to it.
    let found = fs::symlink_metadata(path).ok()?;
    if !found.is_file() || found.len() != (DIGEST_BYTES + len_bytes) as u64 {
        return None;
    }
    let (mut digest, mut bytes) = ([0_u8; DIGEST_BYTES], vec![0_u8; len_bytes]);
    let mut file = File::open(path).ok()?;
    file.read_exact(&mut digest).ok()?;
    file.read_exact(&mut bytes).ok()?;
    (digest_of(hash, &bytes) == digest).then_some(bytes)
}

/// Bytes of the embedding in a file, if it is a plain one that was kept for the key in its name.
fn verified_bytes(path: &Path) -> io::Result<Option<u64>> {
    let found = fs::symlink_metadata(path)?;
    let name = path.file_stem().and_then(OsStr::to_str);
    let Some(hash) = name.and_then(|name| blake3::Hash::from_hex(name).ok()) else { return Ok(None) };
    if !found.is_file() || found.len() < DIGEST_BYTES as u64 {
        return Ok(None);
    }
    let mut digest = [0_u8; DIGEST_BYTES];
    let mut file = File::open(path)?;
    file.read_exact(&mut digest)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(hash.as_bytes());
    let bytes = io::copy(&mut file, &mut hasher)?;
    Ok((hasher.finalize() == digest).then_some(bytes))
}

/// Embeddings in a directory, read through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Embeddings {
    /// Those that are as they were kept.
    pub whole: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that are not; they are computed again when somebody wants them.
    pub damaged: u64,
}

impl Embeddings {
    /// Reads all of a directory.
    ///
    /// # Errors
    /// When it, or a file in it, cannot be read.
    pub fn read(directory: &Path) -> io::Result<Self> {
        let mut found = Self::default();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|suffix| suffix == SUFFIX) {
                match verified_bytes(&path)? {
                    Some(bytes) => {
                        found.whole += 1;
                        found.bytes += bytes;
                    }
                    None => found.damaged += 1,
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evanesce_cache::Kind;

    fn key(n: u8) -> ContentKey {
        ContentKey::of(Kind::TextEmbedding, &[&[n]])
    }

    #[test]
    fn what_is_kept_is_there_after_a_restart_and_what_is_damaged_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path(), 1000).unwrap();
        shelf.keep(&key(1), &[7; 100]);
        assert_eq!(Embeddings::read(dir.path()).unwrap(), Embeddings { whole: 1, bytes: 100, damaged: 0 });
        fs::write(dir.path().join("half.tmp"), b"half").unwrap();
        let shelf = Shelf::open(dir.path(), 1000).unwrap();
        assert_eq!((shelf.load(&key(1), 100), shelf.load(&key(2), 100)), (Some(vec![7; 100]), None));
        let path = shelf.path(&key(1));
        let mut bytes = fs::read(&path).unwrap();
        bytes[DIGEST_BYTES + 5] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(Embeddings::read(dir.path()).unwrap(), Embeddings { whole: 0, bytes: 0, damaged: 1 });
        assert_eq!(shelf.load(&key(1), 100), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_of_another_prompt_of_another_length_or_no_plain_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path(), 1000).unwrap();
        let [one, other] = [key(1), key(2)].map(|key| shelf.path(&key));
        shelf.keep(&key(1), &[7; 100]);
        let is_gone = || {
            let found = Embeddings::read(dir.path()).unwrap();
            let loaded = shelf.load(&key(2), 100);
            assert_eq!((found.whole, loaded), (1, None));
            fs::symlink_metadata(&other).is_err().then_some(found.damaged)
        };
        fs::copy(&one, &other).unwrap();
        assert_eq!(is_gone(), Some(1));
        std::os::unix::fs::symlink(&one, &other).unwrap();
        assert_eq!(is_gone(), Some(1));
        // Whoever opened it would wait for ever.
        assert!(std::process::Command::new("mkfifo").arg(&other).status().unwrap().success());
        assert_eq!(is_gone(), Some(1));
        fs::write(&other, [0_u8; DIGEST_BYTES - 1]).unwrap();
        assert_eq!(is_gone(), Some(1));
        fs::write(shelf.directory.join("name").with_extension(SUFFIX), [0_u8; 100]).unwrap();
        assert_eq!(Embeddings::read(dir.path()).unwrap().damaged, 1);
        shelf.keep(&key(2), &[7; 99]);
        assert_eq!(shelf.load(&key(2), 100), None);
        assert!(!other.exists());
        assert_eq!(shelf.load(&key(1), 100), Some(vec![7; 100]));
    }

    #[test]
    fn the_oldest_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path(), 300).unwrap();
        (0..5).for_each(|n| shelf.keep(&key(n), &[n; 100]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        assert!(shelf.load(&key(4), 100).is_some());
    }
}
