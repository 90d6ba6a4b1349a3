//! A prefetch takes room only from what is read later than what it brings.

use evanesce_cache::{Budgets, Cache, ContentKey, Displace, Kind, PutSpec, Recover, Tick, Tier, Uses};

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
