//! What the index of an MP4 file says of its H.264 track (ISO/IEC 14496-12 and -15).
//!
//! Boxes are walked along one path, whose length is fixed here, and only those at its end are decoded, by `mp4-atom`, which makes
//! their lists as their bytes come. So neither the nesting nor the counts that a file claims cost more than its own bytes do.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use mp4_atom::{
    Atom, Avcc, Co64, DecodeMaybe, FourCC, Header, Mdhd, ReadFrom, Stco, Stsc, StscEntry, Stsz, StszSamples,
};

/// An index has some bytes for each frame; none that is played is longer.
const INDEX_BYTES_MAX: u64 = 1 << 28;
/// No picture that the decoder takes is larger.
const SAMPLE_BYTES_MAX: u32 = 1 << 28;
/// What stands in a box of descriptions before these, and in a description before its boxes.
const DESCRIPTIONS_AT: usize = 8;
const BOXES_AT: usize = 78;
/// Where width and height stand in a description.
const SIZE_AT: usize = 24;

/// A track, as far as it takes to read its frames.
#[derive(Debug)]
pub(super) struct Track {
    /// Parameter sets, and how units are told apart.
    pub(super) config: Avcc,
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) seconds: f64,
    /// Place and length of each frame's bytes, all of them in the file.
    pub(super) samples: Vec<(u64, u32)>,
}

impl Track {
    /// Reads the index of a file's first H.264 track, which has frames, pixels, and lasts.
    ///
    /// # Errors
    /// What is wrong with the file, in words that follow its name.
    pub(super) fn read(file: &mut File) -> Result<Self, String> {
        let file_bytes = file.metadata().map_err(|error| error.to_string())?.len();
        let movie = read_movie(file)?;
        let mut tracks = Boxes(&movie).filter(|(kind, _)| kind == b"trak").map(|(_, track)| track);
        let (media, table, entry) = tracks.find_map(h264).ok_or("it holds no H.264 track")?;
        let (fields, boxes) = entry.split_at_checked(BOXES_AT).ok_or("it holds no H.264 track")?;
        let [width, height] = [SIZE_AT, SIZE_AT + 2].map(|at| number(fields, at));
        if width == 0 || height == 0 {
            return Err(format!("its pictures are {width}x{height} pixels"));
        }
        let samples = Table::read(table)?.samples(file_bytes).ok_or("its index contradicts itself")?;
        if samples.is_empty() {
            return Err("it holds no frames of a finished video".to_owned());
        }
        let time: Mdhd = decoded(media)?;
        let seconds = time.duration as f64 / f64::from(time.timescale);
        if !(seconds.is_finite() && seconds > 0.0) {
            return Err("its track lasts no time".to_owned());
        }
        Ok(Self { config: decoded(boxes)?, width, height, seconds, samples })
    }
}

/// The body of the box that is the index.
fn read_movie(file: &mut File) -> Result<Vec<u8>, String> {
    loop {
        let header = Header::read_from(file).map_err(|error| format!("it has no index ({error})"))?;
        if header.kind == FourCC::new(b"moov") {
            let mut movie = Vec::new();
            file.take(header.size.map_or(INDEX_BYTES_MAX, |size| (size as u64).min(INDEX_BYTES_MAX)))
                .read_to_end(&mut movie)
                .map_err(|error| format!("its index cannot be read ({error})"))?;
            let is_whole = header.size.is_none_or(|size| size == movie.len());
            return if is_whole { Ok(movie) } else { Err("its index is cut short, or too long".to_owned()) };
        }
        let size = header.size.and_then(|size| i64::try_from(size).ok()).ok_or("it has no index")?;
        file.seek(SeekFrom::Current(size)).map_err(|error| error.to_string())?;
    }
}

/// Kinds and bodies of the boxes that bytes consist of, up to what is none.
struct Boxes<'a>(&'a [u8]);

impl<'a> Iterator for Boxes<'a> {
    type Item = ([u8; 4], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let mut rest = self.0;
        let header = Header::decode_maybe(&mut rest).ok().flatten()?;
        let (body, rest) = rest.split_at_checked(header.size.unwrap_or(rest.len()))?;
        self.0 = rest;
        Some((header.kind.into(), body))
    }
}

fn find(within: &[u8], wanted: [u8; 4]) -> Option<&[u8]> {
    Boxes(within).find(|(kind, _)| *kind == wanted).map(|(_, body)| body)
}

/// Of a track of H.264 its media box, and in it its tables and its description.
fn h264(track: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let media = find(track, *b"mdia")?;
    let table = find(find(media, *b"minf")?, *b"stbl")?;
    let descriptions = find(table, *b"stsd")?.get(DESCRIPTIONS_AT..)?;
    Some((media, table, find(descriptions, *b"avc1")?))
}

