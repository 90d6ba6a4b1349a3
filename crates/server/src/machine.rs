//! What the process has of the machine's memory, and what it may have.

/// Bytes of memory that the process holds now; `None` where the system does not say.
pub(crate) fn process_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    // The kernel counts in pages of 4 KiB on the machines that this runs on; larger pages make the reading too small, never
    // too large.
    Some(pages * 4096)
}

/// Bytes that the process may hold: the least of what its control group and the machine have.
pub(crate) fn limit_bytes() -> Option<u64> {
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse::<u64>().ok());
    let info = std::fs::read_to_string("/proc/meminfo").ok();
    let total = info.and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    });
    group.into_iter().chain(total).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_process_holds_something_and_less_than_it_may() {
        let (held, limit) = (process_bytes().unwrap(), limit_bytes().unwrap());
        assert!(0 < held && held < limit, "{held} of {limit}");
    }
}
