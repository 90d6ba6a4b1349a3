//! The command as a user runs it.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::path::Path;
use std::process::Stdio;

use support::{SMALL, copy_tree, evanesce, generate, golden_checkpoint, names_in};

#[test]
fn json_is_one_object_whose_numbers_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = [&["a red ball", "--json", "--seed", "7"][..], &SMALL].concat();
    let output = generate(&golden_checkpoint(), dir.path(), &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected =
        serde_json::json!({"video": "out.mp4", "frames": 5, "width": 32, "height": 32, "fps": 16, "seed": 7});
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&json[name], value, "{name}");
    }
    let seconds = json["seconds"].as_object().unwrap();
    let parts: f64 =
        seconds.iter().filter(|(name, _)| *name != "total").map(|(_, s)| s.as_f64().unwrap()).sum();
    assert!(parts <= seconds["total"].as_f64().unwrap() * 1.001, "{seconds:?}");
    for tier in ["device", "host"] {
        assert_eq!(json["memory"]["tiers"][tier]["owned_at_end"], 0);
        assert!(
            json["memory"]["tiers"][tier]["peak"].as_u64()
                <= json["memory"]["tiers"][tier]["budget"].as_u64()
        );
    }
    assert!(json["process_peak_bytes"].as_u64().unwrap() > 1_000_000);
    assert_eq!(names_in(dir.path()), ["out.mp4"]);
}

#[test]
fn an_unconditional_video_is_the_same_under_any_guidance_and_unlike_a_prompted_one() {
    let dir = tempfile::tempdir().unwrap();
    let video = |asked: &[&str], name: &str| {
        let arguments = [asked, &["--seed", "7", "-o", name], &SMALL].concat();
        let output = generate(&golden_checkpoint(), dir.path(), &arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(dir.path().join(name)).unwrap()
    };
    let free = video(&["--unconditional", "--guidance-high", "2", "--guidance-low", "2"], "a.mp4");
    let strong = video(&["--unconditional", "--guidance-high", "7", "--guidance-low", "9"], "b.mp4");
    assert_eq!(free, strong, "there is nothing to be guided to");
    assert_ne!(free, video(&["a red ball"], "c.mp4"));
}

#[test]
fn weights_in_f32_are_held_in_bf16_unless_asked_and_what_is_bf16_already_gives_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let latents = |model: &Path, asked: &[&str]| {
        let common = ["a red ball", "--seed", "7", "--latents-out", "latents.safetensors"];
        let output = generate(model, dir.path(), &[&common[..], asked, &SMALL].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(dir.path().join("latents.safetensors")).unwrap()
    };
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/shapes");
    for (model, is_f32) in [(golden_checkpoint(), true), (shipped, false)] {
        let unasked = latents(&model, &[]);
        assert_eq!(unasked, latents(&model, &["--weights", "bf16"]));
        assert_eq!(unasked != latents(&model, &["--weights", "stored"]), is_f32, "{}", model.display());
    }
}

#[test]
fn a_video_goes_where_a_link_leads_and_the_link_stays() {
    let at_the_end: &[&str] = &[];
    for more in [at_the_end, &["--growing"]] {
        let dir = tempfile::tempdir().unwrap();
        let (held, link) = (dir.path().join("held"), dir.path().join("link.mp4"));
        std::fs::write(&held, "older").unwrap();
        std::os::unix::fs::symlink("held", &link).unwrap();
        let arguments = [&["a red ball", "-o", "link.mp4"][..], more, &SMALL].concat();
        let output = generate(&golden_checkpoint(), dir.path(), &arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(link.is_symlink());
        assert_eq!(&std::fs::read(&held).unwrap()[4..8], b"ftyp");
        assert_eq!(names_in(dir.path()), ["held", "link.mp4"]);
    }
}

/// Exactly, not nearly: a stricter bound than any tolerance between instruction sets.
#[test]
fn every_instruction_set_makes_the_same_video() {
    let dir = tempfile::tempdir().unwrap();
    let videos = evanesce_engine::kernels::Isa::present().into_iter().map(|isa| {
        let arguments = [&["a red ball", "--seed", "3", "-o", isa.as_str()][..], &SMALL].concat();
        let mut command = evanesce();
        command.current_dir(dir.path()).env("EVANESCE_ISA", isa.as_str()).args(["generate", "--model"]);
        let output = command.arg(golden_checkpoint()).args(&arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(dir.path().join(isa.as_str())).unwrap()
    });
    let videos: Vec<Vec<u8>> = videos.collect();
    assert!(!videos[0].is_empty() && videos.iter().all(|video| *video == videos[0]));
}

#[test]
fn the_same_seed_gives_the_same_file_and_another_seed_another() {
    let dir = tempfile::tempdir().unwrap();
    let video = |name: &str, seed: &str, threads: &str| {
        let arguments = [&["a red ball", "--seed", seed, "-o", name][..], &SMALL].concat();
        let mut command = evanesce();
        command.current_dir(dir.path()).args(["generate", "--threads", threads, "--model"]);
        let status = command.arg(golden_checkpoint()).args(&arguments).output().unwrap().status;
        assert!(status.success());
        std::fs::read(dir.path().join(name)).unwrap()
    };
    let first = video("a.mp4", "3", "2");
    assert_eq!(first, video("b.mp4", "3", "1"));
    assert_ne!(first, video("c.mp4", "4", "2"));
}

/// Interrupts at whatever moment each delay happens to hit; every outcome must be clean.
#[test]
fn an_interrupt_leaves_no_file_and_a_short_message() {
    let long = ["a red ball", "--size", "128x128", "--frames", "41", "--steps", "50"];
    for n_lines in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let mut command = evanesce();
        command.current_dir(dir.path()).args(["generate", "--model"]).arg(golden_checkpoint()).args(long);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
        let mut text = String::new();
        // Line 1 ends the text stage; later ones come from within denoising.
        for _ in 0..=n_lines {
            std::io::BufRead::read_line(&mut stderr, &mut text).unwrap();
        }
        let kill =
            std::process::Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
        assert!(kill.success());
        std::io::Read::read_to_string(&mut stderr, &mut text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{text}");
        assert!(text.trim_end().ends_with("cancelled"), "{text}");
        assert_eq!(names_in(dir.path()), [""; 0], "{text}");
    }
}

#[test]
fn what_a_pipeline_of_python_saved_runs_from_another_directory() {
    let dir = tempfile::tempdir().unwrap();
    copy_tree(&golden_checkpoint(), &dir.path().join("m"));
    let output = generate(&dir.path().join("m"), dir.path(), &[&["a ball"][..], &SMALL].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stderr).unwrap();
    for word in ["cross_kv", "vae_feature", "weights", "out.mp4", "seed", "still owns 0 B"] {
        assert!(text.contains(word), "{word} is not in:\n{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}
