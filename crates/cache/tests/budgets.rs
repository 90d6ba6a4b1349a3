//! Budgets that change while entries are there.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use evanesce_cache::{Budgets, Cache, Job, Key, Kind, Lease, Lifetime, PutSpec, Recover, Tick, Tier, Uses};
use support::{Fault, with_disk};

const KEY: Key = Key::new(Kind::SelfKv);
const LINE: u64 = 64;

fn put(job: &Job, frame: u32, tier: Tier, lines: usize, recover: Recover) -> Lease {
    let spec = PutSpec::new(tier, Lifetime::Job, lines * 64).recover(recover);
    let mut writer = job.put_with(KEY.frame(frame), spec).unwrap();
    writer.bytes_mut().fill(u8::try_from(frame).unwrap());
    writer.commit().unwrap()
}

/// One that exists nowhere else and will be read.
fn put_wanted(job: &Job, frame: u32, tier: Tier) {
    job.announce(KEY.frame(frame), Uses::once(Tick(9)));
    drop(put(job, frame, tier, 1, Recover::Never));
}

/// Sets a budget, and what it is then, in lines.
fn set_lines(cache: &Cache, tier: Tier, lines: u64) -> u64 {
    let budget_bytes = cache.set_budget(tier, lines * LINE);
    let counters = cache.counters();
    let counted = counters.tier(tier);
    assert_eq!(counted.budget_bytes, budget_bytes);
    assert!(counted.used_bytes + counted.free_listed_bytes <= budget_bytes);
    cache.verify().unwrap();
    budget_bytes / LINE
}

#[test]
fn law_2_a_budget_falls_past_what_may_leave_and_no_further_than_what_must_stay() {
    let cache = Cache::new(Budgets { device_bytes: 16 * LINE, host_bytes: 2 * LINE });
    let job = cache.open_job();
    let leased = put(&job, 0, Tier::Device, 3, Recover::Reload);
    // Of six irreplaceable lines the host takes two.
    (1..7).for_each(|frame| put_wanted(&job, frame, Tier::Device));
    drop(put(&job, 7, Tier::Device, 2, Recover::Reload));
    let reservation = job.reserve(&[(Tier::Device, LINE)]).unwrap();
    assert_eq!(set_lines(&cache, Tier::Device, 12), 12);
    assert_eq!(job.usage().bytes[Tier::Host], 0, "twelve lines are used, which may stay");
    assert_eq!(set_lines(&cache, Tier::Device, 11), 11);
    assert!(!job.contains(&KEY.frame(7)), "what can be loaded again goes first");
    assert_eq!(set_lines(&cache, Tier::Device, 2), 3 + 4 + 1);
    assert!((0..7).all(|frame| job.contains(&KEY.frame(frame))));
    assert_eq!(job.usage().bytes[Tier::Host], 2 * LINE);
    drop(leased);
    assert_eq!(set_lines(&cache, Tier::Device, 2), 4 + 1);
    drop(reservation);
    assert_eq!(set_lines(&cache, Tier::Device, 2), 4);
    assert_eq!(set_lines(&cache, Tier::Device, 16), 16);
    assert!((1..7).all(|frame| job.get(&KEY.frame(frame)).unwrap().iter().all(|b| u32::from(*b) == frame)));
}

#[test]
fn law_2_a_host_whose_disk_takes_no_more_keeps_the_room_of_what_it_cannot_send_there() {
    let directory = tempfile::tempdir().unwrap();
    let budgets = Budgets { device_bytes: 0, host_bytes: 12 * LINE };
    let (cache, device) = with_disk(directory.path(), budgets, 1 << 20);
    let job = cache.open_job();
    drop(put(&job, 0, Tier::Host, 2, Recover::Recompute));
    assert_eq!(job.demote(&KEY), Ok(Some(Tier::Disk)));
    (1..5).for_each(|frame| put_wanted(&job, frame, Tier::Host));
    drop(put(&job, 5, Tier::Host, 4, Recover::Recompute));
    assert_eq!(set_lines(&cache, Tier::Host, 7), 7, "while the disk is well");
    assert_eq!(job.usage().bytes[Tier::Host], 4 * LINE, "nobody will read what could be computed again");
    device.set(Fault::Full);
    assert_eq!(set_lines(&cache, Tier::Host, 2), 4, "the first write fails");
    device.set(None);
    assert_eq!(set_lines(&cache, Tier::Host, 2), 4, "and there is no second");
    assert_eq!(cache.counters().tier(Tier::Disk).traffic.write_faults, 1);
    assert_eq!(job.tier_of(&KEY), Some(Tier::Disk), "what is there is not given up for it");
    assert!((1..5).all(|frame| job.tier_of(&KEY.frame(frame)) == Some(Tier::Host)));
}
