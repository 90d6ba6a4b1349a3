//! One test for each law of the cache that this crate keeps. Law 8 (a page is encoded once) waits for codecs; laws 9 and 12
//! speak of attention and of measured bandwidth; `disk_faults.rs` has law 11.

use std::panic::{AssertUnwindSafe, catch_unwind};

use evanesce_cache::policy::{Action, Candidate, EntryId, NextUse, View, choose};
use evanesce_cache::{
    Budgets, Cache, CommitRefusal, ContentKey, Fill, Job, Key, Kind, Lease, Lifetime, PerTier, PutError,
    PutSpec, Recover, Tick, Tier, Uses,
};

const LATENT: Key = Key::new(Kind::Latent);

fn cache(device_bytes: u64, host_bytes: u64) -> Cache {
    Cache::new(Budgets { device_bytes, host_bytes })
}

fn used(cache: &Cache) -> u64 {
    assert_eq!(cache.verify(), Ok(()));
    Tier::ALL.into_iter().map(|tier| cache.counters().tier(tier).used_bytes).sum()
}

fn put(job: &Job, key: Key, spec: PutSpec) -> Lease {
    job.put_with(key, spec).expect("there is room").commit().expect("the key is free")
}

fn device(lifetime: Lifetime, len_bytes: usize) -> PutSpec {
    PutSpec::new(Tier::Device, lifetime, len_bytes)
}

// ---- law 1: one owner ----

#[test]
fn law_1_a_job_that_ends_returns_every_byte_of_every_lifetime() {
    let cache = cache(1 << 16, 1 << 16);
    let job = cache.open_job();
    let stage = job.stage("denoise");
    let lifetimes =
        [Lifetime::Steps(9), Lifetime::Window { sink: 1, recent: 2 }, Lifetime::Stage, Lifetime::Job];
    for (index, lifetime) in (0..).zip(lifetimes) {
        for (tier, part) in [(Tier::Device, 0), (Tier::Host, 1)] {
            drop(put(&job, LATENT.index(index).part(part), PutSpec::new(tier, lifetime, 640)));
        }
    }
    assert_eq!(job.usage().bytes.total(), 8 * 640);
    assert_eq!(job.finish().bytes.total(), 0);
    assert_eq!(used(&cache), 0);
    drop(stage);
    assert_eq!(cache.counters().tier(Tier::Device).free_listed_bytes, 4 * 640);
    assert_eq!(cache.counters().jobs, 0);
}

#[test]
fn law_1_a_panic_in_the_middle_of_a_job_returns_every_byte() {
    let cache = cache(1 << 16, 0);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let job = cache.open_job();
        let _stage = job.stage("decode");
        let _reservation = job.reserve(&[(Tier::Device, 1000)]).unwrap();
        let _lease = put(&job, LATENT, device(Lifetime::Stage, 100));
        let _writer = job.put(LATENT.frame(1), Tier::Device, Lifetime::Job, 100).unwrap();
        panic!("a kernel failed");
    }));
    assert!(outcome.is_err());
    assert_eq!(used(&cache), 0);
}

#[test]
fn law_1_a_stage_takes_its_entries_with_it_and_leaves_those_of_the_stage_around_it() {
    let cache = cache(1 << 16, 0);
    let job = cache.open_job();
    let outer = job.stage("outer");
    drop(put(&job, LATENT.frame(0), device(Lifetime::Stage, 64)));
    let inner = job.stage("inner");
    drop(put(&job, LATENT.frame(1), device(Lifetime::Stage, 64)));
    assert_eq!(inner.finish().entries, 1);
    drop(put(&job, LATENT.frame(2), device(Lifetime::Stage, 64)));
    assert_eq!((job.contains(&LATENT.frame(0)), job.contains(&LATENT.frame(1))), (true, false));
    assert_eq!(outer.finish().entries, 2);
    assert_eq!(used(&cache), 0);
}

