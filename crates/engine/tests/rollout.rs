//! Videos made block by block: against diffusers with a caching attention processor, and in memory that does not grow.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use evanesce_cache::{Kind, Tier};
use evanesce_engine::progress::{Event, Stage};
use evanesce_engine::{
    Budgets, CancelToken, EngineError, JobRun, KvCodec, Model, Outcome, Outputs, Request, RequestedLength,
    Silent,
};
use support::rollout::{causal_checkpoint, causal_checkpoint_that_sees, golden_request, rollout_golden};
use support::{AMPLE, Kept, interleaved, pictures, psnr_db, relative_error, run, tensor};

fn request() -> Request {
    let json = golden_request();
    // Exact pages: the reference has no others.
    Request { kv_codec: KvCodec::from_name("f32"), ..support::request_from(&json) }
}

fn of_frames(frames: usize) -> Request {
    Request { length: Some(RequestedLength::Frames(frames)), ..request() }
}

fn finished(model: &Model, request: Request) -> Outcome {
    run(model, request, Kept::default().outputs(), &mut Silent).unwrap()
}

#[test]
fn a_window_that_is_asked_for_is_the_one_that_a_checkpoint_could_say() {
    let [short, long] = [3, 5].map(|recent| causal_checkpoint_that_sees("window", recent));
    let [short, long] = [&short, &long].map(|checkpoint| Model::open(checkpoint.path(), AMPLE).unwrap());
    let asked = |window| Request { kv_window: Some(window), ..of_frames(45) };
    let expected = pictures(&long, of_frames(45));
    assert_eq!(pictures(&short, asked(5)), expected);
    assert_ne!(pictures(&short, of_frames(45)), expected);
    let refused = |request| {
        let admitted = JobRun::admit(&short, request, Kept::default().outputs(), CancelToken::new());
        admitted.map(drop).unwrap_err().to_string()
    };
    assert!(refused(asked(0)).contains("between 1 and 1024"));
    assert!(refused(Request { kv_sink: Some(1025), ..of_frames(45) }).contains("kv-sink is 1025"));
}

#[test]
fn block_by_block_gives_what_diffusers_gives_with_cached_keys() {
    let expected = rollout_golden("expected.safetensors");
    for positions in ["window", "absolute"] {
        let checkpoint = causal_checkpoint(positions);
        let model = Model::open(checkpoint.path(), AMPLE).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let [latents, frames] = ["latents", "frames"].map(|name| dir.path().join(name));
        let outputs = Outputs {
            video: Kept::default().sink(),
            latents: Some(latents.clone()),
            frames: Some(frames.clone()),
        };
        run(&model, request(), outputs, &mut Silent).unwrap();

        let (shape, got) = tensor(&latents, "latents");
        let (expected_shape, reference) = tensor(&expected, positions);
        assert_eq!(shape, expected_shape);
        let error = relative_error(&got, &reference);
        assert!(error <= 1e-4, "{positions}: latents differ by {error:e}");
        if positions == "window" {
            let (shape, got) = tensor(&frames, "frames");
            let (_, reference) = tensor(&expected, "frames");
            let stride = usize::try_from(golden_request()["stride"].as_u64().unwrap()).unwrap();
            let [n_frames, height, width, _] = shape[..] else { panic!("{shape:?}") };
            let pixels = got.chunks_exact(3).enumerate();
            let kept =
                pixels.filter(|(at, _)| (at / width % height) % stride == 0 && (at % width) % stride == 0);
            let got: Vec<f32> = kept.flat_map(|(_, rgb)| rgb).copied().collect();
            assert_eq!(n_frames, 41);
            let psnr = psnr_db(&got, &reference);
            assert!(psnr >= 50.0, "frames reach {psnr} dB");
        }
    }
}

#[test]
fn the_two_kinds_of_positions_are_different_models() {
    let expected = rollout_golden("expected.safetensors");
    let [window, absolute] = ["window", "absolute"].map(|name| tensor(&expected, name).1);
    assert!(relative_error(&window, &absolute) > 1e-3);
}

