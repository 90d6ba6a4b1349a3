//! A produced video, read back by an independent MP4 parser and openh264's decoder.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod boxes;
mod growing;
mod hostile;
mod output;

use evanesce_engine::video::{Mp4Writer, Quality, VideoSettings, VideoSummary};
use openh264::decoder::Decoder;
use openh264::formats::YUVSource;

/// Frame `index` of smooth colour waves moving across the picture, `[height, width, 3]`.
fn smooth_frame(settings: &VideoSettings, index: usize) -> Vec<f32> {
    let mut rgb = Vec::with_capacity(settings.frame_len());
    for y in 0..settings.height {
        for x in 0..settings.width {
            let phase = (x as f32 + 0.7 * y as f32 + 2.0 * index as f32) / 40.0;
            rgb.extend(
                [phase.sin(), (phase * 0.6 + 1.0).cos(), (phase * 0.3 - y as f32 / 50.0).sin()]
                    .map(|v| 0.5 + 0.45 * v),
            );
        }
    }
    rgb
}

fn write(settings: VideoSettings, frames: usize) -> (Vec<u8>, VideoSummary) {
    let frames: Vec<Vec<f32>> = (0..frames).map(|index| smooth_frame(&settings, index)).collect();
    write_frames(settings, &frames)
}

fn write_frames(settings: VideoSettings, frames: &[Vec<f32>]) -> (Vec<u8>, VideoSummary) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.mp4");
    let mut video = Mp4Writer::create(&path, settings).unwrap();
    for frame in frames {
        video.push(frame).unwrap();
    }
    let summary = video.finish().unwrap();
    let file = std::fs::read(&path).unwrap();
    assert_eq!(summary.bytes, file.len() as u64);
    (file, summary)
}

/// Every frame of the file as RGB in 0..1, decoded in order.
fn decode(file: &[u8]) -> Vec<Vec<f64>> {
    decode_samples(file, boxes::samples(file).into_iter())
}

/// The same of the frames that `samples` are.
fn decode_samples<'a>(file: &[u8], samples: impl Iterator<Item = &'a [u8]>) -> Vec<Vec<f64>> {
    let start_code = [0, 0, 0, 1];
    let (_, entry) = boxes::sample_entry(file);
    let avcc = entry.iter().find(|(kind, _)| kind == "avcC").unwrap().1;
    let (sps, pps) = boxes::parameter_sets(avcc);
    let mut decoder = Decoder::new().unwrap();
    let mut frames = Vec::new();
    for (index, sample) in samples.enumerate() {
        let mut stream =
            if index == 0 { [&start_code[..], sps, &start_code, pps].concat() } else { Vec::new() };
        for nal in boxes::nal_units(sample) {
            stream.extend_from_slice(&start_code);
            stream.extend_from_slice(nal);
        }
        frames.push(to_rgb(&decoder.decode(&stream).unwrap().expect("every sample is a whole frame")));
    }
    frames
}

/// Inverse of BT.709 limited range, chroma repeated over its 2x2 square.
fn to_rgb(picture: &impl YUVSource) -> Vec<f64> {
    let (width, height) = picture.dimensions();
    let (luma_stride, cb_stride, cr_stride) = picture.strides();
    let mut rgb = Vec::new();
    for (row, column) in (0..height).flat_map(|r| (0..width).map(move |c| (r, c))) {
        let y = (f64::from(picture.y()[row * luma_stride + column]) - 16.0) / 219.0;
        let cb = (f64::from(picture.u()[row / 2 * cb_stride + column / 2]) - 128.0) / 224.0;
        let cr = (f64::from(picture.v()[row / 2 * cr_stride + column / 2]) - 128.0) / 224.0;
        rgb.extend([y + 1.5748 * cr, y - 0.187_324 * cb - 0.468_124 * cr, y + 1.8556 * cb]);
    }
    rgb
}

fn psnr_db(decoded: &[f64], original: &[f32]) -> f64 {
    assert_eq!(decoded.len(), original.len());
    let squares: f64 = decoded.iter().zip(original).map(|(d, o)| (d - f64::from(*o)).powi(2)).sum();
    -10.0 * (squares / original.len() as f64).log10()
}

fn worst_psnr_db(file: &[u8], settings: &VideoSettings) -> f64 {
    let decoded = decode(file);
    let psnr = decoded.iter().enumerate().map(|(i, frame)| psnr_db(frame, &smooth_frame(settings, i)));
    psnr.fold(f64::INFINITY, f64::min)
}

#[test]
fn decoded_frames_are_the_pushed_frames_within_forty_decibels() {
    for (width, height, frames) in [(64, 64, 40), (16, 16, 3), (208, 112, 5)] {
        let settings = VideoSettings::new(width, height, 16);
        let (file, _) = write(settings, frames);
        assert_eq!(decode(&file).len(), frames);
        let worst_db = worst_psnr_db(&file, &settings);
        assert!(worst_db >= 40.0, "{width}x{height}: {worst_db:.2} dB");
    }
}