#[test]
fn law_1_a_writer_that_outlives_its_owner_or_stage_cannot_commit_and_gives_its_bytes_back() {
    let cache = cache(1 << 16, 0);
    let job = cache.open_job();
    let stage = job.stage("denoise");
    let staged = job.put(LATENT, Tier::Device, Lifetime::Stage, 64).unwrap();
    let owned = job.put(LATENT.frame(1), Tier::Device, Lifetime::Job, 64).unwrap();
    drop(stage);
    let error = staged.commit().unwrap_err();
    assert_eq!(error.refusal, CommitRefusal::StageEnded { key: LATENT.into() });
    drop(job);
    assert!(matches!(owned.commit().unwrap_err().refusal, CommitRefusal::OwnerEnded { .. }));
    drop(error);
    assert_eq!(used(&cache), 0);
}

// ---- law 2: bytes are counted in one place ----

#[test]
fn law_2_what_does_not_fit_is_refused_whole_with_the_sums_that_say_why() {
    let cache = cache(1024, 0);
    let job = cache.open_job();
    let _lease = put(&job, LATENT, device(Lifetime::Job, 512));
    let _reservation = job.reserve(&[(Tier::Device, 256)]).unwrap();
    let error = job.reserve(&[(Tier::Host, 0), (Tier::Device, 300)]).unwrap_err();
    assert_eq!(
        (error.tier, error.needed_bytes, error.budget_bytes, error.used_bytes),
        (Tier::Device, 320, 1024, 768)
    );
    assert_eq!((error.held.leased_bytes, error.held.reserved_bytes), (512, 256));
    assert_eq!(
        error.to_string(),
        "the device tier cannot hold 320 bytes more: 768 of its 1024 bytes are used, of which 512 leased, 0 \
         irreplaceable, 256 reserved, 0 being written, 0 quiescing; raise the budget of the device tier or hold less at \
         a time"
    );
    assert_eq!(used(&cache), 768);
}

#[test]
fn law_2_a_group_that_fits_in_one_tier_but_not_in_the_other_takes_nothing_and_evicts_nothing() {
    let cache = cache(1024, 128);
    let job = cache.open_job();
    drop(put(&job, LATENT, device(Lifetime::Job, 1024).recover(Recover::Reload)));
    let group = [
        (LATENT.frame(1), device(Lifetime::Job, 512)),
        (LATENT.frame(2), PutSpec::new(Tier::Host, Lifetime::Job, 129)),
    ];
    assert!(matches!(job.put_group(group), Err(PutError::OutOfBudget(e)) if e.tier == Tier::Host));
    assert!(job.reserve(&[(Tier::Device, 512), (Tier::Host, 129)]).is_err());
    assert!(job.contains(&LATENT));
    assert_eq!(used(&cache), 1024);
}

#[test]
fn law_2_used_and_idle_bytes_never_pass_the_budget_together_and_trim_gives_the_idle_ones_back() {
    let cache = cache(1024, 0);
    let job = cache.open_job();
    let counters = || *cache.counters().tier(Tier::Device);
    drop(put(&job, LATENT, device(Lifetime::Steps(1), 512)));
    job.step();
    assert_eq!((counters().used_bytes, counters().free_listed_bytes), (0, 512));
    let lease = put(&job, LATENT, device(Lifetime::Job, 640));
    assert_eq!((counters().used_bytes, counters().free_listed_bytes), (640, 0));
    drop((lease, job));
    assert_eq!(cache.trim(), 640);
    assert_eq!((counters().used_bytes, counters().free_listed_bytes, counters().peak_bytes), (0, 0, 640));
}

#[test]
fn law_2_an_absurd_size_is_refused_and_not_attempted() {
    let cache = cache(u64::MAX, 1 << 20);
    let job = cache.open_job();
    for len_bytes in [usize::MAX, usize::MAX - 63, 1 << 62] {
        let error = job.put(LATENT, Tier::Device, Lifetime::Job, len_bytes).unwrap_err();
        assert!(matches!(error, PutError::NoMemory { .. } | PutError::OutOfBudget(_)), "{error}");
        assert!(job.put(LATENT, Tier::Host, Lifetime::Job, len_bytes).is_err());
        assert!(job.reserve(&[(Tier::Host, u64::MAX), (Tier::Host, u64::MAX)]).is_err());
    }
    assert_eq!(used(&cache), 0);
}

