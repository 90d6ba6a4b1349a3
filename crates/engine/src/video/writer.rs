//! The video file: an MP4 that appears at its path whole or not at all.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::encoder::{AccessUnit, H264Encoder, ParameterSets};
use super::error::{Result, VideoError};
use super::fragments::Fragments;
use super::index::SampleTable;
use super::muxer::Muxer;
use super::settings::VideoSettings;
use super::sink::{FrameSink, SinkState, VideoSummary};
use crate::output::{directory_of, file_place};

/// Writes frames to an H.264 MP4 as they come.
///
/// The bytes go to a temporary file next to the output; [`finish`](Self::finish) puts it in the output's place in one
/// step. Dropped before that, the writer removes the temporary file and the output stays as it was.
///
/// Memory: one picture, the encoder, and 4 bytes per frame; half a second of video more if it [grows](Self::create_growing).
#[derive(Debug)]
pub struct Mp4Writer {
    path: PathBuf,
    settings: VideoSettings,
    encoder: H264Encoder,
    muxer: Muxer<NamedTempFile>,
    /// The video at its path while it is made, if asked for.
    fragments: Option<Fragments>,
    failed_frame: Option<usize>,
    /// The length of the file, once it is complete.
    complete_bytes: Option<u64>,
}

impl Mp4Writer {
    /// A video that will replace whatever file is at `path`, or where a link there leads.
    ///
    /// # Errors
    /// [`VideoError::Settings`] for settings out of range, [`VideoError::Output`] if `path` is a directory, a device or a
    /// pipe, or its directory is missing, [`VideoError::Io`] if that directory is not writable.
    pub fn create(path: &Path, settings: VideoSettings) -> Result<Self> {
        settings.check()?;
        let place = file_place(path).map_err(|reason| VideoError::output(path, reason))?;
        let file = temporary_file(directory_of(&place)).map_err(|e| VideoError::io(path, e))?;
        Ok(Self {
            path: place.clone(),
            settings,
            encoder: H264Encoder::new(&settings)?,
            muxer: Muxer::new(file, place),
            fragments: None,
            failed_frame: None,
            complete_bytes: None,
        })
    }

    /// The same, but something to play is at `path` from the first half second on: a fragmented MP4 that grows, for which the
    /// finished file is put in place at the end. What was at `path` goes at once, and if the video is not finished, nothing is
    /// left there.
    ///
    /// # Errors
    /// As for [`create`](Self::create).
    pub fn create_growing(path: &Path, settings: VideoSettings) -> Result<Self> {
        let mut writer = Self::create(path, settings)?;
        writer.fragments = Some(Fragments::create(&writer.path, settings)?);
        Ok(writer)
    }

    /// Appends one frame `[height, width, 3]`, RGB in 0..1 (clamped), row-major.
    ///
    /// # Errors
    /// [`VideoError::Frame`] for a wrong length, [`VideoError::Encoder`], [`VideoError::Io`] (disk full, say). After
    /// any of them the video cannot be finished.
    pub fn push(&mut self, rgb: &[f32]) -> Result<()> {
        self.check_complete()?;
        let frame = self.muxer.frames();
        self.push_frame(rgb, frame).inspect_err(|_| self.failed_frame = Some(frame))
    }

    fn push_frame(&mut self, rgb: &[f32], frame: usize) -> Result<()> {
        let expected = self.settings.frame_len();
        if rgb.len() != expected {
            return Err(VideoError::Frame { frame, got: rgb.len(), expected });
        }
        let (unit, sets) = self.encoder.encode(rgb)?;
        if let Some(fragments) = &mut self.fragments {
            fragments.push(unit, sets)?;
        }
        self.muxer.push(unit)
    }

    /// Completes the file, waits until it is on disk and moves it to its path, replacing what was there.
    ///
    /// # Errors
    /// [`VideoError::Empty`] without frames, [`VideoError::Incomplete`] after a failed push, [`VideoError::Io`]. The
    /// output is then as it was before [`create`](Self::create).
    pub fn finish(mut self) -> Result<VideoSummary> {
        let bytes = self.complete_file()?;
        let frames = self.muxer.frames();
        publish(self.muxer.into_storage(), &self.path).map_err(|e| VideoError::io(&self.path, e))?;
        if let Some(fragments) = self.fragments {
            fragments.release();
        }
        Ok(VideoSummary { frames, duration_s: duration_s(frames, self.settings.fps), bytes })
    }

    /// Completes the file where nobody sees it, once, and waits until it is on disk. Its length.
    fn complete_file(&mut self) -> Result<u64> {
        if let Some(bytes) = self.complete_bytes {
            return Ok(bytes);
        }
        self.check_complete()?;
        if self.muxer.frames() == 0 {
            return Err(VideoError::Empty);
        }
        let sets = self.encoder.parameter_sets();
        if let Some(fragments) = &mut self.fragments {
            fragments.flush(sets)?;
        }
        let bytes = self.muxer.complete(&self.settings, sets)?;
        self.muxer.storage().as_file().sync_all().map_err(|e| VideoError::io(&self.path, e))?;
        self.complete_bytes = Some(bytes);
        Ok(bytes)
    }

