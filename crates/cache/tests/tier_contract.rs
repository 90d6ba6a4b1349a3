//! What every tier promises: those in memory, where entries are written, and all of them, where entries wait. A new tier is
//! added to `Tier::ALL` and must pass.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use evanesce_cache::{Budgets, Cache, Fill, Job, Key, Kind, Lifetime, PutError, PutSpec, Recover, Tier};
use support::{Fault, numbered, with_disk};

const KEY: Key = Key::new(Kind::VaeFeature);
const BUDGET_BYTES: u64 = 1 << 20;

const BUDGETS: Budgets = Budgets { device_bytes: BUDGET_BYTES, host_bytes: BUDGET_BYTES };

/// Runs one promise on every tier that entries are written in.
fn every_memory(promise: impl Fn(Tier, Cache)) {
    for tier in [Tier::Device, Tier::Host] {
        promise(tier, Cache::new(BUDGETS));
    }
}

/// Runs one promise on every tier that entries wait in, on disks that do whole transfers and on one that never does.
fn every_tier(promise: impl Fn(Tier, Cache)) {
    for tier in Tier::ALL {
        for fault in [None, Some(Fault::Short)] {
            let directory = tempfile::tempdir().unwrap();
            let (cache, device) = with_disk(directory.path(), BUDGETS, BUDGET_BYTES);
            device.set(fault);
            promise(tier, cache);
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "no file is left");
        }
    }
}

/// Puts an entry and sends it down to `tier`. Whether it got there.
fn sink(job: &Job, key: Key, tier: Tier, lifetime: Lifetime, bytes: &[u8]) -> bool {
    let Ok(mut writer) = job.put(key, Tier::Device, lifetime, bytes.len()) else { return false };
    writer.bytes_mut().copy_from_slice(bytes);
    drop(writer.commit().unwrap());
    while job.tier_of(&key) < Some(tier) {
        if job.demote(&key).is_err() {
            return false;
        }
    }
    true
}

#[test]
fn bytes_are_aligned_zeroed_exactly_as_long_as_asked_and_read_back_as_written() {
    every_memory(|tier, cache| {
        let job = cache.open_job();
        for len_bytes in [0, 1, 63, 64, 65, 4096, 200_000] {
            let mut writer = job.put(KEY, tier, Lifetime::Steps(1), len_bytes).unwrap();
            assert_eq!(writer.bytes().len(), len_bytes);
            assert!(writer.bytes().as_ptr().addr().is_multiple_of(64));
            assert!(writer.bytes().iter().all(|byte| *byte == 0));
            let written: Vec<u8> = (0..len_bytes).map(|i| u8::try_from(i % 251).unwrap()).collect();
            writer.bytes_mut().copy_from_slice(&written);
            let lease = writer.commit().unwrap();
            assert_eq!((lease.tier(), lease.bytes()), (tier, &written[..]));
            drop(lease);
            assert_eq!(job.get(&KEY).unwrap().bytes(), written);
            job.step();
        }
        assert_eq!(cache.counters().tier(tier).used_bytes, 0);
    });
}

#[test]
fn the_last_byte_of_the_budget_can_be_used_and_no_more() {
    every_memory(|tier, cache| {
        let job = cache.open_job();
        let full = job.put(KEY, tier, Lifetime::Job, usize::try_from(BUDGET_BYTES).unwrap()).unwrap();
        let error = job.put(KEY.frame(1), tier, Lifetime::Job, 1).unwrap_err();
        assert!(
            matches!(error, PutError::OutOfBudget(e) if e.tier == tier && e.held.writing_bytes == BUDGET_BYTES)
        );
        drop(full);
        assert!(job.put(KEY.frame(1), tier, Lifetime::Job, 1).is_ok());
        let others = Tier::ALL.into_iter().filter(|other| *other != tier);
        assert!(others.into_iter().all(|other| cache.counters().tier(other).peak_bytes == 0));
    });
}

#[test]
fn a_freed_buffer_is_used_again_for_the_same_size() {
    every_memory(|tier, cache| {
        let job = cache.open_job();
        let first = job.put(KEY, tier, Lifetime::Steps(1), 10_000).unwrap().commit().unwrap();
        let address = first.as_ptr();
        drop(first);
        job.step();
        assert_eq!(cache.counters().tier(tier).free_listed_bytes, 10_048);
        let second = job.put(KEY, tier, Lifetime::Steps(1), 10_000).unwrap().commit().unwrap();
        assert_eq!(second.as_ptr(), address);
        assert_eq!(cache.counters().tier(tier).free_listed_bytes, 0);
    });
}

#[test]
fn a_group_that_fills_its_tier_uses_all_buffers_again_that_one_like_it_left() {
    every_memory(|tier, cache| {
        let job = cache.open_job();
        let len_bytes = usize::try_from(BUDGET_BYTES / 4).unwrap();
        let spec = PutSpec::new(tier, Lifetime::Steps(1), len_bytes).fill(Fill::Any);
        let members = || [0, 1, 2, 3].map(|frame| (KEY.frame(frame), spec));
        let mut group = job.put_group(members()).unwrap();
        group.all_bytes_mut().into_iter().for_each(|bytes| bytes.fill(7));
        drop(group.commit().unwrap());
        job.step();
        let mut again = job.put_group(members()).unwrap();
        // New memory would be zeroed.
        assert!(again.all_bytes_mut().into_iter().all(|bytes| bytes.iter().all(|byte| *byte == 7)));
        assert_eq!(cache.counters().tier(tier).free_listed_bytes, 0);
        cache.verify().unwrap();
    });
}

