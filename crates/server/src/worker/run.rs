//! One job under way: the engine's run, the draft of its video, and how far it is.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use evanesce_engine::snapshot::{SnapshotDirectory, SnapshotError, SnapshotStore};
use evanesce_engine::video::{EncoderPool, VideoError, VideoSettings};
use evanesce_engine::{
    CancelToken, EngineError, Fault, JobId, JobRun, JobSpec, Model, Outputs, Progress, Request,
    RequestedLength, Tier, Usage, VideoTarget,
};

use super::internal;
use super::keep::{Pending, Tend};
use super::meter::Meter;
use crate::id::VideoId;
use crate::job::{Failure, Job, JobMemory, Order, TierBytes};
use crate::journal::note;
use crate::pictures::IllustratedVideo;
use crate::pressure::Relief;
use crate::videos::{Draft, VideoStore};

/// How a unit went.
pub(super) enum Unit {
    More,
    Done,
    Ended(Trouble),
}

/// Why a job is not done.
pub(super) enum Trouble {
    /// It never will be.
    Failed(Failure),
    /// There is no space for its files, or no more of them may be open: it will be made when there is.
    NoSpace,
    /// Something else that may pass.
    NotNow,
}

/// Whether files lacked space, or the process may open no more of them.
fn is_short(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    // Who adds a path to an error keeps the system's as its source.
    let inner = error.get_ref().and_then(|inner| inner.source()?.downcast_ref::<io::Error>());
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        || matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
        || inner.is_some_and(is_short)
}

impl Trouble {
    fn new(about: impl std::fmt::Display, error: &EngineError) -> Self {
        note(about, format_args!("failed: {error}"));
        if lacks_files(error) { Self::NoSpace } else { Self::Failed(sentence(error)) }
    }
}

fn lacks_files(error: &EngineError) -> bool {
    let (EngineError::Video(VideoError::Io { source, .. })
    | EngineError::Snapshot(SnapshotError::Io { source, .. })) = error
    else {
        return false;
    };
    is_short(source)
}

/// A job under way. Dropped, it gives back every byte and removes every file but its snapshot.
pub(super) struct Run<'m> {
    // What is being written for it is waited for, then the run goes, whose files lie in the draft.
    pub(super) pending: Option<Pending>,
    pub(super) run: JobRun<'m>,
    draft: Draft,
    pub(super) meter: Meter,
    pub(super) tend: Tend,
    /// What it gives up now.
    pub(super) relief: Option<Relief>,
    id: JobId,
    name: VideoId,
}

/// What a job is admitted with.
pub(super) struct Door<'a> {
    /// Who encodes.
    pub(super) pool: &'a Arc<EncoderPool>,
    pub(super) videos: &'a dyn VideoStore,
    pub(super) snapshot: Option<&'a SnapshotDirectory>,
    pub(super) model_name: &'a str,
    /// The tiers hold less than they should, for now.
    pub(super) is_tight: bool,
    /// It has not been put off so often that what stands in its way is likely to stay.
    pub(super) may_wait: bool,
}

impl Door<'_> {
    /// What came in the way and may be gone a little later; `None` where it stays, as what is wrong with a snapshot itself does.
    fn may_pass(&self, error: &EngineError) -> Option<Trouble> {
        let may_pass = match error {
            EngineError::Budget { .. } => self.is_tight && self.may_wait,
            EngineError::Cache(_) | EngineError::Snapshot(SnapshotError::Io { .. }) => self.may_wait,
            _ => false,
        };
        if lacks_files(error) { Some(Trouble::NoSpace) } else { may_pass.then_some(Trouble::NotNow) }
    }
}

impl<'m> Run<'m> {
    /// Admits a job to the engine: checks it against the model that is served now, opens its files, and goes on from its
    /// snapshot if there is one that can be gone on from.
    ///
    /// # Errors
    /// Why it cannot be made, or not now.
    pub(super) fn admit(model: &'m Model, door: &Door<'_>, job: &Job) -> Result<Self, Trouble> {
        if job.order.model != door.model_name {
            let message = format!("the model {:?} is no longer served", job.order.model);
            return Err(Trouble::Failed(Failure::new("model_not_found", message)));
        }
        if let Some(snapshot) = door.snapshot {
            match Self::resume(model, door, job, snapshot) {
                Ok(Some(run)) => return Ok(run),
                Ok(None) => {}
                // The snapshot is as good as before.
                Err(error) => {
                    if let Some(trouble) = door.may_pass(&error) {
                        note(&job.id, format_args!("cannot go on now: {error}"));
                        return Err(trouble);
                    }
                    note(&job.id, format_args!("begins anew: {error}"));
                }
            }
            // What cannot be gone on from is of no use.
            drop(snapshot.remove());
        }
        let begun = || -> Result<_, EngineError> {
            let (outputs, draft) = open(model, door, job)?;
            let run = JobRun::admit(model, request(&job.order), outputs, CancelToken::new())?;
            Ok(Self::new(run, draft, job))
        };
        begun().map_err(|error| match door.may_pass(&error) {
            Some(trouble) => {
                note(&job.id, format_args!("cannot begin now: {error}"));
                trouble
            }
            None => Trouble::new(&job.id, &error),
        })
    }

