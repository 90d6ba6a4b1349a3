//! Jobs that must share too little memory, and what is seen of them from outside.

use std::path::{Path, PathBuf};

use evanesce_engine::{Budgets, JobSpec, Model, Request, RequestedLength};
use evanesce_server::Config;
use serde_json::{Value, json};

use super::{AMPLE, Client, Running, config, start_over};

pub(crate) fn body(seed: u64, frames: usize, steps: usize, class: &str, quality: &str) -> Value {
    json!({"prompt": "a red ball", "size": "64x64", "num_frames": frames, "num_inference_steps": steps, "seed": seed,
        "priority": class, "quality": quality})
}

/// Bytes of the device that are planned for such a job.
pub(crate) fn needed_bytes(checkpoint: &Path, frames: usize) -> u64 {
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

pub(crate) fn service(
    checkpoint: PathBuf,
    budgets: Budgets,
    data: &Path,
    change: impl FnOnce(&mut Config),
) -> Running {
    let mut config = config(data);
    change(&mut config);
    start_over(checkpoint, config, budgets).unwrap()
}

/// What nobody disturbs.
pub(crate) fn undisturbed(checkpoint: &Path, bodies: &[Value]) -> Vec<Vec<u8>> {
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
pub(crate) fn metric(client: &Client, name: &str) -> f64 {
    let text = client.get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    line.unwrap_or(0.0)
}

#[expect(clippy::disallowed_methods, reason = "metrics have no events: they are looked at again and again")]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("never: {what}");
}

pub(crate) fn until_denoising(client: &Client, id: &str) {
    // Events are thinned, and a job this small may be over between two of them.
    until("it denoises", || {
        let video = client.get(&format!("/v1/videos/{id}")).json();
        assert!(video["status"] != "completed", "{id} ended first");
        video["phase"] == "denoise" && video["step"].as_u64() > Some(1)
    });
}
