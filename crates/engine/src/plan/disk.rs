//! Moves to the disk tier and back, for whoever has a clock.

use evanesce_cache::{Budgets, Cache, Disk, Fill, Key, Kind, Lifetime, PutSpec, Tier};

use crate::error::{EngineError, Result};

/// Which way a piece goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Down to the disk.
    Write,
    /// Up from it.
    Read,
}

/// Moves `pieces` entries of `piece_bytes` to a disk tier of its own and back, as pages move. `timed` is given each move
/// and runs it.
///
/// # Errors
/// When the disk does not take them or give them back.
pub fn exercise(
    disk: Disk,
    pieces: u32,
    piece_bytes: usize,
    mut timed: impl FnMut(Way, &mut dyn FnMut() -> Result<()>) -> Result<()>,
) -> Result<()> {
    let cache = Cache::with_disk(Budgets { device_bytes: 0, host_bytes: 2 * piece_bytes as u64 }, disk);
    let job = cache.open_job();
    let key = |at| Key::new(Kind::SelfKv).frame(at);
    for at in 0..pieces {
        let spec = PutSpec::new(Tier::Host, Lifetime::Job, piece_bytes).fill(Fill::Any);
        let mut writer = job.put_with(key(at), spec).map_err(EngineError::cache)?;
        for (number, line) in (0_u64..).zip(writer.bytes_mut().chunks_exact_mut(8)) {
            line.copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
        }
        drop(writer.commit().map_err(EngineError::cache)?);
        timed(Way::Write, &mut || {
            job.demote(&key(at)).map_err(EngineError::cache)?;
            let arrived = job.tier_of(&key(at)) == Some(Tier::Disk);
            if arrived { Ok(()) } else { Err(EngineError::Cache("the disk took nothing".to_owned())) }
        })?;
    }
    for at in 0..pieces {
        timed(Way::Read, &mut || job.try_get(&key(at)).map(drop).map_err(EngineError::cache))?;
        job.remove(&key(at));
    }
    Ok(())
}
