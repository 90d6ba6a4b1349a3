//! Videos that go on from given frames.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::path::Path;

use evanesce_engine::{Budgets, CancelToken, JobRun, Model, Outputs, Request, RequestedLength, Silent};
use support::{AMPLE, Kept, frames_file, golden, pictures, psnr_db, run};

const FRAME_NUMBERS: usize = 64 * 64 * 3;

fn model() -> Model {
    Model::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/shapes-causal"), AMPLE).unwrap()
}

fn request(prompt: &str, frames: usize) -> Request {
    Request { length: Some(RequestedLength::Frames(frames)), ..Request::new(prompt, 4) }
}

#[test]
fn a_video_goes_on_from_the_frames_that_it_is_given() {
    let model = model();
    let made = pictures(&model, request("a large blue square moving left on a white background", 33));
    let directory = tempfile::tempdir().unwrap();
    let given = &made[..21 * FRAME_NUMBERS];
    let start = frames_file(directory.path(), given, [21, 64, 64, 3]);
    let go_on = |prompt| {
        let latents = directory.path().join("latents.safetensors");
        let kept = Kept::default();
        let outputs = Outputs { latents: Some(latents.clone()), ..kept.outputs() };
        let request = Request { start_from: Some(start.clone()), ..request(prompt, 45) };
        let outcome = run(&model, request, outputs, &mut Silent).unwrap();
        assert!(outcome.memory.tiers.iter().all(|tier| tier.owned_at_end_bytes == 0));
        (kept.take(), support::tensor(&latents, "latents").0)
    };
    let (first, shape) = go_on("a large blue square moving left on a white background");
    assert_eq!(shape, [16, 12, 8, 8], "the latents of all frames, given and made");
    assert_eq!(first.len(), 45 * FRAME_NUMBERS);
    let given_again = psnr_db(&first[..given.len()], given);
    assert!(given_again > 25.0, "what was given is shown: {given_again} dB");
    // What follows is a video in motion that begins where the given frames end: far nearer to them than another clip is.
    let at = |frame: usize| &first[frame * FRAME_NUMBERS..(frame + 1) * FRAME_NUMBERS];
    let step = psnr_db(at(21), at(20));
    assert!(step > 15.0, "the first new frame follows the last given one: {step} dB");
    assert_eq!(
        go_on("a large blue square moving left on a white background").0,
        first,
        "the same bits again"
    );
    let (other, _) = go_on("a small red circle standing still on a black background");
    assert_eq!(other[..given.len()], first[..given.len()]);
    assert_ne!(other, first, "the rest is the prompt's");
    assert_eq!(model.counters().kind(evanesce_cache::Kind::Latent).bytes.total(), 0);
    model.cache().verify().unwrap();
}

#[test]
fn frames_that_no_video_can_go_on_from_are_refused_in_one_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let refusal = |model: &Model, shape: [usize; 4], frames| {
        let numbers = vec![0.5; shape.iter().product()];
        let start_from = Some(frames_file(directory.path(), &numbers, shape));
        let request = Request { start_from, ..request("a red circle", frames) };
        let admitted = JobRun::admit(model, request, Kept::default().outputs(), CancelToken::new());
        admitted.map(drop).unwrap_err().to_string()
    };
    let causal = model();
    let text = refusal(&causal, [20, 64, 64, 3], 81);
    assert!(text.contains("has 20 frames") && text.contains("9, 21, 33"), "{text}");
    let text = refusal(&causal, [21, 32, 64, 3], 81);
    assert!(text.contains("[21, 32, 64, 3]") && text.contains("[frames, 64, 64, 3]"), "{text}");
    let text = refusal(&causal, [21, 64, 64, 3], 21);
    assert!(text.contains("has 21 frames; a video of 21 frames can go on from 9"), "{text}");
    let text = refusal(&causal, [9, 64, 64, 3], 9);
    assert!(text.contains("a single block"), "{text}");
    let at_once =
        Model::open(&golden("checkpoint"), Budgets { device_bytes: 1 << 30, host_bytes: 0 }).unwrap();
    let text = refusal(&at_once, [9, 64, 64, 3], 21);
    assert!(text.contains("makes it at once"), "{text}");
}
