//! Access units into an MP4 file with its index in front ("fast start").
//!
//! Frames are appended as they come. The index is known only at the end, so [`Muxer::finish`] then moves the frames
//! back by the index's length, in place and from the end, through a buffer of fixed size.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use super::encoder::{AccessUnit, ParameterSets};
use super::error::{Result, VideoError};
use super::index::SampleTable;
use super::settings::VideoSettings;

const MOVE_BUFFER_BYTES: usize = 1 << 20;

/// An MP4 file in the making on any storage that reads, writes and seeks.
#[derive(Debug)]
pub(super) struct Muxer<F> {
    storage: F,
    /// What errors name: the path as the caller knows it.
    path: PathBuf,
    table: SampleTable,
    payload_bytes: u64,
}

impl<F: Read + Write + Seek> Muxer<F> {
    /// `storage` is empty and at its start.
    pub(super) fn new(storage: F, path: PathBuf) -> Self {
        Self { storage, path, table: SampleTable::default(), payload_bytes: 0 }
    }

    pub(super) fn frames(&self) -> usize {
        self.table.frames()
    }

    /// Where each frame lies so far.
    pub(super) fn table(&self) -> &SampleTable {
        &self.table
    }

    /// Bytes of all frames so far.
    pub(super) fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Copies the frames' bytes from `from_bytes` on.
    ///
    /// # Errors
    /// [`VideoError::Io`] if they cannot be read back.
    pub(super) fn copy_payload(&mut self, from_bytes: u64, to: &mut Vec<u8>) -> Result<()> {
        let len_bytes = self.payload_bytes.saturating_sub(from_bytes);
        let mut copy = || {
            self.storage.seek(SeekFrom::Start(from_bytes))?;
            let copied = io::copy(&mut (&mut self.storage).take(len_bytes), to)?;
            self.storage.seek(SeekFrom::Start(self.payload_bytes))?;
            if copied == len_bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        };
        copy().map_err(|e| VideoError::io(&self.path, e))
    }

    /// # Errors
    /// [`VideoError::Io`] if the storage refuses the bytes; the muxer is then of no further use.
    pub(super) fn push(&mut self, unit: &AccessUnit) -> Result<()> {
        self.storage.write_all(&unit.bytes).map_err(|e| VideoError::io(&self.path, e))?;
        self.table.push(unit.bytes.len(), unit.is_keyframe)?;
        self.payload_bytes += unit.bytes.len() as u64;
        Ok(())
    }

    /// Writes the index in front of the frames; returns the file's length in bytes. No frame may follow.
    ///
    /// # Errors
    /// [`VideoError::Container`] if the video does not fit its boxes, [`VideoError::Io`] if the storage fails.
    pub(super) fn complete(&mut self, settings: &VideoSettings, sets: &ParameterSets) -> Result<u64> {
        let head = self.table.head(settings, sets)?;
        let head_bytes = head.len() as u64;
        self.write_head(&head).map_err(|e| VideoError::io(&self.path, e))?;
        Ok(head_bytes + self.payload_bytes)
    }

    pub(super) fn storage(&self) -> &F {
        &self.storage
    }

    pub(super) fn into_storage(self) -> F {
        self.storage
    }

    fn write_head(&mut self, head: &[u8]) -> io::Result<()> {
        move_towards_end(&mut self.storage, self.payload_bytes, head.len() as u64)?;
        self.storage.seek(SeekFrom::Start(0))?;
        self.storage.write_all(head)?;
        self.storage.flush()
    }
}

/// Moves the first `len_bytes` of `storage` by `by_bytes` towards its end. Working from the last piece to the first,
/// no piece is overwritten before it was read.
fn move_towards_end(
    storage: &mut (impl Read + Write + Seek),
    len_bytes: u64,
    by_bytes: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; MOVE_BUFFER_BYTES];
    let mut left_bytes = len_bytes;
    while left_bytes > 0 {
        let piece_bytes = usize::try_from(left_bytes).map_or(buffer.len(), |left| left.min(buffer.len()));
        let piece = &mut buffer[..piece_bytes];
        left_bytes -= piece_bytes as u64;
        storage.seek(SeekFrom::Start(left_bytes))?;
        storage.read_exact(piece)?;
        storage.seek(SeekFrom::Start(left_bytes + by_bytes))?;
        storage.write_all(piece)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// Storage that is full after `capacity_bytes`.
    struct FullDisk {
        bytes: Cursor<Vec<u8>>,
        capacity_bytes: u64,
    }

    impl FullDisk {
        fn new(capacity_bytes: u64) -> Self {
            Self { bytes: Cursor::new(Vec::new()), capacity_bytes }
        }
    }

    impl Write for FullDisk {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            let room = self.capacity_bytes.saturating_sub(self.bytes.position());
            let taken = buffer.len().min(usize::try_from(room).unwrap());
            if taken == 0 && !buffer.is_empty() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.bytes.write(&buffer[..taken])
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Read for FullDisk {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.bytes.read(buffer)
        }
    }

    impl Seek for FullDisk {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.bytes.seek(to)
        }
    }

    fn unit(bytes: usize) -> AccessUnit {
        AccessUnit { bytes: (0..=250).cycle().take(bytes).collect(), is_keyframe: true }
    }

    fn sets() -> ParameterSets {
        ParameterSets { sps: vec![0x67, 66, 0xc0, 30], pps: vec![0x68, 0xce] }
    }

    #[test]
    fn frames_longer_than_the_move_buffer_arrive_behind_the_index_unharmed() {
        let sizes = [3 * MOVE_BUFFER_BYTES / 2, 7, MOVE_BUFFER_BYTES];
        let mut muxer = Muxer::new(Cursor::new(Vec::new()), "out.mp4".into());
        for size in sizes {
            muxer.push(&unit(size)).unwrap();
        }
        let bytes = muxer.complete(&VideoSettings::new(64, 64, 16), &sets()).unwrap();
        let file = muxer.into_storage().into_inner();
        assert_eq!(file.len() as u64, bytes);
        let payload: Vec<u8> = sizes.into_iter().flat_map(|size| unit(size).bytes).collect();
        assert!(file.ends_with(&payload), "the frames follow the index in order");
        assert!(!file[..file.len() - payload.len()].is_empty());
    }

    #[test]
    fn a_disk_that_fills_up_is_named_in_one_sentence_at_every_write() {
        let settings = VideoSettings::new(64, 64, 16);
        let (_, whole_bytes) = written_to(FullDisk::new(u64::MAX), &settings).unwrap();
        for capacity_bytes in 0..whole_bytes {
            let error = written_to(FullDisk::new(capacity_bytes), &settings).err().map(|e| e.to_string());
            let sentence = "no space left for out.mp4: free some or choose another output directory";
            assert_eq!(error.as_deref(), Some(sentence), "at {capacity_bytes} of {whole_bytes} bytes");
        }
        assert!(written_to(FullDisk::new(whole_bytes), &settings).is_ok());
    }

    fn written_to(disk: FullDisk, settings: &VideoSettings) -> Result<(FullDisk, u64)> {
        let mut muxer = Muxer::new(disk, "out.mp4".into());
        muxer.push(&unit(90))?;
        muxer.push(&unit(30))?;
        let bytes = muxer.complete(settings, &sets())?;
        Ok((muxer.into_storage(), bytes))
    }
}
