//! What this machine does a second, measured in about a second.

use std::time::Instant;

use anyhow::Context;
use evanesce_engine::plan::{Way, exercise};
use evanesce_engine::{Disk, EngineError};

use crate::bench;
use crate::quantity::DiskCache;

/// Bytes that are moved to measure a disk.
const DISK_BYTES: usize = 256 << 20;
const PIECE_BYTES: usize = 8 << 20;
/// The file that they are moved in, at most.
const FILE_BYTES: usize = 1 << 30;

/// Bytes and operations a second; `None` where nothing was measured.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rates {
    /// Bytes moved by a copy, each counted once.
    pub(crate) copy_bytes_per_s: Option<f64>,
    /// Multiplications and additions of a linear layer in bfloat16.
    pub(crate) flop_per_s: Option<f64>,
    pub(crate) disk_write_bytes_per_s: Option<f64>,
    pub(crate) disk_read_bytes_per_s: Option<f64>,
}

impl Rates {
    /// Measures memory and arithmetic, and the directory of the disk tier if there is one.
    pub(crate) fn measure(disk: Option<&DiskCache>) -> anyhow::Result<Self> {
        let (copy_bytes_per_s, flop_per_s) = bench::machine_rates()?;
        let (write, read) = disk.map(disk_rates).transpose()?.unzip();
        Ok(Self {
            copy_bytes_per_s: Some(copy_bytes_per_s),
            flop_per_s: Some(flop_per_s),
            disk_write_bytes_per_s: write,
            disk_read_bytes_per_s: read,
        })
    }
}

/// Bytes a second that the disk tier writes and reads, through the tier's own code.
#[expect(clippy::disallowed_methods, reason = "the command line may look at the clock")]
fn disk_rates(disk: &DiskCache) -> anyhow::Result<(f64, f64)> {
    let bytes = disk.bytes.min(DISK_BYTES) / PIECE_BYTES * PIECE_BYTES;
    // As large as it takes for blocks of the size that a large tier has.
    let opened = Disk::open(
        &disk.directory,
        disk.bytes.clamp(bytes.max(PIECE_BYTES) + 2 * PIECE_BYTES, FILE_BYTES) as u64,
    )
    .map_err(|error| EngineError::Request(format!("--disk-cache cannot be used: {error}")))?;
    let mut seconds = [0.0; 2];
    let pieces = u32::try_from((bytes / PIECE_BYTES).max(1)).unwrap_or(1);
    exercise(opened, pieces, PIECE_BYTES, |way, work| {
        let started = Instant::now();
        let done = work();
        seconds[usize::from(way == Way::Read)] += started.elapsed().as_secs_f64();
        done
    })
    .context("the disk tier cannot be measured")?;
    let moved = f64::from(pieces) * PIECE_BYTES as f64;
    Ok((moved / seconds[0].max(1e-9), moved / seconds[1].max(1e-9)))
}
