//! Embeddings of prompts on disk: named by what they follow from, checked when they are read, and the oldest removed when there
//! are too many. A shelf is a help and never a need: what cannot be read is computed.

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

    /// The bytes of an embedding, if they are there as they were kept (law 11).
    pub(crate) fn load(&self, key: &ContentKey) -> Option<Vec<u8>> {
        let path = self.path(key);
        let mut file = File::open(&path).ok()?;
        let (mut digest, mut bytes) = ([0; DIGEST_BYTES], Vec::new());
        file.read_exact(&mut digest).ok()?;
        file.read_to_end(&mut bytes).ok()?;
        if blake3::hash(&bytes) == digest {
            return Some(bytes);
        }
        drop(fs::remove_file(path));
        None
    }

    /// Keeps an embedding, if the disk takes it.
    pub(crate) fn keep(&self, key: &ContentKey, bytes: &[u8]) {
        drop(self.write(&self.path(key), bytes).and_then(|()| self.trim()));
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        file.write_all(blake3::hash(bytes).as_bytes())?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
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
                match fs::read(path)?.split_first_chunk::<DIGEST_BYTES>() {
                    Some((digest, bytes)) if blake3::hash(bytes) == *digest => {
                        found.whole += 1;
                        found.bytes += bytes.len() as u64;
                    }
                    _ => found.damaged += 1,
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
        assert_eq!((shelf.load(&key(1)), shelf.load(&key(2))), (Some(vec![7; 100]), None));
        let path = shelf.path(&key(1));
        let mut bytes = fs::read(&path).unwrap();
        bytes[DIGEST_BYTES + 5] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(Embeddings::read(dir.path()).unwrap(), Embeddings { whole: 0, bytes: 0, damaged: 1 });
        assert_eq!(shelf.load(&key(1)), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_oldest_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path(), 300).unwrap();
        (0..5).for_each(|n| shelf.keep(&key(n), &[n; 100]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        assert!(shelf.load(&key(4)).is_some());
    }
}
