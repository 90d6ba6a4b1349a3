//! What the process has of the machine's memory, and what it may have.

use std::path::{Path, PathBuf};

/// Bytes of memory that the process holds now; `None` where the system does not say.
pub(crate) fn process_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    // The kernel counts in pages of 4 KiB on the machines that this runs on; larger pages make the reading too small, never
    // too large.
    Some(pages * 4096)
}

/// The directories of the control groups that this process is in, innermost first: in a container the outermost one is all there is
/// to see, for a unit of systemd the limit lies further in.
#[must_use]
pub fn control_groups() -> Vec<PathBuf> {
    const ROOT: &str = "/sys/fs/cgroup";
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups_of(&own, Path::new(ROOT))
}

/// The directories below `root` that a text such as `0::/system.slice/evanesce.service` names, and `root`.
fn groups_of(text: &str, root: &Path) -> Vec<PathBuf> {
    let inside = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or("");
    // Without the slash that an empty name would leave at its end.
    let innermost: PathBuf = root.join(inside.trim_end()).components().collect();
    innermost.ancestors().take_while(|dir| dir.starts_with(root)).map(Path::to_path_buf).collect()
}

/// Bytes that the process may hold: the least of what its control groups and the machine have.
pub(crate) fn limit_bytes() -> Option<u64> {
    let limit =
        |dir: PathBuf| std::fs::read_to_string(dir.join("memory.max")).ok()?.trim().parse::<u64>().ok();
    let group = control_groups().into_iter().filter_map(limit);
    let info = std::fs::read_to_string("/proc/meminfo").ok();
    let total = info.and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    });
    group.chain(total).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_control_group_around_the_process_counts() {
        let groups = |text: &str| {
            let found = groups_of(text, Path::new("/sys/fs/cgroup"));
            found.into_iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>()
        };
        let unit =
            ["/sys/fs/cgroup/system.slice/evanesce.service", "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup"];
        assert_eq!(groups("1:name=systemd:/x\n0::/system.slice/evanesce.service\n"), unit);
        assert_eq!(groups("0::/\n"), ["/sys/fs/cgroup"]);
        assert_eq!(groups(""), ["/sys/fs/cgroup"]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_process_holds_something_and_less_than_it_may() {
        let (held, limit) = (process_bytes().unwrap(), limit_bytes().unwrap());
        assert!(0 < held && held < limit, "{held} of {limit}");
    }
}
