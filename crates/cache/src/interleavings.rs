//! Threads over one cache, in many orders of their locks and waits: a scheduler picks who goes on at every one of them
//! (`shuttle`, Burckhardt et al., "A randomized scheduler with probabilistic guarantees of finding bugs", 2010). Each order
//! is one that real threads could take, and one that failed is printed so that it can be taken again.

use std::sync::Arc;

use shuttle::thread;

use crate::{Budgets, Cache, ContentKey, Job, Key, Kind, Lifetime, PutSpec, Recover, Tick, Tier, Uses};

/// Orders tried of each scene: half of them at random, half with few changes of thread at the worst places.
const ORDERS: usize = 400;
const LINE: u64 = 64;

fn in_many_orders(scene: impl Fn() + Send + Sync + 'static) {
    let scene = Arc::new(scene);
    let again = Arc::clone(&scene);
    shuttle::check_random(move || scene(), ORDERS / 2);
    shuttle::check_pct(move || again(), ORDERS / 2, 3);
}

fn cache(device_lines: u64, host_lines: u64) -> Cache {
    Cache::new(Budgets { device_bytes: device_lines * LINE, host_bytes: host_lines * LINE })
}

fn key(at: u32) -> Key {
    Key::new(Kind::SelfKv).frame(at)
}

fn put(job: &Job, at: u32) -> bool {
    put_for(job, at, Lifetime::Job)
}

/// A page of a window that has the `recent` highest of its frames.
fn put_page(job: &Job, at: u32, recent: u32) -> bool {
    put_for(job, at, Lifetime::Window { sink: 0, recent })
}

fn put_for(job: &Job, at: u32, lifetime: Lifetime) -> bool {
    let put = job.put(key(at), Tier::Device, lifetime, 64);
    put.is_ok_and(|mut writer| {
        writer.bytes_mut().fill(u8::try_from(at).expect("few keys"));
        writer.commit().is_ok()
    })
}

/// Nothing is out, and the sums agree.
fn is_empty(cache: &Cache) {
    cache.verify().expect("the cache agrees with itself");
    for tier in Tier::ALL {
        assert_eq!(cache.counters().tier(tier).used_bytes, 0, "{tier}");
    }
}

