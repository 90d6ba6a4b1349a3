//! A prefetch takes room only from what is read later than what it brings.

use evanesce_cache::{
    Budgets, Cache, ContentKey, Displace, Key, Kind, Lifetime, PutSpec, Recover, Tick, Tier, Touch, Uses,
};

const LEN: usize = 4096;

fn key(name: u8) -> ContentKey {
    ContentKey::of(Kind::Weights, &[&[name]])
}

fn spec() -> PutSpec {
    PutSpec::shared(Tier::Device, LEN).recover(Recover::Reload)
}

#[test]
fn what_is_read_sooner_stays_and_what_is_read_later_or_never_leaves() {
    let cache = Cache::new(Budgets { device_bytes: 2 * LEN as u64, host_bytes: 0 });
    let job = cache.open_job();
    for (name, tick) in [(b'a', 3), (b'b', 9)] {
        job.announce(key(name), Uses::once(Tick(tick)));
        drop(cache.shared_put_with(key(name), spec()).unwrap().commit().unwrap());
    }
    let prefetch =
        |name, ticks| cache.shared_put_with(key(name), spec().displace(Displace::NeededAfter { ticks }));
    assert!(prefetch(b'c', 10).is_err(), "both are read before it");
    assert!(cache.shared_contains(&key(b'a')) && cache.shared_contains(&key(b'b')));
    drop(prefetch(b'c', 5).unwrap().commit().unwrap());
    assert!(cache.shared_contains(&key(b'a')) && !cache.shared_contains(&key(b'b')));
    drop(job.shared_get(&key(b'a')).unwrap());
    job.announce(key(b'c'), Uses::once(Tick(5)));
    drop(prefetch(b'd', 6).unwrap().commit().unwrap());
    assert!(!cache.shared_contains(&key(b'a')), "nobody will read it again");
    assert!(cache.shared_contains(&key(b'c')));
    cache.verify().unwrap();
}

#[test]
fn a_read_that_no_other_follows_ends_its_entry_and_its_bytes_come_back_with_the_lease() {
    let cache = Cache::new(Budgets { device_bytes: 64, host_bytes: 0 });
    let job = cache.open_job();
    let key = Key::new(Kind::VaeFeature);
    job.announce(key, Uses::every(1, Tick(1), 2));
    drop(job.put(key, Tier::Device, Lifetime::Steps(9), 64).unwrap().commit().unwrap());
    job.tick(Tick(1));
    drop(job.try_take(&key).unwrap());
    assert!(job.contains(&key), "it will be read once more");
    job.tick(Tick(2));
    let lease = job.try_take(&key).unwrap();
    assert!(!job.contains(&key));
    let used = || cache.counters().tier(Tier::Device).used_bytes;
    assert_eq!((used(), lease.bytes().len()), (64, 64));
    drop(lease);
    assert_eq!((used(), cache.counters().kind(Kind::VaeFeature).expired), (0, 1));
    assert!(job.try_take(&key).is_err());
    cache.verify().unwrap();
}

#[test]
fn a_record_says_what_was_asked_in_order_and_no_more_once_it_is_taken() {
    let cache = Cache::new(Budgets { device_bytes: 64, host_bytes: 0 });
    let job = cache.open_job();
    let key = Key::new(Kind::SelfKv);
    cache.record();
    job.announce(key, Uses::once(Tick(3)));
    drop(job.put(key, Tier::Device, Lifetime::Job, 10).unwrap().commit().unwrap());
    job.tick(Tick(3));
    drop(job.get(&key));
    assert!(job.remove(&key));
    let touches: Vec<_> = cache.recorded().iter().map(|access| access.touch).collect();
    let read = Touch::Read { now: Some(Tick(3)), announced: Some(Tick(3)) };
    assert_eq!(touches, [Touch::Put { bytes: 64 }, read, Touch::End]);
    drop(job.get(&key));
    assert!(cache.recorded().is_empty());
}
