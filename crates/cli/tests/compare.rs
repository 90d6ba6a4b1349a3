//! Two results against each other.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::path::Path;
use std::process::Output;

use support::{SMALL, evanesce, generate, golden_checkpoint};

/// A video and its frames of this seed in `dir`.
fn make(dir: &Path, seed: &str) {
    let (video, frames) = (format!("{seed}.mp4"), format!("{seed}.frames"));
    let own = ["a ball", "--seed", seed, "-o", &video, "--frames-out", &frames, "--quality", "12"];
    let arguments: Vec<&str> = own.into_iter().chain(SMALL).collect();
    let output = generate(&golden_checkpoint(), dir, &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn compare(dir: &Path, arguments: &[&str]) -> Output {
    evanesce().current_dir(dir).arg("compare").args(arguments).output().unwrap()
}

#[test]
fn the_same_seed_is_equal_another_one_is_not_and_a_video_is_near_its_frames() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), "1");
    make(dir.path(), "2");
    let whole = |a: &str, b: &str| {
        let output = compare(dir.path(), &[a, b, "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let parsed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        parsed["whole"].clone()
    };
    assert!(whole("1.frames", "1.frames")["psnr_db"].is_null(), "equal");
    let (other, video) = (whole("1.frames", "2.frames"), whole("1.mp4", "1.frames"));
    let decibels = |part: &serde_json::Value| part["psnr_db"].as_f64().unwrap();
    assert!(decibels(&other) + 5.0 < decibels(&video), "{other} {video}");
}

#[test]
fn frames_with_a_number_that_is_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, last: f32| {
        let header = r#"{"frames":{"dtype":"F32","shape":[2,16,16,3],"data_offsets":[0,6144]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([0; 6140]);
        bytes.extend(last.to_le_bytes());
        std::fs::write(dir.path().join(name), bytes).unwrap();
    };
    write("whole", 0.5);
    assert!(compare(dir.path(), &["whole", "whole"]).status.success());
    for (name, last) in [("nan", f32::NAN), ("infinite", f32::INFINITY)] {
        write(name, last);
        for arguments in [[name, "whole"], ["whole", name]] {
            let output = compare(dir.path(), &arguments);
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{stderr}");
            assert!(stderr.contains(name) && stderr.contains("position 1535"), "{stderr}");
            assert!(output.stdout.is_empty());
        }
    }
}

#[test]
fn what_cannot_be_compared_is_refused_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("text"), "long enough to be looked at").unwrap();
    for (arguments, says) in [
        (&["text", "text"][..], "neither a video"),
        (&["none.mp4", "text"], "none.mp4"),
        (&["text", "text", "--fps", "0"], "--fps"),
        (&["text"], "<B>"),
    ] {
        let output = compare(dir.path(), arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.trim_end().lines().count() == 1 && stderr.contains(says), "{says}: {stderr}");
        assert!(output.stdout.is_empty());
    }
}