    /// Takes over the frames of a video that was saved, as if they had been pushed here.
    fn replay(&mut self, facts: &[u8], stream: &mut dyn Read) -> Result<()> {
        let facts = Facts::of_quality(self.settings.quality.qp(), facts)?;
        if self.muxer.frames() > 0 {
            return Err(VideoError::State("it has frames already"));
        }
        let mut unit = AccessUnit::default();
        for (len, is_keyframe) in facts.table.samples() {
            unit.is_keyframe = is_keyframe;
            read_piece(stream, len, &mut unit.bytes).map_err(|e| VideoError::io(&self.path, e))?;
            if let Some(fragments) = &mut self.fragments {
                fragments.push(&unit, &facts.parameter_sets)?;
            }
            self.muxer.push(&unit)?;
        }
        if *self.muxer.table() != facts.table {
            return Err(FOREIGN_STATE);
        }
        self.encoder.restore(self.muxer.frames(), facts.parameter_sets);
        Ok(())
    }

    fn check_complete(&self) -> Result<()> {
        self.failed_frame.map_or(Ok(()), |frame| Err(VideoError::Incomplete { frame }))
    }
}

/// Overwrites `piece` with the next `len` bytes. What is said to come takes no memory before it is there.
fn read_piece(stream: &mut dyn Read, len: usize, piece: &mut Vec<u8>) -> io::Result<()> {
    piece.clear();
    let read = stream.take(len as u64).read_to_end(piece)?;
    if read == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// What a video is made of besides the frames' bytes.
#[derive(Debug, Serialize, Deserialize)]
struct Facts {
    table: SampleTable,
    parameter_sets: ParameterSets,
    /// Left out by earlier builds, whose videos were all of the one quality.
    #[serde(default)]
    qp: Option<u8>,
}

impl Facts {
    /// Those that were saved, of a video of this quality.
    fn of_quality(qp: u8, facts: &[u8]) -> Result<Self> {
        let facts: Self = serde_json::from_slice(facts).map_err(|_| FOREIGN_STATE)?;
        if facts.qp.is_some_and(|saved| saved != qp) { Err(VideoError::OtherQuality) } else { Ok(facts) }
    }
}

/// Refuses what was saved of a video of another quality, as [`FrameSink::restore`] does, but before a file is opened for it.
///
/// # Errors
/// [`VideoError::OtherQuality`], and [`VideoError::State`] where it is no state of such a video.
pub(crate) fn check_quality(qp: u8, facts: &[u8]) -> Result<()> {
    Facts::of_quality(qp, facts).map(drop)
}

const FOREIGN_STATE: VideoError = VideoError::State("what was saved is no state of a video");

impl FrameSink for Mp4Writer {
    fn push(&mut self, rgb: &[f32]) -> Result<()> {
        Self::push(self, rgb)
    }

    fn end_segment(&mut self) -> Result<()> {
        self.encoder.end_segment();
        Ok(())
    }

    fn save(&mut self, from_bytes: u64) -> Result<Option<SinkState>> {
        self.check_complete()?;
        if !self.encoder.is_between_segments() {
            return Ok(None);
        }
        let (table, parameter_sets) = (self.muxer.table().clone(), self.encoder.parameter_sets().clone());
        let qp = Some(self.settings.quality.qp());
        let facts = serde_json::to_vec(&Facts { table, parameter_sets, qp });
        let facts = facts.map_err(|error| VideoError::Container(error.to_string()))?;
        // Copied, because the end of the video moves what is in the file.
        let mut tail = Vec::new();
        self.muxer.copy_payload(from_bytes, &mut tail)?;
        Ok(Some(SinkState {
            facts,
            stream_bytes: self.muxer.payload_bytes(),
            tail: Box::new(Cursor::new(tail)),
        }))
    }

    fn restore(&mut self, facts: &[u8], stream: &mut dyn Read) -> Result<()> {
        self.replay(facts, stream)
    }

    fn complete(&mut self) -> Result<()> {
        self.complete_file().map(|_| ())
    }

    fn finish(self: Box<Self>) -> Result<VideoSummary> {
        Self::finish(*self)
    }
}

fn temporary_file(directory: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".evanesce-").suffix(".mp4.part");
    // The default of a temporary file, 0600, would stay on the finished video.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(directory)
}

/// The file is on disk already; now its name: after a power cut the path holds the old file or the whole new one.
fn publish(file: NamedTempFile, path: &Path) -> io::Result<()> {
    file.persist(path).map_err(|e| e.error)?;
    sync_directory_of(path)
}

#[cfg(unix)]
fn sync_directory_of(path: &Path) -> io::Result<()> {
    match File::open(directory_of(path))?.sync_all() {
        // Some network file systems cannot sync a directory; the file itself is safe.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        outcome => outcome,
    }
}

#[cfg(not(unix))]
fn sync_directory_of(_path: &Path) -> io::Result<()> {
    Ok(())
}

fn duration_s(frames: usize, fps: u32) -> f64 {
    frames as f64 / f64::from(fps)
}
