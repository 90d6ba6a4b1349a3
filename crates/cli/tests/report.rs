//! The page about a job, and a video that grows.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use support::{SMALL, copy_tree, generate, golden_checkpoint, names_in};

#[test]
fn the_page_names_what_was_asked_and_the_numbers_of_the_job() {
    let dir = tempfile::tempdir().unwrap();
    let own = ["<b>a ball</b>", "--report", "job.html", "--growing", "--json", "--seed", "9"];
    let output = generate(&golden_checkpoint(), dir.path(), &[&own[..], &SMALL].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(names_in(dir.path()), ["job.html", "out.mp4"]);
    let page = std::fs::read_to_string(dir.path().join("job.html")).unwrap();
    assert!(page.contains("&lt;b&gt;a ball") && !page.contains("<b>a ball"), "the prompt is text");
    assert!(page.contains("5 frames of 32x32") && page.contains("seed 9"));
    assert_eq!(page.matches("<figure>").count(), 5, "one picture a frame");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let weights = &json["memory"]["kinds"]["weights"];
    let cells =
        format!("<td>{}</td><td>{}</td><td>{}</td>", weights["puts"], weights["hits"], weights["misses"]);
    assert!(page.contains(&cells), "{cells}");
    assert!(page.contains("<title>weights</title>") && page.contains("<title>vae_feature</title>"));
    assert!(!page.contains("http"), "nothing is fetched");
}

#[test]
fn the_page_says_what_moved_how_long_it_was_waited_for_and_how_far_a_codec_is_from_another() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("causal");
    copy_tree(&golden_checkpoint(), &model);
    let path = model.join("model_index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    index["evanesce"] =
        serde_json::json!({ "causal": { "block_frames": 3, "sink_frames": 2, "recent_frames": 3 } });
    std::fs::write(path, index.to_string()).unwrap();
    let video = ["a ball", "--size", "48x32", "--frames", "41", "--steps", "2", "--seed", "3"];
    let made = |more: &[&str]| {
        let output = generate(&model, dir.path(), &[&video[..], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    made(&["-o", "exact.mp4", "--frames-out", "exact.frames"]);
    let reference = ["--reference", "exact.frames", "--frames-out", "ours.frames"];
    made(&[&["-o", "int4.mp4", "--kv-codec", "int4", "--report", "job.html"], &reference[..]].concat());
    let page = std::fs::read_to_string(dir.path().join("job.html")).unwrap();
    for part in
        ["weights, from the checkpoint", "device and host", "in time, 0 late", "arithmetic stood still for"]
    {
        assert!(page.contains(part), "{part}");
    }
    // Rows of 32 numbers: half a group, so five bits a number.
    assert!(page.contains("<td>all layers</td><td>int4</td><td>int4</td>"), "the codec");
    assert!(page.contains("<td>5.00</td>"), "its bits");
    assert!(
        page.contains("Against exact.frames") && page.contains("first block") && page.contains(" dB</td>")
    );
}

#[test]
fn a_report_that_cannot_be_written_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    for (path, says) in [("none/job.html", "no directory none"), (".", "is a directory")] {
        let output =
            generate(&golden_checkpoint(), dir.path(), &[&["a ball", "--report", path][..], &SMALL].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
        assert!(names_in(dir.path()).is_empty());
    }
}
