//! Thumbnail and spritesheet, kept small while the frames of a video pass by, and written as JPEG when it ends.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use evanesce_engine::video::{FrameSink, Result, SinkState, VideoError, VideoSettings, VideoSummary};
use jpeg_encoder::{ColorType, Encoder, EncodingError};

use crate::videos::{Draft, Variant};

const JPEG_QUALITY: u8 = 85;
/// Frames of a spritesheet, and how many stand in a row.
const SHEET_FRAMES: usize = 16;
const SHEET_COLUMNS: usize = 4;
/// Longer edges of a thumbnail and of one frame of a spritesheet, at most.
const THUMBNAIL_PX: usize = 512;
const SHEET_FRAME_PX: usize = 192;

/// An RGB picture of 8 bits.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<u8>,
}

impl Picture {
    fn black(width: usize, height: usize) -> Self {
        Self { width, height, rgb: vec![0; width * height * 3] }
    }

    /// A picture as a saved state holds it.
    fn read(from: &mut &[u8]) -> Option<Self> {
        let (width, height) = (number(from)?, number(from)?);
        let rgb = take(from)?.to_vec();
        (Some(rgb.len()) == width.checked_mul(height)?.checked_mul(3)).then_some(Self { width, height, rgb })
    }

    /// A frame `[height, width, 3]` in 0..1, made smaller by whole numbers until its longer edge is at most `edge_px`.
    fn reduced(frame: &[f32], width: usize, height: usize, edge_px: usize) -> Self {
        let (factor, [small_width, small_height]) = reduction(width, height, edge_px);
        let mut small = Self::black(small_width, small_height);
        let area = (factor * factor) as f32;
        for (at, out) in small.rgb.iter_mut().enumerate() {
            let (pixel, channel) = (at / 3, at % 3);
            let (x, y) = (pixel % small.width * factor, pixel / small.width * factor);
            let rows = y..(y + factor).min(height);
            let sum: f32 = rows
                .flat_map(|row| (x..(x + factor).min(width)).map(move |column| row * width + column))
                .map(|place| frame[place * 3 + channel].clamp(0.0, 1.0))
                .sum();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in 0..=255")]
            {
                *out = (sum / area * 255.0).round() as u8;
            }
        }
        small
    }

    fn paste(&mut self, other: &Self, left: usize, top: usize) {
        let rows = other.rgb.chunks_exact(other.width * 3).enumerate();
        for (y, row) in rows {
            let at = ((top + y) * self.width + left) * 3;
            self.rgb[at..at + row.len()].copy_from_slice(row);
        }
    }

    fn write_jpeg(&self, path: &Path) -> Result<()> {
        let created = File::create(path);
        self.encode(created.map_err(|source| VideoError::Io { path: path.to_path_buf(), source })?, path)
    }

    /// Writes the picture as JPEG; `path` is what errors name.
    fn encode(&self, to: impl Write, path: &Path) -> Result<()> {
        let lost = |source: io::Error| VideoError::Io { path: path.to_path_buf(), source };
        let failed = |reason: String| VideoError::Output { path: path.to_path_buf(), reason };
        let edge =
            |edge: usize| u16::try_from(edge).map_err(|_| failed("it is too large for JPEG".to_owned()));
        let refused = |error: EncodingError| match error {
            EncodingError::IoError(source) => lost(source),
            other => failed(other.to_string()),
        };
        let mut file = BufWriter::new(to);
        let encoder = Encoder::new(&mut file, JPEG_QUALITY);
        encoder.encode(&self.rgb, edge(self.width)?, edge(self.height)?, ColorType::Rgb).map_err(refused)?;
        // The encoder does not, and nobody would hear of what fails when the buffer is dropped.
        file.flush().map_err(lost)
    }
}

/// By what a picture is made smaller until its longer edge is at most `edge_px`, and the width and height that it has then.
fn reduction(width: usize, height: usize, edge_px: usize) -> (usize, [usize; 2]) {
    let factor = width.max(height).div_ceil(edge_px).max(1);
    (factor, [width, height].map(|edge| (edge / factor).max(1)))
}

/// Appends bytes behind their length.
fn put(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend((bytes.len() as u64).to_le_bytes());
    to.extend_from_slice(bytes);
}

fn number(from: &mut &[u8]) -> Option<usize> {
    let (number, rest) = from.split_first_chunk()?;
    *from = rest;
    usize::try_from(u64::from_le_bytes(*number)).ok()
}

fn take<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = number(from)?;
    let (bytes, rest) = from.split_at_checked(len)?;
    *from = rest;
    Some(bytes)
}

