//! What a disk may do, and what it must never do to the bytes that come back (laws 1, 3 and 11).

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;

use evanesce_cache::{
    Budgets, Cache, ContentKey, Disk, DiskFault, EntryKey, GetError, Job, Key, Kind, Lifetime, PutSpec,
    Recover, Tick, Tier, Uses,
};
use support::{Device, Fault, numbered, with_disk};

const KEY: Key = Key::new(Kind::SelfKv);
const LEN: usize = 20_000;
const BUDGETS: Budgets = Budgets { device_bytes: 1 << 20, host_bytes: 1 << 20 };
const DISK_BYTES: u64 = 1 << 20;

struct Scene {
    job: Job,
    cache: Cache,
    device: Device,
    // Last: the cache's file goes before its directory.
    directory: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (cache, device) = with_disk(directory.path(), BUDGETS, DISK_BYTES);
        Self { job: cache.open_job(), cache, device, directory }
    }

    /// Over a disk that one entry of twice the length fills but for two blocks.
    fn with_small_disk() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (cache, device) = with_disk(directory.path(), BUDGETS, 12 * 4096);
        Self { job: cache.open_job(), cache, device, directory }
    }

    fn put(&self, key: Key, number: u32) {
        self.put_len(key, number, LEN, Recover::Never);
    }

    fn put_len(&self, key: Key, number: u32, len: usize, recover: Recover) {
        let spec = PutSpec::new(Tier::Device, Lifetime::Job, len).recover(recover);
        let mut writer = self.job.put_with(key, spec).unwrap();
        writer.bytes_mut().copy_from_slice(&numbered(len, number));
        drop(writer.commit().unwrap());
    }

    /// As far down as it goes.
    fn sink(&self, key: Key) -> Option<Tier> {
        self.job.demote(&key).unwrap();
        self.job.demote(&key).unwrap()
    }

    fn used(&self) -> [u64; 3] {
        self.cache.verify().unwrap();
        Tier::ALL.map(|tier| self.cache.counters().tier(tier).used_bytes)
    }

    fn assert_lost(&self, key: Key, fault: DiskFault) {
        let lost = GetError::Lost { key: key.into(), fault };
        assert_eq!(self.job.try_get(&key).unwrap_err(), lost);
        assert_eq!(self.used(), [0; 3], "its bytes are back");
        // And it stays lost until it is put again.
        assert_eq!(self.job.try_get(&key).unwrap_err(), lost);
        let counters = self.cache.counters();
        assert_eq!((counters.tier(Tier::Disk).traffic.read_faults, counters.kind(Kind::SelfKv).lost), (1, 1));
        assert_eq!(counters.kind(Kind::SelfKv).misses, 2);
        self.device.set(None);
        self.put(key, 9);
        assert_eq!(self.sink(key), Some(Tier::Disk));
        assert_eq!(self.job.get(&key).unwrap().bytes(), numbered(LEN, 9));
    }
}

#[test]
fn a_torn_write_is_a_lost_entry_and_never_half_of_it() {
    let scene = Scene::new();
    scene.device.set(Fault::TornWrite);
    scene.put(KEY, 1);
    assert_eq!(scene.sink(KEY), Some(Tier::Disk));
    scene.assert_lost(KEY, DiskFault::Damaged);
}

#[test]
fn a_write_that_never_arrived_does_not_show_what_was_there_before() {
    let scene = Scene::new();
    // The same extents hold the same entry of before, whole and with a checksum that fits.
    scene.put(KEY, 1);
    assert_eq!(scene.sink(KEY), Some(Tier::Disk));
    assert!(scene.job.remove(&KEY));
    scene.device.set(Fault::LostWrite);
    scene.put(KEY, 1);
    assert_eq!(scene.sink(KEY), Some(Tier::Disk));
    scene.assert_lost(KEY, DiskFault::Damaged);
}