#[test]
fn law_2_a_put_that_the_machine_has_no_memory_for_leaves_its_room_reserved() {
    let cache = cache(1 << 63, 0);
    let job = cache.open_job();
    let mut reservation = job.reserve(&[(Tier::Device, 1 << 62)]).unwrap();
    let error = reservation.put(LATENT, device(Lifetime::Job, 1 << 62)).unwrap_err();
    assert!(matches!(error, PutError::NoMemory { .. }), "{error}");
    assert_eq!(reservation.bytes(Tier::Device), 1 << 62);
    assert_eq!(cache.counters().tier(Tier::Device).reserved_bytes, 1 << 62);
    assert_eq!(used(&cache), 1 << 62);
    drop(reservation);
    assert_eq!(used(&cache), 0);
}

#[test]
fn law_2_a_reservation_is_room_that_nobody_else_gets() {
    let cache = cache(1024, 0);
    let (job, other) = (cache.open_job(), cache.open_job());
    let mut reservation = job.reserve(&[(Tier::Device, 1024)]).unwrap();
    assert!(other.put(LATENT, Tier::Device, Lifetime::Job, 1).is_err());
    let lease = reservation.put(LATENT, device(Lifetime::Job, 1000)).unwrap().commit().unwrap();
    assert_eq!((lease.len(), reservation.bytes(Tier::Device)), (1000, 0));
    assert!(reservation.split(Tier::Device, 1).is_err());
    assert_eq!(used(&cache), 1024);
}

// ---- law 3: a lease is a guard ----

#[test]
fn law_3_a_leased_entry_is_gone_from_sight_at_once_and_its_bytes_come_back_with_the_last_lease() {
    let cache = cache(1024, 0);
    let job = cache.open_job();
    let lease = put(&job, LATENT, device(Lifetime::Steps(1), 64));
    let clone = lease.clone();
    assert_eq!(job.step().quiescing_bytes, 64);
    assert!(job.get(&LATENT).is_none());
    drop(lease);
    assert_eq!(cache.counters().tier(Tier::Device).quiescing_bytes, 64);
    let again = put(&job, LATENT, device(Lifetime::Job, 64).fill(Fill::Any));
    assert_ne!(clone.as_ptr(), again.as_ptr());
    drop(clone);
    assert_eq!(cache.counters().tier(Tier::Device).quiescing_bytes, 0);
    assert_eq!(used(&cache), 64);
}

#[test]
fn law_3_a_slot_in_flight_is_not_used_again_until_the_flight_reports_back() {
    let cache = cache(64, 0);
    let job = cache.open_job();
    let lease = put(&job, LATENT, device(Lifetime::Job, 64).recover(Recover::Reload));
    let flight = lease.begin_flight();
    drop(lease);
    assert!(job.put(LATENT.frame(1), Tier::Device, Lifetime::Job, 64).is_err());
    assert!(job.remove(&LATENT));
    assert!(job.put(LATENT, Tier::Device, Lifetime::Job, 64).is_err());
    flight.landed();
    assert!(job.put(LATENT, Tier::Device, Lifetime::Job, 64).is_ok());
}

#[test]
fn law_3_an_overdue_flight_is_quarantined_counted_and_its_bytes_never_used_again() {
    let cache = cache(128, 0);
    let job = cache.open_job();
    let lease = put(&job, LATENT, device(Lifetime::Job, 64));
    let flight = lease.begin_flight();
    drop((lease, job));
    assert_eq!(cache.quarantine_overdue(1).entries, 0);
    assert_eq!(cache.quarantine_overdue(1).bytes, 64);
    flight.landed();
    let counters = *cache.counters().tier(Tier::Device);
    assert_eq!((counters.used_bytes, counters.quarantined_bytes), (64, 64));
    assert!(cache.open_job().put(LATENT, Tier::Device, Lifetime::Job, 65).is_err());
    assert_eq!(cache.verify(), Ok(()));
}

#[test]
fn law_3_a_flight_that_is_dropped_without_landing_quarantines_its_bytes() {
    let cache = cache(128, 0);
    let job = cache.open_job();
    let lease = put(&job, LATENT, device(Lifetime::Steps(1), 64));
    drop(lease.begin_flight());
    drop(lease);
    assert!(job.get(&LATENT).is_some());
    job.step();
    assert_eq!(cache.counters().tier(Tier::Device).quarantined_bytes, 64);
}

