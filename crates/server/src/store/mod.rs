//! Where jobs are kept. A job is written before its client is answered, and what is written survives the process.
//!
//! [`JobStore`] is a contract that a suite of tests holds (`tests/store.rs`); SQLite implements it for one node.

mod rows;
mod schema;
mod sqlite;

use std::future::Future;
use std::pin::Pin;

pub use sqlite::SqliteStore;
use utoipa::ToSchema;

use crate::clock::UnixMs;
use crate::id::VideoId;
use crate::job::{Failure, Job, JobMemory, Order, Webhook};

/// Why the store could not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database refused. Its reason is in the sentence, and not the error's source, or it would be said twice.
    #[error("the job store failed: {0}")]
    Database(sqlx::Error),
    /// What was read is not what was written.
    #[error("the job store holds {what} that cannot be read: {reason}")]
    Unreadable {
        /// What it is.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The database was written by a newer program.
    #[error(
        "the job store has schema {found}, and this program knows schemas up to {known}; use the newer program"
    )]
    TooNew {
        /// Its schema.
        found: i64,
        /// The newest known.
        known: i64,
    },
}

/// An answer that comes later.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A job that somebody asks for.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Its name.
    pub id: VideoId,
    /// Whose it is.
    pub tenant: String,
    /// What it does.
    pub order: Order,
    /// Now.
    pub created: UnixMs,
    /// The client's idempotency key, and a digest of what came with it.
    pub idempotency: Option<(String, [u8; 32])>,
    /// Who is told when it ends.
    pub webhook: Option<Webhook>,
}

/// How many jobs may wait or run at once.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Of all tenants.
    pub total: i64,
    /// Of one tenant.
    pub per_tenant: i64,
}

/// What became of a [`NewJob`].
#[derive(Clone, Debug, PartialEq)]
pub enum Inserted {
    /// It is written.
    Created(Box<Job>),
    /// The same request was made before: this is its job.
    Repeated(Box<Job>),
    /// The idempotency key came with another request before.
    KeyReused,
    /// As many jobs as may wait or run do so.
    Full {
        /// How many do.
        waiting: i64,
        /// Whether it is the tenant's own limit.
        own_limit: bool,
    },
}

/// Which way a list goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ToSchema)]
pub enum Direction {
    /// Oldest first.
    #[schema(rename = "asc")]
    Ascending,
    /// Newest first.
    #[default]
    #[schema(rename = "desc")]
    Descending,
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct Page {
    /// The last job of the page before.
    pub after: Option<VideoId>,
    /// At most this many.
    pub limit: u32,
    /// Which way.
    pub direction: Direction,
}

/// Jobs of one page.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing {
    /// In order.
    pub jobs: Vec<Job>,
    /// Whether there are more beyond them.
    pub has_more: bool,
}

/// Who works on a job, until when. A claim is a lease: who does not renew it in time loses the job.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The worker's name.
    pub worker: String,
    /// When it ends unless it is renewed.
    pub until: UnixMs,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// Its video is in the video store.
    Completed(JobMemory),
    /// There is none.
    Failed(Failure),
}

/// Whether a worker still had the right to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a fenced worker must undo what it made"]
pub enum Fenced {
    /// It had: it is written.
    No,
    /// The job is somebody else's now, over, or gone: nothing was written.
    Yes,
}

/// What became of a request to cancel.
#[derive(Clone, Debug, PartialEq)]
pub enum Cancelled {
    /// The job is over now, and whoever worked on it is fenced.
    Now(Box<Job>),
    /// It was over already.
    Before(Box<Job>),
    /// There is no such job.
    Unknown,
}

/// One attempt to deliver a webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What came of it, in a few words.
    pub said: String,
    /// When it arrived, if it did.
    pub delivered: Option<UnixMs>,
    /// When to try again; `None`: it arrived, or is given up.
    pub due: Option<UnixMs>,
}

/// Whose claims count as given up.
#[derive(Clone, Copy, Debug)]
pub enum Abandoned {
    /// Everybody's: the caller knows that no worker is alive.
    All,
    /// Those whose lease has ended by this moment.
    EndedBy(UnixMs),
}

