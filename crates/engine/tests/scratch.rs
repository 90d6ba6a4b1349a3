//! A job allocates what its steps work in once: after the first step a denoising step of the checkpoint that ships allocates
//! nothing above 64 KiB but entries that have not been there before. Those are the second prediction that the sampler keeps, in
//! the second step, and where experts change the weights of the next one (read during the last step before it) and its keys and
//! values of the text.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::path::Path;

use evanesce_engine::{CancelToken, JobRun, Model, Request, RequestedLength, Silent};
use evanesce_wan::kernels::CountingAllocator;
use evanesce_wan::schedule::expert_for;
use support::{AMPLE, Kept};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new(64 << 10);

/// For each step, large allocations and the largest one's bytes.
fn large_allocations_by_step(run: &mut JobRun<'_>) -> Vec<(usize, usize)> {
    let mut steps = Vec::new();
    while steps.len() < run.spec().steps() {
        let before = run.position().steps;
        let large = ALLOCATOR.large_in(|| assert!(run.advance(&mut Silent).unwrap().is_more()));
        // The last step is followed by decoding.
        if run.position().steps > before || before + 1 == run.spec().steps() {
            steps.push(large);
        }
    }
    steps
}

#[test]
fn after_the_first_step_a_denoising_step_allocates_nothing_large_but_new_entries() {
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/shapes");
    let model = Model::open(&checkpoint, AMPLE).unwrap();
    let request = Request {
        steps: Some(10),
        length: Some(RequestedLength::Frames(81)),
        ..Request::new("a red ball moving to the left on a black background", 1)
    };
    let mut run = JobRun::admit(&model, request, Kept::default().outputs(), CancelToken::new()).unwrap();
    let spec = run.spec().clone();
    let experts: Vec<_> = spec.schedule.timesteps().iter().map(|t| expert_for(*t, spec.boundary)).collect();
    let steps = large_allocations_by_step(&mut run);
    let first = (1..steps.len()).find(|step| experts[*step] != experts[step - 1]).expect("two experts");
    assert!((3..steps.len() - 3).contains(&first), "each expert has steps of its own: {first}");
    assert!(steps[0].0 > 0, "the first step allocates");
    let prediction_bytes = 4 * 16 * run.spec().latent_frames() * 8 * 8;
    for (step, (count, largest)) in steps.into_iter().enumerate() {
        let of_entries = if step == 1 { (1, prediction_bytes) } else { (0, 0) };
        let brings_an_expert = [0, first - 1, first].contains(&step);
        let message = format!("step {step}: {count} allocations, up to {largest} bytes");
        assert!(brings_an_expert || (count, largest) == of_entries, "{message}");
    }
}
