//! Jobs that must share too little memory: they are parked and brought back, give up what their quality allows, and none fails.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use evanesce_engine::Budgets;
use evanesce_server::config::{PressureConfig, SnapshotConfig, SnapshotKeeps};
use serde_json::{Value, json};
use support::scenes::{body, metric, needed_bytes, service, undisturbed, until, until_denoising};
use support::{AMPLE, causal_checkpoint, checkpoint};

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
fn buffers_that_jobs_have_freed_are_kept_for_the_next_and_go_back_to_the_machine_once_nothing_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let running = service(checkpoint(), AMPLE, dir.path(), |_| {});
    let client = running.client();
    let mut events = client.events("/v1/events");
    let id = client.create(&body(1, 9, 2, "standard", "exact"));
    let ends = |video: &Value| video["id"] == id.as_str() && video["status"] == "completed";
    events.find(|(name, data)| name == "video" && ends(data)).unwrap();
    // What is told right after that is of the moment at which the job has given everything back.
    let (_, kept) = events.find(|(name, _)| name == "memory").unwrap();
    assert_eq!(kept["kinds"]["device"]["vae_feature"], Value::Null, "{kept}");
    assert!(kept["tiers"]["device"]["idle_bytes"].as_u64() > Some(0), "{kept}");
    until("they are given back", || {
        let metrics = client.get("/metrics").text();
        metrics.contains("evanesce_cache_idle_bytes{tier=\"device\"} 0\n")
    });
    let (_, rested) =
        events.find(|(name, data)| name == "memory" && data["tiers"]["device"]["idle_bytes"] == 0).unwrap();
    assert_eq!(rested["tiers"]["device"]["used_bytes"], kept["tiers"]["device"]["used_bytes"]);
}

#[test]
fn what_became_of_reads_and_pages_is_told_with_the_memory_and_is_what_the_metrics_say() {
    let causal = causal_checkpoint();
    let dir = tempfile::tempdir().unwrap();
    let running = service(causal.path().to_path_buf(), AMPLE, dir.path(), |_| {});
    let client = running.client();
    let mut events = client.events("/v1/events");
    let id = client.create(&body(1, 41, 2, "standard", "exact"));
    let ends = |video: &Value| video["id"] == id.as_str() && video["status"] == "completed";
    events.find(|(name, data)| name == "video" && ends(data)).unwrap();
    let (_, memory) = events.find(|(name, _)| name == "memory").unwrap();
    let counted = |event: &str| {
        metric(&client, &format!("evanesce_cache_events_total{{kind=\"self_kv\",event=\"{event}\"}}"))
    };
    let pages = &memory["life"]["self_kv"];
    for (told, event) in [("hits", "hit"), ("misses", "miss"), ("pruned", "pruned"), ("evicted", "evicted")] {
        assert_eq!(pages[told].as_f64(), Some(counted(event)), "{told}: {memory}");
    }
    assert!(counted("hit") > 0.0 && counted("miss") == 0.0);
    // Three of the four blocks leave 9 frames in each series: 2 are the sink, 4 are in sight to the end.
    assert!(counted("pruned") > 0.0 && counted("pruned") * 3.0 == counted("put"), "{memory}");
    assert_eq!(memory["life"]["step_residual"], Value::Null, "nothing has become of it");
}

#[test]
fn beside_a_worse_class_on_the_device_a_job_gives_up_nothing_of_its_video_that_it_would_give_up_alone() {
    let causal = causal_checkpoint();
    let slow = body(1, 41, 150, "background", "balanced");
    let quick = body(2, 41, 3, "interactive", "balanced");
    let expected = undisturbed(causal.path(), std::slice::from_ref(&quick)).remove(0);
    // Before the cut no job could hold what counts as much; after it each does, and neither is parked for it.
    let ample = Budgets { device_bytes: 1 << 50, host_bytes: 1 << 50 };
    let cut = Budgets { device_bytes: needed_bytes(causal.path(), 41) * 3, ..ample };
    let dir = tempfile::tempdir().unwrap();
    let running = service(causal.path().to_path_buf(), ample, dir.path(), |config| {
        let (watch, high, critical, hysteresis) = (1e-6, 2e-6, 1.0, 5e-7);
        let process_bytes_max = Some(1 << 60);
        config.pressure = PressureConfig { watch, high, critical, hysteresis, process_bytes_max };
    });
    let client = running.client();
    let gave_up_bits =
        |video: &Value| video["degradations"].as_array().unwrap().contains(&json!("pages_int8"));
    let slow = client.create(&slow);
    let now = || client.get(&format!("/v1/videos/{slow}")).json();
    until_denoising(&client, &slow);
    assert_eq!(now()["degradations"], json!([]));
    running.set_budgets(cut);
    until("background gives way", || gave_up_bits(&now()));
    let beside = client.create(&quick);
    let ended = client.wait(&beside);
    assert_eq!((&ended["status"], gave_up_bits(&ended)), (&json!("completed"), false), "{ended}");
    assert_eq!(now()["status"], "in_progress", "it was passed");
    assert!(client.video(&beside) == expected);
    // With nobody worse beside it, it is the first to give way.
    assert_eq!(client.wait(&slow)["status"], "completed");
    let ended = client.wait(&client.create(&quick));
    assert_eq!((&ended["status"], gave_up_bits(&ended)), (&json!("completed"), true), "{ended}");
}

#[test]
fn budgets_cut_in_the_middle_cost_no_job_and_exact_ones_no_bit() {
    let causal = causal_checkpoint();
    for checkpoint in [causal.path().to_path_buf(), checkpoint()] {
        let is_causal = checkpoint == causal.path();
        let bodies = [
            body(1, 41, 100, "standard", "exact"),
            body(2, 41, 100, "standard", "balanced"),
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