#[test]
fn one_flipped_bit_anywhere_is_a_lost_entry() {
    for round in 0..40 {
        let scene = Scene::new();
        scene.put(KEY, round);
        assert_eq!(scene.sink(KEY), Some(Tier::Disk));
        // Another number of calls before it: another bit, of the header or of the payload.
        (0..round).for_each(|at| {
            scene.put(KEY.frame(1 + at), at);
            assert_eq!(scene.sink(KEY.frame(1 + at)), Some(Tier::Disk));
            assert!(scene.job.remove(&KEY.frame(1 + at)));
        });
        scene.device.set(Fault::FlippedBit);
        scene.assert_lost(KEY, DiskFault::Damaged);
    }
}

#[test]
fn what_cannot_be_read_is_lost_with_the_reason() {
    let scene = Scene::new();
    scene.put(KEY, 1);
    assert_eq!(scene.sink(KEY), Some(Tier::Disk));
    scene.device.set(Fault::Unreadable);
    scene.assert_lost(KEY, DiskFault::Read(io::ErrorKind::Other));
}

#[test]
fn short_reads_and_writes_are_continued() {
    // A large file has large extents, of which a short call does a part.
    let directory = tempfile::tempdir().unwrap();
    let (cache, device) = with_disk(directory.path(), BUDGETS, 64 << 20);
    let scene = Scene { job: cache.open_job(), cache, device, directory };
    scene.device.set(Fault::Short);
    for number in 0..8 {
        scene.put(KEY.frame(number), number);
        assert_eq!(scene.sink(KEY.frame(number)), Some(Tier::Disk));
    }
    for number in 0..8 {
        assert_eq!(scene.job.try_get(&KEY.frame(number)).unwrap().bytes(), numbered(LEN, number));
    }
}

#[test]
fn a_full_disk_keeps_the_entry_above_and_takes_no_more() {
    let scene = Scene::new();
    let again = KEY.frame(1000);
    scene.put_len(again, 3, LEN, Recover::Recompute);
    assert_eq!(scene.sink(again), Some(Tier::Disk));
    scene.put(KEY, 1);
    assert_eq!(scene.sink(KEY), Some(Tier::Disk));
    scene.put(KEY.frame(1), 2);
    scene.device.set(Fault::Full);
    assert_eq!(scene.sink(KEY.frame(1)), Some(Tier::Host));
    scene.device.set(None);
    assert_eq!(scene.job.demote(&KEY.frame(1)), Ok(Some(Tier::Host)), "one failure is enough");
    assert_eq!(scene.cache.counters().tier(Tier::Disk).traffic.write_faults, 1);
    // What is there is still read, and what does not fit above is refused with the reason.
    assert_eq!(scene.job.get(&KEY).unwrap().bytes(), numbered(LEN, 1));
    assert_eq!(scene.job.get(&KEY.frame(1)).unwrap().bytes(), numbered(LEN, 2));
    let error = (2..200)
        .find_map(|frame| {
            scene
                .job
                .put(KEY.frame(frame), Tier::Device, Lifetime::Job, LEN)
                .map(|mut writer| {
                    writer.bytes_mut().fill(1);
                    drop(writer.commit().unwrap());
                })
                .err()
        })
        .expect("two megabytes are full");
    assert!(error.to_string().contains("a write to it failed"), "{error}");
    // Nothing was dropped there for entries that cannot get there.
    assert_eq!((scene.job.tier_of(&again), evicted(&scene)), (Some(Tier::Disk), 0));
    assert!(scene.job.remove(&KEY.frame(2)));
    assert_eq!(scene.job.get(&again).unwrap().bytes(), numbered(LEN, 3));
    scene.cache.verify().unwrap();
}

fn evicted(scene: &Scene) -> u64 {
    scene.cache.counters().kind(Kind::SelfKv).evicted
}

#[test]
fn nothing_on_a_full_disk_that_takes_no_more_gives_way_to_what_is_sent_there_or_reserved() {
    let scene = Scene::with_small_disk();
    let (kept, large) = (KEY, KEY.frame(1));
    scene.put_len(kept, 1, 2 * LEN, Recover::Recompute);
    assert_eq!(scene.sink(kept), Some(Tier::Disk));
    // The write that fails is of an entry that would still fit.
    scene.put_len(KEY.frame(2), 2, 1000, Recover::Never);
    scene.device.set(Fault::Full);
    assert_eq!(scene.sink(KEY.frame(2)), Some(Tier::Host));
    scene.device.set(None);
    scene.put_len(large, 3, 2 * LEN, Recover::Never);
    assert_eq!(scene.sink(large), Some(Tier::Host));
    assert!(scene.job.reserve(&[(Tier::Disk, 40_000)]).unwrap_err().disk_refuses);
    assert_eq!((scene.job.tier_of(&kept), evicted(&scene)), (Some(Tier::Disk), 0));
    assert_eq!(scene.job.get(&kept).unwrap().bytes(), numbered(2 * LEN, 1));
    scene.cache.verify().unwrap();
}

