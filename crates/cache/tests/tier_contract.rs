//! What every tier promises. A new tier is added to `Tier::ALL` and must pass.

use evanesce_cache::{Budgets, Cache, Key, Kind, Lifetime, PutError, PutSpec, Recover, Tier};

const KEY: Key = Key::new(Kind::VaeFeature);
const BUDGET_BYTES: u64 = 1 << 20;

/// Runs one promise on every tier.
fn every_tier(promise: impl Fn(Tier, Cache)) {
    for tier in Tier::ALL {
        promise(tier, Cache::new(Budgets { device_bytes: BUDGET_BYTES, host_bytes: BUDGET_BYTES }));
    }
}

#[test]
fn bytes_are_aligned_zeroed_exactly_as_long_as_asked_and_read_back_as_written() {
    every_tier(|tier, cache| {
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
    every_tier(|tier, cache| {
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
    every_tier(|tier, cache| {
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
fn what_may_be_dropped_makes_room_and_what_is_leased_does_not() {
    every_tier(|tier, cache| {
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
