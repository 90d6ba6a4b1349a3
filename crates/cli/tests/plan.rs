//! `evanesce plan`: what is foreseen is what `generate` counts, in 80 columns, as JSON, and as a page.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::ffi::OsStr;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};
use support::{copy_tree, evanesce, generate, golden_checkpoint, names_in};

fn plan(dir: &Path, args: &[impl AsRef<OsStr>]) -> Output {
    let output = evanesce().current_dir(dir).arg("plan").args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn object(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The golden checkpoint as if it had been trained causally.
fn causal(dir: &Path) {
    copy_tree(&golden_checkpoint(), dir);
    let path = dir.join("model_index.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    index["evanesce"] = json!({ "causal": { "block_frames": 3, "sink_frames": 2, "recent_frames": 40, "positions": "window" } });
    std::fs::write(path, index.to_string()).unwrap();
}

#[test]
fn the_peak_that_generate_counts_is_foreseen_within_two_percent_in_three_different_runs() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("causal");
    causal(&model);
    let (causal, whole) = (model.to_str().unwrap(), golden_checkpoint());
    let prompts = ["a ball", "blurry"];
    let video = |model: &'static str| -> Vec<&str> {
        match model {
            "whole" => vec!["--size", "48x32", "--frames", "41", "--steps", "4"],
            _ => vec!["--size", "48x32", "--frames", "181", "--steps", "4", "--kv-codec", "f32"],
        }
    };
    let needed = |args: &[&str]| {
        let args = [&["--model", causal, "--no-measure", "--json", "--device-memory", "1GiB"], args].concat();
        object(&plan(dir.path(), &args))["device_bytes_alone"].as_u64().unwrap()
    };
    // 8 series of 42 pages of 1536 bytes: three quarters of them do not fit.
    let own = ["--prompt", prompts[0], "--negative", prompts[1]];
    let small = (needed(&[&own[..], &video("causal")].concat()) - 8 * 42 * 1536 / 4 * 3).to_string();
    let runs = [
        (whole.to_str().unwrap(), video("whole"), ["1GiB", "1MiB"], 0.02),
        (causal, video("causal"), ["1GiB", "1MiB"], 0.02),
        // What waits below the device at once depends on the threads' timing.
        (causal, video("causal"), [&*small, "1MiB"], 0.15),
    ];
    let mut moved = Vec::new();
    for (model, video, [device, host], below) in runs {
        let budgets = ["--device-memory", device, "--host-memory", host, "--json"];
        let args = [&["--model", model, "--no-measure"][..], &own, &video, &budgets].concat();
        let planned = object(&plan(dir.path(), &args));
        let args = [&[prompts[0], "--negative", prompts[1], "--seed", "1"][..], &video, &budgets].concat();
        let output = generate(Path::new(model), dir.path(), &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let made = object(&output);
        for tier in ["device", "host"] {
            let peak = |run: &Value| run["memory"]["tiers"][tier]["peak"].as_f64().unwrap();
            let (expected, got) = (peak(&planned), peak(&made));
            let tolerance = if tier == "device" { 0.02 } else { below };
            assert!((expected - got).abs() <= tolerance * got, "{tier}: planned {expected}, counted {got}");
        }
        let units = planned["units"].as_array().unwrap().iter();
        moved.push(units.map(|unit| unit["moved"]["from_host"].as_u64().unwrap()).sum::<u64>());
    }
    assert!(moved[0] == 0 && moved[1] == 0 && moved[2] > 0, "{moved:?}");
}

#[test]
fn the_textbook_case_takes_8_59_gb() {
    let dir = tempfile::tempdir().unwrap();
    let shape = ["--shape", "32x8192x4096"];
    let table = String::from_utf8(plan(dir.path(), &shape).stdout).unwrap();
    assert!(table.lines().any(|line| line.starts_with("f32") && line.contains("8.59")), "{table}");
    let json = object(&plan(dir.path(), &[&shape[..], &["--json"]].concat()));
    assert_eq!(json["codecs"]["f32"]["bytes"], 8_589_934_592_u64);
    assert_eq!(json["codecs"]["bf16"]["bytes"], 4_294_967_296_u64);
}

#[test]
fn the_full_size_model_needs_no_directory_and_the_table_fits_80_columns() {
    let dir = tempfile::tempdir().unwrap();
    let args = [
        "--model",
        "wan2.2-t2v-a14b",
        "--size",
        "1280x720",
        "--seconds",
        "30",
        "--device-memory",
        "32GiB",
        "--host-memory",
        "64GiB",
        "--kv-window",
        "18",
        "--few-steps",
        "1000,850,700,550,350,275,200,125",
        "--kv-codec",
        "int8",
        "--report",
        "plan.html",
    ];
    let output = plan(dir.path(), &args);
    let table = String::from_utf8(output.stdout).unwrap();
    for line in table.lines() {
        assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
    }
    for part in [
        "self_kv",
        "weights",
        "int4",
        "device to host",
        "arithmetic",
        "it fits; weights are streamed",
        "wait in the host",
    ] {
        assert!(table.contains(part), "{part} in {table}");
    }
    assert!(output.stderr.is_empty());
    assert_eq!(names_in(dir.path()), ["plan.html"]);
    let page = std::fs::read_to_string(dir.path().join("plan.html")).unwrap();
    assert!(
        page.contains("<h3>device</h3>")
            && page.contains("<h3>host</h3>")
            && page.contains("<title>self_kv</title>")
    );
    assert!(!page.contains("http"), "nothing is fetched");
}

#[test]
fn the_published_weights_are_read_in_f32_and_held_as_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let video = ["--size", "832x480", "--frames", "81", "--no-measure", "--json"];
    let gib = |args: &[&str]| {
        let ample = ["--model", "wan2.2-t2v-a14b", "--device-memory", "200GiB"];
        let args = [&ample[..], args, &video].concat();
        let weights = object(&plan(dir.path(), &args))["memory"]["kinds"]["weights"].clone();
        ["peak", "raw_bytes"].map(|what| weights[what].as_f64().unwrap() / f64::from(1 << 30))
    };
    // Two experts, the text encoder and the decoder.
    let read = 2.0 * 53.23 + 10.58 + 0.27;
    for (args, held) in [
        (&["--steps", "4"][..], 2.0 * 26.67 + 10.58 + 0.27),
        (&["--steps", "4", "--weights", "bf16"], 2.0 * 26.67 + 10.58 + 0.27),
        (&["--steps", "4", "--weights", "stored"], read),
    ] {
        let [in_memory, from_files] = gib(args);
        assert!((in_memory - held).abs() < 0.1 && (from_files - read).abs() < 0.1, "{args:?}: {in_memory}");
    }
}

#[test]
fn what_does_not_fit_is_told_with_what_would_and_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--model", "wan2.2-t2v-a14b", "--device-memory", "1GiB", "--no-measure"];
    let table = String::from_utf8(plan(dir.path(), &args).stdout).unwrap();
    assert!(table.contains("it does not fit") && table.contains("needs"), "{table}");
    let json = object(&plan(dir.path(), &[&args[..], &["--json"]].concat()));
    assert_eq!(json["fits"], false);
    let least = json["device_bytes_needed"].as_u64().unwrap().to_string();
    let args = ["--model", "wan2.2-t2v-a14b", "--device-memory", &least, "--no-measure", "--json"];
    assert_eq!(object(&plan(dir.path(), &args))["fits"], true);
}

