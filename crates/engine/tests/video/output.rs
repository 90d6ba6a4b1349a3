//! What is at the output path and around it, whatever happens.

use std::fs;
use std::path::Path;

use evanesce_engine::video::{FrameSink, Mp4Writer, VideoError, VideoSettings};

fn settings() -> VideoSettings {
    VideoSettings::new(64, 64, 16)
}

fn names_in(directory: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(directory).unwrap().map(name).collect();
    names.sort();
    names
}

fn grey() -> Vec<f32> {
    vec![0.5; settings().frame_len()]
}

#[test]
fn a_writer_dropped_without_finish_leaves_the_directory_empty() {
    let directory = tempfile::tempdir().unwrap();
    let mut video = Mp4Writer::create(&directory.path().join("out.mp4"), settings()).unwrap();
    video.push(&grey()).unwrap();
    let names = names_in(directory.path());
    assert!(matches!(&names[..], [name] if name.starts_with(".evanesce-") && name.ends_with(".mp4.part")));
    drop(video);
    assert_eq!(names_in(directory.path()), [""; 0]);
}

#[test]
fn an_older_file_stays_until_the_new_video_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.mp4");
    fs::write(&path, "older").unwrap();
    let mut video = Mp4Writer::create(&path, settings()).unwrap();
    video.push(&grey()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"older");
    let summary = video.finish().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), summary.bytes);
    assert_eq!(names_in(directory.path()), ["out.mp4"]);
}

#[test]
fn the_video_has_the_permissions_of_any_new_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.mp4");
    let mut video = Mp4Writer::create(&path, settings()).unwrap();
    video.push(&grey()).unwrap();
    video.finish().unwrap();
    fs::write(directory.path().join("plain"), "").unwrap();
    let permissions = |name| fs::metadata(directory.path().join(name)).unwrap().permissions();
    assert_eq!(permissions("out.mp4"), permissions("plain"));
}

#[test]
fn a_path_that_cannot_hold_a_file_is_refused_before_any_work() {
    let directory = tempfile::tempdir().unwrap();
    let inside = |name: &str| directory.path().join(name);
    fs::create_dir(inside("folder")).unwrap();
    fs::write(inside("file"), "").unwrap();
    for (path, told) in [
        (inside("folder"), "it names a directory"),
        (inside("new/"), "it names a directory"),
        (inside(".."), "it names a directory"),
        (inside("absent/out.mp4"), "there is no directory"),
        (inside("file/out.mp4"), "there is no directory"),
    ] {
        let error = Mp4Writer::create(&path, settings()).unwrap_err();
        let sentence = error.to_string();
        assert!(matches!(error, VideoError::Output { .. }) && sentence.contains(told), "{sentence}");
    }
    assert_eq!(names_in(directory.path()), ["file", "folder"]);
}

/// The kernel's own file system takes no new file from anybody, the superuser included.
#[test]
#[cfg(target_os = "linux")]
fn a_directory_that_takes_no_file_is_named_at_once() {
    let error = Mp4Writer::create(Path::new("/sys/out.mp4"), settings()).unwrap_err().to_string();
    assert_eq!(error, "the directory of /sys/out.mp4 is not writable: choose another output directory");
}

#[test]
fn a_video_without_frames_is_refused_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let video = Mp4Writer::create(&directory.path().join("out.mp4"), settings()).unwrap();
    assert!(matches!(video.finish(), Err(VideoError::Empty)));
    assert_eq!(names_in(directory.path()), [""; 0]);
}

#[test]
fn a_video_that_lacks_a_frame_is_never_published() {
    let directory = tempfile::tempdir().unwrap();
    let mut video: Box<dyn FrameSink> =
        Box::new(Mp4Writer::create(&directory.path().join("out.mp4"), settings()).unwrap());
    video.push(&grey()).unwrap();
    let error = video.push(&[0.0; 7]).unwrap_err();
    assert_eq!(error.to_string(), "frame 1 holds 7 numbers, expected 12288 (height x width x 3)");
    assert!(matches!(video.push(&grey()), Err(VideoError::Incomplete { frame: 1 })));
    assert!(matches!(video.finish(), Err(VideoError::Incomplete { frame: 1 })));
    assert_eq!(names_in(directory.path()), [""; 0]);
}