#[test]
fn reservations_and_puts_never_pass_the_budget_together() {
    in_many_orders(|| {
        let cache = cache(3, 0);
        let threads: Vec<_> = (0..3_u32)
            .map(|at| {
                let cache = cache.clone();
                thread::spawn(move || {
                    let job = cache.open_job();
                    let reserved = job.reserve(&[(Tier::Device, 2 * LINE)]);
                    let made = put(&job, at);
                    let counters = cache.counters();
                    let device = counters.tier(Tier::Device);
                    assert!(device.used_bytes <= device.budget_bytes);
                    // Whoever got two of three lines leaves one for somebody.
                    drop((reserved, made));
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no thread fails"));
        is_empty(&cache);
    });
}

#[test]
fn a_lease_outlives_its_job_and_returns_its_bytes_whoever_goes_first() {
    in_many_orders(|| {
        let cache = cache(4, 0);
        let job = cache.open_job();
        assert!(put(&job, 7) && put(&job, 8));
        let leases: Vec<_> = (0..2).map(|_| job.get(&key(7)).expect("it was put")).collect();
        let reading = thread::spawn(move || {
            for lease in leases {
                assert!(lease.bytes().iter().all(|byte| *byte == 7));
                drop(lease.clone());
            }
        });
        let ending = thread::spawn(move || drop(job));
        reading.join().expect("the lease held");
        ending.join().expect("the job ended");
        is_empty(&cache);
    });
}

#[test]
fn what_is_in_flight_is_not_used_again_before_it_has_landed() {
    in_many_orders(|| {
        let cache = cache(1, 0);
        let job = cache.open_job();
        assert!(put(&job, 1));
        let flight = job.get(&key(1)).expect("it was put").begin_flight();
        let other = cache.clone();
        let taking = thread::spawn(move || {
            let job = other.open_job();
            // The only line is in flight until it lands; after that it may be had.
            let landed_before = other.counters().tier(Tier::Device).used_bytes == 0;
            let got = put(&job, 2);
            assert!(!landed_before || got, "a line that came back can be used");
        });
        job.remove(&key(1));
        assert_eq!(cache.counters().tier(Tier::Device).quiescing_bytes, LINE);
        flight.landed();
        taking.join().expect("no thread fails");
        drop(job);
        is_empty(&cache);
    });
}

#[test]
fn pages_that_are_prefetched_read_and_displaced_at_once_come_back_as_they_were() {
    in_many_orders(|| {
        let cache = cache(2, 4);
        let job = cache.open_job();
        for at in 0..4 {
            job.announce(key(at), Uses::every(4, Tick(u64::from(at)), 2));
            assert!(put(&job, at), "what does not fit goes to the host");
        }
        let fetcher = job.fetcher();
        let prefetching = thread::spawn(move || {
            for at in (0..4).chain(0..4) {
                fetcher.prefetch(&key(at));
            }
        });
        for tick in 0..8_u64 {
            job.tick(Tick(tick));
            let at = u32::try_from(tick % 4).expect("below 4");
            let lease = job.try_get(&key(at)).expect("nothing is dropped");
            assert!(lease.bytes().iter().all(|byte| u32::from(*byte) == at));
        }
        drop(job);
        prefetching.join().expect("no thread fails");
        is_empty(&cache);
    });
}

#[test]
fn a_budget_that_falls_and_rises_while_entries_are_put_is_never_passed() {
    in_many_orders(|| {
        let cache = cache(4, 2);
        let threads: Vec<_> = (0..2_u32)
            .map(|thread| {
                let cache = cache.clone();
                thread::spawn(move || {
                    let job = cache.open_job();
                    for at in 2 * thread..2 * thread + 2 {
                        let made = put(&job, at);
                        let lease = job.get(&key(at));
                        assert_eq!(lease.is_some(), made, "nothing that is put can be dropped");
                        assert!(lease.is_none_or(|lease| lease.iter().all(|byte| u32::from(*byte) == at)));
                    }
                })
            })
            .collect();
        for lines in [1, 3, 0, 4] {
            let fell_to = cache.set_budget(Tier::Device, lines * LINE);
            assert!(fell_to >= lines * LINE);
            let counters = cache.counters();
            let device = counters.tier(Tier::Device);
            assert!(device.used_bytes + device.free_listed_bytes <= device.budget_bytes);
            cache.verify().expect("the cache agrees with itself");
        }
        threads.into_iter().for_each(|thread| thread.join().expect("no thread fails"));
        is_empty(&cache);
        assert_eq!(cache.set_budget(Tier::Device, LINE), LINE, "nothing stays that would keep its room");
    });
}

#[test]
fn a_prefetch_is_counted_for_the_read_that_it_was_for_and_for_no_later_one() {
    in_many_orders(|| {
        let cache = cache(1, 1);
        let job = cache.open_job();
        assert!(put(&job, 1));
        job.announce(key(1), Uses::every(1, Tick(1), 3));
        assert_eq!(job.demote(&key(1)), Ok(Some(Tier::Host)));
        let fetcher = job.fetcher();
        let prefetching = thread::spawn(move || fetcher.prefetch(&key(1)));
        drop(job.try_get(&key(1)).expect("it is in memory"));
        prefetching.join().expect("no thread fails");
        drop(job.try_get(&key(1)).expect("it is in memory"));
        let counters = cache.counters();
        let kind = counters.kind(Kind::SelfKv);
        assert_eq!(kind.arrived_before_use + kind.arrived_late, 1, "it left its home once");
    });
}

#[test]
fn a_job_that_ends_while_its_pages_move_takes_both_places_with_it() {
    in_many_orders(|| {
        let cache = cache(1, 2);
        let job = cache.open_job();
        job.announce(key(0), Uses::once(Tick(1)));
        job.announce(key(1), Uses::once(Tick(2)));
        assert!(put(&job, 0) && put(&job, 1));
        let fetcher = job.fetcher();
        let moving = thread::spawn(move || fetcher.prefetch(&key(0)));
        drop(job);
        moving.join().expect("no thread fails");
        is_empty(&cache);
    });
}

#[test]
fn pages_that_are_pruned_while_a_layer_reads_them_leave_with_its_leases() {
    in_many_orders(|| {
        // Room for what is read and one page more: a second one comes only where a lease has let a pruned one go.
        let cache = cache(4, 0);
        let job = Arc::new(cache.open_job());
        assert!((0..3).all(|at| put_page(&job, at, 3)));
        let layer: Vec<_> = (0..3).map(|at| job.get(&key(at)).expect("it was put")).collect();
        let [pruned, committed] = [Arc::clone(&job), Arc::clone(&job)];
        let pruning = thread::spawn(move || pruned.prune_old(&key(0), 1));
        let committing = thread::spawn(move || [3, 4].map(|at| put_page(&committed, at, 2)));
        for (at, lease) in (0_u8..).zip(layer) {
            assert!(lease.iter().all(|byte| *byte == at), "a page in use was used for something else");
            let device = *cache.counters().tier(Tier::Device);
            let held_bytes = LINE * u64::from(3 - at);
            assert!(held_bytes <= device.used_bytes && device.used_bytes <= device.budget_bytes);
            cache.verify().expect("the cache agrees with itself");
            drop(lease);
        }
        let pruned = pruning.join().expect("no thread fails");
        assert_eq!(pruned.returned_bytes + pruned.quiescing_bytes, pruned.entries * LINE);
        let made = committing.join().expect("no thread fails");
        assert!(made[0], "there was room for it all the time");
        let puts = 3 + made.iter().filter(|made| **made).count() as u64;
        let counters = cache.counters();
        let (device, pages) = (counters.tier(Tier::Device), counters.kind(Kind::SelfKv));
        assert_eq!((pages.puts, pages.pruned + pages.entries), (puts, puts));
        assert_eq!((device.used_bytes, device.quiescing_bytes), (pages.entries * LINE, 0));
        let newest = if made[1] { 4 } else { 3 };
        let lease = job.get(&key(newest)).expect("it is in sight");
        assert!(lease.iter().all(|byte| u32::from(*byte) == newest));
        drop((lease, job));
        is_empty(&cache);
    });
}

#[test]
fn a_page_that_is_pruned_while_it_moves_gives_both_its_places_back() {
    in_many_orders(|| {
        let cache = cache(1, 2);
        let job = Arc::new(cache.open_job());
        for at in 0..2 {
            job.announce(key(at), Uses::once(Tick(u64::from(at) + 1)));
            assert!(put_page(&job, at, 2));
        }
        let fetcher = job.fetcher();
        let moving = thread::spawn(move || fetcher.prefetch(&key(0)));
        let pruned = Arc::clone(&job);
        let pruning = thread::spawn(move || pruned.prune_old(&key(0), 1).entries);
        let lease = job.get(&key(1)).expect("it is in sight");
        assert!(lease.iter().all(|byte| *byte == 1));
        drop(lease);
        moving.join().expect("no thread fails");
        assert_eq!(pruning.join().expect("no thread fails"), 1);
        let counters = cache.counters();
        assert_eq!((counters.kind(Kind::SelfKv).pruned, counters.kind(Kind::SelfKv).entries), (1, 1));
        let used_bytes: u64 = Tier::ALL.iter().map(|tier| counters.tier(*tier).used_bytes).sum();
        assert_eq!(used_bytes, LINE);
        drop(job);
        is_empty(&cache);
    });
}

#[test]
fn one_of_several_writers_of_a_shared_entry_wins_and_the_others_give_their_bytes_back() {
    in_many_orders(|| {
        let cache = cache(3, 0);
        let content = ContentKey::of(Kind::Weights, &[b"the same"]);
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let cache = cache.clone();
                thread::spawn(move || {
                    if cache.shared_get(&content).is_some() {
                        return 0;
                    }
                    let spec = PutSpec::shared(Tier::Device, 64).recover(Recover::Reload);
                    let put = cache.shared_put_with(content, spec);
                    u64::from(put.is_ok_and(|writer| writer.commit().is_ok()))
                })
            })
            .collect();
        let won: u64 = threads.into_iter().map(|thread| thread.join().expect("no thread fails")).sum();
        assert_eq!(won, 1);
        assert_eq!(cache.counters().kind(Kind::Weights).entries, 1);
        assert!(cache.shared_remove(&content));
        is_empty(&cache);
    });
}