    fn resume(
        model: &'m Model,
        door: &Door<'_>,
        job: &Job,
        snapshot: &SnapshotDirectory,
    ) -> Result<Option<Self>, EngineError> {
        let manifest = snapshot.manifest();
        if manifest.map_err(|source| SnapshotError::Io { doing: "read", source })?.is_none() {
            return Ok(None);
        }
        let (outputs, draft) = open(model, door, job)?;
        let run = JobRun::resume(model, request(&job.order), outputs, CancelToken::new(), snapshot)?;
        Ok(run.map(|run| {
            let position = run.position();
            note(&job.id, format_args!("goes on from its snapshot, at {position}"));
            let mut resumed = Self::new(run, draft, job);
            resumed.meter.go_on_at(position);
            resumed
        }))
    }

    fn new(run: JobRun<'m>, draft: Draft, job: &Job) -> Self {
        let tend = Tend::new(run.position().block);
        Self {
            pending: None,
            id: run.id(),
            run,
            draft,
            meter: Meter::new(&job.order),
            tend,
            relief: None,
            name: job.id.clone(),
        }
    }

    /// Does the next unit. A panic of the engine fails this job and no other.
    pub(super) fn advance(&mut self) -> Unit {
        let (run, meter) = (&mut self.run, &mut self.meter);
        match catch_unwind(AssertUnwindSafe(|| run.advance(meter))) {
            Ok(Ok(Progress::More)) => Unit::More,
            Ok(Ok(Progress::Done)) => Unit::Done,
            Ok(Err(error)) => Unit::Ended(Trouble::new(&self.name, &error)),
            Err(_panic) => {
                note(&self.name, "the engine panicked");
                Unit::Ended(Trouble::Failed(internal()))
            }
        }
    }

    /// Ends a run that is done and makes its video visible; says what the job held.
    pub(super) fn publish(
        self,
        model: &Model,
        videos: &dyn VideoStore,
        job: &Job,
    ) -> Result<JobMemory, Trouble> {
        let Self { pending, run, draft, id, .. } = self;
        drop(pending);
        let held = model.cache().owned_by(id);
        run.finish().map_err(|error| Trouble::new(&job.id, &error))?;
        videos.publish(&job.id, draft).map_err(|error| {
            note(&job.id, format_args!("its video cannot be published: {error}"));
            if is_short(&error) { Trouble::NoSpace } else { Trouble::Failed(internal()) }
        })?;
        Ok(memory(&model.cache().owned_by(id), &held))
    }

    /// The job's name in the cache.
    pub(super) fn holder(&self) -> JobId {
        self.id
    }

    /// What the job holds now.
    pub(super) fn memory(&self, model: &Model) -> JobMemory {
        let held = model.cache().owned_by(self.id);
        memory(&held, &held)
    }
}

/// Where a job's video and pictures go while they are made.
fn open(model: &Model, door: &Door<'_>, job: &Job) -> Result<(Outputs, Draft), EngineError> {
    let spec = JobSpec::new(request(&job.order), model.checkpoint())?;
    let draft = door
        .videos
        .draft(&job.id, job.epoch)
        .map_err(|source| VideoError::Io { path: "draft".into(), source })?;
    let settings = VideoSettings::new(spec.width, spec.height, spec.fps);
    let sink = Box::new(IllustratedVideo::create(&draft, settings, spec.frames)?);
    Ok((
        Outputs {
            video: VideoTarget::Pooled { sink, pool: Arc::clone(door.pool) },
            latents: None,
            frames: None,
        },
        draft,
    ))
}

fn memory(now: &Usage, most: &Usage) -> JobMemory {
    let tier = |tier| TierBytes { owned_bytes: now.bytes[tier], peak_bytes: most.peak_bytes[tier] };
    JobMemory { device: tier(Tier::Device), host: tier(Tier::Host), disk: tier(Tier::Disk) }
}

/// The engine's request for an order: nothing is left to defaults, so a restart gives the same video.
pub(crate) fn request(order: &Order) -> Request {
    let pages = order.pages.as_ref();
    Request {
        negative: Some(order.negative_prompt.clone()),
        size: Some((order.width, order.height)),
        length: Some(RequestedLength::Frames(order.frames)),
        fps: Some(order.fps),
        steps: Some(order.steps),
        guidance_high: Some(order.guidance_high),
        guidance_low: Some(order.guidance_low),
        boundary: Some(order.boundary),
        shift: Some(order.shift),
        kv_codec: pages.map(|pages| pages.storage.codec),
        kv_overrides: pages.map(|pages| pages.storage.overrides.clone()).unwrap_or_default(),
        kv_window: pages.map(|pages| pages.window),
        kv_sink: pages.map(|pages| pages.sink),
        ..Request::new(order.prompt.clone(), order.seed)
    }
}

/// What a client may read: its own mistakes word for word, but nothing that may hold a path.
fn sentence(error: &EngineError) -> Failure {
    match error {
        EngineError::Request(_) | EngineError::Budget { .. } => {
            Failure::new("invalid_request", error.to_string())
        }
        other if other.fault() == Fault::Cancelled => Failure::cancelled(),
        _ => internal(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_the_process_may_not_open_is_waited_for_whoever_added_its_path() {
        #[derive(Debug, thiserror::Error)]
        #[error("at path x")]
        struct AtPath(#[source] io::Error);
        let raw = io::Error::from_raw_os_error(24);
        let with_path = io::Error::new(raw.kind(), AtPath(io::Error::from_raw_os_error(24)));
        let lacks = |source| lacks_files(&VideoError::Io { path: "x".into(), source }.into());
        assert!(lacks(raw) && lacks(with_path) && lacks(io::ErrorKind::StorageFull.into()));
        assert!(!lacks(io::ErrorKind::PermissionDenied.into()));
    }
}
