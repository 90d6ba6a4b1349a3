//! A video that is played while it is made: its boxes read by the independent parser, its fragments decoded.

use std::fs;

use evanesce_engine::video::{Mp4Writer, Quality, VideoSettings};

use super::{boxes, decode, decode_samples, psnr_db, smooth_frame};

const KEYFRAME: u32 = 0x0200_0000;
const BETWEEN: u32 = 0x0101_0000;

/// What one `moof` says: its number, the ticks at which it begins, flags and bytes of each frame.
struct Fragment<'a> {
    number: u32,
    begins: u64,
    frames: Vec<(u32, &'a [u8])>,
}

/// The fragments of a file, each with its frames found as a player finds them.
fn fragments(file: &[u8]) -> Vec<Fragment<'_>> {
    let moofs = boxes::boxes(file).into_iter().filter(|(kind, _)| kind == "moof");
    moofs
        .map(|(_, moof)| {
            let start = moof.as_ptr().addr() - file.as_ptr().addr() - 8;
            let (tfhd, tfdt) = (boxes::find(moof, "traf/tfhd"), boxes::find(moof, "traf/tfdt"));
            assert_eq!(boxes::u32_at(tfhd, 0) & 0x02_0000, 0x02_0000, "offsets count from the moof");
            assert_eq!(boxes::u32_at(tfhd, 4), 1, "of the only track");
            let begins = match tfdt[0] {
                0 => u64::from(boxes::u32_at(tfdt, 4)),
                _ => boxes::u64_at(tfdt, 4),
            };
            let trun = boxes::find(moof, "traf/trun");
            assert_eq!(
                boxes::u32_at(trun, 0) & 0xff_ffff,
                0x601,
                "an offset, then size and flags of each frame"
            );
            let mut at = start + boxes::u32_at(trun, 8) as usize;
            let frame = |i: usize| {
                let (size, flags) =
                    (boxes::u32_at(trun, 12 + 8 * i) as usize, boxes::u32_at(trun, 16 + 8 * i));
                at += size;
                (flags, &file[at - size..at])
            };
            let frames = (0..boxes::u32_at(trun, 4) as usize).map(frame).collect();
            Fragment { number: boxes::u32_at(boxes::find(moof, "mfhd"), 4), begins, frames }
        })
        .collect()
}

fn settings() -> VideoSettings {
    VideoSettings { quality: Quality::from_qp(12).unwrap(), ..VideoSettings::new(64, 64, 16) }
}

#[test]
fn what_is_there_at_any_moment_decodes_to_the_frames_pushed_so_far() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.mp4");
    fs::write(&path, "older").unwrap();
    let mut video = Mp4Writer::create_growing(&path, settings()).unwrap();
    for index in 0..43 {
        video.push(&smooth_frame(&settings(), index)).unwrap();
        let file = fs::read(&path).unwrap();
        let fragments = fragments(&file);
        let frames: Vec<_> = fragments.iter().flat_map(|fragment| fragment.frames.clone()).collect();
        assert_eq!(frames.len(), (index + 1) / 8 * 8, "whole half seconds");
        if !frames.is_empty() {
            let kinds: Vec<String> = boxes::boxes(&file).into_iter().map(|(kind, _)| kind).collect();
            assert_eq!(kinds[..4], ["ftyp", "moov", "moof", "mdat"]);
            assert_eq!(boxes::u32_at(boxes::find(&file, "moov/mvex/trex"), 12), 1000 * 16 / 16);
        }
        let expected: Vec<u32> =
            (0..frames.len()).map(|i| if i % 32 == 0 { KEYFRAME } else { BETWEEN }).collect();
        assert_eq!(frames.iter().map(|frame| frame.0).collect::<Vec<_>>(), expected);
        for (i, fragment) in fragments.iter().enumerate() {
            assert_eq!((fragment.number as usize, fragment.begins), (i + 1, 8 * i as u64 * 1000));
        }
        if index == 42 {
            let pictures = decode_samples(&file, frames.into_iter().map(|frame| frame.1));
            let worst = pictures.iter().enumerate().map(|(i, p)| psnr_db(p, &smooth_frame(&settings(), i)));
            assert!(worst.fold(f64::INFINITY, f64::min) > 40.0);
        }
    }
    video.finish().unwrap();
    let finished = fs::read(&path).unwrap();
    let plain = directory.path().join("plain.mp4");
    let mut video = Mp4Writer::create(&plain, settings()).unwrap();
    for index in 0..43 {
        video.push(&smooth_frame(&settings(), index)).unwrap();
    }
    video.finish().unwrap();
    assert!(finished == fs::read(&plain).unwrap(), "the finished file is that of a video that did not grow");
    assert_eq!(decode(&finished).len(), 43);
}

#[test]
fn a_growing_video_that_is_not_finished_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.mp4");
    let mut video = Mp4Writer::create_growing(&path, settings()).unwrap();
    for index in 0..9 {
        video.push(&smooth_frame(&settings(), index)).unwrap();
    }
    assert!(path.exists());
    drop(video);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    let video = Mp4Writer::create_growing(&path, settings()).unwrap();
    video.finish().unwrap_err();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}
