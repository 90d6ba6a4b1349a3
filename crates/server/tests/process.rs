//! A process that comes near what it may hold. By itself, because what a process holds is that of all its tests.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use evanesce_engine::Budgets;
use serde_json::{Value, json};
use support::causal_checkpoint;
use support::scenes::{body, metric, needed_bytes, service, undisturbed, until, until_denoising};

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
    let [exact, draft] = [body(1, 41, 150, "standard", "exact"), body(2, 41, 4, "interactive", "draft")];
    let expected = undisturbed(checkpoint, &[exact.clone(), draft.clone()]);
    let full = Budgets { device_bytes: needed_bytes(checkpoint, 41) * 4, host_bytes: 64 << 20 };
    let dir = tempfile::tempdir().unwrap();
    let limit_bytes = 768_usize << 20;
    let running = service(checkpoint.to_path_buf(), full, dir.path(), |config| {
        config.pressure.process_bytes_max = Some(limit_bytes as u64);
    });
    let client = running.client();
    let device = || metric(&client, "evanesce_cache_budget_bytes{tier=\"device\"}");
    let level = |name: &str| metric(&client, &format!("evanesce_pressure{{level=\"{name}\"}}")) == 1.0;
    // The same again and again, so that there is work for as long as this takes.
    let slow: Vec<_> = (0..6).map(|_| client.create(&exact)).collect();
    until_denoising(&client, &slow[0]);
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
    assert!(client.video(again["id"].as_str().unwrap()) == expected[1]);
    for id in &slow {
        let ended = client.wait(id);
        assert_eq!(ended["status"], "completed");
        assert!(client.video(id) == expected[0], "an exact job changes no bit");
        let gave_way = degradations(&ended);
        assert!(
            !gave_way.iter().any(|what| what.starts_with("pages") || *what == "window_halved"),
            "{ended}"
        );
    }
    assert!(metric(&client, "evanesce_degradations_total{what=\"smaller_size\"}") >= 1.0);
}