/// openh264's output buffer holds two thirds of the raw picture, and noise codes into more than that.
#[test]
fn pure_noise_in_the_middle_of_a_video_is_encoded_too() {
    let settings =
        VideoSettings { quality: Quality::from_qp(12).unwrap(), ..VideoSettings::new(128, 128, 16) };
    let mut state = 1u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u8::try_from(state >> 31).unwrap())
    };
    let frames: Vec<Vec<f32>> = (0..9)
        .map(|i| match i {
            3..6 => (0..settings.frame_len()).map(|_| noise()).collect(),
            _ => smooth_frame(&settings, i),
        })
        .collect();
    let (file, _) = write_frames(settings, &frames);
    let psnr: Vec<f64> = decode(&file).iter().zip(&frames).map(|(d, o)| psnr_db(d, o)).collect();
    assert_eq!(boxes::keyframes(&file), [1, 4], "the encoder starts anew at the noise");
    assert!([0, 1, 2, 6, 7, 8].iter().all(|&i| psnr[i] >= 40.0), "{psnr:?}");
}

#[test]
fn a_finer_quality_is_larger_and_closer() {
    let measured = [12, 24, 36, 48].map(|qp| {
        let settings =
            VideoSettings { quality: Quality::from_qp(qp).unwrap(), ..VideoSettings::new(128, 96, 16) };
        let (file, summary) = write(settings, 6);
        (summary.bytes, worst_psnr_db(&file, &settings))
    });
    for pair in measured.windows(2) {
        assert!(pair[0].0 > pair[1].0 && pair[0].1 > pair[1].1, "{measured:?}");
    }
}

#[test]
fn every_frame_lasts_exactly_one_over_the_frame_rate() {
    for (fps, frames) in [(16, 81), (24, 5), (30, 1), (1, 3)] {
        let (file, summary) = write(VideoSettings::new(64, 64, fps), frames);
        let count = u32::try_from(frames).unwrap();
        let (timescale, duration) = boxes::time(boxes::find(&file, "moov/trak/mdia/mdhd"));
        assert_eq!(boxes::frame_durations(&file), [(count, timescale / fps)]);
        assert_eq!(timescale % fps, 0, "a frame is a whole number of ticks");
        assert_eq!(duration * u64::from(fps), u64::from(timescale) * frames as u64);
        assert_eq!(boxes::time(boxes::find(&file, "moov/mvhd")), (timescale, duration));
        assert_eq!(summary.frames, frames);
        assert!((summary.duration_s - frames as f64 / f64::from(fps)).abs() < 1e-12);
    }
}

#[test]
fn the_index_comes_before_the_frames() {
    let (file, _) = write(VideoSettings::new(64, 64, 16), 3);
    let kinds: Vec<String> = boxes::boxes(&file).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["ftyp", "moov", "mdat"]);
    let total: usize = boxes::samples(&file).iter().map(|s| s.len()).sum();
    assert_eq!(total, boxes::find(&file, "mdat").len(), "the samples fill the media box");
}

#[test]
fn keyframes_come_every_two_seconds_and_samples_hold_no_parameter_sets() {
    let (file, _) = write(VideoSettings::new(64, 64, 8), 40);
    assert_eq!(boxes::keyframes(&file), [1, 17, 33]);
    for (index, sample) in boxes::samples(&file).into_iter().enumerate() {
        let expected = if index % 16 == 0 { 5 } else { 1 };
        let types: Vec<u8> = boxes::nal_units(sample).into_iter().map(|nal| nal[0] & 0x1f).collect();
        assert_eq!(types, [expected], "sample {index}");
    }
}

#[test]
fn size_profile_and_colour_are_told_by_container_and_stream_alike() {
    let (file, _) = write(VideoSettings::new(208, 112, 16), 2);
    let (fields, entry) = boxes::sample_entry(&file);
    assert_eq!((boxes::u16_at(fields, 24), boxes::u16_at(fields, 26)), (208, 112));
    let body = |kind: &str| entry.iter().find(|(k, _)| k == kind).unwrap().1;

    let (bt709, limited) = ([0, 1], 0);
    assert_eq!(body("colr"), [b"nclx", &bt709[..], &bt709, &bt709, &[limited]].concat());

    let avcc = body("avcC");
    let (sps, pps) = boxes::parameter_sets(avcc);
    assert_eq!((avcc[0], avcc[4]), (1, 0xff), "version 1, lengths of 4 bytes");
    assert_eq!(avcc[1..4], sps[1..4], "profile, constraints and level are those of the stream");
    assert_eq!((sps[0] & 0x1f, pps[0] & 0x1f), (7, 8));
    let expected = boxes::Sps { profile: 66, width: 208, height: 112, full_range: false, colour: [1; 3] };
    assert_eq!(boxes::Sps::parse(sps), expected);
}

#[test]
fn the_same_frames_give_the_same_bytes() {
    let settings = VideoSettings::new(96, 64, 16);
    assert!(write(settings, 35).0 == write(settings, 35).0);
}
