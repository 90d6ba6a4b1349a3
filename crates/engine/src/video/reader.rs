//! Frames out of an MP4 file with one H.264 track, for comparing videos: `mp4-atom` reads the index, openh264 the pictures.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use mp4_atom::{Atom, Codec, Header, Moov, ReadAtom, ReadFrom, Stbl, StszSamples};
use openh264::decoder::Decoder;
use openh264::formats::YUVSource;

use super::colour;
use super::error::{Result, VideoError};

const START_CODE: [u8; 4] = [0, 0, 0, 1];
/// No picture that the decoder takes is larger.
const SAMPLE_BYTES_MAX: u32 = 1 << 28;

/// Reads one frame after the other.
pub(crate) struct Mp4Reader {
    path: PathBuf,
    file: File,
    decoder: Decoder,
    /// Place and length of each frame's bytes.
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
        let movie = find_movie(&mut file).map_err(|reason| wrong(&reason))?;
        let track = movie.trak.iter().find_map(|track| {
            let table = &track.mdia.minf.stbl;
            table.stsd.codecs.iter().find_map(|codec| match codec {
                Codec::Avc1(avc1) => Some((track, table, avc1)),
                _ => None,
            })
        });
        let (track, table, avc1) = track.ok_or_else(|| wrong(&"it holds no H.264 track"))?;
        let mut parameter_sets = Vec::new();
        for set in avc1.avcc.sequence_parameter_sets.iter().chain(&avc1.avcc.picture_parameter_sets) {
            parameter_sets.extend_from_slice(&START_CODE);
            parameter_sets.extend_from_slice(set);
        }
        let file_bytes = file.metadata().map_err(|error| wrong(&error))?.len();
        let samples = samples(table, file_bytes).ok_or_else(|| wrong(&"its index contradicts itself"))?;
        if samples.is_empty() {
            return Err(wrong(&"it holds no frames of a finished video"));
        }
        let (time, frames) = (&track.mdia.mdhd, samples.len() as f64);
        let seconds = time.duration as f64 / f64::from(time.timescale);
        if !(seconds.is_finite() && seconds > 0.0) {
            return Err(wrong(&"its track lasts no time"));
        }
        Ok(Self {
            path: path.to_owned(),
            decoder: Decoder::new().map_err(|error| wrong(&error))?,
            file,
            samples,
            next: 0,
            parameter_sets,
            length_bytes: usize::from(avc1.avcc.length_size),
            width: usize::from(avc1.visual.width),
            height: usize::from(avc1.visual.height),
            fps: frames / seconds,
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
        let picture = self.decoder.decode(&stream).map_err(|error| wrong(&error))?;
        let picture = picture.ok_or_else(|| wrong(&"it is no whole picture, or not in order"))?;
        if picture.dimensions() != (self.width, self.height) {
            return Err(wrong(&"its size is not the track's"));
        }
        let planes = (picture.y(), picture.u(), picture.v());
        colour::read_rgb(planes, picture.strides(), (self.width, self.height), rgb);
        self.next += 1;
        Ok(())
    }
}

fn find_movie(file: &mut File) -> std::result::Result<Moov, String> {
    loop {
        let header = Header::read_from(file).map_err(|error| format!("it has no index ({error})"))?;
        if header.kind == Moov::KIND {
            return Moov::read_atom(&header, file)
                .map_err(|error| format!("its index cannot be read ({error})"));
        }
        let size = header.size.and_then(|size| i64::try_from(size).ok()).ok_or("it has no index")?;
        file.seek(SeekFrom::Current(size)).map_err(|error| error.to_string())?;
    }
}

/// Place and length of every sample; `None` where the tables disagree, with each other or with the length of the file.
fn samples(table: &Stbl, file_bytes: u64) -> Option<Vec<(u64, u32)>> {
    let sizes: Vec<u32> = match &table.stsz.samples {
        StszSamples::Identical { count, size } => {
            // So many must be there before a list of them is made.
            let all_bytes = u64::from(*count).checked_mul(u64::from(*size).max(1))?;
            (all_bytes <= file_bytes).then_some(())?;
            vec![*size; usize::try_from(*count).ok()?]
        }
        StszSamples::Different { sizes } => sizes.clone(),
    };
    let chunks: Vec<u64> = match (&table.stco, &table.co64) {
        (Some(short), _) => short.entries.iter().map(|&at| u64::from(at)).collect(),
        (None, Some(long)) => long.entries.clone(),
        (None, None) => return None,
    };
    let mut runs = table.stsc.entries.iter().peekable();
    let (mut found, mut in_chunk) = (Vec::with_capacity(sizes.len()), 0);
    for (chunk, &start) in (1u32..).zip(&chunks) {
        if let Some(run) = runs.next_if(|run| run.first_chunk <= chunk) {
            in_chunk = run.samples_per_chunk;
        }
        let mut place = start;
        for _ in 0..in_chunk {
            let Some(&size) = sizes.get(found.len()) else { break };
            found.push((place, size));
            place = place.checked_add(u64::from(size))?;
        }
    }
    let fits = found.len() == sizes.len() && sizes.iter().all(|&size| size <= SAMPLE_BYTES_MAX);
    fits.then_some(found)
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

#[cfg(test)]
mod tests {
    use mp4_atom::{Stco, Stsz};

    use super::*;

    #[test]
    fn a_table_of_more_samples_than_the_file_has_room_for_is_refused_before_it_is_made() {
        let table = |count, size| {
            let stsz = Stsz { samples: StszSamples::Identical { count, size } };
            Stbl { stsz, stco: Some(Stco { entries: vec![0] }), ..Stbl::default() }
        };
        assert_eq!(samples(&table(u32::MAX, 4), 1000), None);
        assert_eq!(samples(&table(u32::MAX, 0), 1000), None);
    }
}
