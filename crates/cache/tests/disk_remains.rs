//! What is seen of a disk tier's directory from outside.

use std::os::unix::fs::FileExt;

use evanesce_cache::{Budgets, Cache, Disk, DiskRemains, Key, Kind, Lifetime, Tier};

/// Of a file this small.
const EXTENT_BYTES: u64 = 4096;
/// Before a record's payload.
const HEADER_BYTES: u64 = 64;

#[test]
fn records_are_seen_from_outside_and_one_that_was_changed_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path(), 1 << 20).unwrap();
    let cache = Cache::with_disk(Budgets { device_bytes: 1 << 16, host_bytes: 1 << 16 }, disk);
    let job = cache.open_job();
    for (index, len_bytes) in [(0, 1000), (1, 2000), (2, 10_000)] {
        let key = Key::new(Kind::Latent).index(index);
        let mut writer = job.put(key, Tier::Device, Lifetime::Job, len_bytes).unwrap();
        writer.bytes_mut().fill(7);
        drop(writer.commit().unwrap());
        assert_eq!(job.demote(&key).unwrap(), Some(Tier::Host));
        assert_eq!(job.demote(&key).unwrap(), Some(Tier::Disk));
    }
    let remains = DiskRemains::read(dir.path()).unwrap();
    let seen = (remains.files, remains.records, remains.verified, remains.damaged, remains.spread);
    assert_eq!(seen, (1, 3, 2, 0, 1), "{remains:?}");
    let path = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&path).unwrap();
    let is_short_record = |at: &u64| {
        let extent = &bytes[usize::try_from(at * EXTENT_BYTES).unwrap()..];
        extent.starts_with(b"evanesce")
            && u64::from_le_bytes(extent[16..24].try_into().unwrap()) < EXTENT_BYTES
    };
    let at = (0..remains.file_bytes / EXTENT_BYTES).find(is_short_record).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[8], at * EXTENT_BYTES + HEADER_BYTES).unwrap();
    let changed = DiskRemains::read(dir.path()).unwrap();
    assert_eq!((changed.verified, changed.damaged, changed.spread), (1, 1, 1), "{changed:?}");
    drop((job, cache));
    assert_eq!(DiskRemains::read(dir.path()).unwrap(), DiskRemains::default());
}
