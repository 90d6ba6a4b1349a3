//! Runs the built command over the golden checkpoint of the engine.
#![allow(dead_code, clippy::allow_attributes, reason = "every test file uses a part")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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

pub(crate) fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
