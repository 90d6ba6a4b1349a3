//! What a job owns comes back on every way out, and nobody sees what belongs to another.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use evanesce_cache::{Kind, Tier};
use evanesce_engine::progress::{Event, Observer, Stage};
use evanesce_engine::{Budgets, CancelToken, EngineError, Fault, JobRun, JobSpec, Model, Outputs, Request};
use support::{AMPLE, Kept, interleaved, open, pictures, request, run};

/// Everything that a job may own is back, and what is left belongs to the shared pool.
fn assert_nothing_is_owned(model: &Model, id: evanesce_cache::JobId) {
    let counters = model.counters();
    for tier in Tier::ALL {
        let tier_counters = counters.tier(tier);
        assert_eq!(model.cache().owned_by(id).bytes[tier], 0, "{tier}");
        assert_eq!(tier_counters.used_bytes, counters.shared.bytes[tier], "{tier}");
        assert_eq!(
            tier_counters.quiescing_bytes + tier_counters.writing_bytes + tier_counters.reserved_bytes,
            0
        );
    }
    for kind in [Kind::CrossKv, Kind::Latent, Kind::VaeFeature] {
        assert_eq!(counters.kind(kind).bytes.total(), 0, "{kind}");
    }
    model.cache().verify().unwrap();
}

fn files_in(dir: &std::path::Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

fn all_outputs(dir: &std::path::Path) -> Outputs {
    let mut outputs = Outputs::mp4(dir.join("out.mp4"));
    outputs.latents = Some(dir.join("latents.safetensors"));
    outputs.frames = Some(dir.join("frames.safetensors"));
    outputs
}

#[test]
fn a_finished_job_owns_nothing_and_its_counters_add_up() {
    let model = open(AMPLE);
    let dir = tempfile::tempdir().unwrap();
    let mut most_used_bytes = 0;
    let mut observer = |_: Event<'_>| {
        // Every account of every tier, summed entry by entry, is what the ledger says.
        model.cache().verify().unwrap();
        most_used_bytes = most_used_bytes.max(model.counters().tier(Tier::Device).used_bytes);
    };
    let outcome = run(&model, request(), all_outputs(dir.path()), &mut observer).unwrap();
    let device = &outcome.memory.tiers[0];
    assert!(
        0 < most_used_bytes
            && most_used_bytes <= device.peak_bytes
            && device.peak_bytes <= device.budget_bytes
    );
    assert!(outcome.memory.tiers.iter().all(|tier| tier.owned_at_end_bytes == 0));
    assert_eq!(files_in(dir.path()), 3);
    for kind in &outcome.memory.kinds {
        if ["cross_kv", "latent", "vae_feature"].contains(&kind.kind) {
            assert_eq!(kind.puts, kind.expired, "{} leaves by itself", kind.kind);
            assert_eq!(kind.misses, if kind.kind == "cross_kv" { kind.puts } else { 0 }, "{}", kind.kind);
        }
    }
}

/// Cancels, or panics, at the n-th event.
struct AtEvent<'a> {
    countdown: usize,
    then: &'a dyn Fn(),
}

impl Observer for AtEvent<'_> {
    fn on_event(&mut self, _event: Event<'_>) {
        if self.countdown == 0 {
            (self.then)();
        }
        self.countdown = self.countdown.wrapping_sub(1);
    }
}

fn n_events(model: &Model) -> usize {
    let mut n_events = 0;
    let kept = Kept::default();
    run(model, request(), kept.outputs(), &mut |_: Event<'_>| n_events += 1).unwrap();
    n_events
}

/// A small linear congruential generator: twenty moments, the same in every run. The last three events come from closing the
/// files, when it is too late to stop.
fn moments(n_events: usize) -> impl Iterator<Item = usize> {
    let mut state = 12_345_u64;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % (n_events - 3)
    })
    .take(20)
}

