//! What this machine offers and what this process has used.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;

/// Bytes of memory that are free for use, as far as the system says.
pub(crate) fn available_bytes() -> usize {
    const WITHOUT_AN_ANSWER: usize = 8 << 30;
    proc_kib("/proc/meminfo", "MemAvailable:").unwrap_or(WITHOUT_AN_ANSWER)
}

/// The most memory this process has held at once, in bytes; 0 where the system does not say.
pub(crate) fn process_peak_bytes() -> usize {
    proc_kib("/proc/self/status", "VmHWM:").unwrap_or(0)
}

fn proc_kib(path: &str, label: &str) -> Option<usize> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_whitespace().next()?.parse::<usize>().ok().map(|kib| kib * 1024)
}

/// A number nobody chose, for `--seed`; small enough to type again.
pub(crate) fn drawn_seed() -> u64 {
    RandomState::new().hash_one("seed") >> 32
}

/// The checkpoint that ships with evanesce: looked for above the executable, in the working directory, and where it was built.
pub(crate) fn shipped_model() -> Option<PathBuf> {
    const INSIDE: &str = "models/shapes";
    let executable = std::env::current_exe().ok();
    let above = executable.iter().flat_map(|path| path.ancestors()).map(|dir| dir.join(INSIDE));
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(INSIDE);
    above.chain([PathBuf::from(INSIDE), built]).find(|dir| dir.join("model_index.json").is_file())
}
