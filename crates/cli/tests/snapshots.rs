//! `generate --snapshots`: a command that ends before its video is done is given again, and goes on.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use support::{evanesce, generate, golden_checkpoint, names_in};

/// Where the tests have the job kept.
const KEPT: &str = "kept";
const MANIFEST: &str = "kept/evanesce-job/manifest";

/// A video that takes long enough to be stopped.
#[derive(Clone)]
struct Scene {
    model: PathBuf,
    asked: Vec<&'static str>,
    seed: &'static str,
    quality: &'static str,
}

impl Scene {
    fn whole() -> Self {
        let asked = vec!["a red ball", "--size", "64x64", "--frames", "41", "--steps", "200"];
        Self { model: golden_checkpoint(), asked, seed: "7", quality: "18" }
    }

    fn block_by_block() -> Self {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/shapes-causal");
        Self { model, asked: vec!["a red circle moving right", "--seconds", "10"], ..Self::whole() }
    }

    fn command(&self, directory: &Path, more: &[&str]) -> Command {
        let mut command = evanesce();
        command.current_dir(directory).args(["generate", "--threads", "2", "--model"]).arg(&self.model);
        command.args(&self.asked).args(["--seed", self.seed, "--quality", self.quality]).args(more);
        command
    }

    /// The file that nobody disturbs.
    fn undisturbed(&self) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let output = self.command(directory.path(), &[]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(directory.path().join("out.mp4")).unwrap()
    }

    /// Sends a signal as soon as a line of progress comes after the job was kept. How the command ended, and what it said.
    fn stopped(&self, directory: &Path, signal: &str) -> (ExitStatus, String) {
        let mut command = self.command(directory, &["--snapshots", KEPT]);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let (manifest, mut text) = (directory.join(MANIFEST), String::new());
        while !manifest.exists() {
            assert!(stderr.read_line(&mut text).unwrap() > 0, "it ended before it was kept: {text}");
        }
        let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        stderr.read_to_string(&mut text).unwrap();
        (child.wait().unwrap(), text)
    }

    /// The file that the command makes that keeps its job, and what it says.
    fn made(&self, directory: &Path) -> (Vec<u8>, String) {
        let output = self.command(directory, &["--snapshots", KEPT]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{text}");
        assert_eq!(names_in(&directory.join(KEPT)), [""; 0], "{text}");
        (std::fs::read(directory.join("out.mp4")).unwrap(), text)
    }
}

#[test]
fn a_video_whose_command_was_killed_is_gone_on_with_to_the_file_of_an_undisturbed_run() {
    for scene in [Scene::whole(), Scene::block_by_block()] {
        let expected = scene.undisturbed();
        let directory = tempfile::tempdir().unwrap();
        let (status, text) = scene.stopped(directory.path(), "-KILL");
        assert!(!status.success() && !directory.path().join("out.mp4").exists(), "{text}");
        let (video, text) = scene.made(directory.path());
        assert!(text.contains("goes on from kept, at block"), "{text}");
        assert!(video == expected, "{text}");
    }
}

#[test]
fn a_video_that_is_asked_to_stop_is_kept_and_a_command_of_other_settings_is_refused_and_leaves_it() {
    let scene = Scene::whole();
    let seed = Scene { seed: "8", ..scene.clone() };
    let quality = Scene { quality: "30", ..scene.clone() };
    let expected = scene.undisturbed();
    for (signal, other, why) in [("-TERM", seed, "other settings"), ("-INT", quality, "another quality")] {
        let directory = tempfile::tempdir().unwrap();
        let (status, text) = scene.stopped(directory.path(), signal);
        assert_eq!(status.code(), Some(1), "{text}");
        assert!(text.contains("the job is kept in kept, at block 1 of 1, "), "{text}");
        assert!(text.trim_end().ends_with("cancelled"), "{text}");
        assert_eq!(names_in(directory.path()), [KEPT]);
        let manifest = || std::fs::read(directory.path().join(MANIFEST)).unwrap();
        let kept = manifest();
        // One that grows would take the place of what is there as soon as it is opened.
        let there = directory.path().join("out.mp4");
        std::fs::write(&there, "an older video").unwrap();
        let output = other.command(directory.path(), &["--snapshots", KEPT, "--growing"]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.trim_end().lines().count()), (Some(2), 1), "{text}");
        assert!(text.contains("kept: keeps another job") && text.contains(why), "{text}");
        assert!(manifest() == kept && names_in(directory.path()) == [KEPT, "out.mp4"]);
        assert_eq!(std::fs::read(&there).unwrap(), b"an older video");
        let (video, text) = scene.made(directory.path());
        assert!(text.contains("goes on from kept, at block"), "{text}");
        assert!(video == expected, "{text}");
    }
}

#[test]
fn a_video_that_ends_by_an_error_says_where_it_is_kept() {
    let scene = Scene::whole();
    let directory = tempfile::tempdir().unwrap();
    // At this event it has done more than the ten units after which it is kept, and fewer than its 200 steps.
    let output =
        scene.command(directory.path(), &["--snapshots", KEPT, "--panic-at", "100"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let kept = text.lines().find(|line| line.starts_with("the job is kept in kept, at block 1 of 1, "));
    assert!(kept.is_some_and(|line| line.ends_with(": the same command goes on from there")), "{text}");
    assert!(text.trim_end().ends_with("what it was stands above"), "{text}");
    let (video, text) = scene.made(directory.path());
    assert!(text.contains("goes on from kept, at block"), "{text}");
    assert!(video == scene.undisturbed(), "{text}");
}

#[test]
fn a_snapshot_that_is_damaged_is_said_and_begun_anew() {
    let scene = Scene::whole();
    let directory = tempfile::tempdir().unwrap();
    let (_, text) = scene.stopped(directory.path(), "-KILL");
    let path = directory.path().join(MANIFEST);
    let mut manifest = std::fs::read(&path).unwrap_or_else(|_| panic!("{text}"));
    *manifest.last_mut().unwrap() ^= 1;
    std::fs::write(&path, manifest).unwrap();
    let (video, text) = scene.made(directory.path());
    assert!(text.contains("begins anew, since the snapshot in kept is damaged"), "{text}");
    assert!(video == scene.undisturbed(), "{text}");
}

#[test]
fn what_could_not_be_gone_on_with_and_places_where_nothing_can_be_kept_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |more: &[&str]| {
        let arguments = [&["a red ball", "--snapshots"][..], more].concat();
        let output = generate(&golden_checkpoint(), directory.path(), &arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.trim_end().lines().count()), (Some(2), 1), "{text}");
        text
    };
    assert!(refused(&[KEPT]).contains("--seed"), "another noise would be drawn");
    for flag in ["--noise-in", "--start-from", "--latents-out", "--frames-out"] {
        assert!(refused(&[KEPT, "--seed", "7", flag, "numbers.safetensors"]).contains(flag));
    }
    assert_eq!(names_in(directory.path()), [""; 0]);
    std::fs::write(directory.path().join("file"), "").unwrap();
    assert!(refused(&["file", "--seed", "7"]).contains("file: no snapshot can be kept there"));
    std::fs::create_dir(directory.path().join("busy")).unwrap();
    let busy = File::open(directory.path().join("busy")).unwrap();
    busy.lock().unwrap();
    assert!(refused(&["busy", "--seed", "7"]).contains("busy: is used by another evanesce"));
}