/// Frames into a video and its two pictures, all in one draft.
pub(crate) struct IllustratedVideo {
    video: Box<dyn FrameSink + Send>,
    settings: VideoSettings,
    n_frames: usize,
    at: usize,
    thumbnail: Option<Picture>,
    sheet: Vec<Picture>,
    thumbnail_path: std::path::PathBuf,
    sheet_path: std::path::PathBuf,
}

impl std::fmt::Debug for IllustratedVideo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IllustratedVideo").field("at", &self.at).finish_non_exhaustive()
    }
}

impl IllustratedVideo {
    /// A video of `n_frames` frames.
    pub(crate) fn create(draft: &Draft, settings: VideoSettings, n_frames: usize) -> Result<Self> {
        let video = draft.begin_video(settings)?;
        Ok(Self {
            video,
            settings,
            n_frames,
            at: 0,
            thumbnail: None,
            sheet: Vec::new(),
            thumbnail_path: draft.path(Variant::Thumbnail),
            sheet_path: draft.path(Variant::Spritesheet),
        })
    }

    fn sketch(&mut self, frame: &[f32]) {
        let VideoSettings { width, height, .. } = self.settings;
        if self.at == self.n_frames / 2 {
            self.thumbnail = Some(Picture::reduced(frame, width, height, THUMBNAIL_PX));
        }
        if sheet_frames(self.n_frames).any(|wanted| wanted == self.at) {
            self.sheet.push(Picture::reduced(frame, width, height, SHEET_FRAME_PX));
        }
    }

    /// Whether all pictures are as large as frames of this video are once they are made smaller.
    fn has_sizes_of_this_video(&self) -> bool {
        let VideoSettings { width, height, .. } = self.settings;
        let is_of = |picture: &Picture, edge_px| {
            reduction(width, height, edge_px).1 == [picture.width, picture.height]
        };
        self.thumbnail.iter().all(|picture| is_of(picture, THUMBNAIL_PX))
            && self.sheet.iter().all(|picture| is_of(picture, SHEET_FRAME_PX))
    }

    fn spritesheet(&self) -> Option<Picture> {
        let first = self.sheet.first()?;
        let columns = self.sheet.len().min(SHEET_COLUMNS);
        let rows = self.sheet.len().div_ceil(SHEET_COLUMNS);
        let mut sheet = Picture::black(columns * first.width, rows * first.height);
        for (at, picture) in self.sheet.iter().enumerate() {
            sheet.paste(picture, at % SHEET_COLUMNS * first.width, at / SHEET_COLUMNS * first.height);
        }
        Some(sheet)
    }
}

/// The frames that a spritesheet shows: spread evenly, the first and the last among them.
fn sheet_frames(n_frames: usize) -> impl Iterator<Item = usize> {
    let shown = n_frames.min(SHEET_FRAMES);
    (0..shown).map(move |at| if shown < 2 { 0 } else { at * (n_frames - 1) / (shown - 1) })
}

impl FrameSink for IllustratedVideo {
    fn waits_for_others(&self) -> bool {
        self.video.waits_for_others()
    }

    fn push(&mut self, rgb: &[f32]) -> Result<()> {
        self.video.push(rgb)?;
        self.sketch(rgb);
        self.at += 1;
        Ok(())
    }

    fn end_segment(&mut self) -> Result<()> {
        self.video.end_segment()
    }

    fn save(&mut self, from_bytes: u64) -> Result<Option<SinkState>> {
        let Some(video) = self.video.save(from_bytes)? else { return Ok(None) };
        let mut facts = Vec::new();
        put(&mut facts, &video.facts);
        facts.extend((self.at as u64).to_le_bytes());
        for picture in self.thumbnail.iter().chain(&self.sheet) {
            facts.extend(
                [picture.width, picture.height].map(|edge| edge as u64).map(u64::to_le_bytes).concat(),
            );
            put(&mut facts, &picture.rgb);
        }
        Ok(Some(SinkState { facts, ..video }))
    }

    fn restore(&mut self, facts: &[u8], stream: &mut dyn Read) -> Result<()> {
        const FOREIGN: VideoError = VideoError::State("what was saved are no pictures of a video");
        let mut left = facts;
        self.video.restore(take(&mut left).ok_or(FOREIGN)?, stream)?;
        self.at = number(&mut left).ok_or(FOREIGN)?;
        let mut pictures = Vec::new();
        while !left.is_empty() {
            pictures.push(Picture::read(&mut left).ok_or(FOREIGN)?);
        }
        let has_thumbnail = self.at > self.n_frames / 2;
        let n_shown = sheet_frames(self.n_frames).filter(|at| *at < self.at).count();
        if self.at > self.n_frames || pictures.len() != usize::from(has_thumbnail) + n_shown {
            return Err(FOREIGN);
        }
        self.sheet = pictures.split_off(usize::from(has_thumbnail));
        self.thumbnail = pictures.pop();
        if self.has_sizes_of_this_video() { Ok(()) } else { Err(FOREIGN) }
    }

