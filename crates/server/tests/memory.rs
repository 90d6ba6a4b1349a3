//! Jobs that must share too little memory: they are parked and brought back, give up what their quality allows, and none fails.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::path::{Path, PathBuf};

use evanesce_engine::{Budgets, JobSpec, Model, Request, RequestedLength};
use evanesce_server::Config;
use evanesce_server::config::{PressureConfig, SnapshotConfig, SnapshotKeeps};
use serde_json::{Value, json};
use support::{AMPLE, Client, Running, causal_checkpoint, checkpoint, config, start_over};

fn body(seed: u64, frames: usize, steps: usize, class: &str, quality: &str) -> Value {
    json!({"prompt": "a red ball", "size": "64x64", "num_frames": frames, "num_inference_steps": steps, "seed": seed,
        "priority": class, "quality": quality})
}

/// Bytes of the device that are planned for such a job.
fn needed_bytes(checkpoint: &Path, frames: usize) -> u64 {
    let model = Model::open(checkpoint, AMPLE).unwrap();
    let request = Request {
        size: Some((64, 64)),
        length: Some(RequestedLength::Frames(frames)),
        steps: Some(2),
        ..Request::new("a red ball", 1)
    };
    let spec = JobSpec::new(request, model.checkpoint()).unwrap();
    model.device_bytes_needed(&spec).unwrap()
}

fn service(checkpoint: PathBuf, budgets: Budgets, data: &Path, change: impl FnOnce(&mut Config)) -> Running {
    let mut config = config(data);
    change(&mut config);
    start_over(checkpoint, config, budgets).unwrap()
}

/// What nobody disturbs.
fn undisturbed(checkpoint: &Path, bodies: &[Value]) -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let running = service(checkpoint.to_path_buf(), AMPLE, dir.path(), |_| {});
    let client = running.client();
    let made = bodies.iter().map(|body| {
        let id = client.create(body);
        assert_eq!(client.wait(&id)["status"], "completed");
        client.video(&id)
    });
    made.collect()
}

/// A number of `/metrics`; 0 where it is not there yet.
fn metric(client: &Client, name: &str) -> f64 {
    let text = client.get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    line.unwrap_or(0.0)
}

#[expect(clippy::disallowed_methods, reason = "metrics have no events: they are looked at again and again")]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("never: {what}");
}

fn until_denoising(client: &Client, id: &str) {
    // Events are thinned, and a job this small may be over between two of them.
    until("it denoises", || {
        let video = client.get(&format!("/v1/videos/{id}")).json();
        assert!(video["status"] != "completed", "{id} ended first");
        video["phase"] == "denoise" && video["step"].as_u64() > Some(1)
    });
}

#[test]
fn an_interactive_job_parks_background_that_fills_the_device_and_neither_loses_a_bit() {
    let [slow, quick] = [body(1, 41, 80, "background", "exact"), body(2, 41, 3, "interactive", "exact")];
    let expected = undisturbed(&checkpoint(), &[slow.clone(), quick.clone()]);
    let device_bytes = needed_bytes(&checkpoint(), 41);
    let berths =
        [(1 << 30, SnapshotKeeps::Full, "parked_in_host"), (0, SnapshotKeeps::Compact, "parked_in_snapshot")];
    for (host_bytes, mode, berth) in berths {
        let dir = tempfile::tempdir().unwrap();
        let running = service(checkpoint(), Budgets { device_bytes, host_bytes }, dir.path(), |config| {
            config.snapshots.mode = mode;
        });
        let client = running.client();
        let slow = client.create(&slow);
        until_denoising(&client, &slow);
        let quick = client.create(&quick);
        assert_eq!(client.wait(&quick)["status"], "completed");
        let parked = client.get(&format!("/v1/videos/{slow}")).json();
        assert_eq!(parked["status"], "in_progress", "it was passed");
        assert_eq!(client.wait(&slow)["status"], "completed");
        assert!(client.video(&slow) == expected[0] && client.video(&quick) == expected[1], "{berth}");
        for how in [berth, "resumed"] {
            assert!(metric(&client, &format!("evanesce_job_moves_total{{how=\"{how}\"}}")) >= 1.0, "{how}");
        }
        // Being passed by a better class is no lack of memory.
        assert_eq!(client.get(&format!("/v1/videos/{slow}")).json()["degradations"], json!([]));
        assert!(!dir.path().join("snapshots").join(&slow).exists());
    }
}

