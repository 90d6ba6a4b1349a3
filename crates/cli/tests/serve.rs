//! `evanesce serve` as a user runs it, and as a power cut ends it.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

#[path = "../../server/tests/support/client.rs"]
#[expect(dead_code, reason = "the service's own tests use all of it")]
mod client;
mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use client::Client;
use serde_json::{Value, json};
use support::{evanesce, golden_checkpoint};

/// A service in a process of its own; dropped, it is killed.
struct Serving {
    child: Child,
    client: Client,
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn serve(data: &Path) -> Serving {
    let mut command = evanesce();
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--threads", "2", "--device-memory", "1GiB", "--data"])
        .arg(data);
    let mut child = command.arg("--model").arg(golden_checkpoint()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(|line| line.unwrap());
    let address =
        lines.find_map(|line| line.strip_prefix("listening on http://").map(|at| at.parse().unwrap()));
    // The log must keep flowing, or the service would wait for its reader.
    std::thread::spawn(move || lines.for_each(drop));
    Serving { child, client: Client::new(address.unwrap()) }
}

fn request(seed: u64, steps: usize, priority: &str) -> Value {
    json!({"prompt": "a red ball", "size": "64x64", "num_frames": 41, "num_inference_steps": steps, "seed": seed,
        "priority": priority})
}

fn jobs() -> Vec<Value> {
    let classes = ["background", "standard", "interactive"];
    (0..6)
        .map(|seed| {
            request(
                seed,
                20 + 10 * usize::try_from(seed).unwrap(),
                classes[usize::try_from(seed % 3).unwrap()],
            )
        })
        .collect()
}

/// Kills the process at moments that events decide, starts it again each time, and compares with what nobody disturbed.
#[test]
fn kill_9_loses_no_job_doubles_none_and_changes_no_bit() {
    let undisturbed_dir = tempfile::tempdir().unwrap();
    let undisturbed = serve(undisturbed_dir.path());
    let expected: Vec<_> = jobs()
        .iter()
        .map(|job| {
            let id = undisturbed.client.create(job);
            assert_eq!(undisturbed.client.wait(&id)["status"], "completed");
            undisturbed.client.video(&id)
        })
        .collect();
    drop(undisturbed);

    let dir = tempfile::tempdir().unwrap();
    let mut serving = serve(dir.path());
    let ids: Vec<_> = jobs().iter().map(|job| serving.client.create(job)).collect();
    let mut state = 99_u64;
    let mut n_under_way = 0;
    for _ in 0..8 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let n_events = usize::try_from(state >> 33).unwrap() % 12;
        // Listening begins before looking, so no end is missed.
        let events = serving.client.events("/v1/events").filter(|(name, _)| name == "video");
        let listed = serving.client.get("/v1/videos").json();
        let is_open = |video: &Value| video["status"] != "completed";
        let id = |video: &Value| video["id"].as_str().unwrap().to_owned();
        let mut open: BTreeSet<_> =
            listed["data"].as_array().unwrap().iter().filter(|v| is_open(v)).map(id).collect();
        n_under_way += usize::from(!open.is_empty());
        let mut events = events.take(n_events);
        while !open.is_empty() {
            let Some((_, video)) = events.next() else { break };
            if !is_open(&video) {
                open.remove(&id(&video));
            }
        }
        serving.child.kill().unwrap();
        serving.child.wait().unwrap();
        serving = serve(dir.path());
    }
    assert!(n_under_way >= 2, "the jobs were done before they could be disturbed");
    for (id, expected) in ids.iter().zip(&expected) {
        assert_eq!(serving.client.wait(id)["status"], "completed");
        assert!(serving.client.video(id) == *expected, "{id} differs from its undisturbed run");
    }
    let listed = serving.client.get("/v1/videos?order=asc").json();
    let listed: Vec<_> =
        listed["data"].as_array().unwrap().iter().map(|video| video["id"].as_str().unwrap()).collect();
    assert_eq!(listed, ids);
    // Nothing is left but six videos: no draft, no orphan.
    let names = |inner: &str| support::names_in(&dir.path().join(inner));
    assert_eq!((names("videos").len(), names("drafts").len()), (6, 0));
}

#[test]
fn termination_ends_the_service_in_good_order_and_the_job_goes_on_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut serving = serve(dir.path());
    let id = serving.client.create(&request(1, 200, "standard"));
    let mut events = serving.client.events(&format!("/v1/videos/{id}/events"));
    assert!(events.any(|(_, video)| video["phase"] == "denoise"));
    let status = Command::new("kill").arg("-TERM").arg(serving.child.id().to_string()).status().unwrap();
    assert!(status.success());
    assert_eq!(serving.child.wait().unwrap().code(), Some(0));
    assert_eq!(support::names_in(&dir.path().join("drafts")), [""; 0]);
    let again = serve(dir.path());
    assert_eq!(again.client.wait(&id)["status"], "completed");
}

#[test]
fn the_printed_configuration_starts_a_service_and_mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let printed = evanesce().args(["serve", "--print-config"]).output().unwrap();
    assert!(printed.status.success());
    let file = dir.path().join("evanesce.toml");
    let refused = |text: &str, flags: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let mut command = evanesce();
        let output = command
            .current_dir(dir.path())
            .args(["serve", "--config"])
            .arg(&file)
            .args(flags)
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.trim_end().lines().count()), (Some(2), 1), "{stderr}");
        stderr
    };
    let text = String::from_utf8(printed.stdout).unwrap();
    assert!(refused(&text, &["--model", "nowhere"]).contains("nowhere"));
    assert!(refused(&text.replace("jobs_max", "job_max"), &[]).contains("queue.jobs_max"));
    assert!(refused(&text, &["--listen", "0.0.0.0:8080"]).contains("needs keys"));
    assert!(refused(&text, &["--device-memory", "lots"]).contains("device_memory"));
    let key = evanesce().args(["serve", "--new-key", "alice"]).output().unwrap();
    let section = String::from_utf8(key.stdout).unwrap();
    assert!(refused(&section, &["--listen", "0.0.0.0:0", "--model", "nowhere"]).contains("nowhere"));
}
