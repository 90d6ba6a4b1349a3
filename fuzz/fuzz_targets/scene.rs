//! A model, a request and outputs, for readers that are reached through a job: the engine's golden checkpoint, made to go on block
//! by block, one latent frame at a time, so that files are small and a snapshot has pages.

use std::path::Path;
use std::{fs, io};

use evanesce_engine::{Budgets, Kind, Model, Outputs, Request, RequestedLength};

use crate::scratch;

const GOLDEN: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/engine/tests/goldens/pipeline/checkpoint");
/// How the index of a checkpoint that goes on block by block begins.
const CAUSAL: &str = r#"{"evanesce":{"causal":{"block_frames":1,"sink_frames":1,"recent_frames":1}},"#;
/// A tier's budget: plenty for this job, and soon spent by lengths that should have been refused.
const BUDGET_BYTES: u64 = 64 << 20;

/// Opens the model, which lives as long as the process.
pub(crate) fn model() -> &'static Model {
    let directory = scratch::path("model");
    copy(Path::new(GOLDEN), &directory).expect("the golden checkpoint can be copied");
    let path = directory.join("model_index.json");
    let index = fs::read_to_string(&path).expect("it has an index");
    fs::write(&path, index.replacen('{', CAUSAL, 1)).expect("temporary files can be written");
    let budgets = Budgets { device_bytes: BUDGET_BYTES, host_bytes: BUDGET_BYTES };
    Box::leak(Box::new(Model::open(&directory, budgets).expect("it is a checkpoint")))
}

/// Three latent frames of 4x4.
pub(crate) fn request() -> Request {
    Request {
        size: Some((32, 32)),
        length: Some(RequestedLength::Frames(9)),
        steps: Some(2),
        ..Request::new("a red ball moves to the left", 1)
    }
}

/// A video that no target finishes.
pub(crate) fn outputs() -> Outputs {
    Outputs::mp4(scratch::path("out.mp4"))
}

/// Checks that jobs that are gone hold nothing.
pub(crate) fn check_returned(model: &Model) {
    model.cache().verify().expect("the cache agrees with itself");
    let counters = model.counters();
    for kind in [Kind::CrossKv, Kind::SelfKv, Kind::Latent, Kind::VaeFeature] {
        assert_eq!(counters.kind(kind).bytes.total(), 0, "{kind}");
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
