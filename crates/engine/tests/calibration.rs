//! Codecs chosen by measurement, on the golden checkpoint made causal.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use evanesce_engine::calibration::{Budget, Side};
use evanesce_engine::{
    CancelToken, Codec, Component, JobRun, KvCodec, KvOverrides, Model, Request, RequestedLength, Silent,
};
use support::rollout::{causal_checkpoint, golden_request};
use support::{AMPLE, Kept, pictures, run};

const CODECS: [Codec; 4] = [Codec::Bf16, Codec::Int8, Codec::Int4, Codec::Int2];

fn request() -> Request {
    let length = Some(RequestedLength::Frames(21));
    Request { kv_codec: KvCodec::from_name("f32"), length, ..support::request_from(&golden_request()) }
}

fn measured(model: &Model) -> JobRun<'_> {
    let mut job = JobRun::admit(model, request(), Kept::default().outputs(), CancelToken::new()).unwrap();
    job.measure(&CODECS);
    while job.advance(&mut Silent).unwrap().is_more() {}
    job
}

#[test]
fn every_place_is_measured_and_fewer_bits_cost_more() {
    let checkpoint = causal_checkpoint("window");
    let model = Model::open(checkpoint.path(), AMPLE).unwrap();
    let job = measured(&model);
    for expert in [Component::HighNoise, Component::LowNoise] {
        for (layer, side) in (0..2).flat_map(|layer| Side::ALL.map(|side| (layer, side))) {
            let errors =
                CODECS.map(|codec| job.measured().unwrap().error(expert, layer, side, codec).unwrap());
            assert!(errors.is_sorted() && errors[0] > 0.0, "{expert:?} {layer} {side:?}: {errors:?}");
        }
    }
    assert_eq!(job.measured().unwrap().error(Component::HighNoise, 2, Side::Keys, Codec::Int8), None);
}

#[test]
fn a_choice_keeps_its_budget_and_a_larger_one_is_no_worse() {
    let checkpoint = causal_checkpoint("window");
    let model = Model::open(checkpoint.path(), AMPLE).unwrap();
    let job = measured(&model);
    // 2 experts, 2 layers, keys and values, rows of 32 numbers: 13 bytes at two bits, 64 in bf16.
    let (least, most) = (8 * 13, 8 * 64);
    assert!(!job.choose(Budget::TokenBytes(least - 1)).unwrap().fits);
    let mut last = f64::INFINITY;
    for bytes in [least, 140, 200, 300, 400, most] {
        let chosen = job.choose(Budget::TokenBytes(bytes)).unwrap();
        assert!(chosen.fits && chosen.token_bytes <= bytes, "{bytes}: {chosen:?}");
        assert!(chosen.error <= last, "{bytes}: {} after {last}", chosen.error);
        last = chosen.error;
        // What an error allows costs no more than what has that error.
        let by_error = job.choose(Budget::Error(chosen.error * 1.000_001)).unwrap();
        assert!(by_error.fits && by_error.token_bytes <= bytes, "{bytes}: {by_error:?}");
    }
}

#[test]
fn what_is_chosen_is_what_a_job_keeps() {
    let checkpoint = causal_checkpoint("window");
    let model = Model::open(checkpoint.path(), AMPLE).unwrap();
    let job = measured(&model);
    let (chosen, tokens) = (job.choose(Budget::TokenBytes(200)).unwrap(), job.kept_tokens());
    drop(job);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("codecs.json");
    std::fs::write(&path, chosen.overrides.to_json(chosen.base).to_string()).unwrap();
    let (base, overrides) = KvOverrides::read(&path).unwrap();
    assert_eq!((base, &overrides), (chosen.base, &chosen.overrides));

    let fresh = Model::open(checkpoint.path(), AMPLE).unwrap();
    let mixed = Request { kv_codec: Some(base), kv_overrides: overrides.clone(), ..request() };
    let outcome = run(&fresh, mixed.clone(), Kept::default().outputs(), &mut Silent).unwrap();
    let pages = *outcome.memory.kinds.iter().find(|kind| kind.kind == "self_kv").unwrap();
    // One block of three frames is committed, each frame once.
    assert_eq!(pages.encoded_bytes, (chosen.token_bytes * tokens) as u64);
    assert_eq!(pages.puts, 3 * 8);

    // The sink alone in another codec is another video, and takes other bytes.
    let mut sink = overrides;
    sink.sink = KvCodec::from_name("f32");
    let with_sink = Request { kv_overrides: sink, ..mixed.clone() };
    assert_ne!(pictures(&fresh, with_sink.clone()), pictures(&fresh, mixed));
    let outcome = run(&fresh, with_sink, Kept::default().outputs(), &mut Silent).unwrap();
    let sink_pages = outcome.memory.kinds.iter().find(|kind| kind.kind == "self_kv").unwrap();
    assert!(sink_pages.encoded_bytes > 2 * pages.encoded_bytes);
}

#[test]
fn codecs_for_layers_that_are_not_there_are_refused() {
    let checkpoint = causal_checkpoint("window");
    let model = Model::open(checkpoint.path(), AMPLE).unwrap();
    let mut overrides = KvOverrides::default();
    overrides.set_layers(Component::LowNoise, vec![KvCodec::default(); 7]);
    let request = Request { kv_overrides: overrides, ..request() };
    let error = JobRun::admit(&model, request, Kept::default().outputs(), CancelToken::new()).unwrap_err();
    assert!(error.to_string().contains("7 layers of low_noise, but the model has 2"), "{error}");
}
