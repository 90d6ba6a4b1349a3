//! What the life of an entry costs, apart from its bytes.
//!
//! `cargo bench -p evanesce-cache`; the README quotes the medians.

use divan::Bencher;
use evanesce_cache::{
    Budgets, Cache, ContentKey, Fill, Job, Key, Kind, Lifetime, PutSpec, Recover, Tick, Tier, Uses,
};

const KEY: Key = Key::new(Kind::SelfKv);

fn main() {
    divan::main();
}

fn cache() -> Cache {
    Cache::new(Budgets { device_bytes: 4 << 30, host_bytes: 1 << 30 })
}

fn put(job: &Job, key: Key, lifetime: Lifetime, len_bytes: usize) {
    let spec = PutSpec::new(Tier::Device, lifetime, len_bytes).fill(Fill::Any).recover(Recover::Reload);
    drop(job.put_with(key, spec).expect("there is room").commit().expect("the key is free"));
}

/// A cache with `entries` live entries that outlive the bench.
fn filled(entries: u32) -> (Cache, Job) {
    let cache = cache();
    let job = cache.open_job();
    (0..entries).for_each(|index| put(&job, KEY.index(index), Lifetime::Job, 64));
    (cache, job)
}

/// Law 6: the three medians are alike. One step at a time, since every step needs ten entries of its own.
#[divan::bench(args = [10, 1_000, 1_000_000], sample_count = 3000, sample_size = 1)]
fn step_with_ten_dying_among(bencher: Bencher<'_, '_>, live: u32) {
    let (_cache, job) = filled(live - 10);
    bencher
        .with_inputs(|| (0..10).for_each(|index| put(&job, KEY.part(1).index(index), Lifetime::Steps(1), 64)))
        .bench_refs(|()| assert_eq!(job.step().entries, 10));
}

/// Reserve, allocate (from idle buffers), publish, lease, release, expire.
#[divan::bench(args = [64, 4096, 65536])]
fn put_commit_release_and_remove(bencher: Bencher<'_, '_>, len_bytes: usize) {
    let (_cache, job) = filled(1000);
    bencher.bench_local(|| {
        put(&job, KEY.part(1), Lifetime::Steps(1), len_bytes);
        job.remove(&KEY.part(1))
    });
}

#[divan::bench(args = [10, 1_000, 1_000_000])]
fn get_and_release_among(bencher: Bencher<'_, '_>, live: u32) {
    let (_cache, job) = filled(live);
    let mut index = 0;
    bencher.bench_local(|| {
        index = (index + 7919) % live;
        assert_eq!(job.get(&KEY.index(index)).expect("it lives as long as the job").len(), 64);
    });
}

#[divan::bench]
fn get_and_release_of_a_shared_announced_entry(bencher: Bencher<'_, '_>) {
    let (cache, job) = filled(1000);
    let key = ContentKey::of(Kind::Weights, &[b"layer"]);
    drop(cache.shared_put(key, Tier::Device, 64).expect("there is room").commit().expect("the key is free"));
    job.announce(key, Uses::every(80, Tick(0), u64::MAX / 100));
    bencher.bench_local(|| assert_eq!(job.shared_get(&key).expect("it persists").len(), 64));
}

/// A put that has to push one of `live` entries out: one look at every entry.
#[divan::bench(args = [80, 1_000, 10_000])]
fn put_that_evicts_one_of(bencher: Bencher<'_, '_>, live: u32) {
    let cache = Cache::new(Budgets { device_bytes: u64::from(live) * 64, host_bytes: 0 });
    let job = cache.open_job();
    for index in 0..live {
        put(&job, KEY.index(index), Lifetime::Job, 64);
        job.announce(KEY.index(index), Uses::once(Tick(u64::from(index))));
    }
    let mut index = live;
    bencher.bench_local(|| {
        put(&job, KEY.index(index), Lifetime::Job, 64);
        index += 1;
    });
}
