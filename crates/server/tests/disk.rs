//! Pages that a service's memory has no room for wait on its disk.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::path::Path;

use evanesce_engine::{Budgets, Disk, HeldWeights, JobSpec, Model, Request, RequestedLength};
use evanesce_server::Memory;
use serde_json::{Value, json};
use support::scenes::{metric, undisturbed, until};
use support::{AMPLE, causal_checkpoint_that_sees, checkpoint, config, small, start_over};

/// Latent frames right before a block that it sees: enough for pages to outweigh what else is kept room for.
const RECENT: usize = 160;
const FRAMES: usize = 661;

fn job() -> Value {
    json!({"prompt": "a red ball", "size": "48x32", "num_frames": FRAMES, "num_inference_steps": 2, "seed": 7,
        "quality": "exact"})
}

fn disk(directory: &Path) -> Disk {
    Disk::open(directory, 8 << 20).unwrap()
}

/// A host that holds hardly any page, and the least device beside a disk.
fn tight(checkpoint: &Path, directory: &Path) -> Budgets {
    let host_bytes = 16 << 10;
    // As a service holds it.
    let model = Model::open_holding(checkpoint, HeldWeights::Bf16, AMPLE, Some(disk(directory))).unwrap();
    let request = Request {
        size: Some((48, 32)),
        length: Some(RequestedLength::Frames(FRAMES)),
        steps: Some(2),
        ..Request::new("a red ball", 7)
    };
    let spec = JobSpec::new(request, model.checkpoint()).unwrap();
    let needs = model.needs(&spec).unwrap();
    let device_bytes = needs.device_bytes_beside_disk(model.cache().disk());
    assert!(device_bytes < needs.device_bytes());
    Budgets { device_bytes, host_bytes }
}

fn files(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn a_video_whose_pages_find_room_only_on_disk_is_made_with_the_same_bits() {
    let causal = causal_checkpoint_that_sees(RECENT);
    let checkpoint = causal.path();
    let expected = undisturbed(checkpoint, &[job()]);
    let (data, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let budgets = tight(checkpoint, cache.path());
    let without = start_over(checkpoint.to_path_buf(), config(data.path()), budgets).unwrap();
    let refused = without.client().post("/v1/videos", &job());
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (400, Some("does_not_fit")));
    without.stop();

    let memory = Memory { budgets, disk: Some(disk(cache.path())) };
    let with = start_over(checkpoint.to_path_buf(), config(data.path()), memory).unwrap();
    let client = with.client();
    let id = client.create(&job());
    let ended = client.wait(&id);
    assert_eq!(ended["status"], "completed", "{ended}");
    assert!(client.video(&id) == expected[0], "most of its pages were on disk");
    let on_disk = &ended["memory"]["disk"];
    assert!(on_disk["peak_bytes"].as_u64() > Some(0), "{ended}");
    assert_eq!(on_disk["owned_bytes"], 0, "{ended}");
    assert_eq!(files(cache.path()), 1);
    with.stop();
    assert_eq!(files(cache.path()), 0);
}

#[test]
fn a_video_whose_pages_need_the_disk_waits_while_the_device_is_too_small_and_needs_no_host() {
    let causal = causal_checkpoint_that_sees(RECENT);
    let (data, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let budgets = tight(causal.path(), cache.path());
    let memory = Memory { budgets, disk: Some(disk(cache.path())) };
    let running = start_over(causal.path().to_path_buf(), config(data.path()), memory).unwrap();
    let client = running.client();
    let budget = |tier: &str| metric(&client, &format!("evanesce_cache_budget_bytes{{tier=\"{tier}\"}}"));
    let without_host = Budgets { host_bytes: 0, ..budgets };
    running.set_budgets(Budgets { device_bytes: budgets.device_bytes - 1, ..without_host });
    until("both shrink", || budget("host") == 0.0 && budget("device") < budgets.device_bytes as f64);
    let waits = client.create(&job());
    // It hides no other.
    assert_eq!(client.wait(&client.create(&small(1)))["status"], "completed");
    let now = client.get(&format!("/v1/videos/{waits}")).json();
    assert_eq!(now["status"], "queued", "{now}");
    assert_eq!(metric(&client, "evanesce_job_moves_total{how=\"put_off\"}"), 0.0, "it was not tried");
    running.set_budgets(without_host);
    let ended = client.wait(&waits);
    assert_eq!(ended["status"], "completed", "{ended}");
}

#[test]
fn services_that_share_a_directory_have_a_file_each_and_take_none_from_each_other() {
    let cache = tempfile::tempdir().unwrap();
    let data = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [first, second] = data.each_ref().map(|data| {
        let memory = Memory { budgets: AMPLE, disk: Some(disk(cache.path())) };
        start_over(checkpoint(), config(data.path()), memory).unwrap()
    });
    assert_eq!(files(cache.path()), 2);
    first.stop();
    assert_eq!(files(cache.path()), 1);
    let client = second.client();
    assert_eq!(client.wait(&client.create(&small(1)))["status"], "completed");
    second.stop();
    assert_eq!(files(cache.path()), 0);
}
