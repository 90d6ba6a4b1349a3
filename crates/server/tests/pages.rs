//! How pages are stored and how far back a block sees is the operator's to say, and a job's for as long as it lasts. How weights are held
//! is the process's.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use evanesce_engine::HeldWeights;
use evanesce_server::Config;
use evanesce_server::config::{PagesConfig, SnapshotConfig};
use serde_json::json;
use support::scenes::{body, service, undisturbed, until_denoising};
use support::{AMPLE, causal_checkpoint, checkpoint, config, start_over, start_with};

fn pages(codec: &str) -> PagesConfig {
    PagesConfig { codec: Some(codec.to_owned()), window: Some(2), sink: Some(1) }
}

#[test]
fn a_job_is_made_with_the_pages_that_held_when_it_was_accepted_whatever_holds_after_a_restart() {
    let causal = causal_checkpoint();
    let checkpoint = || causal.path().to_path_buf();
    let job = body(3, 41, 60, "standard", "exact");
    let plain = undisturbed(causal.path(), std::slice::from_ref(&job)).remove(0);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("codecs.json");
    std::fs::write(&file, json!({"base": "int4"}).to_string()).unwrap();
    let by_file = service(checkpoint(), AMPLE, dir.path(), |config| {
        config.pages = pages(file.to_str().unwrap());
    });
    let client = by_file.client();
    let id = client.create(&job);
    assert_eq!(client.wait(&id)["status"], "completed");
    let expected = client.video(&id);
    assert!(expected != plain, "smaller pages and a shorter window change the video");
    by_file.stop();

    let dir = tempfile::tempdir().unwrap();
    let snapshots = SnapshotConfig { every_units: 3, share_max: 1.0, ..SnapshotConfig::default() };
    let by_name = service(checkpoint(), AMPLE, dir.path(), |config| {
        (config.pages, config.snapshots) = (pages("int4"), snapshots);
    });
    let client = by_name.client();
    let id = client.create(&job);
    until_denoising(&client, &id);
    by_name.stop();
    let other = service(checkpoint(), AMPLE, dir.path(), |config| config.snapshots = snapshots);
    let client = other.client();
    let ended = client.wait(&id);
    assert_eq!((&ended["status"], &ended["degradations"]), (&json!("completed"), &json!([])), "{ended}");
    assert!(client.video(&id) == expected, "it was accepted with smaller pages");
    let new = client.create(&job);
    client.wait(&new);
    assert!(client.video(&new) == plain, "this one was not");
}

#[test]
fn a_job_is_made_with_weights_as_they_are_held_now_and_says_so_if_they_were_held_otherwise() {
    let job = body(3, 41, 60, "standard", "exact");
    let rounded = undisturbed(&checkpoint(), std::slice::from_ref(&job)).remove(0);
    let dir = tempfile::tempdir().unwrap();
    let running = service(checkpoint(), AMPLE, dir.path(), |config| config.weights = HeldWeights::Stored);
    let client = running.client();
    let id = client.create(&job);
    until_denoising(&client, &id);
    running.stop();
    let running = service(checkpoint(), AMPLE, dir.path(), |_| {});
    let client = running.client();
    let ended = client.wait(&id);
    assert_eq!(ended["status"], "completed", "{ended}");
    assert_eq!(ended["degradations"], json!(["other_weights"]), "{ended}");
    assert!(client.video(&id) == rounded, "it began anew");
    let ended = client.wait(&client.create(&job));
    assert_eq!((&ended["status"], &ended["degradations"]), (&json!("completed"), &json!([])), "{ended}");
}

#[test]
fn pages_that_the_checkpoint_cannot_have_are_refused_when_the_service_starts() {
    let dir = tempfile::tempdir().unwrap();
    let with = |pages| Config { pages, ..config(dir.path()) };
    let window = PagesConfig { window: Some(2), ..PagesConfig::default() };
    for pages in [pages("int8"), window] {
        let refusal = start_with(with(pages), AMPLE).err().unwrap();
        assert!(refusal.starts_with("[pages]: ") && refusal.contains("makes it at once"), "{refusal}");
    }
    let causal = causal_checkpoint();
    let refused = |pages| start_over(causal.path().to_path_buf(), with(pages), AMPLE).err().unwrap();
    assert!(refused(pages("int3")).contains("\"int3\" is no codec"));
    let file = dir.path().join("codecs.json");
    let layers = json!({"base": "int4", "layers": {"high_noise": ["int8", "int8", "int8"]}});
    std::fs::write(&file, layers.to_string()).unwrap();
    assert!(refused(pages(file.to_str().unwrap())).contains("name 3 layers of high_noise"));
    assert!(refused(pages("no/such.json")).contains("no/such.json"));
}