#[test]
fn noise_of_a_file_is_cut_into_blocks() {
    let checkpoint = causal_checkpoint("window");
    let model = Model::open(checkpoint.path(), AMPLE).unwrap();
    // Twelve latent frames are denoised for the eleven of the video.
    let noise: Vec<f32> = (0..16 * 12 * 4 * 6_u16).map(|at| f32::from(at % 1013) / 506.0 - 1.0).collect();
    let bytes: Vec<u8> = noise.iter().flat_map(|x| x.to_le_bytes()).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("noise.safetensors");
    let view =
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![16, 12, 4, 6], &bytes).unwrap();
    safetensors::serialize_to_file([("noise", view)], None, &path).unwrap();
    let with_file = |seed| pictures(&model, Request { noise_in: Some(path.clone()), seed, ..request() });
    assert_eq!(with_file(1), with_file(2));
    assert_ne!(with_file(1), pictures(&model, request()));
}

#[test]
fn what_a_longer_video_begins_with_is_the_shorter_one() {
    let checkpoint = causal_checkpoint("window");
    let model = Model::open(checkpoint.path(), AMPLE).unwrap();
    let (short, long) = (pictures(&model, of_frames(21)), pictures(&model, of_frames(61)));
    assert_eq!(short, long[..short.len()]);
}

#[test]
fn memory_does_not_grow_with_the_video() {
    let checkpoint = causal_checkpoint("window");
    let peak = |frames| {
        let model = Model::open(checkpoint.path(), AMPLE).unwrap();
        let outcome = finished(&model, of_frames(frames));
        assert_eq!(outcome.memory.tiers[0].owned_at_end_bytes, 0);
        outcome.memory.tiers[0].peak_bytes
    };
    let base = peak(61);
    assert_eq!(peak(181), base);
    assert_eq!(peak(601), base);
}

#[test]
fn pages_slide_out_of_the_window_are_counted_as_pruned_and_every_entry_leaves_by_itself() {
    let checkpoint = causal_checkpoint("window");
    let model = Model::open(checkpoint.path(), AMPLE).unwrap();
    let mut most_bytes = 0;
    let mut observer = |_: Event<'_>| {
        model.cache().verify().unwrap();
        most_bytes = most_bytes.max(model.counters().kind(Kind::SelfKv).bytes[Tier::Device]);
    };
    let outcome = run(&model, of_frames(121), Kept::default().outputs(), &mut observer).unwrap();
    // 2 experts, 2 branches, 2 layers; sink 2 and recent 3; keys and values of 6 tokens of 32 numbers.
    assert_eq!(most_bytes, 2 * 2 * 2 * (2 + 3) * 2 * 6 * 32 * 4);
    for kind in &outcome.memory.kinds {
        if ["self_kv", "cross_kv", "latent", "vae_feature"].contains(&kind.kind) {
            assert!(kind.puts > 0, "{}", kind.kind);
            assert_eq!(kind.puts, kind.expired + kind.pruned, "{} leaves by itself", kind.kind);
        }
        if kind.kind == "self_kv" {
            assert_eq!((kind.misses, kind.evicted), (0, 0));
            // All but the last block, which nothing reads, commit 3 frames in 8 series.
            assert_eq!(kind.puts, 10 * 3 * 8);
            // Of each series 2 stay as the sink and 3 are in sight to the end: these end with the job.
            assert_eq!((kind.pruned, kind.expired), ((10 * 3 - (2 + 3)) * 8, (2 + 3) * 8));
        } else {
            assert_eq!(kind.pruned, 0, "{} has no window", kind.kind);
        }
    }
}

#[test]
fn fewer_bits_hold_fewer_bytes_and_move_the_video_less_the_more_they_are() {
    let checkpoint = causal_checkpoint("window");
    let with = |name: &str| {
        let codec = Some(KvCodec::from_name(name).unwrap());
        let kept = Kept::default();
        let fresh = Model::open(checkpoint.path(), AMPLE).unwrap();
        let outcome =
            run(&fresh, Request { kv_codec: codec, ..request() }, kept.outputs(), &mut Silent).unwrap();
        let pages = *outcome.memory.kinds.iter().find(|kind| kind.kind == "self_kv").unwrap();
        (kept.take(), pages)
    };
    let (exact, f32_pages) = with("f32");
    let mut last_db = f64::INFINITY;
    // Rows of 32 numbers: half a group, so grids weigh twice as much as in a wide model.
    let codecs = [
        ("bf16", 2 * 64),
        ("int8", 2 * 36),
        ("k8v4", 36 + 20),
        ("int4", 2 * 20),
        ("k4v2", 20 + 13),
        ("int2", 2 * 13),
    ];
    let mut db_at_four_bits = 0.0;
    for (name, row_bytes) in codecs {
        let (pictures, pages) = with(name);
        assert_eq!(pages.encoded_bytes * 256, pages.raw_bytes * row_bytes, "{name}");
        assert!(pages.peak_bytes < f32_pages.peak_bytes, "{name}");
        let db = psnr_db(&pictures, &exact);
        assert!(db.is_finite() && db < last_db, "{name} reaches {db} dB, the codec before it {last_db}");
        last_db = db;
        if name == "int4" {
            db_at_four_bits = db;
        }
    }
    // Most of the way from noise to nothing: this golden has random weights.
    assert!(db_at_four_bits > 25.0, "{db_at_four_bits} dB at four bits");
}

