//! Windows of pages against a plain list of frames: put, prune, fork, release, in any order.

mod seeded;

use std::collections::BTreeMap;

use evanesce_cache::{Budgets, Cache, EntryKey, ForkError, Job, Key, Kind, Lifetime, PutSpec, Recover, Tier};
use proptest::prelude::*;

const PAGE_BYTES: usize = 128;
const JOBS_MAX: usize = 4;
/// What a series of a job may hold; a few more jobs fit the device, the rest the host.
const DEVICE_PAGES: u64 = 24;

#[derive(Clone, Debug)]
enum Op {
    /// The next block of a series: so many frames at once.
    Commit { job: usize, series: u32, frames: u32 },
    /// Prunes a series to its newest frames.
    Prune { job: usize, series: u32, keep: u32 },
    /// A second job with the same pages.
    Fork { job: usize },
    /// The end of a job.
    Release { job: usize },
    /// A read of a page, which must hold what was put.
    Read { job: usize, series: u32, frame: u32 },
}

fn op() -> impl Strategy<Value = Op> {
    let (job, series) = (0..JOBS_MAX, 0..2_u32);
    prop_oneof![
        5 => (job.clone(), series.clone(), 1..4_u32).prop_map(|(job, series, frames)| Op::Commit { job, series, frames }),
        1 => (job.clone(), series.clone(), 0..6_u32).prop_map(|(job, series, keep)| Op::Prune { job, series, keep }),
        2 => job.clone().prop_map(|job| Op::Fork { job }),
        1 => job.clone().prop_map(|job| Op::Release { job }),
        3 => (job, series, 0..20_u32).prop_map(|(job, series, frame)| Op::Read { job, series, frame }),
    ]
}

/// What a job should hold: of each series, its frames in order with the byte that each is full of, and the next frame.
#[derive(Clone, Default)]
struct Pages {
    series: BTreeMap<u32, Vec<(u32, u8)>>,
    next: BTreeMap<u32, u32>,
}

impl Pages {
    fn commit(&mut self, series: u32, frames: u32, (sink, recent): (u32, u32), stamp: u8) -> Vec<u32> {
        let next = self.next.entry(series).or_default();
        let new: Vec<u32> = (*next..*next + frames).collect();
        *next += frames;
        let list = self.series.entry(series).or_default();
        list.extend(new.iter().map(|frame| (*frame, stamp)));
        Self::trim(list, sink, recent);
        new
    }

    fn trim(list: &mut Vec<(u32, u8)>, sink: u32, keep: u32) {
        let beyond: Vec<u32> = list.iter().map(|(frame, _)| *frame).filter(|frame| *frame >= sink).collect();
        let goes = beyond.len().saturating_sub(keep as usize);
        list.retain(|(frame, _)| !beyond[..goes].contains(frame));
    }
}

fn key(series: u32, frame: u32) -> Key {
    Key::new(Kind::SelfKv).index(series).frame(frame)
}

fn page_bytes_of(job: &Job) -> u64 {
    job.usage().bytes.total()
}

struct World {
    cache: Cache,
    jobs: Vec<(Job, Pages)>,
    window: (u32, u32),
    stamp: u8,
}

impl World {
    fn apply(&mut self, op: &Op) {
        let count = self.jobs.len();
        match *op {
            Op::Commit { job, series, frames } => self.commit(job % count, series, frames),
            Op::Prune { job, series, keep } => {
                let (job, pages) = &mut self.jobs[job % count];
                job.prune_old(&key(series, 0), keep);
                Pages::trim(pages.series.entry(series).or_default(), self.window.0, keep);
            }
            Op::Fork { job } if count < JOBS_MAX => {
                let (job, pages) = &self.jobs[job % count];
                match job.fork() {
                    Ok(fork) => self.jobs.push((fork, pages.clone())),
                    // Then there is no room for another one, and nothing has changed.
                    Err(_) => assert!(self.cache.counters().jobs == count as u64),
                }
            }
            Op::Release { job } if count > 1 => drop(self.jobs.swap_remove(job % count)),
            Op::Read { job, series, frame } => {
                let (job, pages) = &self.jobs[job % count];
                let expected =
                    pages.series.get(&series).and_then(|list| list.iter().find(|page| page.0 == frame));
                let lease = job.get(&key(series, frame));
                assert_eq!(lease.is_some(), expected.is_some());
                if let (Some(lease), Some((_, stamp))) = (lease, expected) {
                    assert!(lease.iter().all(|byte| byte == stamp), "frame {frame} of series {series}");
                }
            }
            Op::Fork { .. } | Op::Release { .. } => {}
        }
    }

