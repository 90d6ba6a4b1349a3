//! Eviction by announced reads misses as often as the best eviction there is.

use evanesce_cache::{Budgets, Cache, EntryKey, Key, Kind, Lifetime, PutSpec, Recover, Tick, Tier, Uses};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const BLOCK_BYTES: usize = 128;

fn key(n: u32) -> Key {
    Key::new(Kind::Weights).index(n)
}

/// Misses of the cache when it reads `trace` with room for `blocks` entries.
fn misses(trace: &[u32], blocks: u64, announce: impl FnOnce(&evanesce_cache::Job)) -> u64 {
    let cache = Cache::new(Budgets { device_bytes: blocks * BLOCK_BYTES as u64, host_bytes: 0 });
    let job = cache.open_job();
    announce(&job);
    for (tick, n) in (0..).zip(trace) {
        job.tick(Tick(tick));
        if job.get(&key(*n)).is_none() {
            let spec = PutSpec::new(Tier::Device, Lifetime::Job, BLOCK_BYTES).recover(Recover::Reload);
            drop(
                job.put_with(key(*n), spec)
                    .expect("everything may be dropped")
                    .commit()
                    .expect("it was a miss"),
            );
        }
    }
    assert_eq!(cache.verify(), Ok(()));
    cache.counters().kind(Kind::Weights).misses
}

/// The fewest misses of any eviction that reads `trace` with room for `blocks` entries, by trying them all: the least
/// number of misses for each set of resident entries, from one read to the next.
fn fewest_misses(trace: &[u32], blocks: usize) -> u64 {
    let mut best = std::collections::BTreeMap::from([(std::collections::BTreeSet::new(), 0u64)]);
    for n in trace {
        let mut next = std::collections::BTreeMap::new();
        let mut reach = |set: std::collections::BTreeSet<u32>, misses: u64| {
            next.entry(set).and_modify(|m: &mut u64| *m = (*m).min(misses)).or_insert(misses);
        };
        for (set, misses) in best {
            if set.contains(n) {
                reach(set, misses);
                continue;
            }
            let mut with = set.clone();
            with.insert(*n);
            if with.len() <= blocks {
                reach(with, misses + 1);
                continue;
            }
            for out in &set {
                let mut with = with.clone();
                with.remove(out);
                reach(with, misses + 1);
            }
        }
        best = next;
    }
    best.into_values().min().expect("some set is reached")
}

/// Misses of Belady's MIN, by looking through the trace at each miss.
fn min_misses(trace: &[u32], blocks: usize) -> u64 {
    let mut resident: Vec<u32> = Vec::new();
    let mut misses = 0;
    for (at, n) in trace.iter().enumerate() {
        if resident.contains(n) {
            continue;
        }
        misses += 1;
        if resident.len() == blocks {
            let next = |n: &u32| trace[at..].iter().position(|later| later == n).unwrap_or(usize::MAX);
            let out = (0..blocks).max_by_key(|i| next(&resident[*i])).expect("blocks > 0");
            resident.swap_remove(out);
        }
        resident.push(*n);
    }
    misses
}

fn announce_each(trace: &[u32], job: &evanesce_cache::Job) {
    job.announce_all((0..).zip(trace).map(|(tick, n)| (EntryKey::Own(key(*n)), Tick(tick))));
}

fn config() -> ProptestConfig {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(1);
    }
    config
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_known_future_is_met_with_the_fewest_misses_of_all_evictions(
        trace in prop::collection::vec(0..6u32, 0..14),
        blocks in 1..5usize,
    ) {
        let ours = misses(&trace, blocks as u64, |job| announce_each(&trace, job));
        prop_assert_eq!(ours, fewest_misses(&trace, blocks));
        prop_assert_eq!(ours, min_misses(&trace, blocks));
    }

    #[test]
    fn long_traces_miss_as_often_as_min(
        trace in prop::collection::vec(0..24u32, 0..600),
        blocks in 1..20usize,
    ) {
        let ours = misses(&trace, blocks as u64, |job| announce_each(&trace, job));
        prop_assert_eq!(ours, min_misses(&trace, blocks));
    }
}

#[test]
fn layers_read_in_turn_are_announced_by_one_run_each_and_miss_as_often_as_min() {
    let (layers, steps, blocks) = (40u32, 50u64, 30);
    // Twice per step: the two branches of guidance.
    let turn = |at: u64| u32::try_from(at % u64::from(layers)).unwrap();
    let trace: Vec<u32> = (0..steps * 2 * u64::from(layers)).map(turn).collect();
    let announced = |job: &evanesce_cache::Job| {
        for layer in 0..layers {
            job.announce(key(layer), Uses::every(u64::from(layers), Tick(u64::from(layer)), 2 * steps));
        }
    };
    let ours = misses(&trace, blocks as u64, announced);
    assert_eq!(ours, min_misses(&trace, blocks));
    // An eviction that does not know the future throws out what comes next and misses every time.
    assert!(ours * 3 < trace.len() as u64, "{ours} misses of {} reads", trace.len());
}