#[test]
fn a_cancelled_job_returns_every_byte_and_leaves_no_file() {
    let model = open(AMPLE);
    for at in moments(n_events(&model)) {
        let dir = tempfile::tempdir().unwrap();
        let cancel = CancelToken::new();
        let outputs = all_outputs(dir.path());
        let mut job = JobRun::admit(&model, request(), outputs, cancel.clone()).unwrap();
        let id = job.id();
        let then = || cancel.cancel();
        let mut observer = AtEvent { countdown: at, then: &then };
        let error = loop {
            match job.advance(&mut observer) {
                Ok(progress) => assert!(progress.is_more(), "cancelled at event {at} but done"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.fault(), Fault::Cancelled);
        drop(job);
        assert_nothing_is_owned(&model, id);
        assert_eq!(files_in(dir.path()), 0, "at event {at}");
    }
}

#[test]
fn a_panic_in_any_stage_returns_every_byte_and_leaves_no_file() {
    let model = open(AMPLE);
    for stage in Stage::ALL {
        let dir = tempfile::tempdir().unwrap();
        let outputs = all_outputs(dir.path());
        let job = JobRun::admit(&model, request(), outputs, CancelToken::new()).unwrap();
        let id = job.id();
        let mut seen = Vec::new();
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut job = job;
            let mut observer = |event: Event<'_>| {
                if let Event::Started { stage, .. } | Event::Advanced { stage, .. } = event {
                    seen.push(stage);
                }
                let inside = matches!(event, Event::Advanced { stage: s, .. } if s == stage);
                assert!(!(inside && stage != Stage::Encode), "injected");
                assert!(!(stage == Stage::Encode && event == Event::Encoding(true)), "injected");
            };
            while job.advance(&mut observer).unwrap().is_more() {}
        }));
        assert!(result.is_err(), "{stage:?} did not panic; saw {seen:?}");
        assert_nothing_is_owned(&model, id);
        assert_eq!(files_in(dir.path()), 0, "{stage:?}");
    }
    // The model is as good as before.
    assert_eq!(pictures(&model, request()), pictures(&open(AMPLE), request()));
}

#[test]
fn two_interleaved_jobs_equal_each_alone_bit_for_bit() {
    let other = || Request { seed: 99, prompt: "a blue ball".to_owned(), steps: Some(5), ..request() };
    let alone = [pictures(&open(AMPLE), request()), pictures(&open(AMPLE), other())];
    let model = open(AMPLE);
    let (made, ids) = interleaved(&model, [request(), other()]);
    assert_eq!(made, alone);
    ids.into_iter().for_each(|id| assert_nothing_is_owned(&model, id));
}

/// The least budget that is said to do does, with the same pictures; a byte less is refused before anything runs.
#[test]
fn the_least_budget_suffices_and_changes_nothing() {
    let budget = |device_bytes| Budgets { device_bytes, host_bytes: 0 };
    let admit = |device_bytes| {
        let model = open(budget(device_bytes));
        match JobRun::admit(&model, request(), Kept::default().outputs(), CancelToken::new()) {
            Ok(_) => None,
            Err(EngineError::Budget { needed_bytes, .. }) => Some(needed_bytes as u64),
            Err(other) => panic!("expected a refusal, got {other:?}"),
        }
    };
    let least = admit(1).unwrap();
    let model = open(AMPLE);
    let spec = JobSpec::new(request(), model.checkpoint()).unwrap();
    assert_eq!(model.device_bytes_needed(&spec).unwrap(), least);
    assert_eq!(admit(least - 1), Some(least));
    let tight = open(budget(least));
    assert_eq!(pictures(&tight, request()), pictures(&open(AMPLE), request()));
    assert!(tight.counters().tier(Tier::Device).peak_bytes <= least);
}

#[test]
fn the_negative_prompt_is_encoded_once_per_model() {
    let model = open(AMPLE);
    pictures(&model, request());
    let before = model.counters();
    pictures(&model, Request { prompt: "another red ball".to_owned(), ..request() });
    let after = model.counters();
    assert_eq!(after.kind(Kind::TextEmbedding).puts - before.kind(Kind::TextEmbedding).puts, 1);
    assert_eq!(after.kind(Kind::TextEmbedding).hits - before.kind(Kind::TextEmbedding).hits, 1);
}
