//! Pages that leave while steps run, on another thread than the steps'.

use std::path::Path;

use evanesce_cache::{Budgets, Kind};

use super::*;
use crate::progress::Silent;
use crate::request::RequestedLength;

#[path = "../../tests/support/tree.rs"]
mod tree;

const STEPS: usize = 4;

/// Four blocks of three latent frames in 8 series of pages, which see two first frames and four recent ones.
fn causal_checkpoint() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/pipeline/checkpoint");
    tree::copy_tree(&golden, directory.path());
    let path = directory.path().join("model_index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let causal =
        serde_json::json!({"block_frames": 3, "sink_frames": 2, "recent_frames": 4, "positions": "window"});
    index["evanesce"] = serde_json::json!({ "causal": causal });
    std::fs::write(path, index.to_string()).unwrap();
    directory
}

/// Takes the step that comes next while another thread prunes every series to `keep` frames. Pages that went.
fn step_while_pruned(run: &mut JobRun<'_>, keep: u32) -> u64 {
    let Phase::Step { block, at } = run.phase else { panic!("{:?} is no step", run.phase) };
    let (block, series, job) = (run.spec.block(block), run.page_series(), &run.job);
    let denoise = run.denoising(&block).unwrap();
    let gone = std::thread::scope(|scope| {
        let pruning =
            scope.spawn(|| series.iter().map(|member| job.prune_old(member, keep).entries).sum::<u64>());
        denoise.take(at).unwrap();
        pruning.join().unwrap()
    });
    run.phase = Phase::Step { block: block.at, at: at + 1 };
    gone
}

/// The latents of a video, of which `disturb` gets the run before the third block's noise; and the pages that were pruned.
fn latents(checkpoint: &Path, disturb: impl FnOnce(&mut JobRun<'_>)) -> (Vec<u8>, u64) {
    let model = Model::open(checkpoint, Budgets { device_bytes: 1 << 30, host_bytes: 1 << 30 }).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let [video, latents] = ["out.mp4", "latents"].map(|name| directory.path().join(name));
    let request = Request {
        size: Some((48, 32)),
        length: Some(RequestedLength::Frames(41)),
        steps: Some(STEPS),
        guidance_high: Some(4.0),
        guidance_low: Some(3.0),
        shift: Some(5.0),
        ..Request::new("a red ball", 1)
    };
    let outputs = Outputs { latents: Some(latents.clone()), ..Outputs::mp4(video) };
    let mut run = JobRun::admit(&model, request, outputs, CancelToken::new()).unwrap();
    while run.phase != (Phase::Noise { block: 2 }) {
        assert!(run.advance(&mut Silent).unwrap().is_more());
    }
    assert_eq!(model.counters().kind(Kind::SelfKv).entries, 8 * (2 + 4));
    disturb(&mut run);
    while run.advance(&mut Silent).unwrap().is_more() {}
    run.finish().unwrap();
    model.cache().verify().unwrap();
    let pages = *model.counters().kind(Kind::SelfKv);
    assert_eq!((pages.misses, pages.entries), (0, 0));
    (std::fs::read(latents).unwrap(), pages.pruned)
}

#[test]
fn pages_out_of_sight_leave_while_steps_run_and_what_is_in_sight_keeps_its_bits() {
    let checkpoint = causal_checkpoint();
    let before = latents(checkpoint.path(), |run| {
        assert!(run.see_recent_frames(1) > 0);
    });
    let meanwhile = latents(checkpoint.path(), |run| {
        // The window shrinks, and its pages stay.
        run.adapt.want_recent_frames(1, None);
        assert!(run.advance(&mut Silent).unwrap().is_more());
        for keep in [3, 2, 1] {
            assert_eq!(step_while_pruned(run, keep), 8, "one of each series");
        }
        assert_eq!(run.phase, Phase::Step { block: 2, at: STEPS - 1 });
    });
    assert!(meanwhile.0 == before.0, "another video");
    // Of 9 frames that were committed in each series, 2 are the sink's and the newest was in sight to the end.
    assert_eq!((before.1, meanwhile.1), (8 * 6, 8 * 6));
    assert!(latents(checkpoint.path(), |_| {}).0 != before.0, "the frames out of sight made no difference");
}
