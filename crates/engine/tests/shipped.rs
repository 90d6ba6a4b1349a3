//! The checkpoint that ships for videos made block by block, with its pages in one tier, two, and three: the same video; and
//! what is read in these runs, evicted anew, misses as seldom as Belady's MIN allows.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use evanesce_cache::{
    Access, Budgets, Cache, EntryKey, Key, Kind, Lifetime, Owner, PutSpec, Recover, Tick, Tier, Touch,
};
use evanesce_engine::{
    CancelToken, Disk, EngineError, JobRun, KvCodec, Model, Outcome, Request, RequestedLength, Silent,
};
use support::{Kept, run};

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/shapes-causal")
}

fn request(codec: &str) -> Request {
    Request {
        kv_codec: KvCodec::from_name(codec),
        length: Some(RequestedLength::Frames(81)),
        ..Request::new("a red circle moving right on a white background", 11)
    }
}

/// What admission asks of a device alone.
fn least_device_bytes(codec: &str) -> u64 {
    let model = Model::open(&shipped(), Budgets { device_bytes: 1, host_bytes: 0 }).unwrap();
    match JobRun::admit(&model, request(codec), Kept::default().outputs(), CancelToken::new()) {
        Err(EngineError::Budget { needed_bytes, .. }) => needed_bytes as u64,
        other => panic!("one byte is not enough: {:?}", other.map(drop)),
    }
}

/// Its pictures, what it used, and what was asked of the cache.
fn recorded(model: &Model, codec: &str) -> (Vec<f32>, Outcome, Vec<Access>) {
    let kept = Kept::default();
    model.cache().record();
    let outcome = run(model, request(codec), kept.outputs(), &mut Silent).unwrap();
    model.cache().verify().unwrap();
    (kept.take(), outcome, model.cache().recorded())
}

fn pages(outcome: &Outcome) -> &evanesce_engine::report::KindReport {
    outcome.memory.kinds.iter().find(|kind| kind.kind == "self_kv").unwrap()
}

/// The three runs that the tests compare: all pages in the device, a quarter of them, and most on disk.
fn three_runs(codec: &str) -> Vec<(Vec<f32>, Outcome, Vec<Access>)> {
    let all = least_device_bytes(codec);
    let in_device = Model::open(&shipped(), Budgets { device_bytes: all, host_bytes: 0 }).unwrap();
    let first = recorded(&in_device, codec);
    let kv_bytes = pages(&first.1).peak_bytes;
    let device_bytes = all - kv_bytes / 4 * 3;
    let in_host = Model::open(&shipped(), Budgets { device_bytes, host_bytes: 2 * kv_bytes }).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::open(directory.path(), 8 * kv_bytes).unwrap();
    let budgets = Budgets { device_bytes, host_bytes: kv_bytes / 16 };
    let on_disk = Model::open_with_disk(&shipped(), budgets, disk).unwrap();
    let runs = vec![first, recorded(&in_host, codec), recorded(&on_disk, codec)];
    drop(on_disk);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    runs
}

#[test]
fn pages_in_the_device_in_the_host_and_mostly_on_disk_give_the_same_bits() {
    for codec in ["bf16", "int8"] {
        let runs = three_runs(codec);
        let kv_bytes = pages(&runs[0].1).peak_bytes;
        let peak = |run: usize, tier: usize| runs[run].1.memory.tiers[tier].peak_bytes;
        assert!(peak(0, 1) == 0 && peak(0, 2) == 0, "all of it fits the device");
        assert!(peak(1, 1) >= kv_bytes / 2 && peak(1, 2) == 0, "{:?}", runs[1].1.memory.tiers);
        assert!(peak(2, 2) >= kv_bytes / 2 && peak(2, 1) <= kv_bytes / 16, "{:?}", runs[2].1.memory.tiers);
        for (pictures, outcome, _) in &runs {
            assert!(*pictures == runs[0].0, "{codec}: another video");
            let pages = pages(outcome);
            assert_eq!((pages.misses, pages.lost, pages.evicted), (0, 0, 0));
            assert!(outcome.memory.tiers.iter().all(|tier| tier.owned_at_end_bytes == 0));
        }
    }
}

