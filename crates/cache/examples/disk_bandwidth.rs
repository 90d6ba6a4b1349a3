//! How fast the disk tier writes and reads, for comparison with `fio` in the same directory:
//! `cargo run --release -p evanesce-cache --example disk_bandwidth -- DIR`, beside
//! `fio --name=w --directory=DIR --size=768M --bs=1M --direct=1 --ioengine=psync --rw=write` and the same with `read`.
#![expect(clippy::disallowed_methods, reason = "a measurement looks at the clock")]
#![expect(clippy::print_stdout, reason = "its result")]

use std::error::Error;
use std::time::Instant;

use evanesce_cache::{Budgets, Cache, Disk, Fill, Key, Kind, Lifetime, PutSpec, Tier};

const ENTRIES: u32 = 48;
const ENTRY_BYTES: usize = 16 << 20;
const ROUNDS: u32 = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args().nth(1).ok_or("name a directory")?;
    let disk = Disk::open(directory.as_ref(), 1 << 30)?;
    let cache = Cache::with_disk(Budgets { device_bytes: 0, host_bytes: 64 << 20 }, disk);
    let job = cache.open_job();
    let key = |at| Key::new(Kind::SelfKv).frame(at);
    let megabytes = f64::from(ENTRIES) * (ENTRY_BYTES as f64 / 1e6);
    for _ in 0..ROUNDS {
        let (mut write_s, mut read_s) = (0.0, 0.0);
        for at in 0..ENTRIES {
            let spec = PutSpec::new(Tier::Host, Lifetime::Steps(1), ENTRY_BYTES).fill(Fill::Any);
            let mut writer = job.put_with(key(at), spec)?;
            for (number, line) in (0_u64..).zip(writer.bytes_mut().chunks_exact_mut(8)) {
                line.copy_from_slice(&(number * 0x9E37_79B9 + u64::from(at)).to_le_bytes());
            }
            drop(writer.commit()?);
            let started = Instant::now();
            job.demote(&key(at))?;
            write_s += started.elapsed().as_secs_f64();
            if job.tier_of(&key(at)) != Some(Tier::Disk) {
                return Err("the disk took nothing".into());
            }
        }
        for at in 0..ENTRIES {
            let started = Instant::now();
            drop(job.try_get(&key(at))?);
            read_s += started.elapsed().as_secs_f64();
            job.remove(&key(at));
        }
        println!("write {:.0} MB/s, read {:.0} MB/s", megabytes / write_s, megabytes / read_s);
        job.step();
    }
    Ok(())
}
