//! What jobs under way are doing right now, and who wants to be told. Written by the engine's thread only; nothing here needs to
//! survive the process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use evanesce_engine::JobId;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, broadcast};
use utoipa::ToSchema;

use crate::clock::Stopwatch;
use crate::id::VideoId;
use crate::job::{Class, Job, JobMemory};
use crate::metrics::Holders;
use crate::wire::{DeletedVideo, MemoryNow, Video};

/// Updates that a slow listener may fall behind before it misses some; it is told, and can ask for everything again.
const UPDATES_KEPT: usize = 1024;
/// Updates of one job that only tell of progress come at most this often, and less often the more listen: what all listeners
/// together cost does not grow with their number.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
const LISTENERS_PER_INTERVAL: usize = 20;

/// What a job is doing, in more words than the four statuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Waits for its first unit.
    #[default]
    Queued,
    /// Prompts into embeddings.
    Text,
    /// Noise into latents.
    Denoise,
    /// Latents into frames, frames into the file.
    Decode,
    /// Closing the file.
    Encode,
    /// It has ended.
    Ended,
}

/// A job's state between two writes to the store.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Live {
    /// What it is doing.
    pub phase: Phase,
    /// Denoising steps done.
    pub step: usize,
    /// How much is done, 0 to 99.
    pub progress: u8,
    /// Seconds until its video is there, if nothing else comes; unknown until some job has been timed.
    pub eta_s: Option<f64>,
    /// Its place among those that wait, from 1.
    pub queue_position: Option<usize>,
    /// What it holds.
    pub memory: Option<JobMemory>,
    /// Its name in the cache, once it has been started.
    pub holder: Option<JobId>,
}

/// Something to tell listeners.
#[derive(Clone, Debug)]
pub enum Update {
    /// A job is new, has moved on, or has ended; its object as the API gives it.
    Video {
        /// Whose it is.
        tenant: String,
        /// Which.
        id: VideoId,
        /// The object.
        json: Arc<str>,
        /// Whether nothing more will come.
        is_over: bool,
    },
    /// A job is gone.
    Deleted {
        /// Whose it was.
        tenant: String,
        /// Which.
        id: VideoId,
        /// The object that says so.
        json: Arc<str>,
    },
    /// What the cache holds.
    Memory(Arc<str>),
}

#[derive(Debug)]
struct Posted {
    job: Job,
    live: Live,
    told: Stopwatch,
}

/// What is posted, and whose posts are not taken any more.
#[derive(Debug, Default)]
struct Posts {
    jobs: BTreeMap<VideoId, Posted>,
    /// Jobs that are over in the store; the engine has yet to hear of it, and may be in the middle of a unit.
    closed: BTreeSet<VideoId>,
}

/// The board.
#[derive(Debug)]
pub struct Board {
    posts: Mutex<Posts>,
    memory_told: Mutex<Option<Stopwatch>>,
    updates: broadcast::Sender<Update>,
    ended: Notify,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            posts: Mutex::default(),
            memory_told: Mutex::default(),
            updates: broadcast::Sender::new(UPDATES_KEPT),
            ended: Notify::new(),
        }
    }
}

impl Board {
    /// What is posted is whole after every single operation on it, so a panic elsewhere cannot spoil it.
    fn posts(&self) -> MutexGuard<'_, Posts> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a job is doing; `None` when it has ended or is not known yet.
    #[must_use]
    pub fn live(&self, id: &VideoId) -> Option<Live> {
        self.posts().jobs.get(id).map(|posted| posted.live)
    }

    /// A job that waits or is under way, without asking the store; `None` for all others, which the store knows.
    pub(crate) fn open_job(&self, tenant: &str, id: &VideoId) -> Option<(Job, Live)> {
        let posts = self.posts();
        let posted = posts.jobs.get(id).filter(|posted| posted.job.tenant == tenant)?;
        Some((posted.job.clone(), posted.live))
    }

    /// Takes a job off the board that somebody has ended in the store: nothing that is posted of it is taken any more.
    pub(crate) fn close(&self, id: &VideoId) {
        let mut posts = self.posts();
        posts.jobs.remove(id);
        posts.closed.insert(id.clone());
    }