#[test]
fn what_was_to_follow_a_write_that_failed_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    let budgets = Budgets { device_bytes: 0, host_bytes: 2 * 20_032 };
    let (cache, device) = with_disk(directory.path(), budgets, DISK_BYTES);
    let job = cache.open_job();
    for frame in 0..2 {
        drop(job.put(KEY.frame(frame), Tier::Host, Lifetime::Job, LEN).unwrap().commit().unwrap());
    }
    device.set(Fault::Full);
    assert!(job.put(KEY.frame(2), Tier::Host, Lifetime::Job, 2 * LEN).is_err(), "both would have to go");
    assert_eq!(cache.counters().tier(Tier::Disk).traffic.write_faults, 1);
    assert_eq!([0, 1].map(|frame| job.tier_of(&KEY.frame(frame))), [Some(Tier::Host); 2]);
    cache.verify().unwrap();
}

#[test]
fn a_copy_to_elsewhere_brings_an_entry_to_the_host_and_pushes_nothing_off_the_device() {
    let directory = tempfile::tempdir().unwrap();
    let budgets = Budgets { device_bytes: 20_032, host_bytes: 20_032 };
    let (cache, _) = with_disk(directory.path(), budgets, DISK_BYTES);
    let job = cache.open_job();
    let put = |frame| {
        let spec = PutSpec::new(Tier::Device, Lifetime::Job, LEN).recover(Recover::Reload);
        drop(job.put_with(KEY.frame(frame), spec).unwrap().commit().unwrap());
    };
    put(0);
    job.demote(&KEY).unwrap();
    assert_eq!(job.demote(&KEY), Ok(Some(Tier::Disk)));
    put(1);
    assert_eq!(job.peek(&KEY).unwrap().tier(), Tier::Host);
    assert_eq!(job.tier_of(&KEY.frame(1)), Some(Tier::Device));
    // A read wants it at home.
    assert_eq!(job.get(&KEY).unwrap().tier(), Tier::Device);
    // Where the host has no room the device has.
    job.demote(&KEY).unwrap();
    assert_eq!(job.demote(&KEY), Ok(Some(Tier::Disk)));
    let full = job.put(KEY.frame(2), Tier::Host, Lifetime::Job, LEN).unwrap();
    assert_eq!(job.peek(&KEY).unwrap().tier(), Tier::Device);
    drop(full);
    cache.verify().unwrap();
}

#[test]
fn an_entry_that_is_being_written_is_read_in_place_and_quiesces_until_the_device_reports_back() {
    let scene = Scene::new();
    scene.put(KEY, 1);
    scene.job.demote(&KEY).unwrap();
    scene.device.set(Fault::Stuck);
    thread::scope(|scope| {
        let sinking = scope.spawn(|| scene.job.demote(&KEY));
        scene.device.wait_until_stuck();
        let [_, host, disk] = scene.used();
        assert!(host > 0 && disk > 0, "both ends are held");
        assert!(scene.job.remove(&KEY));
        assert_eq!(scene.used()[1..], [host, disk], "neither is used again yet");
        assert_eq!(scene.cache.counters().tier(Tier::Host).quiescing_bytes, host);
        scene.device.set(None);
        assert_eq!(sinking.join().unwrap(), Ok(None));
    });
    assert_eq!(scene.used(), [0; 3]);
}