#[test]
fn a_file_of_codecs_is_planned_for_as_generate_stores_them() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("causal");
    causal(&model);
    let codecs = dir.path().join("codecs.json");
    let layers = json!({ "high_noise": ["int4", "int8"], "low_noise": ["int8", "int8"] });
    std::fs::write(&codecs, json!({ "base": "int8", "sink": "bf16", "layers": layers }).to_string()).unwrap();
    let video = ["--size", "48x32", "--frames", "61", "--steps", "2", "--json"];
    let pages = |run: &Value, what: &str| run["memory"]["kinds"]["self_kv"][what].as_u64().unwrap();
    let planned = |codec: &str| {
        let args = ["--no-measure", "--prompt", "a ball", "--device-memory", "1GiB", "--kv-codec", codec];
        let args = [&["--model", model.to_str().unwrap()][..], &args, &video].concat();
        pages(&object(&plan(dir.path(), &args)), "peak")
    };
    let codecs = codecs.to_str().unwrap();
    let output = generate(&model, dir.path(), &[&["a ball", "--kv-codec", codecs][..], &video].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(planned(codecs), pages(&object(&output), "peak"));
    assert!(planned("int4") < planned(codecs) && planned(codecs) < planned("bf16"));
}

#[test]
fn bad_input_is_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    for (args, says) in [
        (&["--shape", "32x8192x4096", "--report", "x.html"][..], "--report"),
        (&["--shape", "32x8192x4096", "--kv-codec", "int8"], "--kv-codec"),
        (&["--shape", "32x8192x4096", "--size", "64x64"], "--size"),
        (&["--shape", "32x8192x4096", "--fps", "24"], "--fps"),
        (&["--shape", "32x8192x4096", "--guidance-low", "3"], "--guidance-low"),
        (&["--shape", "32x8192x4096", "--no-measure"], "--no-measure"),
        (&["--shape", "32x8192x4096", "--threads", "2"], "--threads"),
        (&["--shape", "32x8192x4096", "--start-from", "x.safetensors"], "--start-from"),
        (&["--model", "wan2.2-t2v-a14b", "--start-from", "x.safetensors"], "makes it at once"),
        (&["--model", "wan2.2-t2v-a14b", "--kv-window", "18", "--start-from", "none.st"], "none.st"),
        (&["--report", "x.html", "--start-from", "./x.html"], "--report and --start-from"),
        (&["--shape", "32x8192x4096", "--weights", "bf16"], "--weights"),
        (&["--model", "wan2.2-t2v-a14b", "--weights", "f32"], "bf16 or stored"),
        (&["--report", "/proc/plan.html"], "no file can be made in /proc"),
        (&["--report", "x.json", "--kv-codec", "./x.json"], "--report and --kv-codec"),
        (&["--shape", "32x8192"], "LAYERSxTOKENSxNUMBERS"),
        (&["--model", "nowhere"], "there is no such directory"),
        (&["--model", "wan2.2-t2v-a14b", "--size", "830x480"], "nearest is 832x480"),
        (&["--model", "wan2.2-t2v-a14b", "--kv-codec", "int8"], "--kv-window"),
        (&["--model", "wan2.2-t2v-a14b", "--kv-window", "18", "--few-steps", "250,500"], "falling"),
    ] {
        let output = evanesce().current_dir(dir.path()).arg("plan").args(args).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains(says) && stderr.trim().lines().count() == 1, "{args:?}: {stderr}");
    }
}