#[test]
fn law_3_a_lease_keeps_a_demoted_entry_where_it_is() {
    let cache = cache(128, 128);
    let job = cache.open_job();
    drop(put(&job, LATENT, device(Lifetime::Job, 128)));
    let big = put(&job, LATENT.frame(1), device(Lifetime::Steps(1), 128));
    let below = job.get(&LATENT).unwrap();
    assert_eq!(below.tier(), Tier::Host);
    drop(big);
    job.step();
    assert_eq!(job.get(&LATENT).unwrap().tier(), Tier::Host);
    drop(below);
    assert_eq!(job.get(&LATENT).unwrap().tier(), Tier::Device);
    assert_eq!(cache.counters().kind(Kind::Latent).promoted, 1);
    assert_eq!(used(&cache), 128);
}

// ---- law 4: policy decides, executor acts ----

#[test]
fn law_4_the_choice_depends_on_what_is_seen_and_not_on_its_order() {
    let candidate = |id| Candidate {
        id: EntryId::new(id),
        group: None,
        tier: if id % 3 == 0 { Tier::Host } else { Tier::Device },
        bytes: 64 + id % 5 * 64,
        disk_bytes: 400,
        next_use: if id % 4 == 0 { NextUse::Unknown { last_use: id } } else { NextUse::In(id * 7 % 13) },
        shared: id % 8 == 0,
        recover: [Recover::Reload, Recover::Recompute, Recover::Never][usize::try_from(id % 3).unwrap()],
        cost_per_kib: 1,
    };
    let room = PerTier::from_fn(|tier| [0, 300, 800][tier as usize]);
    let forward = View { room, candidates: (0..40).map(candidate).collect() };
    let mut backward = forward.clone();
    backward.candidates.reverse();
    let need = PerTier::from_fn(|tier| [2000, 500, 0][tier as usize]);
    let mut first = choose(&forward, need).unwrap();
    let mut second = choose(&backward, need).unwrap();
    assert!(first.len() > 5);
    let order = |action: &Action| match *action {
        Action::Drop(id) => (0, id),
        Action::Demote { id, .. } => (1, id),
    };
    first.sort_unstable_by_key(order);
    second.sort_unstable_by_key(order);
    assert_eq!(first, second);
}

// ---- law 5: the future is known ----

#[test]
fn law_5_the_farthest_next_use_leaves_first_and_a_read_moves_it() {
    let cache = cache(3 * 64, 0);
    let job = cache.open_job();
    for frame in 0..3 {
        drop(put(&job, LATENT.frame(frame), device(Lifetime::Job, 64).recover(Recover::Reload)));
        job.announce(LATENT.frame(frame), Uses::every(10, Tick(u64::from(frame)), 3));
    }
    // The next reads are at 10, 1 and 2.
    drop(job.get(&LATENT.frame(0)));
    assert_eq!(job.next_use(LATENT.frame(0)), Some(Tick(10)));
    drop(put(&job, LATENT.frame(9), device(Lifetime::Job, 64)));
    assert_eq!([0, 1, 2].map(|frame| job.contains(&LATENT.frame(frame))), [false, true, true]);
}

#[test]
fn law_5_a_shared_entry_counts_the_nearest_use_of_all_jobs_and_unannounced_ones_go_least_recently_used_first()
{
    let cache = cache(3 * 64, 0);
    let jobs = [cache.open_job(), cache.open_job()];
    let content = [0u8, 1, 2, 3, 4].map(|n| ContentKey::of(Kind::TextEmbedding, &[&[n]]));
    for key in &content[..3] {
        drop(cache.shared_put(*key, Tier::Device, 64).unwrap().commit().unwrap());
    }
    jobs[0].announce(content[0], Uses::once(Tick(1000)));
    jobs[1].announce(content[0], Uses::once(Tick(5)));
    drop(cache.shared_get(&content[1]));
    let there = || content.map(|key| cache.shared_contains(&key));
    drop(cache.shared_put(content[3], Tier::Device, 64).unwrap().commit().unwrap());
    assert_eq!(there(), [true, true, false, true, false]);
    jobs[0].announce(content[1], Uses::once(Tick(6)));
    jobs[1].announce(content[3], Uses::once(Tick(7)));
    drop(cache.shared_put(content[4], Tier::Device, 64).unwrap().commit().unwrap());
    assert_eq!(there(), [true, true, false, false, true]);
}