#[test]
fn below_the_lowest_tier_there_is_none_to_demote_to() {
    let cache = Cache::new(BUDGETS);
    let job = cache.open_job();
    drop(job.put(KEY, Tier::Host, Lifetime::Job, 100).unwrap().commit().unwrap());
    assert_eq!(job.demote(&KEY), Ok(Some(Tier::Host)));
    every_tier(|tier, cache| {
        let job = cache.open_job();
        assert!(sink(&job, KEY, tier, Lifetime::Job, &numbered(100, 1)));
        while job.tier_of(&KEY) < Some(Tier::Disk) {
            job.demote(&KEY).unwrap();
        }
        assert_eq!(job.demote(&KEY), Ok(Some(Tier::Disk)));
    });
}

#[test]
fn what_may_be_dropped_makes_room_and_what_is_leased_does_not() {
    every_memory(|tier, cache| {
        let job = cache.open_job();
        let half = usize::try_from(BUDGET_BYTES / 2).unwrap();
        let spec = PutSpec::new(tier, Lifetime::Job, half).recover(Recover::Reload);
        let leased = job.put_with(KEY.frame(0), spec).unwrap().commit().unwrap();
        drop(job.put_with(KEY.frame(1), spec).unwrap().commit().unwrap());
        drop(job.put_with(KEY.frame(2), spec).unwrap().commit().unwrap());
        assert_eq!([0, 1, 2].map(|frame| job.contains(&KEY.frame(frame))), [true, false, true]);
        assert_eq!(cache.counters().kind(Kind::VaeFeature).evicted, 1);
        drop(leased);
        assert_eq!(cache.verify(), Ok(()));
    });
}

#[test]
fn what_waits_in_a_tier_takes_its_bytes_and_comes_back_as_it_was() {
    every_tier(|tier, cache| {
        let job = cache.open_job();
        for len in [1, 63, 64, 65, 4031, 4032, 4033, 8128, 8129, 200_000] {
            let written = numbered(len, 3);
            assert!(sink(&job, KEY, tier, Lifetime::Steps(1), &written));
            let counters = cache.counters();
            for other in Tier::ALL {
                let used = counters.tier(other).used_bytes;
                assert_eq!(used > 0, other == tier, "{other} of {tier}");
                assert!(used == 0 || used >= len as u64);
            }
            assert_eq!(job.get(&KEY).unwrap().bytes(), written, "{len} bytes through {tier}");
            assert_eq!(job.tier_of(&KEY), Some(Tier::Device));
            cache.verify().unwrap();
            job.step();
        }
        assert!(Tier::ALL.into_iter().all(|tier| cache.counters().tier(tier).used_bytes == 0));
        let moved = cache.counters().kind(Kind::VaeFeature).promoted;
        assert_eq!(moved, if tier == Tier::Device { 0 } else { 10 });
    });
}

#[test]
fn a_full_tier_refuses_and_keeps_what_it_has_and_an_ended_job_leaves_it_empty() {
    every_tier(|tier, cache| {
        let job = cache.open_job();
        let mut sunk = 0;
        while sink(&job, KEY.frame(sunk), tier, Lifetime::Job, &numbered(10_000, sunk)) {
            sunk += 1;
        }
        let counters = *cache.counters().tier(tier);
        // Whole lines in memory; with a header, whole blocks on disk.
        let each = if tier == Tier::Disk { 12_288 } else { 10_048 };
        assert!(sunk > 50 && counters.used_bytes + each > counters.budget_bytes, "{sunk} entries");
        cache.verify().unwrap();
        // To change places, entries of full tiers need one place that is free.
        for full in Tier::ALL {
            if let Some(frame) = (0..sunk).find(|frame| job.tier_of(&KEY.frame(*frame)) == Some(full)) {
                assert!(job.remove(&KEY.frame(frame)));
            }
        }
        for frame in (0..sunk).filter(|frame| job.contains(&KEY.frame(*frame))).collect::<Vec<_>>() {
            let lease = job.try_get(&KEY.frame(frame)).unwrap();
            assert_eq!(lease.bytes(), numbered(10_000, frame), "frame {frame} through {tier}");
        }
        drop(job);
        assert!(Tier::ALL.into_iter().all(|tier| cache.counters().tier(tier).used_bytes == 0));
        cache.verify().unwrap();
    });
}

#[test]
fn what_two_tiers_cannot_hold_sinks_to_the_third_by_itself_and_is_brought_back_for_its_read() {
    let directory = tempfile::tempdir().unwrap();
    let budgets = Budgets { device_bytes: 4 * 4096, host_bytes: 4 * 4096 };
    let (cache, _) = with_disk(directory.path(), budgets, BUDGET_BYTES);
    let job = cache.open_job();
    for frame in 0..40 {
        let mut writer = job.put(KEY.frame(frame), Tier::Device, Lifetime::Job, 4096).unwrap();
        writer.bytes_mut().copy_from_slice(&numbered(4096, frame));
        drop(writer.commit().unwrap());
    }
    assert!(cache.counters().tier(Tier::Disk).used_bytes >= 31 * 4096);
    for frame in (0..40).chain((0..40).rev()) {
        assert_eq!(job.try_get(&KEY.frame(frame)).unwrap().bytes(), numbered(4096, frame));
        cache.verify().unwrap();
    }
}

#[test]
fn nothing_is_written_to_disk_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, _) = with_disk(directory.path(), BUDGETS, BUDGET_BYTES);
    let error = cache.open_job().put(KEY, Tier::Disk, Lifetime::Job, 1).unwrap_err();
    assert_eq!(error, PutError::NotInMemory { key: KEY.into() });
    assert!(error.to_string().contains("host tier"), "{error}");
}
