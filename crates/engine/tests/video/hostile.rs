//! Files that claim more than they hold: they are refused in words, or read without what no frame needs.

use std::io::{self, Read};
use std::path::Path;

use evanesce_engine::fidelity::shape_of;
use evanesce_engine::video::{FrameSink, Mp4Writer, VideoError, VideoSettings, thumbnails};

use super::{boxes, write};

const FRAMES: usize = 3;
/// Version and flags.
const FULL_BOX: &[u8] = &[0; 4];

fn video() -> Vec<u8> {
    write(VideoSettings::new(64, 64, 16), FRAMES).0
}

fn with_file<T>(bytes: &[u8], look: impl FnOnce(&Path) -> T) -> T {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hostile.mp4");
    std::fs::write(&path, bytes).unwrap();
    look(&path)
}

fn refusal(bytes: &[u8]) -> String {
    with_file(bytes, |path| shape_of(path).unwrap_err().to_string())
}

fn mp4_box(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(8 + body.len()).unwrap();
    [&size.to_be_bytes()[..], kind, body].concat()
}

/// Where a part of a file begins in it.
fn place(file: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr() - file.as_ptr().addr()
}

fn set(file: &mut [u8], at: usize, number: u32) {
    file[at..at + 4].copy_from_slice(&number.to_be_bytes());
}

/// The file with more bytes at the end of the box at `path`, which lies before the frames.
fn with_more(file: &[u8], path: &str, more: &[u8]) -> Vec<u8> {
    let added = u32::try_from(more.len()).unwrap();
    let mut file_with = file.to_vec();
    let mut raise = |at: usize| set(&mut file_with, at, boxes::u32_at(file, at) + added);
    for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
        raise(place(file, boxes::find(file, &path[..end])) - 8);
    }
    raise(place(file, boxes::find(file, &format!("{}/stco", boxes::STBL))) + 8);
    let grown = boxes::find(file, path);
    let end = place(file, grown) + grown.len();
    drop(file_with.splice(end..end, more.iter().copied()));
    file_with
}

/// Headers of boxes, each in the one before.
fn nested(kind: &[u8; 4], depth: u32) -> Vec<u8> {
    (0..depth).flat_map(|at| [&(8 * (depth - at)).to_be_bytes()[..], kind].concat()).collect()
}

#[test]
fn boxes_that_no_frame_needs_are_not_looked_into() {
    let groups = |kind: &[u8], count: u32| mp4_box(b"sgpd", &[FULL_BOX, kind, &count.to_be_bytes()].concat());
    let items = mp4_box(b"iloc", &[1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0xff, 0xff]);
    let file = video();
    // A group that is cut short, as many groups of nothing as there are numbers, and an item of many places.
    let hostile = [groups(b"refs", 1), groups(b"roll", u32::MAX), items];
    for more in hostile.into_iter().chain([nested(b"moov", 20_000), nested(b"meta", 20_000)]) {
        for path in ["moov", "moov/trak", "moov/trak/mdia", boxes::STBL] {
            let file = with_more(&file, path, &more);
            assert_eq!(with_file(&file, |path| shape_of(path).unwrap()), [FRAMES, 64, 64], "in {path}");
            assert_eq!(with_file(&file, |path| thumbnails(path, 9, 8).unwrap().len()), FRAMES, "in {path}");
        }
    }
}

#[test]
fn an_index_of_nothing_but_nesting_is_refused() {
    let start = mp4_box(b"ftyp", b"isom\0\0\0\0isom");
    let sentence = refusal(&[start, nested(b"moov", 20_000)].concat());
    assert!(sentence.contains("holds no H.264 track"), "{sentence}");
}

#[test]
fn lengths_and_counts_beyond_the_file_are_refused_before_anything_is_made_of_them() {
    let file = video();
    let body = |kind: &str| place(&file, boxes::find(&file, &format!("{}/{kind}", boxes::STBL)));
    for (at, number, told) in [
        // The first frame's length, one length for all, how many there are, and where they begin.
        (body("stsz") + 12, (1 << 28) - 1, "contradicts itself"),
        (body("stsz") + 4, 1 << 20, "contradicts itself"),
        (body("stsz") + 8, u32::MAX, "out of bounds"),
        (body("stco") + 8, u32::MAX, "contradicts itself"),
        (body("stco") + 4, u32::MAX, "out of bounds"),
        (body("stsc") + 4, u32::MAX, "out of bounds"),
        (body("stsc") + 12, 1, "contradicts itself"),
    ] {
        let mut hostile = file.clone();
        set(&mut hostile, at, number);
        let sentence = refusal(&hostile);
        assert!(sentence.contains(told), "{number} at {at}: {sentence}");
    }
}

#[test]
fn pictures_without_pixels_are_refused() {
    let file = video();
    let (fields, _) = boxes::sample_entry(&file);
    for (kept, told) in [(0, "0x0"), (64 << 16, "64x0"), (64, "0x64")] {
        let mut hostile = file.clone();
        set(&mut hostile, place(&file, fields) + 24, kept);
        let sentence = refusal(&hostile);
        assert!(sentence.contains(told), "{sentence}");
        assert!(with_file(&hostile, |path| thumbnails(path, 3, 32).is_err()));
    }
}

#[test]
fn a_file_that_is_cut_short_anywhere_is_refused() {
    let file = video();
    let frames_at = place(&file, boxes::find(&file, "mdat"));
    for end in (0..frames_at).chain([file.len() - 1]) {
        let refused = with_file(&file[..end], |path| shape_of(path).is_err());
        assert!(refused, "cut at {end}");
    }
}

/// A stream that has ended, and the most that it was asked for at once.
struct Ended(usize);

impl Read for Ended {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0 = self.0.max(into.len());
        Ok(0)
    }
}

#[test]
fn a_saved_video_that_names_more_than_comes_takes_no_memory_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let settings = VideoSettings::new(64, 64, 16);
    let mut video = Mp4Writer::create(&directory.path().join("out.mp4"), settings).unwrap();
    let table = r#"{"sizes_bytes":[1073741824],"keyframes":[1]}"#;
    let facts = format!(r#"{{"table":{table},"parameter_sets":{{"sps":[],"pps":[]}}}}"#);
    let mut stream = Ended(0);
    let error = video.restore(facts.as_bytes(), &mut stream).unwrap_err();
    let is_end = |source: &io::Error| source.kind() == io::ErrorKind::UnexpectedEof;
    assert!(matches!(&error, VideoError::Io { source, .. } if is_end(source)), "{error}");
    assert!(stream.0 < 1 << 20, "{} bytes at once", stream.0);
}