    fn commit(&mut self, at: usize, series: u32, frames: u32) {
        self.stamp = self.stamp % 250 + 1;
        let (job, pages) = &mut self.jobs[at];
        let (sink, recent) = self.window;
        let first = pages.next.get(&series).copied().unwrap_or(0);
        let specs = (first..first + frames).map(|frame| {
            (key(series, frame), PutSpec::new(Tier::Device, Lifetime::Window { sink, recent }, PAGE_BYTES))
        });
        let Ok(mut group) = job.put_group(specs) else { return };
        (0..frames as usize).for_each(|at| group.bytes_mut(at).fill(self.stamp));
        group.commit().expect("the keys are free");
        pages.commit(series, frames, self.window, self.stamp);
    }

    fn check(&self) {
        self.cache.verify().expect("the cache agrees with itself");
        for (job, pages) in &self.jobs {
            let held: Vec<EntryKey> = job.entries().iter().map(|entry| entry.key.into()).collect();
            let mut expected: Vec<EntryKey> = Vec::new();
            for (series, list) in &pages.series {
                expected.extend(list.iter().map(|(frame, _)| EntryKey::from(key(*series, *frame))));
            }
            let sorted = |mut keys: Vec<EntryKey>| {
                keys.sort_unstable();
                keys
            };
            let n_pages = expected.len() as u64;
            assert_eq!(sorted(held), sorted(expected));
            assert_eq!(page_bytes_of(job), n_pages * PAGE_BYTES as u64, "each job's bytes are its own");
        }
    }
}

proptest! {
    #![proptest_config(seeded::config())]

    #[test]
    fn windows_of_any_jobs_and_forks_hold_what_a_list_of_their_frames_says(
        ops in prop::collection::vec(op(), 1..60),
        sink in 0..3_u32,
        recent in 1..7_u32,
    ) {
        let device_bytes = DEVICE_PAGES * PAGE_BYTES as u64;
        let cache = Cache::new(Budgets { device_bytes, host_bytes: device_bytes });
        let first = (cache.open_job(), Pages::default());
        let mut world = World { cache, jobs: vec![first], window: (sink, recent), stamp: 0 };
        for op in &ops {
            world.apply(op);
            world.check();
        }
        let World { cache, jobs, .. } = world;
        drop(jobs);
        prop_assert_eq!(cache.counters().kind(Kind::SelfKv).bytes.total(), 0);
        prop_assert_eq!(Tier::ALL.map(|tier| cache.counters().tier(tier).used_bytes), [0; 3]);
    }
}

#[test]
fn a_fork_goes_its_own_way_and_a_fork_without_room_leaves_nothing() {
    let cache = Cache::new(Budgets { device_bytes: 6 * PAGE_BYTES as u64, host_bytes: 0 });
    let job = cache.open_job();
    let put = |job: &Job, frame| {
        let spec = PutSpec::new(Tier::Device, Lifetime::Window { sink: 1, recent: 2 }, PAGE_BYTES);
        let mut writer = job.put_with(key(0, frame), spec).expect("there is room");
        writer.bytes_mut().fill(u8::try_from(frame).expect("few"));
        drop(writer.commit().expect("the key is free"));
    };
    (0..3).for_each(|frame| put(&job, frame));
    let fork = job.fork().expect("there is room");
    assert!(job.fork().is_err(), "a third does not fit");
    assert_eq!(cache.counters().tier(Tier::Device).used_bytes, 6 * PAGE_BYTES as u64);
    fork.prune_old(&key(0, 0), 1);
    put(&fork, 3);
    let frames = |job: &Job| job.entries().iter().map(|entry| entry.key.frame).collect::<Vec<_>>();
    assert_eq!((frames(&job), frames(&fork)), (vec![0, 1, 2], vec![0, 2, 3]));
    drop(job);
    assert_eq!(fork.get(&key(0, 2)).expect("it is the fork's own").bytes(), [2; PAGE_BYTES]);
}

fn put(job: &Job, key: Key, spec: PutSpec) {
    drop(job.put_with(key, spec).expect("there is room").commit().expect("the key is free"));
}

fn page(tier: Tier) -> PutSpec {
    PutSpec::new(tier, Lifetime::Job, PAGE_BYTES).recover(Recover::Reload)
}