#[test]
fn budgets_cut_in_the_middle_cost_no_job_and_exact_ones_no_bit() {
    let causal = causal_checkpoint();
    for checkpoint in [causal.path().to_path_buf(), checkpoint()] {
        let is_causal = checkpoint == causal.path();
        let bodies = [
            body(1, 41, 24, "standard", "exact"),
            body(2, 41, 24, "standard", "balanced"),
            body(3, 41, 24, "background", "draft"),
            body(4, 41, 12, "background", "exact"),
        ];
        let expected = undisturbed(&checkpoint, &bodies);
        let full = Budgets { device_bytes: needed_bytes(&checkpoint, 41) * 2, host_bytes: 64 << 20 };
        let dir = tempfile::tempdir().unwrap();
        let running = service(checkpoint, full, dir.path(), |config| {
            // The jobs are small beside what one step needs, so what they hold is never much of the budget.
            let (watch, high, critical, hysteresis) = (0.02, 0.03, 0.9, 0.005);
            config.pressure = PressureConfig { watch, high, critical, hysteresis, process_bytes_max: None };
            config.snapshots = SnapshotConfig { every_units: 5, share_max: 1.0, ..SnapshotConfig::default() };
        });
        let client = running.client();
        let ids: Vec<_> = bodies.iter().map(|body| client.create(body)).collect();
        for (at, percent) in [50, 30].into_iter().enumerate() {
            until_denoising(&client, &ids[at]);
            let cut = |bytes: u64| bytes * percent / 100;
            running.set_budgets(Budgets {
                device_bytes: cut(full.device_bytes),
                host_bytes: cut(full.host_bytes),
            });
            let budget = "evanesce_cache_budget_bytes{tier=\"device\"}";
            until("the device shrinks", || metric(&client, budget) <= cut(full.device_bytes) as f64);
            if percent == 30 {
                // Nothing fits now: what was under way is parked and waits.
                until("it is parked", || {
                    let text = client.get("/metrics").text();
                    text.contains("evanesce_job_moves_total{how=\"parked_in")
                });
            }
        }
        assert!(ids.iter().all(|id| client.get(&format!("/v1/videos/{id}")).json()["status"] != "failed"));
        running.set_budgets(full);
        let ended: Vec<_> = ids.iter().map(|id| client.wait(id)).collect();
        for ((id, ended), expected) in ids.iter().zip(&ended).zip(&expected) {
            assert_eq!(ended["status"], "completed", "{ended}");
            assert!(ended["quality"] != "exact" || client.video(id) == *expected, "{id} differs");
            let exact_only = ended["degradations"].as_array().unwrap().iter().all(|what| {
                ["parked", "dropped_recomputable", "demoted_cold"].contains(&what.as_str().unwrap())
            });
            assert!(exact_only || ended["quality"] != "exact", "{ended}");
        }
        let gave_way =
            |at: usize, what: &str| ended[at]["degradations"].as_array().unwrap().contains(&json!(what));
        assert!(ended.iter().enumerate().any(|(at, _)| gave_way(at, "parked")), "{ended:?}");
        if is_causal {
            assert!(gave_way(1, "pages_int8") || gave_way(2, "pages_int4"), "{ended:?}");
        }
        // It is as it was.
        let budget = "evanesce_cache_budget_bytes{tier=\"device\"}";
        assert_eq!(metric(&client, budget), full.device_bytes as f64);
        until("calm", || metric(&client, "evanesce_pressure{level=\"calm\"}") == 1.0);
        let again = client.create(&bodies[3]);
        client.wait(&again);
        assert!(client.video(&again) == expected[3]);
    }
}

/// Memory of the process that has nothing to do with the service, so that the process comes near its own limit.
fn ballast(bytes: usize) -> Vec<u8> {
    // Written, so that it is really there.
    vec![1; bytes]
}

fn degradations(video: &Value) -> Vec<&str> {
    video["degradations"].as_array().unwrap().iter().map(|what| what.as_str().unwrap()).collect()
}

#[test]
fn a_process_near_its_limit_shrinks_its_tiers_and_begins_drafts_smaller_until_there_is_memory_again() {
    let causal = causal_checkpoint();
    let checkpoint = causal.path();
    let [exact, draft] = [body(1, 41, 60, "standard", "exact"), body(2, 41, 4, "interactive", "draft")];
    let expected = undisturbed(checkpoint, &[exact.clone(), draft.clone()]);
    let full = Budgets { device_bytes: needed_bytes(checkpoint, 41) * 4, host_bytes: 64 << 20 };
    let dir = tempfile::tempdir().unwrap();
    let limit_bytes = 1_usize << 30;
    let running = service(checkpoint.to_path_buf(), full, dir.path(), |config| {
        config.pressure.process_bytes_max = Some(limit_bytes as u64);
    });
    let client = running.client();
    let device = || metric(&client, "evanesce_cache_budget_bytes{tier=\"device\"}");
    let level = |name: &str| metric(&client, &format!("evanesce_pressure{{level=\"{name}\"}}")) == 1.0;
    let slow = client.create(&exact);
    until_denoising(&client, &slow);
    assert!(level("calm"));
    let held = ballast(limit_bytes);
    until("the process is at its limit", || level("critical"));
    until("the device shrinks", || device() <= (full.device_bytes / 2) as f64);
    let small = client.wait(&client.create(&draft));
    assert_eq!((&small["status"], &small["size"]), (&json!("completed"), &json!("48x48")), "{small}");
    assert!(degradations(&small).contains(&"smaller_size"), "{small}");
    assert_eq!(held[held.len() / 2], 1);
    drop(held);
    until("there is memory again", || level("calm"));
    until("the device is as it was", || device() == full.device_bytes as f64);
    let again = client.wait(&client.create(&draft));
    assert_eq!((&again["size"], degradations(&again).len()), (&json!("64x64"), 0), "{again}");
    let ended = client.wait(&slow);
    assert_eq!(ended["status"], "completed");
    assert!(client.video(&slow) == expected[0], "an exact job changes no bit");
    assert!(client.video(again["id"].as_str().unwrap()) == expected[1]);
    assert!(!degradations(&ended).iter().any(|what| what.starts_with("pages") || *what == "window_halved"));
    for what in ["smaller_size", "undone"] {
        assert!(metric(&client, &format!("evanesce_degradations_total{{what=\"{what}\"}}")) >= 1.0, "{what}");
    }
}
