//! Every mistake gets one clear sentence and exit code 2, and leaves no file.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use support::{SMALL, copy_tree, evanesce, generate, golden_checkpoint, names_in};

/// Runs with `arguments` and checks the refusal: exit 2, one line that says each of `says`, nothing on standard output, no file.
fn refused(model: &Path, arguments: &[impl AsRef<OsStr>], says: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let output = generate(model, dir.path(), arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    let shown: Vec<_> =
        arguments.iter().map(|a| a.as_ref().to_string_lossy().chars().take(60).collect::<String>()).collect();
    assert_eq!(output.status.code(), Some(2), "{shown:?}: {stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{shown:?}: {stderr}");
    for word in says {
        assert!(stderr.contains(word), "{shown:?}: expected {word:?} in: {stderr}");
    }
    assert!(output.stdout.is_empty(), "{shown:?}");
    assert_eq!(names_in(dir.path()), [""; 0], "{shown:?}");
}

fn refused_flags(flags: &[&str], says: &[&str]) {
    let with_small: Vec<&str> = ["a ball"].into_iter().chain(flags.iter().copied()).collect();
    refused(&golden_checkpoint(), &with_small, says);
}

#[test]
fn numbers_out_of_range_are_refused_with_the_range() {
    refused_flags(&["--size", "33x32"], &["33x32", "32x32", "multiples of 16"]);
    refused_flags(&["--size", "0x32"], &["0", "16"]);
    refused_flags(&["--size", "99999x32"], &["99999"]);
    refused_flags(&["--size", "big"], &["--size", "832x480"]);
    refused_flags(&["--frames", "6"], &["6", "5", "9"]);
    refused_flags(&["--frames", "0"], &["frames", "0"]);
    refused_flags(&["--frames", "99999999"], &["frames", "253"]);
    refused_flags(&["--frames", "many"], &["--frames"]);
    refused_flags(&["--frames", "-1"], &["--frames", "a whole number from 0 on"]);
    refused_flags(&["--kv-codec", "int3"], &["--kv-codec", "int4, k8v4"]);
    refused_flags(&["--kv-codec", "int8"], &["block by block"]);
    refused_flags(&["--frames", "5", "--seconds", "2"], &["--frames", "--seconds"]);
    refused_flags(&["--unconditional"], &["--unconditional", "[PROMPT]"]);
    refused_flags(&["--seconds", "nan"], &["seconds"]);
    refused_flags(&["--seconds=-3"], &["seconds", "-3"]);
    refused_flags(&["--steps", "0"], &["steps", "1000"]);
    refused_flags(&["--steps", "1001"], &["steps", "1000"]);
    refused_flags(&["--guidance-high", "nan"], &["guidance-high"]);
    refused_flags(&["--guidance-low", "1e9"], &["guidance-low", "100"]);
    refused_flags(&["--boundary", "1.5"], &["boundary"]);
    refused_flags(&["--shift", "0"], &["shift"]);
    refused_flags(&["--shift", "inf"], &["shift"]);
    refused_flags(&["--seed", "-1"], &["seed", "a whole number from 0 on"]);
    refused_flags(&["--seed", "99999999999999999999999"], &["seed", "too large"]);
    refused_flags(&["--fps", "0"], &["fps"]);
    refused_flags(&["--quality", "52"], &["quality"]);
    refused_flags(&["--solver", "magic"], &["magic", "unipc", "euler"]);
    refused_flags(&["--threads", "0"], &["--threads"]);
    refused_flags(&["--kv-window", "9"], &["a window of earlier frames", "makes it at once"]);
}

#[test]
fn prompts_that_say_nothing_or_too_much_are_refused() {
    let model = golden_checkpoint();
    refused(&model, &[""], &["prompt", "empty"]);
    refused(&model, &["  \t\n "], &["prompt", "empty"]);
    refused(&model, &["x".repeat(100_000)], &["100000", "10000"]);
    refused(
        &model,
        &["a ball".to_owned(), "--negative".to_owned(), "y".repeat(100_000)],
        &["negative", "100000"],
    );
    refused(&model, &[OsString::from(OsStr::from_bytes(b"ball \xff\xfe"))], &["UTF-8"]);
}

#[test]
fn budgets_too_small_for_one_step_say_how_much_is_needed() {
    let small: Vec<&str> = ["a ball"].into_iter().chain(SMALL).collect();
    let with = |budget| [small.clone(), vec!["--device-memory", budget]].concat();
    refused(&golden_checkpoint(), &with("10kB"), &["10000 bytes", "needs"]);
    refused(&golden_checkpoint(), &with("lots"), &["--device-memory", "8GiB"]);
}

#[test]
fn outputs_that_cannot_be_written_are_refused_before_anything_runs() {
    let model = golden_checkpoint();
    let small: Vec<&str> = ["a ball"].into_iter().chain(SMALL).collect();
    let with = |flag: &'static str, path: &str| {
        let small = small.iter().map(|word| (*word).to_owned());
        small.chain([flag.to_owned(), path.to_owned()]).collect::<Vec<String>>()
    };
    for flag in ["-o", "--latents-out", "--frames-out"] {
        refused(&model, &with(flag, "missing/out.file"), &["missing"]);
        refused(&model, &with(flag, "/"), &["/"]);
    }
    let dir = tempfile::tempdir().unwrap();
    let locked = dir.path().join("locked");
    std::fs::create_dir(&locked).unwrap();
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o555)).unwrap();
    let is_root = std::fs::write(locked.join("probe"), "").is_ok();
    if !is_root {
        let inside = locked.join("out.mp4");
        refused(&model, &with("-o", inside.to_str().unwrap()), &["locked"]);
    }
    // A directory where not even root can make a file.
    for flag in ["-o", "--latents-out", "--frames-out", "--report"] {
        refused(&model, &with(flag, "/proc/out.file"), &["/proc/out.file"]);
    }
}

