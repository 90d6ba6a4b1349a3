//! Runs the built command over the golden checkpoint of the engine.
#![allow(dead_code, unused_imports, clippy::allow_attributes, reason = "every test file uses a part")]

#[path = "../../../engine/tests/support/tree.rs"]
mod tree;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub(crate) use tree::copy_tree;

pub(crate) fn golden_checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/goldens/pipeline/checkpoint")
}

pub(crate) fn evanesce() -> Command {
    Command::new(env!("CARGO_BIN_EXE_evanesce"))
}

/// `generate` of a short, small video over `model`, with `dir` as working directory and more arguments at the end.
pub(crate) fn generate(model: &Path, dir: &Path, more: &[impl AsRef<OsStr>]) -> Output {
    let mut command = evanesce();
    command.current_dir(dir).args(["generate", "--threads", "2", "--model"]).arg(model).args(more);
    command.output().unwrap()
}

/// What the golden checkpoint needs to be quick.
pub(crate) const SMALL: [&str; 6] = ["--size", "32x32", "--frames", "5", "--steps", "2"];

pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
