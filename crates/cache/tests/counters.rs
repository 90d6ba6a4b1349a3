//! Counters that the reference model does not follow: peaks, sizes before encoding, and what is left of a job.

use evanesce_cache::{Budgets, Cache, Key, Kind, Lifetime, PutSpec, Tier};

const KEY: Key = Key::new(Kind::SelfKv);

fn cache() -> Cache {
    Cache::new(Budgets { device_bytes: 1 << 20, host_bytes: 1 << 20 })
}

#[test]
fn a_peak_is_what_was_held_at_one_moment() {
    let cache = cache();
    let job = cache.open_job();
    let put = |frame, tier, len_bytes| {
        drop(job.put(KEY.frame(frame), tier, Lifetime::Steps(1), len_bytes).unwrap().commit().unwrap());
    };
    put(0, Tier::Device, 640);
    put(1, Tier::Host, 128);
    job.step();
    put(0, Tier::Device, 64);
    put(1, Tier::Host, 256);
    let counters = cache.counters();
    let kind = counters.kind(Kind::SelfKv);
    assert_eq!((kind.peak_bytes[Tier::Device], kind.peak_bytes[Tier::Host]), (640, 256));
    assert_eq!(kind.peak_total_bytes, 768);
    assert_eq!((kind.bytes.total(), kind.returned_bytes, kind.expired), (320, 768, 2));
    assert_eq!(counters.tier(Tier::Device).peak_bytes, 640);
    let usage = job.usage();
    assert_eq!(
        (usage.bytes.total(), usage.peak_bytes[Tier::Device], usage.peak_bytes[Tier::Host]),
        (320, 640, 256)
    );
    assert_eq!(counters.kind(Kind::Latent).peak_total_bytes, 0);
}

#[test]
fn a_tier_s_peak_counts_writers_and_reservations_and_idle_buffers_are_not_in_use() {
    let cache = cache();
    let job = cache.open_job();
    let reservation = job.reserve(&[(Tier::Device, 1000)]).unwrap();
    let writer = job.put(KEY, Tier::Device, Lifetime::Job, 500).unwrap();
    drop((reservation, writer));
    let device = *cache.counters().tier(Tier::Device);
    assert_eq!((device.peak_bytes, device.used_bytes, device.free_listed_bytes), (1024 + 512, 0, 512));
}

#[test]
fn what_falls_out_of_a_window_is_pruned_and_neither_expired_nor_evicted() {
    let cache = cache();
    let job = cache.open_job();
    let lifetime = Lifetime::Window { sink: 1, recent: 3 };
    for frame in 0..8 {
        drop(job.put(KEY.frame(frame), Tier::Device, lifetime, 64).unwrap().commit().unwrap());
    }
    let gone = || {
        let kind = *cache.counters().kind(Kind::SelfKv);
        (kind.entries, kind.pruned, kind.expired, kind.evicted, kind.removed)
    };
    assert_eq!(gone(), (4, 4, 0, 0, 0), "the sink and the three newest stay");
    assert_eq!(job.prune_old(&KEY, 1).entries, 2);
    assert_eq!(gone(), (2, 6, 0, 0, 0));
    drop(job);
    assert_eq!(gone(), (0, 6, 2, 0, 0), "what is in sight ends with its job");
}

#[test]
fn encoded_and_raw_bytes_are_what_the_put_said() {
    let cache = cache();
    let job = cache.open_job();
    let spec = PutSpec::new(Tier::Device, Lifetime::Job, 100).raw_bytes(400);
    drop(job.put_with(KEY, spec).unwrap().commit().unwrap());
    drop(job.put(KEY.frame(1), Tier::Device, Lifetime::Job, 10).unwrap().commit().unwrap());
    drop(job.put(KEY.frame(2), Tier::Device, Lifetime::Job, 10).unwrap());
    let counters = cache.counters();
    let kind = counters.kind(Kind::SelfKv);
    assert_eq!((kind.encoded_bytes, kind.raw_bytes, kind.puts), (110, 410, 2));
}

#[test]
fn a_job_that_ends_while_its_bytes_are_out_is_remembered_until_they_are_back() {
    let cache = cache();
    let job = cache.open_job();
    let id = job.id();
    let lease = job.put(KEY, Tier::Host, Lifetime::Job, 0).unwrap().commit().unwrap();
    let writer = job.put(KEY.frame(1), Tier::Device, Lifetime::Job, 1).unwrap();
    assert_eq!(job.finish().bytes.total(), 128);
    drop(writer);
    assert_eq!((cache.owned_by(id).bytes[Tier::Host], cache.counters().jobs), (64, 1));
    drop(lease);
    assert_eq!((cache.owned_by(id).bytes.total(), cache.counters().jobs), (0, 0));
    assert_eq!(cache.verify(), Ok(()));
}