#[test]
fn what_is_no_file_is_never_replaced_by_one() {
    let model = golden_checkpoint();
    let dir = tempfile::tempdir().unwrap();
    let (socket, link, lost) = (dir.path().join("socket"), dir.path().join("link"), dir.path().join("lost"));
    let _listener = UnixListener::bind(&socket).unwrap();
    std::os::unix::fs::symlink(&socket, &link).unwrap();
    std::os::unix::fs::symlink(dir.path().join("nowhere"), &lost).unwrap();
    for flags in [&["-o"][..], &["--latents-out"], &["--frames-out"], &["--report"], &["--growing", "-o"]] {
        for (path, says) in [(&socket, "a socket"), (&link, "a socket"), (&lost, "leads to no file")] {
            let path = path.to_str().unwrap();
            refused(&model, &[&["a ball"][..], &SMALL, flags, &[path]].concat(), &[path, says]);
        }
    }
    assert!(std::fs::symlink_metadata(&socket).unwrap().file_type().is_socket());
    assert!([link, lost].iter().all(|path| path.is_symlink()));
}

#[test]
fn a_file_that_is_read_is_never_written_over() {
    let model = golden_checkpoint();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("input.json");
    std::fs::write(&path, "precious").unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for (flag, named) in [("-o", "--output"), ("--frames-out", "--frames-out")] {
        for input in ["--noise-in", "--start-from", "--kv-codec"] {
            for read in [&path, &link] {
                let own = ["--growing", flag, path.to_str().unwrap(), input, read.to_str().unwrap()];
                let says = format!("{named} and {input}");
                refused(&model, &[&["a ball"][..], &SMALL, &own].concat(), &[says.as_str()]);
            }
        }
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn files_that_would_be_written_over_each_other_and_references_that_do_not_fit_are_refused() {
    let model = golden_checkpoint();
    let small: Vec<&str> = ["a ball"].into_iter().chain(SMALL).collect();
    let with = |more: &[&'static str]| [&small[..], more].concat();
    refused(&model, &with(&["--frames-out", "out.mp4"]), &["out.mp4", "--output and --frames-out"]);
    refused(&model, &with(&["--report", "./x", "--latents-out", "x"]), &["--latents-out and --report"]);
    let page = ["--report", "x.html", "--reference"];
    // The video would replace what it is to be compared with.
    refused(&model, &with(&[&page[..], &["out.mp4"]].concat()), &["--output and --reference"]);
    refused(&model, &with(&[&page[..], &["typo.mp4"]].concat()), &["typo.mp4"]);
    let dir = tempfile::tempdir().unwrap();
    let made = generate(&model, dir.path(), &["a ball", "--size", "32x32", "--frames", "9", "--steps", "2"]);
    assert!(made.status.success());
    let longer = dir.path().join("out.mp4");
    let more = ["--report", "x.html", "--reference", longer.to_str().unwrap()];
    refused(&model, &[&small[..], &more].concat(), &["9 frames of 32x32", "5 frames of 32x32"]);
    // One that fits, but of which the last number is none.
    let frames = dir.path().join("frames");
    let frames = frames.to_str().unwrap();
    let made = generate(&model, dir.path(), &[&small[..], &["--frames-out", frames]].concat());
    assert!(made.status.success());
    let mut bytes = std::fs::read(frames).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(frames, bytes).unwrap();
    let more = ["--report", "x.html", "--reference", frames];
    refused(&model, &[&small[..], &more].concat(), &[frames, "NaN"]);
}

#[test]
fn noise_files_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("noise.safetensors");
    let small: Vec<&str> = ["a ball"].into_iter().chain(SMALL).collect();
    let with_noise = [small, vec!["--noise-in", path.to_str().unwrap()]].concat();
    refused(&golden_checkpoint(), &with_noise, &["noise.safetensors"]);
    std::fs::write(&path, b"not tensors").unwrap();
    refused(&golden_checkpoint(), &with_noise, &["not a safetensors file"]);
    let header = r#"{"noise":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([0; 8]);
    std::fs::write(&path, &bytes).unwrap();
    refused(&golden_checkpoint(), &with_noise, &["[1, 2]", "[16, 2, 4, 4]"]);
}

/// Spoils a copy of the checkpoint and checks what is said.
fn refused_checkpoint(spoil: impl FnOnce(&Path), says: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    copy_tree(&golden_checkpoint(), &model);
    spoil(&model);
    let small: Vec<&str> = ["a ball"].into_iter().chain(SMALL).collect();
    refused(&model, &small, says);
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{} has no {from}", path.display());
    std::fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn checkpoints_with_something_missing_say_what() {
    refused_checkpoint(|model| std::fs::remove_dir_all(model).unwrap(), &["model"]);
    refused_checkpoint(
        |model| {
            std::fs::remove_dir_all(model).unwrap();
            std::fs::create_dir(model).unwrap();
        },
        &["model", "empty"],
    );
    for part in
        ["tokenizer/tokenizer.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json"]
    {
        refused_checkpoint(|model| std::fs::remove_file(model.join(part)).unwrap(), &[part]);
    }
    for part in ["transformer", "transformer_2", "vae"] {
        let file = format!("{part}/diffusion_pytorch_model.safetensors");
        refused_checkpoint(|model| std::fs::remove_file(model.join(&file)).unwrap(), &[part]);
    }
}

#[test]
fn checkpoints_that_lie_are_caught_before_anything_runs() {
    let weights = "transformer/diffusion_pytorch_model.safetensors";
    refused_checkpoint(
        |model| {
            let bytes = std::fs::read(model.join(weights)).unwrap();
            std::fs::write(model.join(weights), &bytes[..bytes.len() - 100]).unwrap();
        },
        &[weights],
    );
    refused_checkpoint(|model| std::fs::write(model.join(weights), [0xff; 64]).unwrap(), &[weights]);
    refused_checkpoint(|model| std::fs::write(model.join(weights), b"").unwrap(), &[weights]);
    let config = "transformer/config.json";
    refused_checkpoint(
        |model| edit(&model.join(config), "\"num_layers\": 2", "\"num_layers\": 3"),
        &["blocks.2"],
    );
    refused_checkpoint(
        |model| edit(&model.join(config), "\"num_layers\": 2", "\"num_layers\": 1"),
        &["blocks.1"],
    );
    refused_checkpoint(
        |model| edit(&model.join(config), "\"ffn_dim\": 48", "\"ffn_dim\": 50"),
        &["ffn", "48", "50"],
    );
    refused_checkpoint(
        |model| edit(&model.join(config), "\"num_layers\": 2", "\"num_layers\": 4000000000"),
        &["num_layers"],
    );
    refused_checkpoint(
        |model| edit(&model.join(config), "\"num_layers\": 2", "\"num_layers\": -2"),
        &["num_layers"],
    );
    refused_checkpoint(|model| std::fs::write(model.join(config), "{").unwrap(), &[config]);
    refused_checkpoint(
        |model| edit(&model.join("model_index.json"), "0.875", "\"high\""),
        &["boundary_ratio"],
    );
}

#[test]
fn no_command_and_unknown_commands_are_refused() {
    for arguments in [vec![], vec!["paint"], vec!["generate"]] {
        let output = evanesce().args(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
}
