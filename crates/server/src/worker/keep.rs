//! Jobs under way on disk: when a snapshot is due, and where they lie.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use evanesce_engine::EngineError;
use evanesce_engine::snapshot::{SnapshotDirectory, SnapshotMode, Taken};

use super::run::Run;
use crate::clock::Stopwatch;
use crate::config::{SnapshotConfig, SnapshotKeeps};
use crate::id::VideoId;

/// The snapshots of all jobs, each in a directory of its own.
#[derive(Clone, Debug)]
pub(crate) struct Keeper {
    root: PathBuf,
    config: SnapshotConfig,
}

/// How long ago a job was kept, and what that cost.
#[derive(Debug)]
pub(super) struct Tend {
    units: u32,
    since: Stopwatch,
    took: Duration,
    block: usize,
    /// Whether this start of the job has been kept before.
    pub(super) was_kept: bool,
}

impl Tend {
    pub(super) fn new(block: usize) -> Self {
        Self { units: 0, since: Stopwatch::start(), took: Duration::ZERO, block, was_kept: false }
    }
}

impl Keeper {
    /// Snapshots under `data`.
    pub(crate) fn new(data: &Path, config: SnapshotConfig) -> Self {
        Self { root: data.join("snapshots"), config }
    }

    /// The snapshot of a job; `None` when there are to be none.
    pub(super) fn of(&self, id: &VideoId) -> Option<SnapshotDirectory> {
        self.mode()?;
        Some(SnapshotDirectory::new(self.root.join(id.as_str())))
    }

    /// Removes the snapshot of a job that is over.
    pub(super) fn forget(&self, id: &VideoId) {
        // What cannot be removed now is removed when the service starts again.
        drop(SnapshotDirectory::new(self.root.join(id.as_str())).remove());
    }

    /// Removes snapshots of all jobs but these.
    ///
    /// # Errors
    /// When they cannot be listed or removed.
    pub(crate) fn retain(&self, active: impl Fn(&str) -> bool) -> io::Result<()> {
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(&active) {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    fn mode(&self) -> Option<SnapshotMode> {
        match self.config.mode {
            SnapshotKeeps::Full => Some(SnapshotMode::Full),
            SnapshotKeeps::Compact => Some(SnapshotMode::Compact),
            SnapshotKeeps::Off => None,
        }
    }

    /// Counts a unit; whether a snapshot is due after it.
    pub(super) fn is_due(&self, run: &mut Run<'_>) -> bool {
        let block = run.run.position().block;
        let tend = &mut run.tend;
        tend.units += 1;
        let since = tend.since.elapsed();
        let wanted = tend.units >= self.config.every_units
            || since.as_secs_f64() >= self.config.every_seconds
            || block != tend.block;
        let affordable = self.config.share_max >= 1.0
            || tend.took.as_secs_f64() <= self.config.share_max * since.as_secs_f64();
        wanted && affordable
    }

    /// Takes a snapshot, if there are to be any and the job stands where one can be taken. What it cost.
    ///
    /// # Errors
    /// When it cannot be written; the one before stands.
    pub(super) fn keep(
        &self,
        id: &VideoId,
        run: &mut Run<'_>,
    ) -> Result<Option<(Taken, Duration)>, EngineError> {
        let (Some(store), Some(mode)) = (self.of(id), self.mode()) else { return Ok(None) };
        let watch = Stopwatch::start();
        let taken = run.run.snapshot(&store, mode);
        let took = watch.elapsed();
        let block = run.run.position().block;
        // One that failed is not tried again at once.
        if !matches!(taken, Ok(None)) {
            run.tend = Tend { units: 0, since: Stopwatch::start(), took, block, was_kept: run.tend.was_kept };
        }
        Ok(taken?.map(|taken| (taken, took)))
    }
}
