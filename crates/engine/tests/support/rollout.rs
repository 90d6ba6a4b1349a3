//! The committed golden checkpoint, made causal.

use std::path::{Path, PathBuf};

use super::golden;
use super::tree::copy_tree;

pub(crate) fn rollout_golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/rollout").join(name)
}

pub(crate) fn golden_request() -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(rollout_golden("request.json")).unwrap()).unwrap()
}

/// The golden checkpoint with a section that makes it causal. The directory must outlive the model.
pub(crate) fn causal_checkpoint(positions: &str) -> tempfile::TempDir {
    causal_checkpoint_that_sees(positions, 3)
}

/// The same with `recent` latent frames right before a block in sight.
pub(crate) fn causal_checkpoint_that_sees(positions: &str, recent: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_tree(&golden("checkpoint"), dir.path());
    let path = dir.path().join("model_index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let mut causal = golden_request()["causal"].clone();
    causal["positions"] = positions.into();
    causal["recent_frames"] = recent.into();
    index["evanesce"] = serde_json::json!({ "causal": causal });
    std::fs::write(path, index.to_string()).unwrap();
    dir
}