    /// How many jobs of each class wait, and how many are under way.
    #[must_use]
    pub fn counts(&self) -> [(Class, usize, usize); 3] {
        let posts = self.posts();
        Class::ALL.map(|class| {
            let of_class = posts.jobs.values().filter(|posted| posted.job.order.class == class);
            let (waiting, under_way): (Vec<_>, Vec<_>) =
                of_class.partition(|posted| posted.live.phase == Phase::Queued);
            (class, waiting.len(), under_way.len())
        })
    }

    /// Whose jobs of the cache are.
    pub(crate) fn holders(&self) -> Holders {
        let posts = self.posts();
        let held = posts
            .jobs
            .iter()
            .filter_map(|(id, posted)| Some((posted.live.holder?, (id.clone(), posted.job.order.class))));
        held.collect()
    }

    /// How many listen.
    pub(crate) fn listeners(&self) -> usize {
        self.updates.receiver_count()
    }

    /// A listener for everything from now on.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Update> {
        self.updates.subscribe()
    }

    fn progress_interval(&self) -> Duration {
        let more = self.listeners() / LISTENERS_PER_INTERVAL;
        PROGRESS_INTERVAL * u32::try_from(1 + more).unwrap_or(u32::MAX)
    }

    /// Posts what a job is doing, and tells listeners unless it is the same, or only a little progress.
    pub(crate) fn post(&self, job: &Job, live: Live) {
        let interval = self.progress_interval();
        let mut posts = self.posts();
        if posts.closed.contains(&job.id) {
            return;
        }
        let before = posts.jobs.get(&job.id);
        let is_small = before.is_some_and(|before| {
            let same_phase =
                before.live.phase == live.phase && before.live.queue_position == live.queue_position;
            before.live == live || (same_phase && before.told.elapsed() < interval)
        });
        let told = before.filter(|_| is_small).map_or_else(Stopwatch::start, |before| before.told);
        posts.jobs.insert(job.id.clone(), Posted { job: job.clone(), live, told });
        drop(posts);
        if !is_small {
            self.tell_video(job, Some(&live));
        }
    }

    /// Takes a job that has ended off the board, and tells listeners how.
    pub(crate) fn end(&self, job: &Job) {
        self.forget(&job.id);
        self.tell_video(job, None);
        self.ended.notify_one();
    }

    fn forget(&self, id: &VideoId) {
        let mut posts = self.posts();
        posts.jobs.remove(id);
        posts.closed.remove(id);
    }

    /// Waits until some job has ended since this was last asked; for one waiter.
    pub(crate) async fn until_a_job_ends(&self) {
        self.ended.notified().await;
    }

    /// Takes a job that was deleted off the board, and tells listeners.
    pub(crate) fn delete(&self, job: &Job) {
        self.forget(&job.id);
        if let Ok(json) = serde_json::to_string(&DeletedVideo::new(&job.id)) {
            self.tell(Update::Deleted { tenant: job.tenant.clone(), id: job.id.clone(), json: json.into() });
        }
    }

    /// Tells listeners what the cache holds, not more often than they can draw it; `is_last`: nothing will change for a while.
    pub(crate) fn tell_memory(&self, memory: impl FnOnce() -> MemoryNow, is_last: bool) {
        let mut told = self.memory_told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = told.is_none_or(|told| told.elapsed() >= 2 * self.progress_interval());
        if (is_due || is_last) && self.updates.receiver_count() > 0 {
            *told = Some(Stopwatch::start());
            if let Ok(json) = serde_json::to_string(&memory()) {
                self.tell(Update::Memory(json.into()));
            }
        }
    }

    fn tell_video(&self, job: &Job, live: Option<&Live>) {
        if self.updates.receiver_count() == 0 {
            return;
        }
        if let Ok(json) = serde_json::to_string(&Video::new(job, live)) {
            let (tenant, id, is_over) = (job.tenant.clone(), job.id.clone(), job.status.is_over());
            self.tell(Update::Video { tenant, id, json: json.into(), is_over });
        }
    }

    fn tell(&self, update: Update) {
        // Nobody listening is no failure.
        drop(self.updates.send(update));
    }
}