#[test]
fn a_codec_for_pages_is_refused_where_there_are_none() {
    let model = support::open(AMPLE);
    let request = Request { kv_codec: Some(KvCodec::default()), ..support::request() };
    let outputs = Kept::default().outputs();
    let Err(error) = JobRun::admit(&model, request, outputs, CancelToken::new()) else {
        panic!("expected a refusal")
    };
    assert!(error.to_string().contains("block by block"), "{error}");
}

/// Pages of two bits, and the same with the frames right before a block, or the sink, exact.
#[test]
fn exact_pages_where_they_count_bring_the_video_nearer_and_leave_with_their_block() {
    let checkpoint = causal_checkpoint("window");
    let with = |sink: Option<&str>, newest: Option<&str>, base: &str| {
        let model = Model::open(checkpoint.path(), AMPLE).unwrap();
        let kept = Kept::default();
        let mut most_bytes = 0;
        let mut observer = |_: Event<'_>| {
            model.cache().verify().unwrap();
            most_bytes = most_bytes.max(model.counters().kind(Kind::SelfKv).bytes[Tier::Device]);
        };
        let mut request = Request { kv_codec: KvCodec::from_name(base), ..request() };
        request.kv_overrides.sink = sink.and_then(KvCodec::from_name);
        request.kv_overrides.newest = newest.and_then(KvCodec::from_name);
        let outcome = run(&model, request, kept.outputs(), &mut observer).unwrap();
        let pages = *outcome.memory.kinds.iter().find(|kind| kind.kind == "self_kv").unwrap();
        assert_eq!((pages.misses, pages.puts), (0, pages.expired + pages.pruned));
        (kept.take(), most_bytes, pages)
    };
    let (exact, ..) = with(None, None, "f32");
    let plain = with(None, None, "int2");
    let db = |pictures: &[f32]| psnr_db(pictures, &exact);
    // Pages of 6 tokens of 32 numbers, in whole lines of memory: 1536 bytes exact, 192 of two bits; 8 series.
    assert_eq!(plain.1, 8 * 5 * 192);
    let sink = with(Some("f32"), None, "int2");
    assert_eq!(sink.1, 8 * (2 * 1536 + 3 * 192));
    let newest = with(None, Some("f32"), "int2");
    assert_eq!(newest.1, 8 * (5 * 192 + 3 * 1536));
    // Of nine frames that are committed, two are the sink's.
    assert_eq!((plain.2.puts, newest.2.puts), (8 * 9, 8 * (9 + 7)));
    let [plain, sink, newest] = [&plain.0, &sink.0, &newest.0].map(|pictures| db(pictures));
    assert!(
        sink > plain && newest > plain,
        "{plain} dB, {sink} dB with the sink, {newest} dB with the newest"
    );
}

#[test]
fn the_least_budget_suffices_and_changes_nothing() {
    // Pages of int8 are no whole lines of memory; one block alone has no pages at all.
    for (codec, frames) in [("f32", 61), ("int8", 61), ("int4", 21), ("f32", 9)] {
        check_least_budget(&Request { kv_codec: KvCodec::from_name(codec), ..of_frames(frames) });
    }
    let mut mixed = Request { kv_codec: KvCodec::from_name("int2"), ..of_frames(61) };
    mixed.kv_overrides.newest = KvCodec::from_name("int8");
    check_least_budget(&mixed);
    mixed.kv_overrides.sink = KvCodec::from_name("f32");
    check_least_budget(&mixed);
}

