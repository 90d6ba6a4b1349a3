//! The README's examples of `curl`, in its order, as they stand there but for the address.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::{AMPLE, config, shipped, start_over};

/// The command of each line that begins with `curl`, lines that go on joined, comments taken off.
fn examples() -> Vec<String> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let text = std::fs::read_to_string(readme).unwrap().replace("\\\n", " ");
    let lines = text.lines().filter(|line| line.starts_with("curl "));
    lines.map(|line| line.split("   #").next().unwrap().trim().to_owned()).collect()
}

#[test]
fn the_examples_of_the_readme_work() {
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("there is no curl on this machine: the README's examples are not run");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let downloads = tempfile::tempdir().unwrap();
    let running = start_over(shipped(), config(dir.path()), AMPLE).unwrap();
    let mut id = String::new();
    let run = |example: &str, id: &str| {
        let command = example.replace("localhost:8080", &running.address.to_string());
        let output = Command::new("sh")
            .args(["-c", &command])
            .env("ID", id)
            .current_dir(downloads.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{example}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let examples = examples();
    assert!(examples.len() >= 5, "{examples:?}");
    for example in &examples {
        let answer = run(example, &id);
        let json =
            || serde_json::from_str::<Value>(&answer).unwrap_or_else(|_| panic!("{example}: {answer}"));
        if id.is_empty() {
            json()["id"].as_str().unwrap().clone_into(&mut id);
        } else if example.contains("/events") {
            assert!(answer.contains("event: video") && answer.contains("\"completed\""), "{answer}");
        } else if example.contains("-o ball.mp4") {
            assert_eq!(&std::fs::read(downloads.path().join("ball.mp4")).unwrap()[4..8], b"ftyp");
        } else if example.contains("/cancel") {
            // It is done by now, and says so.
            assert_eq!(json()["error"]["code"], "already_completed", "{answer}");
        } else {
            assert_eq!(json()["id"], Value::String(id.clone()), "{example}");
        }
    }
}
