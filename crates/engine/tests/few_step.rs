//! Videos made block by block in a few steps, from checkpoints as FastVideo and Self-Forcing publish them.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::path::{Path, PathBuf};

use evanesce_engine::{
    Budgets, Context, ContextSample, Fault, JobSpec, KvCodec, Model, Outputs, Positions, Request,
    RequestedLength, Rollout, Silent,
};
use evanesce_wan::checkpoint::{Checkpoint, Layout};
use evanesce_wan::noise::step_noise;
use serde_json::json;
use support::tree::copy_tree;
use support::{AMPLE, Kept, golden, interleaved, pictures, relative_error, run, tensor};

const TWO_EXPERT_STEPS: [usize; 8] = [1000, 850, 700, 550, 350, 275, 200, 125];

fn few_step(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/few_step").join(name)
}

fn request() -> Request {
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(few_step("request.json")).unwrap()).unwrap();
    let number = |name: &str| usize::try_from(json[name].as_u64().unwrap()).unwrap();
    Request {
        size: Some((number("width"), number("height"))),
        length: Some(RequestedLength::Frames(number("frames"))),
        // Exact pages: the reference has no others.
        kv_codec: KvCodec::from_name("f32"),
        ..Request::new(json["prompt"].as_str().unwrap(), json["seed"].as_u64().unwrap())
    }
}

/// The golden weights under FastVideo's configurations.
fn fastvideo(policy: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_tree(&golden("checkpoint"), dir.path());
    copy_tree(&few_step(policy), dir.path());
    dir
}

/// The same with a section of its own, which says otherwise.
fn with_section(causal: &serde_json::Value) -> tempfile::TempDir {
    let dir = fastvideo("absolute");
    let path = dir.path().join("model_index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let mut section = json!({
        "block_frames": 3, "first_block_frames": 1, "sink_frames": 1, "recent_frames": 3, "positions": "absolute",
        "steps": TWO_EXPERT_STEPS,
    });
    for (name, value) in causal.as_object().unwrap() {
        section[name] = value.clone();
    }
    index["evanesce"] = json!({ "causal": section });
    std::fs::write(path, index.to_string()).unwrap();
    dir
}

fn check(checkpoint: &Path, name: &str) {
    let model = Model::open(checkpoint, AMPLE).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let latents = dir.path().join("latents");
    let outputs = Outputs { video: Kept::default().sink(), latents: Some(latents.clone()), frames: None };
    run(&model, request(), outputs, &mut Silent).unwrap();
    let (shape, got) = tensor(&latents, "latents");
    let (expected_shape, expected) = tensor(&few_step("expected.safetensors"), name);
    assert_eq!(shape, expected_shape);
    let error = relative_error(&got, &expected);
    assert!(error <= 1e-4, "{name}: latents differ by {error:e}");
}

#[test]
fn a_fastvideo_directory_with_two_experts_gives_what_its_loop_gives() {
    for (policy, name) in [("absolute", "fastvideo"), ("relativistic", "relativistic")] {
        check(fastvideo(policy).path(), name);
    }
}

#[test]
fn a_self_forcing_pt_gives_what_its_loop_gives() {
    check(&few_step("self_forcing"), "self_forcing");
}

#[test]
fn context_may_be_shared_or_what_the_high_noise_expert_made() {
    check(with_section(&json!({ "context": "shared" })).path(), "shared");
    check(with_section(&json!({ "context_sample": "boundary" })).path(), "boundary");
    check(with_section(&json!({ "context": "per_expert", "context_sample": "x0" })).path(), "fastvideo");
    let expected = |name| tensor(&few_step("expected.safetensors"), name).1;
    for name in ["shared", "boundary", "relativistic"] {
        assert!(relative_error(&expected(name), &expected("fastvideo")) > 4e-4, "{name} is another model");
    }
}

#[test]
fn what_the_configurations_mean_is_read() {
    let rollout = |directory: &Path| Checkpoint::open(directory).unwrap().rollout().unwrap();
    let expected = Rollout {
        block_frames: 3,
        first_block_frames: 1,
        sink_frames: 1,
        recent_frames: 3,
        positions: Positions::Absolute,
        context: Context::PerExpert,
        context_sample: ContextSample::X0,
    };
    assert_eq!(rollout(fastvideo("absolute").path()), expected);
    let relative = Rollout { positions: Positions::Window, ..expected };
    assert_eq!(rollout(fastvideo("relativistic").path()), relative);
    let one = Rollout { first_block_frames: 3, sink_frames: 0, recent_frames: 18, ..expected };
    assert_eq!(rollout(&few_step("self_forcing")), one);
    let checkpoint = Checkpoint::open(&few_step("self_forcing")).unwrap();
    assert_eq!(checkpoint.layout(), Layout::SelfForcing);
    assert_eq!(checkpoint.description().few_steps(), Some(&[1000, 750, 500, 250][..]));
    let checkpoint = Checkpoint::open(fastvideo("absolute").path()).unwrap();
    assert_eq!(checkpoint.description().few_steps(), Some(&TWO_EXPERT_STEPS[..]));
    let spec = JobSpec::new(request(), &checkpoint).unwrap();
    let steps: Vec<_> = spec.schedule.timesteps().iter().map(|t| (t * 10.0).round() / 10.0).collect();
    assert_eq!(steps, [1000.0, 985.5, 965.5, 936.2, 866.0, 819.9, 750.0, 631.6]);
    assert_eq!((spec.guidance_high, spec.guidance_low), (1.0, 1.0), "guidance is distilled into it");
}

