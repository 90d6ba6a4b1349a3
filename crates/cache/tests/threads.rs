//! Guards that are dropped on other threads.

use std::sync::Barrier;
use std::thread;

use evanesce_cache::{Budgets, Cache, ContentKey, Key, Kind, Lifetime, PutSpec, Recover, Tier};

const KEY: Key = Key::new(Kind::SelfKv);

#[test]
fn leases_that_other_threads_drop_return_their_bytes() {
    let cache = Cache::new(Budgets { device_bytes: 1 << 20, host_bytes: 0 });
    let job = cache.open_job();
    let leases: Vec<_> = (0..64)
        .map(|frame| {
            let mut writer = job.put(KEY.frame(frame), Tier::Device, Lifetime::Job, 1000).unwrap();
            writer.bytes_mut().fill(u8::try_from(frame).unwrap());
            writer.commit().unwrap()
        })
        .collect();
    drop(job);
    assert_eq!(cache.counters().tier(Tier::Device).quiescing_bytes, 64 * 1024);
    thread::scope(|scope| {
        for (frame, lease) in leases.into_iter().enumerate() {
            scope.spawn(move || assert!(lease.iter().all(|byte| usize::from(*byte) == frame)));
        }
    });
    assert_eq!(cache.counters().tier(Tier::Device).used_bytes, 0);
    assert_eq!(cache.verify(), Ok(()));
}

#[test]
fn many_threads_over_a_small_budget_read_what_they_wrote_and_return_every_byte() {
    let cache = Cache::new(Budgets { device_bytes: 24 * 1024, host_bytes: 24 * 1024 });
    let shared: Vec<_> = (0..8u8).map(|n| ContentKey::of(Kind::TextEmbedding, &[&[n]])).collect();
    let start = Barrier::new(4);
    thread::scope(|scope| {
        for thread in 0..4u32 {
            let (cache, shared, start) = (&cache, &shared, &start);
            scope.spawn(move || {
                start.wait();
                for round in 0..60 {
                    let job = cache.open_job();
                    own_entries(&job, thread, round);
                    shared_entry(cache, shared[(thread + round) as usize % shared.len()]);
                    drop(job.reserve(&[(Tier::Device, 2048), (Tier::Host, 1024)]));
                    job.step();
                }
            });
        }
    });
    assert_eq!(cache.verify(), Ok(()));
    let counters = cache.counters();
    assert_eq!(counters.jobs, 0);
    let held: u64 = Tier::ALL.into_iter().map(|tier| counters.tier(tier).used_bytes).sum();
    assert_eq!(held, counters.shared.bytes.total());
    shared.iter().for_each(|key| _ = cache.shared_remove(key));
    assert!(Tier::ALL.into_iter().all(|tier| cache.counters().tier(tier).used_bytes == 0));
}

/// Entries of all sorts, which the budget pushes down and back up while they are read.
fn own_entries(job: &evanesce_cache::Job, thread: u32, round: u32) {
    let stamp = |frame: u32| u8::try_from((thread * 61 + round * 7 + frame) % 251).expect("below 251");
    for frame in 0..12 {
        let recover = [Recover::Never, Recover::Recompute, Recover::Reload][frame as usize % 3];
        let lifetime =
            [Lifetime::Steps(1), Lifetime::Job, Lifetime::Window { sink: 1, recent: 3 }][frame as usize % 3];
        let spec = PutSpec::new(Tier::Device, lifetime, 512 + 256 * (frame as usize % 4)).recover(recover);
        let Ok(mut writer) = job.put_with(KEY.frame(frame), spec) else { continue };
        writer.bytes_mut().fill(stamp(frame));
        drop(writer.commit().expect("the key is this thread's own"));
        for earlier in 0..=frame {
            if let Some(lease) = job.get(&KEY.frame(earlier)) {
                assert!(lease.iter().all(|byte| *byte == stamp(earlier)));
            }
        }
    }
}

/// Reads a shared entry or makes it; another thread may do the same at the same time.
fn shared_entry(cache: &Cache, key: ContentKey) {
    let expected = key.hash()[0];
    if let Some(lease) = cache.shared_get(&key) {
        assert!(lease.iter().all(|byte| *byte == expected));
    } else if let Ok(mut writer) = cache.shared_put(key, Tier::Device, 700) {
        writer.bytes_mut().fill(expected);
        match writer.commit() {
            Ok(lease) => assert!(lease.iter().all(|byte| *byte == expected)),
            Err(error) => drop(error.writer),
        }
    }
}