/// Which entry each access touches: a key that is put again is another entry.
fn touched(trace: &[Access], kind: Kind) -> Vec<u32> {
    let mut names: BTreeMap<(Owner, EntryKey), u32> = BTreeMap::new();
    let mut next = 0;
    let mut touched = Vec::new();
    for Access { owner, key, touch } in trace.iter().filter(|access| access.key.kind() == kind) {
        if matches!(touch, Touch::End) {
            names.remove(&(*owner, *key));
            continue;
        }
        touched.push(*names.entry((*owner, *key)).or_insert_with(|| {
            next += 1;
            next - 1
        }));
    }
    touched
}

/// Accesses that do not find their entry, when this project's eviction reads the trace with room for `blocks` entries.
fn misses(trace: &[u32], blocks: u64) -> u64 {
    let cache = Cache::new(Budgets { device_bytes: 64 * blocks, host_bytes: 0 });
    let job = cache.open_job();
    let key = |n: u32| Key::new(Kind::SelfKv).index(n);
    job.announce_all((0..).zip(trace).map(|(tick, n)| (EntryKey::Own(key(*n)), Tick(tick))));
    for (tick, n) in (0..).zip(trace) {
        job.tick(Tick(tick));
        if job.get(&key(*n)).is_none() {
            let spec = PutSpec::new(Tier::Device, Lifetime::Job, 64).recover(Recover::Reload);
            drop(job.put_with(key(*n), spec).unwrap().commit().unwrap());
        }
    }
    cache.counters().kind(Kind::SelfKv).misses
}

/// The same of Belady's MIN, from the trace alone: it throws out what is read again last.
fn min_misses(trace: &[u32], blocks: usize) -> u64 {
    let mut next_use = vec![usize::MAX; trace.len()];
    let mut seen = BTreeMap::new();
    for (at, n) in trace.iter().enumerate().rev() {
        next_use[at] = seen.insert(n, at).unwrap_or(usize::MAX);
    }
    let (mut resident, mut misses) = (BTreeMap::new(), 0);
    for (at, n) in trace.iter().enumerate() {
        if !resident.contains_key(n) {
            misses += 1;
            if resident.len() == blocks {
                let last = *resident.iter().max_by_key(|(_, next)| **next).unwrap().0;
                resident.remove(&last);
            }
        }
        resident.insert(*n, next_use[at]);
    }
    misses
}

#[test]
fn every_recorded_trace_misses_as_often_as_min_and_its_reads_came_when_they_were_announced() {
    let mut lengths = Vec::new();
    for (_, outcome, trace) in three_runs("bf16") {
        let reads = trace.iter().filter(|access| access.key.kind() == Kind::SelfKv);
        let reads = reads.filter_map(|access| match access.touch {
            Touch::Read { now, announced } => Some((now, announced)),
            Touch::Put { .. } | Touch::End => None,
        });
        for (now, announced) in reads {
            assert!(now.is_some() && now == announced, "read at {now:?}, announced for {announced:?}");
        }
        let accesses = touched(&trace, Kind::SelfKv);
        assert_eq!(accesses.len() as u64, pages(&outcome).puts + pages(&outcome).hits);
        let weights = touched(&trace, Kind::Weights);
        for accesses in [&accesses, &weights] {
            let entries = accesses.iter().collect::<std::collections::BTreeSet<_>>().len();
            for blocks in [entries / 20, entries / 8, entries / 4, entries / 2].map(|blocks| blocks.max(2)) {
                let (ours, min) = (misses(accesses, blocks as u64), min_misses(accesses, blocks));
                assert_eq!(ours, min, "{blocks} of {entries} entries, {} accesses", accesses.len());
                assert!(ours >= entries as u64);
            }
        }
        lengths.push(accesses.len());
    }
    assert!(lengths.iter().all(|length| *length > 2000), "{lengths:?}");
}