#[test]
fn later_noise_is_a_function_of_its_place() {
    let (_, expected) = tensor(&few_step("expected.safetensors"), "noise");
    let got = step_noise(request().seed, 2, 1, expected.len());
    let farthest = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(farthest <= 2e-6, "{farthest:e}");
}

#[test]
fn with_shared_context_the_expert_that_keeps_it_is_guided_if_the_other_is() {
    let dir = with_section(&json!({ "context": "shared" }));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let guided = |high, low| {
        let request = Request { guidance_high: Some(high), guidance_low: Some(low), ..request() };
        JobSpec::new(request, &checkpoint).map(drop)
    };
    assert!(guided(4.0, 1.0).unwrap_err().to_string().contains("guide that one as well"));
    assert!(guided(1.0, 1.0).is_ok() && guided(1.0, 3.0).is_ok() && guided(4.0, 3.0).is_ok());
}

#[test]
fn shared_context_takes_half_the_pages_and_one_commit_less() {
    let pages = |causal: &serde_json::Value| {
        let checkpoint = with_section(causal);
        let model = Model::open(checkpoint.path(), AMPLE).unwrap();
        let outcome = run(&model, request(), Kept::default().outputs(), &mut Silent).unwrap();
        *outcome.memory.kinds.iter().find(|kind| kind.kind == "self_kv").unwrap()
    };
    let (own, shared) = (pages(&json!({})), pages(&json!({ "context": "shared" })));
    assert_eq!((own.puts, own.misses), (2 * shared.puts, 0));
    assert_eq!(shared.misses, 0);
    // What arrives stands beside what leaves in one layer only.
    assert!(shared.peak_bytes * 2 <= own.peak_bytes + 4 * 1536);
}

#[test]
fn two_interleaved_jobs_equal_each_alone_and_the_least_budget_changes_nothing() {
    for causal in [json!({}), json!({ "context": "shared" }), json!({ "context_sample": "boundary" })] {
        let checkpoint = with_section(&causal);
        let other = || Request { seed: 5, prompt: "a blue ball".to_owned(), ..request() };
        let open =
            |device_bytes| Model::open(checkpoint.path(), Budgets { device_bytes, host_bytes: 0 }).unwrap();
        let alone = [pictures(&open(1 << 30), request()), pictures(&open(1 << 30), other())];
        let model = open(1 << 30);
        assert_eq!(interleaved(&model, [request(), other()]).0, alone);
        model.cache().verify().unwrap();
        let needed =
            model.device_bytes_needed(&JobSpec::new(request(), model.checkpoint()).unwrap()).unwrap();
        assert_eq!(pictures(&open(needed), request()), alone[0], "{causal}");
    }
}

#[test]
fn another_number_of_steps_is_refused_in_a_sentence() {
    let checkpoint = fastvideo("absolute");
    let model = Model::open(checkpoint.path(), AMPLE).unwrap();
    let with = |steps| JobSpec::new(Request { steps: Some(steps), ..request() }, model.checkpoint());
    assert!(with(8).is_ok());
    let error = with(20).unwrap_err();
    assert_eq!(error.fault(), Fault::Input);
    assert!(error.to_string().contains("its own 8 steps"), "{error}");
}

#[test]
fn a_directory_that_is_none_of_these_says_what_is_wrong() {
    let copy = || {
        let dir = tempfile::tempdir().unwrap();
        copy_tree(&few_step("self_forcing"), dir.path());
        dir
    };
    let says = |directory: &Path, expected: &str| {
        let error = Checkpoint::open(directory).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
    };
    let dir = copy();
    std::fs::copy(dir.path().join("Wan2.1_VAE.pth"), dir.path().join("self_forcing_dmd.pt")).unwrap();
    says(dir.path(), "no generator in it");
    let dir = copy();
    std::fs::copy(dir.path().join("self_forcing_dmd.pt"), dir.path().join("other.pt")).unwrap();
    says(dir.path(), "more than one .pt file");
    let dir = fastvideo("absolute");
    let path = dir.path().join("transformer_2/config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"sink_size\": 1", "\"sink_size\": 2")).unwrap();
    says(dir.path(), "the two transformers differ");
    std::fs::write(&path, text.replace("\"local_attn_size\": 7", "\"local_attn_size\": 4")).unwrap();
    says(dir.path(), "expected less than the window of 4 latent frames");
    for (name, value, expected) in [
        ("context", json!("mine"), "expected \"per_expert\" or \"shared\""),
        ("context_sample", json!("x1"), "expected \"x0\" or \"boundary\""),
        ("steps", json!([250, 500]), "expected falling whole numbers"),
        ("steps", json!([1000, 990]), "of which the last step belongs to the high-noise expert"),
    ] {
        let dir = with_section(&json!({ name: value }));
        let opened =
            Checkpoint::open(dir.path()).map(|checkpoint| JobSpec::new(request(), &checkpoint).map(drop));
        let error = match opened {
            Err(error) => error.to_string(),
            Ok(Err(error)) => error.to_string(),
            Ok(Ok(())) => panic!("{name} should be refused"),
        };
        assert!(error.contains(expected), "{error}");
    }
}
