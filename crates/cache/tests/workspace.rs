//! Memory of a step: counted, the same again, and never another job's.

use evanesce_cache::{Budgets, Cache, Key, Kind, Lifetime, Tier, WorkspaceError};

const BUDGET_BYTES: u64 = 1 << 12;

fn cache() -> Cache {
    Cache::new(Budgets { device_bytes: BUDGET_BYTES, host_bytes: 0 })
}

#[test]
fn a_workspace_is_counted_while_it_is_held_and_is_the_same_memory_the_next_time() {
    let cache = cache();
    let job = cache.open_job();
    let place = {
        let mut workspace = job.workspace(Tier::Device, 1000).unwrap();
        let device = *cache.counters().tier(Tier::Device);
        assert_eq!((device.used_bytes, device.reserved_bytes), (1024, 1024));
        workspace.bytes_mut().fill(7);
        workspace.bytes_mut().as_ptr()
    };
    let device = *cache.counters().tier(Tier::Device);
    assert_eq!((device.used_bytes, device.free_listed_bytes), (0, 1024));
    let mut workspace = job.workspace(Tier::Device, 1000).unwrap();
    assert_eq!(workspace.bytes_mut().as_ptr(), place);
    assert_eq!(workspace.bytes_mut(), [7; 1000]);
    cache.verify().unwrap();
}

/// Even where idle memory and what is asked for do not fit the budget together.
#[test]
fn a_workspace_of_more_than_half_the_budget_is_the_same_memory_too() {
    let cache = cache();
    let job = cache.open_job();
    let place = job.workspace(Tier::Device, 4000).unwrap().bytes_mut().as_ptr();
    let mut workspace = job.workspace(Tier::Device, 4000).unwrap();
    assert_eq!(workspace.bytes_mut().as_ptr(), place);
    cache.verify().unwrap();
}

#[test]
fn what_a_job_left_in_its_workspace_is_not_there_for_another() {
    let cache = cache();
    let (one, other) = (cache.open_job(), cache.open_job());
    one.workspace(Tier::Device, 1000).unwrap().bytes_mut().fill(7);
    assert_eq!(other.workspace(Tier::Device, 1000).unwrap().bytes_mut(), [0; 1000]);
    drop(one);
    assert_eq!(cache.owned_by(other.id()).bytes.total(), 0);
}

#[test]
fn a_workspace_of_no_bytes_is_charged_the_line_that_it_has_and_may_outlive_its_job() {
    let cache = cache();
    let job = cache.open_job();
    let mut workspace = job.workspace(Tier::Device, 0).unwrap();
    assert_eq!(workspace.bytes_mut().len(), 0);
    assert_eq!(cache.counters().tier(Tier::Device).reserved_bytes, 64);
    drop((job, workspace));
    assert_eq!(cache.counters().tier(Tier::Device).used_bytes, 0);
    cache.verify().unwrap();
    let job = cache.open_job();
    let _full = job.put(Key::new(Kind::Latent), Tier::Device, Lifetime::Job, 4096).unwrap();
    assert!(job.workspace(Tier::Device, 0).is_err());
    cache.verify().unwrap();
}

#[test]
fn there_is_no_workspace_on_disk() {
    let cache = Cache::counting(Budgets { device_bytes: 0, host_bytes: 0 }, 1 << 20);
    let refused = cache.open_job().workspace(Tier::Disk, 1000).unwrap_err();
    assert_eq!(refused, WorkspaceError::NotInMemory);
    assert!(refused.to_string().contains("host tier"), "{refused}");
    assert_eq!(cache.counters().tier(Tier::Disk).peak_bytes, 0);
}

#[test]
fn an_idle_workspace_gives_way_and_one_beyond_the_budget_is_refused() {
    let cache = cache();
    let job = cache.open_job();
    drop(job.workspace(Tier::Device, 4096).unwrap());
    let key = Key::new(Kind::Latent);
    let entry = job.put(key, Tier::Device, Lifetime::Job, 3000).unwrap().commit().unwrap();
    assert_eq!(cache.counters().tier(Tier::Device).free_listed_bytes, 0);
    let refused = job.workspace(Tier::Device, 2000).unwrap_err();
    assert!(matches!(refused, WorkspaceError::OutOfBudget(_)), "{refused}");
    drop(entry);
    cache.verify().unwrap();
}
