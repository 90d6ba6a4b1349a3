//! The whole run against WanPipeline of diffusers: same directory, same prompt, same seed. And a directory that cannot run.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use evanesce_engine::progress::Event;
use evanesce_engine::{Fault, Model, Outputs, Request};
use support::tree::copy_tree;
use support::{AMPLE, Kept, golden, open, psnr_db, relative_error, request, run, tensor};

fn check_against_diffusers(request: Request) {
    let dir = tempfile::tempdir().unwrap();
    let [latents, frames] = ["latents", "frames"].map(|name| dir.path().join(name));
    let kept = Kept::default();
    let outputs =
        Outputs { video: kept.sink(), latents: Some(latents.clone()), frames: Some(frames.clone()) };
    run(&open(AMPLE), request, outputs, &mut |_: Event<'_>| {}).unwrap();

    let expected = golden("expected.safetensors");
    let (shape, got) = tensor(&latents, "latents");
    let (expected_shape, reference) = tensor(&expected, "latents");
    assert_eq!(shape, expected_shape);
    let error = relative_error(&got, &reference);
    assert!(error <= 1e-4, "latents differ by {error:e}");

    let (shape, got) = tensor(&frames, "frames");
    let (expected_shape, reference) = tensor(&expected, "frames");
    assert_eq!(shape, expected_shape);
    let psnr = psnr_db(&got, &reference);
    assert!(psnr >= 50.0, "frames reach {psnr} dB");
    assert_eq!(kept.take(), got);
}

#[test]
fn a_prompt_and_a_seed_give_what_diffusers_gives() {
    check_against_diffusers(request());
}

#[test]
fn noise_from_a_file_gives_what_diffusers_gives() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("noise.safetensors");
    let (shape, noise) = tensor(&golden("expected.safetensors"), "noise");
    let bytes: Vec<u8> = noise.iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, &bytes).unwrap();
    safetensors::serialize_to_file([("noise", view)], None, &path).unwrap();
    check_against_diffusers(Request { noise_in: Some(path), seed: 0, ..request() });
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_text_encoder_knows_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    copy_tree(&golden("checkpoint"), dir.path());
    let path = dir.path().join("tokenizer/tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let mut add = |words: std::ops::Range<u32>| {
        for id in words {
            tokenizer["model"]["vocab"][format!("word{id}")] = id.into();
        }
        std::fs::write(&path, tokenizer.to_string()).unwrap();
        Model::open(dir.path(), AMPLE)
    };
    // There are 25, and a table of 32 rows.
    add(25..32).unwrap();
    let error = add(32..33).unwrap_err();
    assert_eq!(error.fault(), Fault::Input);
    let message = error.to_string();
    assert!(
        message.contains("tokenizer.json") && message.contains("has 33 tokens, expected at most 32"),
        "{message}"
    );
}