/// The box of this kind.
fn decoded<T: Atom>(within: &[u8]) -> Result<T, String> {
    let mut body = find(within, T::KIND.into()).ok_or_else(|| format!("its index lacks {}", T::KIND))?;
    T::decode_body(&mut body).map_err(|error| format!("its index cannot be read ({}: {error})", T::KIND))
}

/// A number of 16 bits; 0 where there is none.
fn number(bytes: &[u8], at: usize) -> usize {
    let number = bytes.get(at..).and_then(|rest| rest.first_chunk::<2>());
    number.map_or(0, |number| usize::from(u16::from_be_bytes(*number)))
}

/// Where samples lie: the length of each, and in which chunk it is.
#[derive(Debug)]
struct Table {
    sizes: StszSamples,
    /// Where each chunk begins.
    chunks: Vec<u64>,
    /// How many samples chunks have, from some chunk on.
    runs: Vec<StscEntry>,
}

impl Table {
    fn read(within: &[u8]) -> Result<Self, String> {
        let chunks: Vec<u64> = if find(within, *b"stco").is_some() {
            decoded::<Stco>(within)?.entries.into_iter().map(u64::from).collect()
        } else {
            decoded::<Co64>(within)?.entries
        };
        let (sizes, runs) = (decoded::<Stsz>(within)?.samples, decoded::<Stsc>(within)?.entries);
        Ok(Self { sizes, chunks, runs })
    }

    /// Place and length of every sample; `None` where the tables disagree, with each other or with the length of the file.
    fn samples(&self, file_bytes: u64) -> Option<Vec<(u64, u32)>> {
        let count = match &self.sizes {
            StszSamples::Identical { count, size } => {
                // So many must be there before a list of them is made.
                let fits = u64::from(*count) * u64::from((*size).max(1)) <= file_bytes;
                fits.then_some(*count as usize)?
            }
            StszSamples::Different { sizes } => sizes.len(),
        };
        let length_of = |at: usize| match &self.sizes {
            StszSamples::Identical { size, .. } => Some(*size),
            StszSamples::Different { sizes } => sizes.get(at).copied(),
        };
        let mut runs = self.runs.iter().peekable();
        let (mut found, mut in_chunk) = (Vec::new(), 0);
        for (chunk, start) in (1u32..).zip(&self.chunks) {
            if let Some(run) = runs.next_if(|run| run.first_chunk <= chunk) {
                in_chunk = run.samples_per_chunk;
            }
            let mut place = *start;
            for _ in 0..in_chunk {
                if found.len() == count {
                    break;
                }
                let size = length_of(found.len()).filter(|size| *size <= SAMPLE_BYTES_MAX)?;
                found.push((place, size));
                place = place.checked_add(u64::from(size)).filter(|end| *end <= file_bytes)?;
            }
        }
        (found.len() == count).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(sizes: StszSamples) -> Table {
        let run = StscEntry { first_chunk: 1, samples_per_chunk: u32::MAX, sample_description_index: 1 };
        Table { sizes, chunks: vec![8], runs: vec![run] }
    }

    #[test]
    fn a_table_of_more_samples_than_the_file_has_room_for_is_refused_before_it_is_made() {
        let samples = |count, size| table(StszSamples::Identical { count, size }).samples(1000);
        assert_eq!(samples(u32::MAX, 4), None);
        assert_eq!(samples(u32::MAX, 0), None);
        assert_eq!(samples(2, 4), Some(vec![(8, 4), (12, 4)]));
    }

    #[test]
    fn a_sample_that_ends_behind_the_file_is_refused() {
        let samples = |sizes| table(StszSamples::Different { sizes }).samples(1000);
        assert_eq!(samples(vec![992]), Some(vec![(8, 992)]));
        assert_eq!(samples(vec![993]), None);
        assert_eq!(samples(vec![1, 1 << 28]), None);
    }

    #[test]
    fn boxes_end_where_what_follows_is_none() {
        let whole = [0, 0, 0, 9, b'f', b'r', b'e', b'e', 7];
        let kinds = |bytes: &[u8]| Boxes(bytes).map(|(kind, body)| (kind, body.len())).collect::<Vec<_>>();
        assert_eq!(kinds(&[whole, whole].concat()), [(*b"free", 1), (*b"free", 1)]);
        // Cut short, shorter than its own header, and up to the end of what it is in.
        assert_eq!(kinds(&[&whole[..], &whole[..8]].concat()), [(*b"free", 1)]);
        assert!(kinds(&[0, 0, 0, 7, b'f', b'r', b'e', b'e', 7]).is_empty());
        assert_eq!(kinds(&[0, 0, 0, 0, b'f', b'r', b'e', b'e', 7, 7]), [(*b"free", 2)]);
    }
}
