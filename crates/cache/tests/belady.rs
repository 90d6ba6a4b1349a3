//! Eviction by announced reads misses as often as the best eviction there is.

mod seeded;

use evanesce_cache::{Budgets, Cache, EntryKey, Key, Kind, Lifetime, PutSpec, Recover, Tick, Tier, Uses};
use proptest::prelude::*;

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

proptest! {
    #![proptest_config(seeded::config())]

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

/// Misses of MIN that begins with `resident` blocks.
fn min_misses_from(mut resident: Vec<u32>, trace: &[u32]) -> u64 {
    let blocks = resident.len();
    let mut misses = 0;
    for (at, n) in trace.iter().enumerate() {
        if !resident.contains(n) {
            misses += 1;
            let next = |n: &u32| trace[at..].iter().position(|later| later == n).unwrap_or(usize::MAX);
            let out = (0..blocks).max_by_key(|i| next(&resident[*i])).expect("blocks > 0");
            resident[out] = *n;
        }
    }
    misses
}

/// Reads that find an entry outside the device, when nothing may be dropped and `blocks` entries fit there; and what MIN
/// makes of the same reads.
fn misses_of_what_only_moves(trace: &[u32], keys: u32, blocks: u64, host_blocks: u64) -> (u64, u64) {
    let bytes = |blocks| blocks * BLOCK_BYTES as u64;
    let directory = tempfile::tempdir().expect("a directory");
    let disk = evanesce_cache::Disk::open(directory.path(), 64 * 4096).expect("a disk");
    let budgets = Budgets { device_bytes: bytes(blocks), host_bytes: bytes(host_blocks) };
    let cache = Cache::with_disk(budgets, disk);
    let job = cache.open_job();
    for n in 0..keys {
        let mut writer =
            job.put(key(n), Tier::Device, Lifetime::Job, BLOCK_BYTES).expect("the disk has room");
        writer.bytes_mut().fill(u8::try_from(n).expect("few keys"));
        drop(writer.commit().expect("the key is free"));
    }
    let resident: Vec<u32> = (0..keys).filter(|n| job.tier_of(&key(*n)) == Some(Tier::Device)).collect();
    announce_each(trace, &job);
    let mut misses = 0;
    for (tick, n) in (0..).zip(trace) {
        job.tick(Tick(tick));
        misses += u64::from(job.tier_of(&key(*n)) != Some(Tier::Device));
        let lease = job.get(&key(*n)).expect("nothing is dropped");
        assert!(lease.tier() == Tier::Device && lease.iter().all(|byte| u32::from(*byte) == *n));
    }
    assert_eq!(cache.verify(), Ok(()));
    assert_eq!(cache.counters().kind(Kind::Weights).arrived_late, misses);
    (misses, min_misses_from(resident, trace))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..seeded::config() })]

    #[test]
    fn entries_that_only_move_between_tiers_come_back_as_seldom_as_min_allows(
        trace in prop::collection::vec(0..24u32, 0..300),
        blocks in 1..20u64,
        host_blocks in 2..30u64,
    ) {
        let (ours, min) = misses_of_what_only_moves(&trace, 24, blocks, host_blocks);
        prop_assert_eq!(ours, min);
    }
}

/// The reads of one rollout: two experts in turn, layer by layer, two branches and a window of pages each.
#[test]
fn the_pages_of_a_rollout_come_back_as_seldom_as_min_allows() {
    let page = |expert: u32, branch: u32, layer: u32| (expert * 2 + branch) * 6 + layer;
    let mut trace = Vec::new();
    for _block in 0..6 {
        for expert in [0, 0, 1, 1, 1, 0] {
            trace.extend((0..6).flat_map(|layer| [0, 1].map(|branch| page(expert, branch, layer))));
        }
    }
    for (blocks, host_blocks) in [(6, 30), (6, 4), (12, 12), (18, 8)] {
        let (ours, min) = misses_of_what_only_moves(&trace, 24, blocks, host_blocks);
        assert_eq!(ours, min, "{blocks} in the device, {host_blocks} in the host");
        assert!(ours > 0 && ours < trace.len() as u64);
    }
}