#[test]
fn law_5_entries_of_two_jobs_are_compared_by_distance_and_a_withdrawn_plan_counts_for_nothing() {
    let cache = cache(2 * 64, 0);
    let (ahead, behind) = (cache.open_job(), cache.open_job());
    let spec = device(Lifetime::Job, 64).recover(Recover::Reload);
    drop(put(&ahead, LATENT, spec));
    drop(put(&behind, LATENT, spec));
    ahead.announce(LATENT, Uses::every(5, Tick(0), 100));
    behind.announce(LATENT, Uses::once(Tick(50)));
    ahead.tick(Tick(401));
    assert_eq!((ahead.next_use(LATENT), behind.next_use(LATENT)), (Some(Tick(405)), Some(Tick(50))));
    drop(put(&behind, LATENT.frame(1), spec));
    assert_eq!((ahead.contains(&LATENT), behind.contains(&LATENT)), (true, false));
    behind.announce(LATENT.frame(1), Uses::once(Tick(60)));
    ahead.withdraw();
    drop(put(&behind, LATENT.frame(2), spec));
    assert_eq!((ahead.contains(&LATENT), behind.contains(&LATENT.frame(1))), (false, true));
}

// ---- law 6: expiry costs what expires ----

#[test]
fn law_6_a_step_ends_exactly_what_dies_at_its_end() {
    let cache = cache(1 << 20, 0);
    let job = cache.open_job();
    for step in 0..20u32 {
        for steps in 1..=3 {
            let key = LATENT.index(step).part(steps);
            drop(put(&job, key, device(Lifetime::Steps(steps), 64)));
        }
        let dying = (1..=3).filter(|steps| *steps <= step + 1).count() as u64;
        let expired = job.step();
        assert_eq!((expired.entries, expired.returned_bytes), (dying, dying * 64), "step {step}");
    }
    // Whoever is removed early leaves its list too.
    drop(put(&job, LATENT, device(Lifetime::Steps(1), 64)));
    job.remove(&LATENT);
    assert_eq!(job.step().entries, 2);
    assert_eq!(job.step().entries, 1);
    assert_eq!(used(&cache), 0);
}

#[test]
fn law_6_a_window_keeps_its_sinks_and_the_most_recent_frames_of_each_series() {
    let cache = cache(1 << 20, 0);
    let job = cache.open_job();
    let window = device(Lifetime::Window { sink: 2, recent: 3 }, 64);
    for frame in [0, 1, 2, 3, 5, 4, 6, 7] {
        for layer in 0..2 {
            drop(put(&job, LATENT.index(layer).frame(frame), window));
        }
        drop(put(&job, LATENT.index(9).frame(frame), device(Lifetime::Job, 64)));
    }
    let kept: Vec<u32> = (0..8).filter(|frame| job.contains(&LATENT.index(1).frame(*frame))).collect();
    assert_eq!(kept, [0, 1, 5, 6, 7]);
    assert_eq!(cache.counters().kind(Kind::Latent).entries, 2 * 5 + 8);
    // A frame that comes too late is seen by its writer only.
    let late = put(&job, LATENT.frame(3), window);
    assert!(!job.contains(&LATENT.frame(3)));
    drop(late);
    assert_eq!(used(&cache), (2 * 5 + 8) * 64);
}

// ---- law 7: together or not at all ----

#[test]
fn law_7_a_group_becomes_visible_together_or_not_at_all() {
    let cache = cache(1 << 16, 0);
    let job = cache.open_job();
    let keys = [LATENT.part(0), LATENT.part(1)];
    let specs = keys.map(|key| (key, device(Lifetime::Job, 64)));
    let mut group = job.put_group(specs).unwrap();
    group.bytes_mut(0).fill(1);
    assert!(keys.iter().all(|key| job.get(key).is_none()));
    // Another writer takes one of the keys first: then neither becomes visible, and nothing is lost.
    drop(put(&job, keys[1], device(Lifetime::Job, 64)));
    let mut refused = group.commit().unwrap_err();
    assert_eq!(refused.refusal, CommitRefusal::Exists { key: keys[1].into() });
    assert!(job.get(&keys[0]).is_none());
    assert_eq!(refused.writer.bytes_mut(0), [1; 64]);
    job.remove(&keys[1]);
    let leases = refused.writer.commit().unwrap();
    assert_eq!((leases[0][0], leases[1][0]), (1, 0));
    assert!(keys.iter().all(|key| job.get(key).is_some()));
}