/// The sum has slack elsewhere, so a run alone would not notice a few bytes missing here.
#[test]
fn pages_are_asked_for_in_whole_lines_and_only_as_many_as_there_will_be() {
    let checkpoint = causal_checkpoint("window");
    let model = Model::open(checkpoint.path(), Budgets { device_bytes: 1, host_bytes: 0 }).unwrap();
    let needed = |codec: &str, frames| {
        let request = Request { kv_codec: KvCodec::from_name(codec), ..of_frames(frames) };
        match JobRun::admit(&model, request, Kept::default().outputs(), CancelToken::new()) {
            Err(EngineError::Budget { needed_bytes, .. }) => needed_bytes,
            _ => panic!("one byte is not enough"),
        }
    };
    // 8 series of 5 pages and 3 that arrive; 6 tokens of 2 x 128 bytes, or of 2 x 36 in seven lines of 64.
    assert_eq!(needed("f32", 61) - needed("int8", 61), (8 * 5 + 3) * (1536 - 448));
    // Two blocks: the first leaves 3 pages. One block: none.
    assert_eq!(needed("f32", 21) - needed("int8", 21), (8 * 3 + 3) * (1536 - 448));
    assert_eq!(needed("f32", 9), needed("int8", 9));
}

fn check_least_budget(request: &Request) {
    let checkpoint = causal_checkpoint("window");
    let budget = |device_bytes| Budgets { device_bytes, host_bytes: 0 };
    let admit = |device_bytes| {
        let model = Model::open(checkpoint.path(), budget(device_bytes)).unwrap();
        match JobRun::admit(&model, request.clone(), Kept::default().outputs(), CancelToken::new()) {
            Ok(_) => None,
            Err(EngineError::Budget { needed_bytes, .. }) => Some(needed_bytes as u64),
            Err(other) => panic!("expected a refusal, got {other:?}"),
        }
    };
    let least = admit(1).unwrap();
    assert_eq!(admit(least - 1), Some(least));
    let tight = Model::open(checkpoint.path(), budget(least)).unwrap();
    let ample = Model::open(checkpoint.path(), AMPLE).unwrap();
    assert_eq!(pictures(&tight, request.clone()), pictures(&ample, request.clone()));
    assert!(tight.counters().tier(Tier::Device).peak_bytes <= least);
}

#[test]
fn two_interleaved_rollouts_equal_each_alone_and_give_everything_back() {
    let checkpoint = causal_checkpoint("window");
    let other = || Request { seed: 5, prompt: "a blue ball".to_owned(), ..of_frames(33) };
    let open = || Model::open(checkpoint.path(), AMPLE).unwrap();
    let alone = [pictures(&open(), request()), pictures(&open(), other())];
    let model = open();
    assert_eq!(interleaved(&model, [request(), other()]).0, alone);
    assert_eq!(model.counters().tier(Tier::Device).used_bytes, model.counters().shared.bytes[Tier::Device]);
}

#[test]
fn a_rollout_cancelled_anywhere_gives_everything_back() {
    let checkpoint = causal_checkpoint("window");
    let model = Model::open(checkpoint.path(), AMPLE).unwrap();
    let mut n_units = 0;
    let mut job = JobRun::admit(&model, request(), Kept::default().outputs(), CancelToken::new()).unwrap();
    while job.advance(&mut Silent).unwrap().is_more() {
        n_units += 1;
    }
    drop(job);
    for stop_after in 0..n_units {
        let mut job =
            JobRun::admit(&model, request(), Kept::default().outputs(), CancelToken::new()).unwrap();
        for _ in 0..stop_after {
            assert!(job.advance(&mut Silent).unwrap().is_more());
        }
        let id = job.id();
        drop(job);
        assert_eq!(model.cache().owned_by(id).bytes[Tier::Device], 0, "after {stop_after} units");
        model.cache().verify().unwrap();
    }
}

#[test]
fn progress_names_every_block() {
    let checkpoint = causal_checkpoint("window");
    let model = Model::open(checkpoint.path(), AMPLE).unwrap();
    let (mut blocks, mut steps, mut frames) = (Vec::new(), 0, 0);
    let mut observer = |event: Event<'_>| match event {
        Event::Block { at, n_blocks } => blocks.push((at, n_blocks)),
        Event::Advanced { stage: Stage::Denoise, .. } => steps += 1,
        Event::Advanced { stage: Stage::Decode, .. } => frames += 1,
        _ => {}
    };
    run(&model, request(), Kept::default().outputs(), &mut observer).unwrap();
    assert_eq!(blocks, [(0, 4), (1, 4), (2, 4), (3, 4)]);
    // 4 steps in every block, 2 commits after each but the last, 11 of 12 latent frames.
    assert_eq!((steps, frames), (4 * 4 + 3 * 2, 11));
}