#[test]
fn a_lease_or_an_eviction_of_a_forked_page_concerns_only_what_its_original_became_visible_with() {
    let cache = Cache::new(Budgets { device_bytes: 8 * PAGE_BYTES as u64, host_bytes: 0 });
    let job = cache.open_job();
    (0..2).for_each(|frame| put(&job, key(0, frame), page(Tier::Device)));
    let pair = [2, 3].map(|frame| (key(0, frame), page(Tier::Device)));
    drop(job.put_group(pair).expect("there is room").commit().expect("the keys are free"));
    let fork = job.fork().expect("there is room");
    drop(job);
    let _rest = fork.reserve(&[(Tier::Device, 4 * PAGE_BYTES as u64)]).expect("the job's pages are back");
    let there = || [0, 1, 2, 3].map(|frame| fork.contains(&key(0, frame)));
    let lease = fork.get(&key(0, 0)).expect("it was forked");
    let needed = |frame| fork.put(key(1, frame), Tier::Device, Lifetime::Job, PAGE_BYTES);
    drop(needed(0).expect("a page may leave").commit().expect("the key is free"));
    assert_eq!(there(), [true, false, true, true]);
    let of_pair = fork.get(&key(0, 2)).expect("it was forked");
    assert!(needed(1).is_err(), "its other half stays with it");
    drop(of_pair);
    drop(needed(1).expect("the pair may leave").commit().expect("the key is free"));
    assert_eq!(there(), [true, false, false, false]);
    drop(lease);
    cache.verify().expect("the cache agrees with itself");
}

#[test]
fn a_fork_s_entries_are_at_home_where_the_originals_are_and_are_worth_as_much() {
    let cache = Cache::new(Budgets { device_bytes: 1 << 12, host_bytes: 1 << 12 });
    let job = cache.open_job();
    put(&job, key(0, 0), page(Tier::Host).cost_per_kib(7).raw_bytes(500));
    put(&job, key(0, 1), page(Tier::Device).raw_bytes(300));
    assert_eq!(job.demote(&key(0, 1)), Ok(Some(Tier::Host)));
    let fork = job.fork().expect("there is room");
    let worth = |job: &Job| {
        let entries = job.entries();
        entries.iter().map(|e| (e.home, e.cost_per_kib, e.raw_bytes, e.recover)).collect::<Vec<_>>()
    };
    assert_eq!(
        worth(&fork),
        [(Tier::Host, 7, 500, Recover::Reload), (Tier::Device, 1, 300, Recover::Reload)]
    );
    assert_eq!(worth(&fork), worth(&job));
    assert_eq!([0, 1].map(|frame| fork.tier_of(&key(0, frame))), [Some(Tier::Host), Some(Tier::Device)]);
    assert_eq!(cache.counters().kind(Kind::SelfKv).raw_bytes, 2 * 800);
}

#[test]
fn a_window_is_forked_as_it_is_and_moves_on_by_its_next_frame() {
    let cache = Cache::new(Budgets { device_bytes: 1 << 12, host_bytes: 0 });
    let job = cache.open_job();
    let window = |recent| PutSpec::new(Tier::Device, Lifetime::Window { sink: 0, recent }, PAGE_BYTES);
    // A window that was narrow once, and one whose newest frame came before another.
    for (series, frame, recent) in [(0, 0, 1), (0, 1, 4), (0, 2, 4), (1, 5, 1), (1, 3, 3)] {
        put(&job, key(series, frame), window(recent));
    }
    let fork = job.fork().expect("there is room");
    let frames =
        |job: &Job| job.entries().iter().map(|entry| (entry.key.index, entry.key.frame)).collect::<Vec<_>>();
    assert_eq!(frames(&fork), [(0, 0), (0, 1), (0, 2), (1, 3), (1, 5)]);
    assert_eq!(frames(&fork), frames(&job));
    for job in [&job, &fork] {
        put(job, key(0, 3), window(2));
        assert_eq!(frames(job), [(0, 2), (0, 3), (1, 3), (1, 5)]);
    }
    cache.verify().expect("the cache agrees with itself");
}

#[test]
fn a_job_is_not_forked_in_the_middle_of_a_stage_that_holds_entries_and_the_entry_is_named() {
    let cache = Cache::new(Budgets { device_bytes: 1 << 12, host_bytes: 0 });
    let job = cache.open_job();
    let stage = job.stage("decode");
    put(&job, key(0, 0), page(Tier::Device));
    assert!(job.fork().is_ok(), "none of the stage's yet");
    put(&job, key(0, 1), PutSpec::new(Tier::Device, Lifetime::Stage, PAGE_BYTES));
    let refused = job.fork().unwrap_err();
    assert!(matches!(refused, ForkError::InStage { key: named } if named == key(0, 1).into()), "{refused}");
    assert!(refused.to_string().contains("frame 1 belongs to an open stage"), "{refused}");
    assert_eq!(cache.counters().jobs, 1);
    drop(stage);
    assert!(job.fork().is_ok());
}