#[test]
fn law_7_a_group_is_evicted_whole_and_stays_while_any_member_is_leased() {
    let cache = cache(3 * 64, 0);
    let job = cache.open_job();
    let keys = [LATENT.part(0), LATENT.part(1)];
    let spec = device(Lifetime::Job, 64).recover(Recover::Reload);
    drop(job.put_group(keys.map(|key| (key, spec))).unwrap().commit().unwrap());
    drop(put(&job, LATENT.frame(1), device(Lifetime::Job, 64)));
    let lease = job.get(&keys[0]).unwrap();
    assert!(job.put(LATENT.frame(2), Tier::Device, Lifetime::Job, 64).is_err());
    drop(lease);
    drop(put(&job, LATENT.frame(2), device(Lifetime::Job, 64)));
    assert!(keys.iter().all(|key| !job.contains(key)));
    assert_eq!(cache.counters().kind(Kind::Latent).evicted, 2);
    assert_eq!(used(&cache), 2 * 64);
}

// ---- law 10: nothing crosses jobs ----

#[test]
fn law_10_equal_keys_of_two_jobs_never_meet() {
    let cache = cache(1 << 16, 0);
    let (one, two) = (cache.open_job(), cache.open_job());
    let mut writer = one.put(LATENT, Tier::Device, Lifetime::Job, 64).unwrap();
    writer.bytes_mut().fill(1);
    drop(writer.commit().unwrap());
    assert!(two.get(&LATENT).is_none());
    assert!(!two.remove(&LATENT));
    drop(put(&two, LATENT, device(Lifetime::Steps(1), 64)));
    assert_eq!(two.get(&LATENT).unwrap()[0], 0);
    one.step();
    assert!(two.contains(&LATENT));
    drop(two);
    assert_eq!(one.get(&LATENT).unwrap()[0], 1);
}

#[test]
fn law_10_a_reused_buffer_shows_nothing_of_another_owner_even_when_the_writer_does_not_care() {
    let cache = cache(64, 0);
    for (round, fill) in [Fill::Any, Fill::Zeros, Fill::Any].into_iter().enumerate() {
        let job = cache.open_job();
        let mut writer = job.put_with(LATENT, device(Lifetime::Steps(1), 64).fill(fill)).unwrap();
        assert_eq!(writer.bytes(), [0; 64], "round {round}");
        writer.bytes_mut().fill(7);
        drop(writer.commit().unwrap());
        job.step();
        assert_eq!(cache.counters().tier(Tier::Device).free_listed_bytes, 64);
    }
}

#[test]
fn law_10_interleaved_jobs_see_what_each_sees_alone() {
    let solo = |seed: u8| {
        let cache = cache(1 << 12, 1 << 12);
        let job = cache.open_job();
        (0..40).map(|turn| walk(&job, seed, turn)).collect::<Vec<_>>()
    };
    let cache = cache(1 << 12, 1 << 12);
    let jobs = [cache.open_job(), cache.open_job()];
    let mut seen = [Vec::new(), Vec::new()];
    for turn in 0..40 {
        for (seed, (job, seen)) in (1..).zip(jobs.iter().zip(&mut seen)) {
            seen.push(walk(job, seed, turn));
        }
    }
    assert_eq!(seen, [solo(1), solo(2)]);
}

/// One turn of a job: writes a latent that lives two steps, and reads what the last turns left.
fn walk(job: &Job, seed: u8, turn: u32) -> Vec<Option<Vec<u8>>> {
    let mut writer =
        job.put(LATENT.frame(turn), Tier::Device, Lifetime::Steps(2), 100).expect("there is room");
    writer.bytes_mut().fill(seed.wrapping_mul(31).wrapping_add(u8::try_from(turn).expect("few turns")));
    drop(writer.commit().expect("the key is free"));
    let seen =
        (0..4u32).map(|back| job.get(&LATENT.frame(turn.wrapping_sub(back))).map(|lease| lease.to_vec()));
    let seen = seen.collect();
    job.step();
    seen
}
