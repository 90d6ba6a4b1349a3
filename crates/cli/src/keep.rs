//! `generate --snapshots`: the job is kept on disk while it is made, and the same command goes on from there.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Instant;

use evanesce_engine::progress::{Event, Observer};
use evanesce_engine::snapshot::{Rhythm, SinceKept, SnapshotDirectory, SnapshotError, SnapshotMode};
use evanesce_engine::video::VideoError;
use evanesce_engine::{CancelToken, EngineError, JobRun, Model, Outputs, Position, Progress, Request};

use crate::progress::say;

/// A place of its own in the directory that is named: a snapshot removes what it does not know.
const NAME: &str = "evanesce-job";

/// Keeps one job.
#[derive(Debug)]
pub(crate) struct Keeper {
    directory: PathBuf,
    snapshot: SnapshotDirectory,
    rhythm: Rhythm,
    since: SinceKept,
    /// Where the snapshot of this job is, if there is one.
    kept_at: Option<Position>,
    /// Of the directory: commands would remove each other's parts. It goes with the process, however that ends.
    _lock: File,
}

impl Keeper {
    /// Makes the directory, and holds it.
    ///
    /// # Errors
    /// When nothing can be written there, or another command keeps its job there.
    pub(crate) fn open(directory: &Path) -> Result<Self, EngineError> {
        let cannot = |error: std::io::Error| {
            let message = format!("no snapshot can be kept there ({error}): name another directory");
            EngineError::file(directory, message)
        };
        std::fs::create_dir_all(directory).map_err(cannot)?;
        let lock = File::open(directory).map_err(cannot)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = "is used by another evanesce: wait for it, or name another directory";
                return Err(EngineError::file(directory, message));
            }
            Err(TryLockError::Error(error)) => return Err(cannot(error)),
        }
        // Whether a file can be made there shows when one is; it goes at once.
        let made = tempfile::Builder::new().prefix(".evanesce-").tempfile_in(directory);
        made.map(drop).map_err(cannot)?;
        Ok(Self {
            directory: directory.to_owned(),
            snapshot: SnapshotDirectory::new(directory.join(NAME)),
            rhythm: Rhythm::default(),
            since: SinceKept::new(0),
            kept_at: None,
            _lock: lock,
        })
    }

    /// The job where it was kept last. `None` where nothing is kept, or something damaged, which stays until this job is kept.
    ///
    /// # Errors
    /// When another job is kept there, which would be lost: it may be days of work, and this command a slip. Else as
    /// [`JobRun::resume`], but for damage.
    pub(crate) fn resume<'m>(
        &mut self,
        model: &'m Model,
        request: Request,
        outputs: Outputs,
        cancel: CancelToken,
    ) -> Result<Option<JobRun<'m>>, EngineError> {
        let place = self.directory.display();
        match JobRun::resume(model, request, outputs, cancel, &self.snapshot) {
            Ok(Some(job)) => {
                let position = job.position();
                say(&format!("goes on from {place}, at {position}"));
                (self.since, self.kept_at) = (SinceKept::new(position.block), Some(position));
                Ok(Some(job))
            }
            Ok(None) => Ok(None),
            Err(EngineError::Snapshot(SnapshotError::Foreign(what))) => {
                Err(self.holds_another(&format!("what is there is of {what}")))
            }
            Err(EngineError::Video(error @ VideoError::OtherQuality)) => {
                Err(self.holds_another(&error.to_string()))
            }
            Err(error) => {
                let what = damage(error)?;
                say(&format!("begins anew, since the snapshot in {place} is damaged: {what}"));
                Ok(None)
            }
        }
    }

    fn holds_another(&self, why: &str) -> EngineError {
        let message = format!(
            "keeps another job ({why}): give the command that began it, name another directory, or remove {NAME} there to begin anew"
        );
        EngineError::file(&self.directory, message)
    }

    /// Does the job's next unit, and keeps it if that is due, or if somebody stopped it and it costs less than would be lost.
    ///
    /// # Errors
    /// As [`JobRun::advance`]. A job that cannot be kept goes on, and the last snapshot stands.
    pub(crate) fn advance(
        &mut self,
        job: &mut JobRun<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Progress, EngineError> {
        let began = now();
        let advanced = job.advance(observer);
        match &advanced {
            Ok(Progress::More) => {
                self.since.count(began.elapsed());
                if self.rhythm.is_due(&self.since, job.position().block)
                    && let Err(error) = self.keep(job)
                {
                    let notice = format!("goes on without a new snapshot: {error}");
                    observer.on_event(Event::Notice(&notice));
                }
            }
            // It stands where the last unit left it.
            Err(EngineError::Cancelled) if self.since.is_worth_keeping() => {
                if let Err(error) = self.keep(job) {
                    let notice = format!("what was done last cannot be kept: {error}");
                    observer.on_event(Event::Notice(&notice));
                }
            }
            Ok(Progress::Done) | Err(_) => {}
        }
        advanced
    }

    /// Keeps the job, if it stands where it can be gone on from.
    fn keep(&mut self, job: &mut JobRun<'_>) -> Result<(), EngineError> {
        let began = now();
        let taken = job.snapshot(&self.snapshot, SnapshotMode::Full);
        // One that failed is not tried again at once; where none can be taken, the next unit may end where one can.
        if !matches!(taken, Ok(None)) {
            self.since = SinceKept::after(job.position().block, began.elapsed());
        }
        if taken?.is_some() {
            self.kept_at = Some(job.position());
        }
        Ok(())
    }

    /// What a command that ends without its video leaves of it, in a sentence; `None` where that is nothing.
    pub(crate) fn parting(&self) -> Option<String> {
        let (place, position) = (self.directory.display(), self.kept_at?);
        Some(format!("the job is kept in {place}, at {position}: the same command goes on from there"))
    }

    /// Removes what was kept of a job that is done.
    pub(crate) fn forget(self) {
        if let Err(error) = self.snapshot.remove() {
            say(&format!("{} cannot be removed: {error}", self.snapshot.path().display()));
        }
    }
}

/// What is wrong with a snapshot that is damaged.
///
/// # Errors
/// Any other error, as it is.
fn damage(error: EngineError) -> Result<String, EngineError> {
    match error {
        EngineError::Snapshot(SnapshotError::Damaged(what)) => Ok(what),
        EngineError::Video(VideoError::State(what)) => Ok(what.to_owned()),
        error => Err(error),
    }
}

#[expect(clippy::disallowed_methods, reason = "the command line may look at the clock")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_video_that_cannot_be_gone_on_with_is_damage_and_one_of_another_quality_is_not() {
        let state = VideoError::State("what was saved is no state of a video");
        assert_eq!(damage(state.into()).ok().as_deref(), Some("what was saved is no state of a video"));
        assert!(damage(VideoError::OtherQuality.into()).is_err());
        assert!(damage(EngineError::Snapshot(SnapshotError::Foreign("other weights"))).is_err());
    }
}
