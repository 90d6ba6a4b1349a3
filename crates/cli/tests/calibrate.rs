//! `evanesce calibrate` writes what `generate` reads.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use support::{copy_tree, evanesce, generate, golden_checkpoint, names_in};

const VIDEO: [&str; 6] = ["--size", "32x32", "--frames", "21", "--steps", "2"];

/// The golden checkpoint with a section that makes it causal.
fn causal(dir: &Path) {
    copy_tree(&golden_checkpoint(), dir);
    let path = dir.join("model_index.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let rollout =
        serde_json::json!({ "block_frames": 3, "sink_frames": 1, "recent_frames": 3, "positions": "window" });
    index["evanesce"] = serde_json::json!({ "causal": rollout });
    std::fs::write(path, index.to_string()).unwrap();
}

fn calibrate(model: &Path, dir: &Path, more: &[&str]) -> Output {
    let mut command = evanesce();
    command.current_dir(dir).args(["calibrate", "a ball", "--threads", "2", "--model"]).arg(model);
    command.args(VIDEO).args(more).output().unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_choice_under_a_budget_is_what_a_video_takes() {
    let [model, dir] = [0, 1].map(|_| tempfile::tempdir().unwrap());
    causal(model.path());
    let chosen = json(&calibrate(model.path(), dir.path(), &["--kv-memory", "10KiB", "--json"]));
    assert_eq!(names_in(dir.path()), ["kv-codecs.json"]);
    let pages_bytes = chosen["pages_bytes"].as_u64().unwrap();
    assert!(pages_bytes <= 10 << 10, "{chosen}");
    let error = chosen["error"].as_f64().unwrap();
    assert!(error > 0.0 && error < 1.0, "{chosen}");
    assert_eq!(chosen["measured"]["low_noise"].as_array().unwrap().len(), 2);

    let more = [&VIDEO[..], &["a ball", "--seed", "1", "--json", "--kv-codec", "kv-codecs.json"]].concat();
    let made = json(&generate(model.path(), dir.path(), &more));
    let pages = &made["memory"]["kinds"]["self_kv"];
    assert_eq!(pages["encoded_bytes"].as_u64(), Some(pages_bytes), "{made}");
}

#[test]
fn without_a_model_the_shipped_one_that_has_pages_is_calibrated() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = evanesce();
    command.current_dir(dir.path()).args([
        "calibrate",
        "a red ball",
        "--threads",
        "2",
        "--error",
        "0.05",
        "--json",
    ]);
    let chosen = json(&command.args(["--frames", "21", "--steps", "2"]).output().unwrap());
    assert!(chosen["error"].as_f64().is_some_and(|error| error < 0.05), "{chosen}");
    // Readable for whoever may read this process's files, such as a service of another user.
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(dir.path().join("kv-codecs.json")).unwrap().permissions(),
    );
    let draft = dir.path().join("draft");
    std::fs::write(&draft, "").unwrap();
    let usual = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(draft).unwrap().permissions());
    assert_eq!(mode, usual);
}

#[test]
fn what_cannot_be_done_is_said() {
    let [model, dir] = [0, 1].map(|_| tempfile::tempdir().unwrap());
    causal(model.path());
    let refused = |more: &[&str], says: &str| {
        let output = calibrate(model.path(), dir.path(), more);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        // A line for each stage would stand before it, had anything been computed.
        assert_eq!(stderr.trim_end().lines().count(), 1, "{more:?}: {stderr}");
        assert!(stderr.contains(says), "{more:?}: {stderr}");
        assert_eq!(names_in(dir.path()), [""; 0]);
    };
    refused(&["--kv-memory", "1KiB"], "cannot be met");
    refused(&["--error", "2"], "between 0 and 1");
    refused(&[], "--kv-memory");
    refused(&["--error", "0.1", "--codecs", "int3"], "int4");
    refused(&["--error", "0.1", "-o", "nowhere/x.json"], "create it first");
    refused(&["--error", "0.1", "-o", "/"], "is a directory");
    refused(&["--error", "0.1", "-o", "/proc/x.json"], "no file can be made in /proc");
    let mut one_block = evanesce();
    one_block.args(["calibrate", "a ball", "--error", "0.1", "--size", "32x32", "--frames", "9"]);
    one_block.current_dir(dir.path()).args(["--steps", "2", "--model"]).arg(model.path());
    let output = one_block.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("one block only") && stderr.trim_end().lines().count() == 1, "{stderr}");
    assert_eq!(names_in(dir.path()), [""; 0]);
}