/// What became of jobs whose worker is gone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Requeued {
    /// They wait again.
    pub queued: Vec<Job>,
    /// They were started too often without an end.
    pub failed: Vec<Job>,
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// Keeps jobs. Every method is one transaction: when it has answered, its effect is on disk, and nothing in between can be seen.
pub trait JobStore: Send + Sync {
    /// Writes a job, unless its key has been used or the queue is full.
    fn insert(&self, new: NewJob, limits: QueueLimits) -> Answer<'_, Inserted>;

    /// What [`Self::insert`] answers for a key that has been used, before anything else of the request is looked at; `None` when it
    /// has not been. A key is known as long as its job is there.
    fn repeated<'a>(
        &'a self,
        tenant: &'a str,
        key: &'a str,
        digest: &'a [u8; 32],
    ) -> Answer<'a, Option<Inserted>>;

    /// A job of this tenant.
    fn get<'a>(&'a self, tenant: &'a str, id: &'a VideoId) -> Answer<'a, Option<Job>>;

    /// A page of this tenant's jobs; `None` when there is no job `after` which to begin.
    fn list<'a>(&'a self, tenant: &'a str, page: &'a Page) -> Answer<'a, Option<Listing>>;

    /// All jobs that wait, oldest first.
    fn queued(&self) -> Answer<'_, Vec<Job>>;

    /// Gives a waiting job to a worker, under a new epoch; `None` when it no longer waits.
    fn claim<'a>(&'a self, id: &'a VideoId, lease: &'a Lease, now: UnixMs) -> Answer<'a, Option<Job>>;

    /// Extends all leases of a worker; says how many it has.
    fn renew<'a>(&'a self, lease: &'a Lease) -> Answer<'a, u64>;

    /// Writes how a claimed job ended: late, when its video is safe.
    fn finish<'a>(
        &'a self,
        id: &'a VideoId,
        epoch: i64,
        ending: &'a Ending,
        moments: (UnixMs, UnixMs),
    ) -> Answer<'a, Fenced>;

    /// Notes that a claimed job has got on: its earlier starts no longer count as starts without an end.
    fn progressed<'a>(&'a self, id: &'a VideoId, epoch: i64) -> Answer<'a, Fenced>;

    /// Writes what a claimed job does from now on, and what gave way in it.
    fn amend<'a>(
        &'a self,
        id: &'a VideoId,
        epoch: i64,
        order: &'a Order,
        degradations: &'a [String],
    ) -> Answer<'a, Fenced>;

    /// Gives a claimed job back to the queue. The start does not count as one that failed.
    fn release<'a>(&'a self, id: &'a VideoId, epoch: i64) -> Answer<'a, Fenced>;

    /// Ends a job that is not over, whoever works on it. `moments`: now, and when it expires.
    fn cancel<'a>(
        &'a self,
        tenant: &'a str,
        id: &'a VideoId,
        moments: (UnixMs, UnixMs),
    ) -> Answer<'a, Cancelled>;

    /// Removes a job in any state; gives it as it was.
    fn delete<'a>(&'a self, tenant: &'a str, id: &'a VideoId) -> Answer<'a, Option<Job>>;

    /// Puts claimed jobs whose worker is gone back into the queue, or fails those that were started `starts_max` times.
    fn requeue(
        &self,
        abandoned: Abandoned,
        starts_max: i64,
        moments: (UnixMs, UnixMs),
    ) -> Answer<'_, Requeued>;

    /// Removes jobs that have expired, at most `limit`; gives them.
    fn expire(&self, now: UnixMs, limit: u32) -> Answer<'_, Vec<Job>>;

    /// Jobs that have ended and whose webhook is due by `now`, longest due first, at most `limit`; those behind `after`, if it is
    /// given: when the last one that was seen is due, and its number.
    fn webhooks_due(&self, now: UnixMs, after: Option<(UnixMs, i64)>, limit: u32) -> Answer<'_, Vec<Job>>;

    /// Writes what came of an attempt; nothing, if the job is gone.
    fn note_webhook<'a>(&'a self, id: &'a VideoId, attempt: &'a Attempt) -> Answer<'a, ()>;

    /// Whether a video of this name should exist: its job is completed.
    fn has_video<'a>(&'a self, id: &'a VideoId) -> Answer<'a, bool>;
}
