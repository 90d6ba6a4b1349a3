//! What happens when the machine has less memory than the budgets allow.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::process::Command;

use evanesce_cache::{Budgets, Cache, Key, Kind, Lifetime, PutError, Tier};

const KEY: Key = Key::new(Kind::Latent);
/// One entry of it fits the limit below, beside the program itself, and two do not.
const LEN: usize = 128 << 20;
const LIMIT_KIB: &str = "204800";
const IS_LIMITED: &str = "EVANESCE_TEST_IS_LIMITED";

#[test]
fn an_entry_that_the_machine_has_no_memory_to_copy_stays_where_it_is() {
    if std::env::var_os(IS_LIMITED).is_some() {
        return with_limited_memory();
    }
    // A process of its own, since a limit cannot be taken back.
    let name = "an_entry_that_the_machine_has_no_memory_to_copy_stays_where_it_is";
    let script = "ulimit -v \"$0\" && exec \"$1\" --exact \"$2\"";
    let mut limited = Command::new("sh");
    limited.args(["-c", script, LIMIT_KIB]).arg(std::env::current_exe().unwrap()).arg(name);
    // Heaps of threads of their own would set aside most of what the limit leaves.
    let output = limited.env(IS_LIMITED, "1").env("MALLOC_ARENA_MAX", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn with_limited_memory() {
    let cache = Cache::new(Budgets { device_bytes: LEN as u64, host_bytes: LEN as u64 });
    let job = cache.open_job();
    let mut writer = job.put(KEY, Tier::Device, Lifetime::Job, LEN).unwrap();
    writer.bytes_mut()[LEN - 1] = 7;
    drop(writer.commit().unwrap());
    assert_eq!(job.demote(&KEY), Ok(Some(Tier::Device)));
    let Err(PutError::OutOfBudget(refused)) = job.put(KEY.frame(1), Tier::Device, Lifetime::Job, 64) else {
        panic!("the only entry would have to make room");
    };
    assert!(refused.memory_refuses && refused.to_string().contains("no memory"), "{refused}");
    assert_eq!(job.get(&KEY).unwrap()[LEN - 1], 7);
    let counters = cache.counters();
    assert_eq!(
        (counters.tier(Tier::Device).used_bytes, counters.tier(Tier::Host).used_bytes),
        (LEN as u64, 0)
    );
    cache.verify().unwrap();
}
