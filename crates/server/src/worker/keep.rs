//! Jobs under way on disk: when a snapshot is due, where they lie, and who writes them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use evanesce_engine::EngineError;
use evanesce_engine::snapshot::{
    Capture, Captured, SinceKept, SnapshotDirectory, SnapshotError, SnapshotMode, SnapshotStore, Taken,
    Written,
};

use super::run::Run;
use crate::clock::Stopwatch;
use crate::config::{SnapshotConfig, SnapshotKeeps};
use crate::id::VideoId;

/// Captured snapshots that may wait for the thread that writes them; the engine writes the next one itself.
const CAPTURES_MAX: usize = 2;

/// The snapshots of all jobs, each in a directory of its own.
#[derive(Clone, Debug)]
pub(crate) struct Keeper {
    root: PathBuf,
    config: SnapshotConfig,
    /// To the thread that writes.
    writer: SyncSender<Order>,
}

type Outcome = Result<Option<Written>, SnapshotError>;

/// Who notes in the store that a job has got on since it was started, as soon as that is on disk.
pub(super) type NoteProgress = Box<dyn FnOnce() + Send>;

/// A captured snapshot, where it goes, and who is told.
struct Order {
    capture: Box<Capture>,
    directory: SnapshotDirectory,
    note_progress: Option<NoteProgress>,
    done: SyncSender<(Outcome, Duration)>,
}

impl Order {
    fn carry_out(self) {
        let watch = Stopwatch::start();
        let outcome = self.capture.write(&self.directory);
        if let (Ok(Some(_)), Some(note_progress)) = (&outcome, self.note_progress) {
            note_progress();
        }
        // Whoever waited may have gone.
        drop(self.done.send((outcome, watch.elapsed())));
    }
}

/// A snapshot that is being written. Dropped, it is waited for: then nothing more is written for its job.
#[derive(Debug)]
pub(super) struct Pending(Receiver<(Outcome, Duration)>);

impl Drop for Pending {
    fn drop(&mut self) {
        drop(self.0.recv());
    }
}

/// What a snapshot cost: what was written, and how long that took.
pub(super) type Kept = Result<Option<(Taken, Duration)>, EngineError>;

/// How much a job has done since it was kept.
#[derive(Debug)]
pub(super) struct Tend {
    since: SinceKept,
    /// Whether this start of the job has been kept before.
    pub(super) was_kept: bool,
}

impl Tend {
    pub(super) fn new(block: usize) -> Self {
        Self { since: SinceKept::new(block), was_kept: false }
    }

    /// Counts a unit.
    pub(super) fn count(&mut self, took: Duration) {
        self.since.count(took);
    }
}

impl Keeper {
    /// Snapshots under `data`, and a thread that writes them, which ends with the last of its keepers.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn new(data: &Path, config: SnapshotConfig) -> io::Result<Self> {
        let (writer, orders) = sync_channel::<Order>(CAPTURES_MAX);
        let thread = std::thread::Builder::new().name("snapshots".to_owned());
        thread.spawn(move || orders.into_iter().for_each(Order::carry_out))?;
        Ok(Self { root: data.join("snapshots"), config, writer })
    }

    /// The snapshot of a job; `None` when there are to be none.
    pub(super) fn of(&self, id: &VideoId) -> Option<SnapshotDirectory> {
        self.mode()?;
        Some(SnapshotDirectory::new(self.root.join(id.as_str())))
    }

    /// Whether a job has a snapshot to go on from.
    pub(super) fn has(&self, id: &VideoId) -> bool {
        self.of(id).is_some_and(|directory| directory.manifest().is_ok_and(|manifest| manifest.is_some()))
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

    /// Whether a snapshot is due.
    pub(super) fn is_due(&self, run: &Run<'_>) -> bool {
        self.config.rhythm().is_due(&run.tend.since, run.run.position().block)
    }

    /// Begins a snapshot, if there are to be any and the job stands where one can be taken: what is to be kept is copied, and
    /// written while the job goes on. How long the job had to wait. Where there is no room for a copy it is written at once.
    pub(super) fn begin(
        &self,
        id: &VideoId,
        run: &mut Run<'_>,
        note_progress: Option<NoteProgress>,
    ) -> (Duration, Kept) {
        let (Some(directory), Some(mode)) = (self.of(id), self.mode()) else {
            return (Duration::ZERO, Ok(None));
        };
        let watch = Stopwatch::start();
        let kept = match run.run.capture(mode) {
            Ok(Captured::Copied(capture)) => {
                let (done, pending) = sync_channel(1);
                run.pending = Some(Pending(pending));
                self.send(Order { capture, directory, note_progress, done });
                Ok(None)
            }
            Ok(Captured::NoRoom) => self.keep(id, run),
            Ok(Captured::Known(_) | Captured::Nothing) => Ok(None),
            Err(error) => Err(error),
        };
        let paused = watch.elapsed();
        // One that failed is not tried again at once.
        if run.pending.is_some() || kept.is_err() {
            Self::begin_again(run, paused);
        }
        (paused, kept)
    }

    fn send(&self, order: Order) {
        if let Err(TrySendError::Full(order) | TrySendError::Disconnected(order)) =
            self.writer.try_send(order)
        {
            order.carry_out();
        }
    }

    /// What became of a snapshot that was begun; nothing while it is being written.
    pub(super) fn settled(&self, run: &mut Run<'_>) -> Kept {
        let written = run.pending.as_ref().and_then(|pending| pending.0.try_recv().ok());
        Self::take_note(run, written)
    }

    /// The same, once it is written.
    pub(super) fn settle(&self, run: &mut Run<'_>) -> Kept {
        let written = run.pending.as_ref().and_then(|pending| pending.0.recv().ok());
        Self::take_note(run, written)
    }

    fn take_note(run: &mut Run<'_>, written: Option<(Outcome, Duration)>) -> Kept {
        let Some((outcome, took)) = written else { return Ok(None) };
        run.pending = None;
        // What writing takes of the disk counts as well.
        run.tend.since.add_cost(took);
        Ok(run.run.captured(outcome)?.map(|taken| (taken, took)))
    }

    fn begin_again(run: &mut Run<'_>, took: Duration) {
        run.tend.since = SinceKept::after(run.run.position().block, took);
    }

    /// Takes a snapshot and waits until it is written, if there are to be any and the job stands where one can be taken. What it
    /// cost.
    ///
    /// # Errors
    /// When it cannot be written; the one before stands.
    pub(super) fn keep(&self, id: &VideoId, run: &mut Run<'_>) -> Kept {
        let (Some(store), Some(mode)) = (self.of(id), self.mode()) else { return Ok(None) };
        let watch = Stopwatch::start();
        let taken = run.run.snapshot(&store, mode);
        let took = watch.elapsed();
        // One that failed is not tried again at once.
        if !matches!(taken, Ok(None)) {
            Self::begin_again(run, took);
        }
        Ok(taken?.map(|taken| (taken, took)))
    }
}