#[test]
fn a_read_waits_for_a_slow_prefetch_of_the_same_entry_and_the_end_of_a_job_for_its_copies() {
    let scene = Scene::new();
    scene.put(KEY, 1);
    assert_eq!(scene.sink(KEY), Some(Tier::Disk));
    scene.job.announce(KEY, Uses::once(Tick(5)));
    scene.device.set(Fault::Stuck);
    let fetcher = scene.job.fetcher();
    thread::scope(|scope| {
        let fetching = scope.spawn(|| fetcher.prefetch(&KEY));
        scene.device.wait_until_stuck();
        let reading = scope.spawn(|| scene.job.try_get(&KEY).map(|lease| lease.to_vec()));
        scene.device.set(None);
        assert_eq!(reading.join().unwrap(), Ok(numbered(LEN, 1)));
        fetching.join().unwrap();
    });
    let counters = *scene.cache.counters().kind(Kind::SelfKv);
    assert_eq!(counters.arrived_before_use + counters.arrived_late, 1);
    assert_eq!(scene.sink(KEY), Some(Tier::Disk));
    scene.job.announce(KEY, Uses::once(Tick(9)));
    scene.device.set(Fault::Stuck);
    let Scene { job, cache, device, directory: _directory } = scene;
    let id = job.id();
    thread::scope(|scope| {
        let fetching = scope.spawn(|| fetcher.prefetch(&KEY));
        device.wait_until_stuck();
        let ending = scope.spawn(|| drop(job));
        while cache.counters().kind(Kind::SelfKv).entries == 1 {
            thread::yield_now();
        }
        assert!(!ending.is_finished(), "its bytes are still being read into");
        device.set(None);
        ending.join().unwrap();
        assert_eq!(cache.owned_by(id).bytes.total(), 0, "all is back when the guard is gone");
        assert!(!fetching.join().unwrap());
    });
    cache.verify().unwrap();
}

#[test]
fn a_prefetch_in_time_is_counted_and_one_that_never_came_too() {
    let scene = Scene::new();
    for frame in 0..2 {
        scene.put(KEY.frame(frame), frame);
        assert_eq!(scene.sink(KEY.frame(frame)), Some(Tier::Disk));
        scene.job.announce(KEY.frame(frame), Uses::once(Tick(3)));
    }
    assert!(scene.job.fetcher().prefetch(&KEY));
    assert!(!scene.job.fetcher().prefetch(&KEY), "it is home already");
    assert!(!scene.job.fetcher().prefetch(&KEY.frame(7)), "there is no such entry");
    for frame in 0..2 {
        assert_eq!(scene.job.get(&KEY.frame(frame)).unwrap().bytes(), numbered(LEN, frame));
    }
    let counters = *scene.cache.counters().kind(Kind::SelfKv);
    assert_eq!((counters.arrived_before_use, counters.arrived_late), (1, 1));
}

#[test]
fn a_device_that_panics_leaves_the_entry_where_it_was_and_every_byte_counted() {
    let scene = Scene::new();
    scene.put(KEY, 1);
    scene.device.set(Fault::Panics);
    assert!(catch_unwind(AssertUnwindSafe(|| scene.sink(KEY))).is_err());
    assert_eq!(scene.job.tier_of(&KEY), Some(Tier::Host));
    assert_eq!(scene.used()[2], 0);
    assert_eq!(scene.job.get(&KEY).unwrap().bytes(), numbered(LEN, 1));
}

#[test]
fn a_directory_that_is_removed_underneath_takes_nothing_with_it() {
    let scene = Scene::new();
    scene.put(KEY, 1);
    assert_eq!(scene.sink(KEY), Some(Tier::Disk));
    std::fs::remove_dir_all(scene.directory.path()).unwrap();
    scene.put(KEY.frame(1), 2);
    assert_eq!(scene.sink(KEY.frame(1)), Some(Tier::Disk));
    for frame in 0..2 {
        assert_eq!(scene.job.try_get(&KEY.frame(frame)).unwrap().bytes(), numbered(LEN, frame + 1));
    }
}