    fn finish(self: Box<Self>) -> Result<VideoSummary> {
        let (Some(thumbnail), Some(sheet)) = (&self.thumbnail, self.spritesheet()) else {
            return Err(VideoError::Empty);
        };
        thumbnail.write_jpeg(&self.thumbnail_path)?;
        sheet.write_jpeg(&self.sheet_path)?;
        self.video.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_shows_the_first_and_the_last_frame_and_never_one_twice() {
        for n_frames in [1, 2, 5, 16, 17, 81, 253] {
            let shown: Vec<_> = sheet_frames(n_frames).collect();
            assert_eq!(shown.len(), n_frames.min(SHEET_FRAMES));
            assert_eq!((shown[0], shown[shown.len() - 1]), (0, n_frames - 1));
            assert!(shown.windows(2).all(|pair| pair[0] < pair[1]), "{shown:?}");
        }
    }

    #[test]
    fn reducing_a_picture_averages_what_falls_together() {
        let frame = [[0.0; 3], [1.0; 3], [0.0; 3], [1.0; 3]].concat();
        let half = Picture::reduced(&frame, 2, 2, 1);
        assert_eq!((half.width, half.height, half.rgb), (1, 1, vec![128; 3]));
        assert_eq!(Picture::reduced(&frame, 2, 2, 2).rgb[..6], [0, 0, 0, 255, 255, 255]);
    }

    /// A disk that is full after some bytes.
    struct Filling {
        left_bytes: usize,
    }

    impl Write for Filling {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.left_bytes);
            if taken == 0 && !bytes.is_empty() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.left_bytes -= taken;
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_picture_whose_last_bytes_cannot_be_written_is_an_error() {
        let (picture, path) = (Picture::black(64, 32), Path::new("picture"));
        let mut whole = Vec::new();
        picture.encode(&mut whole, path).unwrap();
        assert!(whole.starts_with(&[0xff, 0xd8]) && whole.ends_with(&[0xff, 0xd9]));
        picture.encode(Filling { left_bytes: whole.len() }, path).unwrap();
        for left_bytes in [0, whole.len() - 1] {
            let error = picture.encode(Filling { left_bytes }, path).unwrap_err();
            let VideoError::Io { source, .. } = &error else { panic!("{error}") };
            assert_eq!(source.kind(), io::ErrorKind::StorageFull, "{left_bytes} of {} bytes", whole.len());
        }
    }

    /// A video that keeps nothing.
    struct Unkept;

    impl FrameSink for Unkept {
        fn waits_for_others(&self) -> bool {
            true
        }

        fn push(&mut self, _: &[f32]) -> Result<()> {
            Ok(())
        }

        fn save(&mut self, _: u64) -> Result<Option<SinkState>> {
            Ok(Some(SinkState { facts: Vec::new(), stream_bytes: 0, tail: Box::new(io::empty()) }))
        }

        fn restore(&mut self, _: &[u8], _: &mut dyn Read) -> Result<()> {
            Ok(())
        }

        fn finish(self: Box<Self>) -> Result<VideoSummary> {
            Err(VideoError::Empty)
        }
    }

    fn illustrated(width: usize, height: usize) -> IllustratedVideo {
        IllustratedVideo {
            video: Box::new(Unkept),
            settings: VideoSettings::new(width, height, 16),
            n_frames: 2,
            at: 0,
            thumbnail: None,
            sheet: Vec::new(),
            thumbnail_path: "thumbnail".into(),
            sheet_path: "sheet".into(),
        }
    }

    #[test]
    fn a_video_with_pictures_waits_for_whom_the_video_waits() {
        assert!(illustrated(32, 16).waits_for_others());
    }

    /// What is saved of a video after all of its frames.
    fn saved(width: usize, height: usize) -> Vec<u8> {
        let mut video = illustrated(width, height);
        (0..2).for_each(|_| video.push(&vec![0.5; width * height * 3]).unwrap());
        video.save(0).unwrap().unwrap().facts
    }

    #[test]
    fn pictures_of_another_size_are_no_state_of_a_video() {
        let restore = |facts: &[u8]| illustrated(32, 16).restore(facts, &mut io::empty());
        let own = saved(32, 16);
        assert!(restore(&own).is_ok());
        assert!(restore(&saved(16, 32)).is_err() && restore(&saved(16, 16)).is_err());
        // Each has two edges and a length before its pixels; the last one's edges change places.
        let mut turned = own.clone();
        let last = turned.len() - (32 * 16 * 3 + 3 * 8);
        turned[last..last + 16].rotate_left(8);
        assert!(restore(&turned).is_err());
        // More frames than the video has.
        let mut later = own;
        later[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(restore(&later).is_err());
    }
}
