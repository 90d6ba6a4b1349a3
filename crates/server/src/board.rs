//! What jobs under way are doing right now, and who wants to be told. Written by the engine's thread only; nothing here needs to
//! survive the process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use evanesce_engine::JobId;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, RwLock, RwLockReadGuard, broadcast};
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
    /// Jobs that are over in the store, and of whose end the engine has yet to hear.
    closed: BTreeSet<VideoId>,
}

/// The board.
#[derive(Debug)]
pub struct Board {
    posts: Mutex<Posts>,
    /// Held for reading by whoever makes a job, until the engine is told of it.
    arriving: RwLock<()>,
    memory_told: Mutex<Option<Stopwatch>>,
    updates: broadcast::Sender<Update>,
    ended: Notify,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            posts: Mutex::default(),
            arriving: RwLock::default(),
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

    /// The epoch of a job that waits or is under way, as it was posted last; `None` for all others.
    pub(crate) fn epoch(&self, id: &VideoId) -> Option<i64> {
        self.posts().jobs.get(id).map(|posted| posted.job.epoch)
    }

    /// To be held from before a job is in the store until its arrival is reported to the engine.
    pub(crate) async fn arriving(&self) -> RwLockReadGuard<'_, ()> {
        self.arriving.read().await
    }

    /// Takes a job off the board that somebody has ended in the store: nothing that is posted of it is taken any more, until the
    /// engine hears of its end. That is to be reported after this, so it is heard after the arrival, and is the last of the job.
    pub(crate) async fn close(&self, id: &VideoId) {
        // A job can be ended as soon as it is in the store, before whoever made it has reported it.
        drop(self.arriving.write().await);
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

    /// Posts that a job under way holds nothing now: it waits in its snapshot.
    pub(crate) fn let_go(&self, id: &VideoId) {
        let before = self.posts().jobs.get(id).map(|posted| (posted.job.clone(), posted.live));
        if let Some((job, live)) = before {
            let memory = live.memory.map(JobMemory::let_go);
            self.post(&job, Live { memory, holder: None, ..live });
        }
    }

    /// Takes a job that has ended off the board, and tells listeners how.
    pub(crate) fn end(&self, job: &Job) {
        self.forget(&job.id);
        self.tell_video(job, None);
        self.ended.notify_one();
    }

    /// Takes off the board what there is of a job, because the engine has it no more and posts nothing of it from now on. Tells
    /// nobody: that is for [`Self::end`] and [`Self::delete`], which may come before or after this.
    pub(crate) fn forget(&self, id: &VideoId) {
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

#[cfg(test)]
pub(crate) mod tests {
    use std::pin::pin;

    use serde_json::{Value, json};

    use super::*;
    use crate::clock::UnixMs;
    use crate::job::{Failure, Status};

    /// A job that waits.
    pub(crate) fn waiting() -> Job {
        let order = json!({"model": "shapes", "prompt": "a red ball", "negative_prompt": "", "width": 64, "height": 64,
            "frames": 17, "fps": 16, "seconds": "1.06", "steps": 2, "guidance_high": 1.0, "guidance_low": 1.0,
            "boundary": 0.875, "shift": 3.0, "seed": 1, "class": "standard", "quality": "balanced", "deadline_s": null,
            "device_bytes": 0});
        Job {
            seq: 1,
            id: VideoId::draw().unwrap(),
            tenant: "a".to_owned(),
            order: serde_json::from_value(order).unwrap(),
            status: Status::Queued,
            created: UnixMs(0),
            started: None,
            ended: None,
            expires: None,
            epoch: 0,
            failure: None,
            memory: None,
            degradations: Vec::new(),
            webhook: None,
        }
    }

    fn cancelled(job: &Job) -> Job {
        let failure = Some(Failure::cancelled());
        Job { status: Status::Failed, ended: Some(UnixMs(1)), failure, ..job.clone() }
    }

    /// How the engine hears that a job is over.
    #[derive(Clone, Copy, Debug)]
    enum Over {
        Cancelled,
        Deleted,
    }

    impl Over {
        const ALL: [Self; 2] = [Self::Cancelled, Self::Deleted];

        fn hear(self, board: &Board, job: &Job) {
            match self {
                Self::Cancelled => board.end(&cancelled(job)),
                Self::Deleted => board.delete(job),
            }
        }

        /// What a listener is told.
        fn told(self) -> &'static str {
            match self {
                Self::Cancelled => "failed, over: true",
                Self::Deleted => "deleted",
            }
        }
    }

    /// What a listener has been told since the last look.
    fn told(updates: &mut broadcast::Receiver<Update>) -> Vec<String> {
        let told = std::iter::from_fn(|| updates.try_recv().ok()).map(|update| match update {
            Update::Video { json, is_over, .. } => {
                let video: Value = serde_json::from_str(&json).unwrap();
                format!("{}, over: {is_over}", video["status"].as_str().unwrap())
            }
            Update::Deleted { .. } => "deleted".to_owned(),
            Update::Memory(json) => json.to_string(),
        });
        told.collect()
    }

    /// How many jobs wait or are under way.
    fn open(board: &Board) -> usize {
        board.counts().iter().map(|(_, waiting, under_way)| waiting + under_way).sum()
    }

    #[tokio::test]
    async fn a_job_that_is_over_before_it_is_posted_is_never_shown_as_one_that_waits() {
        for (over, is_chosen) in Over::ALL.into_iter().flat_map(|over| [(over, false), (over, true)]) {
            let (board, job) = (Board::default(), waiting());
            let mut updates = board.listen();
            board.close(&job.id).await;
            // Now it arrives, and is posted until its end is heard of, or it is chosen and cannot be claimed.
            for queue_position in [2, 1] {
                board.post(&job, Live { queue_position: Some(queue_position), ..Live::default() });
                assert!(board.open_job("a", &job.id).is_none(), "{over:?}");
            }
            assert_eq!((open(&board), told(&mut updates)), (0, Vec::new()), "{over:?}");
            if is_chosen {
                board.forget(&job.id);
            }
            over.hear(&board, &job);
            assert_eq!(told(&mut updates), [over.told()]);
            assert!(board.posts().closed.is_empty(), "{over:?}");
        }
    }

    #[tokio::test]
    async fn a_job_is_closed_only_when_the_engine_has_been_told_that_it_came() {
        let (board, job) = (Board::default(), waiting());
        let arriving = board.arriving().await;
        let mut closing = pin!(board.close(&job.id));
        tokio::select! {
            biased;
            () = closing.as_mut() => panic!("its end would be reported before its arrival"),
            () = std::future::ready(()) => {}
        }
        assert!(board.posts().closed.is_empty());
        drop(arriving);
        closing.await;
        assert!(board.posts().closed.contains(&job.id));
    }

    #[tokio::test]
    async fn a_job_that_the_engine_drops_is_off_the_board_and_its_end_is_told_once() {
        for over in Over::ALL {
            for (is_closed, is_before) in [(false, false), (false, true), (true, false), (true, true)] {
                let (board, job, other) = (Board::default(), waiting(), waiting());
                board.post(&other, Live::default());
                board.post(&job, Live::default());
                let mut updates = board.listen();
                if is_closed {
                    board.close(&job.id).await;
                }
                if is_before {
                    board.forget(&job.id);
                    assert_eq!((open(&board), told(&mut updates)), (1, Vec::new()));
                }
                over.hear(&board, &job);
                board.forget(&job.id);
                assert_eq!(told(&mut updates), [over.told()]);
                assert!(board.open_job("a", &job.id).is_none() && board.open_job("a", &other.id).is_some());
                assert_eq!(open(&board), 1);
                assert!(board.posts().closed.is_empty());
            }
        }
    }

    #[tokio::test]
    async fn a_job_that_cannot_be_claimed_before_it_is_closed_leaves_nothing_on_the_board() {
        for over in Over::ALL {
            let (board, job) = (Board::default(), waiting());
            board.post(&job, Live::default());
            // It is over in the store, so the engine drops it; only then comes whoever has ended it.
            board.forget(&job.id);
            board.close(&job.id).await;
            over.hear(&board, &job);
            assert_eq!((open(&board), board.posts().closed.len()), (0, 0), "{over:?}");
        }
    }

    #[tokio::test]
    async fn a_job_that_is_cancelled_and_deleted_before_it_is_posted_leaves_nothing_on_the_board() {
        let (board, job) = (Board::default(), waiting());
        board.close(&job.id).await;
        board.close(&job.id).await;
        board.post(&job, Live::default());
        board.end(&cancelled(&job));
        board.delete(&cancelled(&job));
        assert!(board.open_job("a", &job.id).is_none());
        assert_eq!((open(&board), board.posts().closed.len()), (0, 0));
    }

    #[tokio::test]
    async fn deleting_jobs_that_have_ended_leaves_nothing_of_them_on_the_board() {
        let (board, job) = (Board::default(), waiting());
        board.post(&job, Live::default());
        board.end(&cancelled(&job));
        board.close(&job.id).await;
        board.delete(&cancelled(&job));
        assert!(board.posts().closed.is_empty());
    }
}
