//! Frames out of an MP4 file with one H.264 track, for comparing videos: `track` reads the index, openh264 the pictures.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use openh264::decoder::Decoder;
use openh264::formats::YUVSource;

use super::colour;
use super::error::{Result, VideoError};
use super::track::Track;

/// Said of a frame that is not decoded, in place of the decoder's own words, which are numbers.
const NOT_DECODED: &str = "it is damaged, or no H.264 of baseline or main profile without B-frames, which is what is read here and what ffmpeg makes with -bf 0";

const START_CODE: [u8; 4] = [0, 0, 0, 1];

/// Reads one frame after the other.
pub(crate) struct Mp4Reader {
    path: PathBuf,
    file: File,
    decoder: Decoder,
    /// Place and length of each frame's bytes, which the file has room for.
    samples: Vec<(u64, u32)>,
    next: usize,
    /// Parameter sets, which go before the first frame.
    parameter_sets: Vec<u8>,
    length_bytes: usize,
    width: usize,
    height: usize,
    fps: f64,
}

impl std::fmt::Debug for Mp4Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mp4Reader")
            .field("path", &self.path)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Mp4Reader {
    /// Opens a file and reads its index.
    ///
    /// # Errors
    /// [`VideoError::Input`] when it is no MP4 file, or its track is not H.264 of a constant size.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let wrong = |reason: &dyn std::fmt::Display| VideoError::input(path, reason);
        let mut file = File::open(path).map_err(|error| wrong(&error))?;
        let Track { config, width, height, seconds, samples } =
            Track::read(&mut file).map_err(|reason| wrong(&reason))?;
        let mut parameter_sets = Vec::new();
        for set in config.sequence_parameter_sets.iter().chain(&config.picture_parameter_sets) {
            parameter_sets.extend_from_slice(&START_CODE);
            parameter_sets.extend_from_slice(set);
        }
        Ok(Self {
            path: path.to_owned(),
            decoder: Decoder::new().map_err(|error| wrong(&error))?,
            file,
            fps: samples.len() as f64 / seconds,
            samples,
            next: 0,
            parameter_sets,
            length_bytes: usize::from(config.length_size),
            width,
            height,
        })
    }

    /// How many frames there are.
    pub(crate) fn frames(&self) -> usize {
        self.samples.len()
    }

    /// Pixels across.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Pixels down.
    pub(crate) fn height(&self) -> usize {
        self.height
    }

    /// Frames per second.
    pub(crate) fn fps(&self) -> f64 {
        self.fps
    }

    /// Overwrites `rgb` with the next frame, `[height, width, 3]`, of BT.709 in limited range.
    ///
    /// # Errors
    /// [`VideoError::Input`] when there is none, or its bytes are no picture.
    pub(crate) fn next_into(&mut self, rgb: &mut Vec<f32>) -> Result<()> {
        let frame = self.next;
        let wrong = |reason: &dyn std::fmt::Display| {
            VideoError::input(&self.path, format!("frame {frame} cannot be read: {reason}"))
        };
        let &(place, len) = self.samples.get(frame).ok_or_else(|| wrong(&"there are no more"))?;
        let mut sample = vec![0; len as usize];
        self.file.seek(SeekFrom::Start(place)).map_err(|error| wrong(&error))?;
        self.file.read_exact(&mut sample).map_err(|error| wrong(&error))?;
        let mut stream = std::mem::take(&mut self.parameter_sets);
        append_units(&mut stream, &sample, self.length_bytes)
            .ok_or_else(|| wrong(&"its units are cut short"))?;
        let picture = self.decoder.decode(&stream).map_err(|_| wrong(&NOT_DECODED))?;
        let picture = picture.ok_or_else(|| wrong(&NOT_DECODED))?;
        if picture.dimensions() != (self.width, self.height) {
            return Err(wrong(&"its size is not the track's"));
        }
        let planes = (picture.y(), picture.u(), picture.v());
        colour::read_rgb(planes, picture.strides(), (self.width, self.height), rgb);
        self.next += 1;
        Ok(())
    }
}

/// Units with their lengths before them, as a stream with start codes.
fn append_units(stream: &mut Vec<u8>, mut sample: &[u8], length_bytes: usize) -> Option<()> {
    while !sample.is_empty() {
        let (length, rest) = sample.split_at_checked(length_bytes)?;
        let length = length.iter().fold(0usize, |sum, &byte| sum << 8 | usize::from(byte));
        let (unit, rest) = rest.split_at_checked(length)?;
        stream.extend_from_slice(&START_CODE);
        stream.extend_from_slice(unit);
        sample = rest;
    }
    Some(())
}
