//! A job allocates what its steps work in once: after the first step of an expert, which reads its weights and embeds the
//! prompts for it, a denoising step of the checkpoint that ships allocates nothing above 64 KiB. One entry is not scratch:
//! the second step keeps its prediction beside the first one's, which has not been there before.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]
#![expect(unsafe_code, reason = "an allocator that counts")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use evanesce_engine::{CancelToken, JobRun, Model, Request, RequestedLength, Silent};
use evanesce_wan::schedule::expert_for;
use support::{AMPLE, Kept};

const LARGE_BYTES: usize = 64 << 10;

/// Allocations above [`LARGE_BYTES`], of all threads, and the largest of them.
static LARGE: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

fn count(bytes: usize) {
    if bytes > LARGE_BYTES {
        LARGE.fetch_add(1, Ordering::Relaxed);
        LARGEST.fetch_max(bytes, Ordering::Relaxed);
    }
}

// SAFETY: everything is handed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promise is the same.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// For each step, large allocations and the largest one's bytes.
fn large_allocations_by_step(run: &mut JobRun<'_>) -> Vec<(usize, usize)> {
    let mut steps = Vec::new();
    while steps.len() < run.spec().steps() {
        let before = run.position().steps;
        LARGE.store(0, Ordering::Relaxed);
        LARGEST.store(0, Ordering::Relaxed);
        assert!(run.advance(&mut Silent).unwrap().is_more());
        // The last step is followed by decoding.
        if run.position().steps > before || before + 1 == run.spec().steps() {
            steps.push((LARGE.load(Ordering::Relaxed), LARGEST.load(Ordering::Relaxed)));
        }
    }
    steps
}

#[test]
fn after_the_first_step_of_an_expert_a_denoising_step_allocates_nothing_large() {
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
    let is_first = |step: usize| step == 0 || experts[step] != experts[step - 1];
    assert!((1..steps.len()).any(|step| is_first(step)), "both experts are at work");
    assert!(steps[0].0 > 0, "the first step allocates");
    let prediction_bytes = 4 * 16 * run.spec().latent_frames() * 8 * 8;
    for (step, (count, largest)) in steps.into_iter().enumerate() {
        let of_entries = if step == 1 { (1, prediction_bytes) } else { (0, 0) };
        let message = format!("step {step}: {count} allocations, up to {largest} bytes");
        assert!(is_first(step) || (count, largest) == of_entries, "{message}");
    }
}
