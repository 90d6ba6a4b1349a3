//! What this machine offers and what this process has used.

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use evanesce_server::control_groups;

/// The checkpoint that ships with evanesce and makes a video at once, and the one that makes it block by block.
pub(crate) const SHAPES: &str = "models/shapes";
pub(crate) const SHAPES_CAUSAL: &str = "models/shapes-causal";

/// Bytes of memory that are free for use, as far as the system says: the least of what the machine and the control groups
/// have left.
pub(crate) fn available_bytes() -> usize {
    const WITHOUT_AN_ANSWER: usize = 8 << 30;
    let machine = proc_kib("/proc/meminfo", "MemAvailable:");
    let groups = control_groups();
    let groups = groups.iter().filter_map(|group| left_in_group(group));
    machine.into_iter().chain(groups).min().unwrap_or(WITHOUT_AN_ANSWER)
}

/// Bytes that could be had at the very most, as far as the system says: a control group counts files that it would give up among
/// what it holds, so here only its limit counts.
pub(crate) fn most_bytes() -> usize {
    let machine = proc_kib("/proc/meminfo", "MemAvailable:");
    let groups = control_groups();
    let groups = groups.iter().filter_map(|group| group_number(group, "memory.max"));
    machine.into_iter().chain(groups).min().unwrap_or(usize::MAX)
}

/// Bytes that a control group may still take, where it has a limit.
fn left_in_group(directory: &Path) -> Option<usize> {
    Some(group_number(directory, "memory.max")?.saturating_sub(group_number(directory, "memory.current")?))
}

fn group_number(directory: &Path, name: &str) -> Option<usize> {
    std::fs::read_to_string(directory.join(name)).ok()?.trim().parse().ok()
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

/// A checkpoint that ships with evanesce: looked for above the executable, in the working directory, and where it was built.
pub(crate) fn shipped_model(inside: &str) -> Option<PathBuf> {
    let executable = std::env::current_exe().ok();
    let above = executable.iter().flat_map(|path| path.ancestors()).map(|dir| dir.join(inside));
    let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(inside);
    // As people would write it.
    let built = built.canonicalize().unwrap_or(built);
    above.chain([PathBuf::from(inside), built]).find(|dir| dir.join("model_index.json").is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_group_leaves_what_its_limit_and_its_use_say() {
        let dir = tempfile::tempdir().expect("a directory");
        let group = dir.path();
        assert_eq!(left_in_group(group), None, "no control group");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("a file");
        write("memory.current", "3000\n");
        write("memory.max", "max\n");
        assert_eq!(left_in_group(group), None, "no limit");
        write("memory.max", "5000\n");
        assert_eq!(left_in_group(group), Some(2000));
        write("memory.max", "1000\n");
        assert_eq!(left_in_group(group), Some(0));
    }
}
