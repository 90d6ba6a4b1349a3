//! A video that can be played while it is being made: fragmented MP4 (ISO/IEC 14496-12, section 8.8).
//!
//! The file has a head without frames, then fragments of half a second. Each is written with one call once its frames are there, so
//! a reader finds whole fragments and at most one that is cut short at the end. Memory: one fragment.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use mp4_atom::{Encode, Mfhd, Moof, Moov, Mvex, Tfdt, Tfhd, Traf, Trex, Trun, TrunEntry, TrunSamples};

use super::encoder::{AccessUnit, ParameterSets};
use super::error::{Result, VideoError};
use super::index::{SampleTable, TRACK_ID, container, media_data_header};
use super::settings::VideoSettings;

/// Sample flags of ISO/IEC 14496-12, section 8.8.3.1: depends on no other sample; depends on others and is no sync sample.
const KEYFRAME: u32 = 0x0200_0000;
const BETWEEN: u32 = 0x0101_0000;

/// The growing file. Dropped, it is removed unless it was [released](Self::release).
#[derive(Debug)]
pub(super) struct Fragments {
    path: PathBuf,
    file: File,
    settings: VideoSettings,
    /// Frames of the fragment in the making: their bytes one after the other, and what the index says of each.
    payload: Vec<u8>,
    entries: Vec<TrunEntry>,
    fragments: u32,
    frames: u64,
    is_released: bool,
}

impl Fragments {
    /// Starts the file, over whatever file is at `path`, which is no link: it is removed when the video fails.
    ///
    /// # Errors
    /// [`VideoError::Io`] when it cannot be created.
    pub(super) fn create(path: &Path, settings: VideoSettings) -> Result<Self> {
        let file = File::create(path).map_err(|e| VideoError::io(path, e))?;
        let (payload, entries) = (Vec::new(), Vec::new());
        let path = path.to_path_buf();
        Ok(Self { path, file, settings, payload, entries, fragments: 0, frames: 0, is_released: false })
    }

    /// Takes the next frame; writes a fragment when half a second is full.
    ///
    /// # Errors
    /// [`VideoError::Io`] when the disk refuses it.
    pub(super) fn push(&mut self, unit: &AccessUnit, sets: &ParameterSets) -> Result<()> {
        let size = u32::try_from(unit.bytes.len())
            .map_err(|_| VideoError::Container("a frame passes 32 bits".to_owned()))?;
        let flags = if unit.is_keyframe { KEYFRAME } else { BETWEEN };
        self.payload.extend_from_slice(&unit.bytes);
        self.entries.push(TrunEntry { size: Some(size), flags: Some(flags), ..TrunEntry::default() });
        let full = (self.settings.fps as usize / 2).max(1);
        if self.entries.len() >= full { self.write_fragment(sets) } else { Ok(()) }
    }

    /// Writes what is left; the file is then complete, but without an index.
    ///
    /// # Errors
    /// [`VideoError::Io`] when the disk refuses it.
    pub(super) fn flush(&mut self, sets: &ParameterSets) -> Result<()> {
        if self.entries.is_empty() { Ok(()) } else { self.write_fragment(sets) }
    }

    /// Leaves the path to whoever replaces the file.
    pub(super) fn release(mut self) {
        self.is_released = true;
    }

    fn write_fragment(&mut self, sets: &ParameterSets) -> Result<()> {
        let mut bytes = if self.fragments == 0 { self.head(sets)? } else { Vec::new() };
        let entries = std::mem::take(&mut self.entries);
        let frames = entries.len() as u64;
        self.fragments += 1;
        bytes.extend(self.movie_fragment(&entries)?);
        bytes.extend(media_data_header(self.payload.len() as u64));
        bytes.append(&mut self.payload);
        self.frames += frames;
        self.file.write_all(&bytes).map_err(|e| VideoError::io(&self.path, e))
    }

    /// The index of a video without frames, and the word that fragments follow.
    fn head(&self, sets: &ParameterSets) -> Result<Vec<u8>> {
        let movie = SampleTable::default().movie(0, &self.settings, sets)?;
        let trex = Trex {
            track_id: TRACK_ID,
            default_sample_description_index: 1,
            default_sample_duration: self.settings.ticks_per_frame(),
            ..Trex::default()
        };
        let movie = Moov { mvex: Some(Mvex { mehd: None, trex: vec![trex] }), ..movie };
        let mut head = Vec::new();
        super::index::file_type().encode(&mut head).map_err(container)?;
        movie.encode(&mut head).map_err(container)?;
        Ok(head)
    }

    fn movie_fragment(&self, entries: &[TrunEntry]) -> Result<Vec<u8>> {
        let time = self.frames * u64::from(self.settings.ticks_per_frame());
        let tfhd = Tfhd { track_id: TRACK_ID, default_base_is_moof: true, ..Tfhd::default() };
        let at = |data_offset: i32| Moof {
            mfhd: Mfhd { sequence_number: self.fragments },
            traf: vec![Traf {
                tfhd: tfhd.clone(),
                tfdt: Some(Tfdt { base_media_decode_time: time }),
                trun: vec![Trun {
                    data_offset: Some(data_offset),
                    samples: TrunSamples::Explicit(entries.to_vec()),
                }],
                ..Traf::default()
            }],
        };
        // The box's length does not depend on the offset in it, so one dry run measures it.
        let mut boxed = Vec::new();
        at(0).encode(&mut boxed).map_err(container)?;
        let behind = boxed.len() + media_data_header(self.payload.len() as u64).len();
        let offset = i32::try_from(behind)
            .map_err(|_| VideoError::Container("a fragment's index passes 2 GiB".to_owned()))?;
        boxed.clear();
        at(offset).encode(&mut boxed).map_err(container)?;
        Ok(boxed)
    }
}

impl Drop for Fragments {
    fn drop(&mut self) {
        if !self.is_released {
            drop(std::fs::remove_file(&self.path));
        }
    }
}
