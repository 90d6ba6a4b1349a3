//! A cache that only counts does what another one does, and holds nothing.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use evanesce_cache::{Budgets, Cache, Counters, Disk, Key, Kind, Lifetime, PutSpec, Tick, Tier, Uses};

const PAGE_BYTES: usize = 5000;

/// Two experts' pages, read in turn, in a device that holds a third of them.
fn run(cache: &Cache) -> (Counters, usize) {
    let job = cache.open_job();
    let key = |at: u32| Key::new(Kind::SelfKv).index(at);
    let (pages, rounds) = (24_u32, 5_u64);
    let mut seen_bytes = 0;
    for at in 0..pages {
        job.announce(key(at), Uses::every(u64::from(pages), Tick(u64::from(at)), rounds));
        let spec = PutSpec::new(Tier::Device, Lifetime::Job, PAGE_BYTES);
        let mut writer = job.put_with(key(at), spec).unwrap();
        writer.bytes_mut().fill(3);
        drop(writer.commit().unwrap());
    }
    for tick in 0..u64::from(pages) * rounds {
        job.tick(Tick(tick));
        let at = u32::try_from(tick % u64::from(pages)).unwrap();
        seen_bytes += job.try_get(&key(at)).unwrap().bytes().len();
    }
    cache.verify().unwrap();
    (cache.counters(), seen_bytes)
}

#[test]
fn it_counts_as_a_cache_with_bytes_does() {
    let budgets = Budgets { device_bytes: 8 * 5056, host_bytes: 6 * 5056 };
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::open(directory.path(), 1 << 20).unwrap();
    let (real, read) = run(&Cache::with_disk(budgets, disk));
    let (counted, none) = run(&Cache::counting(budgets, 1 << 20));
    assert_eq!(read, 5 * 24 * PAGE_BYTES);
    assert_eq!(none, 0);
    for tier in Tier::ALL {
        let idle = |counters: &Counters| evanesce_cache::TierCounters {
            free_listed_bytes: 0,
            ..*counters.tier(tier)
        };
        assert_eq!(idle(&counted), idle(&real), "{tier}");
    }
    assert_eq!(counted.kind(Kind::SelfKv), real.kind(Kind::SelfKv));
    assert!(counted.tier(Tier::Disk).traffic.promoted > 0);
}

#[test]
fn it_holds_more_than_any_machine() {
    let cache = Cache::counting(Budgets { device_bytes: 1 << 50, host_bytes: 0 }, 0);
    let job = cache.open_job();
    for at in 0..100 {
        let spec = PutSpec::new(Tier::Device, Lifetime::Job, 1 << 42);
        drop(job.put_with(Key::new(Kind::Weights).index(at), spec).unwrap().commit().unwrap());
    }
    assert_eq!(job.usage().bytes[Tier::Device], 100 << 42);
}
