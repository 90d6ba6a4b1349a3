//! Copies a range of a weight file into memory through a short-lived mapping.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::bf16;
use memmap2::{Mmap, MmapOptions};

use crate::error::{Result, WanError};

/// Bytes mapped at a time; the process never holds more of a file than this.
const WINDOW_BYTES: usize = 32 << 20;

/// A weight file that stays open.
#[derive(Debug)]
pub(crate) struct WeightFile {
    path: PathBuf,
    file: File,
    len_bytes: u64,
}

impl WeightFile {
    /// Opens `path`, which must be a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let io = |source| WanError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(WanError::checkpoint(path, "not a regular file"));
        }
        Ok(Self { path: path.to_owned(), file, len_bytes: metadata.len() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Fills `out` with the bytes from `offset_bytes` on. Nothing stays mapped.
    pub(crate) fn copy_range(&self, offset_bytes: u64, out: &mut [u8]) -> Result<()> {
        for (index, window) in out.chunks_mut(WINDOW_BYTES).enumerate() {
            let start_bytes = offset_bytes + (index * WINDOW_BYTES) as u64;
            window.copy_from_slice(&self.map(start_bytes, window.len())?);
        }
        Ok(())
    }

    /// Fills `out` with bfloat16 numbers: the f32 ones from `offset_bytes` on, rounded to the nearest, ties to even. Nothing stays
    /// mapped.
    pub(crate) fn round_range(&self, offset_bytes: u64, out: &mut [u8]) -> Result<()> {
        for (index, window) in out.chunks_mut(WINDOW_BYTES / 2).enumerate() {
            let start_bytes = offset_bytes + (index * WINDOW_BYTES) as u64;
            let stored = self.map(start_bytes, 2 * window.len())?;
            for (number, place) in stored.chunks_exact(4).zip(window.chunks_exact_mut(2)) {
                let number = f32::from_le_bytes([number[0], number[1], number[2], number[3]]);
                place.copy_from_slice(&bf16::from_f32(number).to_le_bytes());
            }
        }
        Ok(())
    }

    /// Fills `out`, a few bytes, with those from `offset_bytes` on, without mapping: a mapping that is read in one place brings
    /// in the pages around it.
    pub(crate) fn read_at(&self, offset_bytes: u64, out: &mut [u8]) -> Result<()> {
        let io = |source| WanError::Io { path: self.path.clone(), source };
        self.file.read_exact_at(out, offset_bytes).map_err(io)
    }

    /// Maps one window after checking that the file still has the length it was opened with.
    #[expect(unsafe_code, reason = "mapping a file is unsafe by nature; this is the only place that does it")]
    fn map(&self, offset_bytes: u64, len_bytes: usize) -> Result<Mmap> {
        let io = |source| WanError::Io { path: self.path.clone(), source };
        let now_bytes = self.file.metadata().map_err(io)?.len();
        let end_bytes = offset_bytes.checked_add(len_bytes as u64);
        if now_bytes != self.len_bytes || end_bytes.is_none_or(|end| end > now_bytes) {
            let message = format!("changed while in use: {now_bytes} bytes long, was {}", self.len_bytes);
            return Err(WanError::checkpoint(&self.path, message));
        }
        let mut options = MmapOptions::new();
        options.offset(offset_bytes).len(len_bytes);
        // SAFETY: the range lies inside the file, whose length was checked just above, so that no page of it faults.
        // The mapping is read-only, private to this module and dropped after one copy. Another process that rewrites
        // the file meanwhile can change the numbers read, and one that truncates it can end this process, as with any
        // mapped file; nothing here ever writes or truncates a checkpoint.
        unsafe { options.map(&self.file) }.map_err(io)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_to_the_nearest_and_ties_to_even() {
        let numbers = [1.0_f32, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1.004, f32::INFINITY, f32::NAN];
        // They need not lie at a multiple of their size.
        let bytes: Vec<u8> =
            [7; 3].into_iter().chain(numbers.into_iter().flat_map(f32::to_le_bytes)).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let mut out = [0; 12];
        WeightFile::open(file.path()).unwrap().round_range(3, &mut out).unwrap();
        let rounded: Vec<f32> =
            out.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
        assert_eq!(rounded[..5], [1.0, 1.0, 1.015_625, -1.007_812_5, f32::INFINITY]);
        assert!(rounded[5].is_nan());
    }
}