#[test]
fn what_finds_no_room_in_memory_stays_on_disk_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let budgets = Budgets { device_bytes: LEN as u64 + 32, host_bytes: LEN as u64 + 32 };
    let (cache, _) = with_disk(directory.path(), budgets, DISK_BYTES);
    let job = cache.open_job();
    drop(job.put(KEY, Tier::Device, Lifetime::Job, LEN).unwrap().commit().unwrap());
    job.demote(&KEY).unwrap();
    assert_eq!(job.demote(&KEY), Ok(Some(Tier::Disk)));
    let leases: Vec<_> = [Tier::Device, Tier::Host]
        .into_iter()
        .zip(1..)
        .map(|(tier, frame)| job.put(KEY.frame(frame), tier, Lifetime::Job, LEN).unwrap().commit().unwrap())
        .collect();
    let error = job.try_get(&KEY).unwrap_err();
    assert!(matches!(error, GetError::NoRoom { key, .. } if key == EntryKey::Own(KEY)), "{error}");
    assert_eq!(job.tier_of(&KEY), Some(Tier::Disk));
    drop(leases);
    assert_eq!(job.try_get(&KEY).unwrap().len(), LEN);
    cache.verify().unwrap();
}

#[test]
fn a_shared_entry_that_finds_no_room_in_memory_says_so_and_is_not_absent() {
    let directory = tempfile::tempdir().unwrap();
    let budgets = Budgets { device_bytes: LEN as u64 + 32, host_bytes: LEN as u64 + 32 };
    let (cache, _) = with_disk(directory.path(), budgets, DISK_BYTES);
    let (job, shared) = (cache.open_job(), ContentKey::of(Kind::TextEmbedding, &[b"a red fox"]));
    job.announce(shared, Uses::once(Tick(9)));
    drop(cache.shared_put(shared, Tier::Host, LEN).unwrap().commit().unwrap());
    let leases: Vec<_> = [Tier::Host, Tier::Device]
        .into_iter()
        .zip(1..)
        .map(|(tier, frame)| job.put(KEY.frame(frame), tier, Lifetime::Job, LEN).unwrap().commit().unwrap())
        .collect();
    assert_eq!(cache.shared_tier_of(&shared), Some(Tier::Disk));
    for error in [cache.try_shared_get(&shared).unwrap_err(), job.try_shared_get(&shared).unwrap_err()] {
        assert!(matches!(error, GetError::NoRoom { key, .. } if key == EntryKey::Shared(shared)), "{error}");
    }
    assert!(cache.shared_get(&shared).is_none() && cache.shared_contains(&shared));
    drop(leases);
    assert_eq!(cache.try_shared_get(&shared).unwrap().len(), LEN);
    assert!(cache.shared_remove(&shared));
    let error = cache.try_shared_get(&shared).unwrap_err();
    assert_eq!(error, GetError::Absent { key: EntryKey::Shared(shared) });
    cache.verify().unwrap();
}

fn files(directory: &Path) -> Vec<String> {
    let names = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn files_of_ended_processes_are_swept_and_those_of_living_ones_and_of_others_stay() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let living = Disk::open(here, DISK_BYTES).unwrap();
    let its_file = files(here);
    // As a killed process leaves it: there, and locked by nobody.
    for name in ["evanesce-1-0.extents", "evanesce-4000000-3.extents", "evanesce-notes.txt", "mine.extents"] {
        std::fs::write(here.join(name), b"left").unwrap();
    }
    let second = Disk::open(here, DISK_BYTES).unwrap();
    let now = files(here);
    assert_eq!(now.len(), 4);
    for name in its_file.iter().map(String::as_str).chain(["evanesce-notes.txt", "mine.extents"]) {
        assert!(now.iter().any(|there| there == name), "{name} of {now:?}");
    }
    drop((living, second));
    assert_eq!(files(here), ["evanesce-notes.txt", "mine.extents"]);
}

#[test]
fn a_disk_that_cannot_be_opened_says_where_and_why_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let missing = Disk::open(&here.join("nowhere"), DISK_BYTES).unwrap_err().to_string();
    assert!(missing.contains("nowhere") && missing.contains("cannot be read"), "{missing}");
    let huge = Disk::open(here, 1 << 45).unwrap_err().to_string();
    assert!(huge.contains("no room for 35184372088832 bytes"), "{huge}");
    let nothing = Disk::open(here, 100).unwrap_err().to_string();
    assert!(nothing.contains("4096 at least"), "{nothing}");
    assert_eq!(files(here).len(), 0);
}
