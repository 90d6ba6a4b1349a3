//! `evanesce bench` measures by the instruction set that is asked for, and says which.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::process::Output;

use serde_json::Value;
use support::evanesce;

fn bench(isa: &str, arguments: &[&str]) -> Output {
    let mut command = evanesce();
    command.env("EVANESCE_ISA", isa).args(["bench", "--json", "--threads", "2", "--seconds", "0.001"]);
    command.args(arguments).output().unwrap()
}

#[test]
fn every_operation_gives_one_line_of_json() {
    let operations: [&[&str]; 7] = [
        &["linear", "3x40x48"],
        &["linear", "3x41x50", "--weights", "f32"],
        &["attention", "--heads", "2", "--queries", "5", "--keys", "9", "--head-dim", "16"],
        &[
            "attention",
            "--heads",
            "2",
            "--queries",
            "5",
            "--keys",
            "9",
            "--head-dim",
            "16",
            "--codec",
            "k8v4",
        ],
        &["encode", "--rows", "3", "--width", "70", "--codec", "int8"],
        &["conv3d", "4", "8", "2", "6", "6"],
        &["peak"],
    ];
    for arguments in operations {
        let output = bench("scalar", arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{arguments:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["isa"], &line["threads"]), (&"scalar".into(), &2.into()), "{text}");
        assert!(line["op"].as_str().unwrap().starts_with(arguments[0]), "{text}");
        assert!(line["runs"].as_u64().unwrap() >= 3, "{text}");
        assert!(line["min_s"].as_f64().unwrap() <= line["median_s"].as_f64().unwrap(), "{text}");
        let rates = if arguments[0] == "encode" {
            ["gb_per_s", "fraction_of_copy"]
        } else {
            ["gflops", "fraction_of_peak"]
        };
        rates.into_iter().for_each(|rate| assert!(line[rate].as_f64().unwrap() > 0.0, "{text}"));
        let copies = ["peak", "encode"].contains(&arguments[0]);
        assert_eq!(line.get("copy_gb_per_s").is_some(), copies, "{text}");
    }
}

#[test]
fn without_json_the_same_result_is_sentences_on_standard_output() {
    let mut command = evanesce();
    command.args(["bench", "encode", "--rows", "3", "--width", "70", "--codec", "int8"]);
    let output = command.args(["--threads", "2", "--seconds", "0.001"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{text}");
    let says = [", 2 threads: median ", " % of copying memory, reads and writes counted", "copying memory: "];
    assert_eq!(text.lines().count(), says.len(), "{text}");
    text.lines().zip(says).for_each(|(line, says)| assert!(line.contains(says), "{says:?} in {line}"));
}

#[test]
fn an_instruction_set_that_is_not_there_is_refused_with_those_that_are() {
    for isa in ["amx", "", "AVX2"] {
        let output = bench(isa, &["linear", "1x16x16"]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
        assert!(stderr.contains("EVANESCE_ISA") && stderr.contains("it has scalar"), "{stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_shape_that_is_none_is_refused() {
    let output = bench("scalar", &["linear", "1x16"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("MxKxN"), "{stderr}");
}

#[test]
fn what_takes_more_memory_than_there_is_and_times_that_are_none_are_refused() {
    let attention: Vec<&str> =
        "attention --heads 512 --queries 1000000 --keys 1000000 --head-dim 1024".split(' ').collect();
    for (arguments, says) in [
        (&attention[..], "7.63 TiB"),
        (&["linear", "100000000x1000x1000"], "too large"),
        (&["linear", "1x16x16", "--seconds", "3601"], "up to 3600"),
        (&["linear", "1x16x16", "--seconds=nan"], "up to 3600"),
    ] {
        let mut command = evanesce();
        let output = command.arg("bench").args(arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.trim_end().lines().count() == 1 && stderr.contains(says), "{arguments:?}: {stderr}");
    }
}
