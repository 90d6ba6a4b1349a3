//! The engine's thread: it alone owns the schedule and the jobs under way, and does one unit of work at a time.
//!
//! `loop { let event = select(); apply(event) }`: an event is either something that a handler reports, or the next unit of the job
//! that the schedule chooses. A handler has written to the store before it reports, so a report that is lost loses nothing.

mod keep;
mod meter;
mod pace;
mod relieve;
mod rest;
mod run;
mod turns;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use evanesce_engine::progress::Stage;
use evanesce_engine::video::EncoderPool;
use evanesce_engine::{Budgets, Model, Needs, Tier};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

pub(crate) use self::keep::Keeper;
use self::meter::Meter;
use self::pace::Pace;
use self::relieve::Strain;
use self::run::{Run, Trouble, Unit};
use crate::board::{Board, Live, Phase};
use crate::clock::{Stopwatch, UnixMs};
use crate::config::PressureConfig;
use crate::job::{Failure, Job, Status};
use crate::journal::note;
use crate::metrics::Metrics;
use crate::schedule::{Choice, DiskShares, Entry, Place, Rules, Schedule, Seq, Share};
use crate::store::{Ending, Fenced, JobStore, Lease};
use crate::videos::VideoStore;
use crate::wire::MemoryNow;

/// Reports that may wait for the thread; a handler waits when there are more.
const REPORTS_MAX: usize = 256;
/// How long to wait before what the store could not take is written again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a job waits that cannot go on for lack of disk space or the like, in milliseconds: the first time, and at most.
const AGAIN_AFTER_MS: (i64, i64) = (1000, 30_000);

/// What a handler tells the thread. The store knows it already.
#[derive(Debug)]
pub(crate) enum Report {
    /// A job waits.
    Arrived(Box<Job>),
    /// A job is over by somebody's wish.
    Cancelled(Box<Job>),
    /// A job is gone.
    Deleted(Box<Job>),
    /// The tiers should hold so much from now on.
    Budgets(Budgets),
    /// Stop, and give everything back to the queue.
    Shutdown,
}

/// What the thread works with.
#[derive(Clone)]
pub(crate) struct Means {
    pub(crate) model: Arc<Model>,
    pub(crate) store: Arc<dyn JobStore>,
    pub(crate) videos: Arc<dyn VideoStore>,
    pub(crate) board: Arc<Board>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) pool: Arc<EncoderPool>,
}

/// What the thread goes by.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) rules: Rules,
    pub(crate) disk: DiskShares,
    /// The worker's name in claims.
    pub(crate) worker: String,
    pub(crate) lease: Duration,
    pub(crate) retention: Duration,
    pub(crate) model_name: String,
    pub(crate) keeper: Keeper,
    pub(crate) pressure: PressureConfig,
    /// Of tenants who may have only so many jobs begun at once.
    pub(crate) shares: BTreeMap<String, Share>,
}

impl Terms {
    /// A lease from now on.
    pub(crate) fn lease(&self) -> Lease {
        Lease { worker: self.worker.clone(), until: UnixMs::now().after(self.lease) }
    }

    /// Now, and when a job that ends now expires.
    pub(crate) fn moments(&self) -> (UnixMs, UnixMs) {
        let now = UnixMs::now();
        (now, now.after(self.retention))
    }
}

/// Starts the thread. The second value resolves when the thread has ended, for whatever reason.
pub(crate) fn start(
    means: Means,
    terms: Terms,
    waiting: Vec<Job>,
) -> std::io::Result<(Sender<Report>, oneshot::Receiver<()>)> {
    let (reports, inbox) = channel(REPORTS_MAX);
    let (alive, ended) = oneshot::channel::<()>();
    let runtime = Handle::current();
    std::thread::Builder::new().name("engine".to_owned()).spawn(move || {
        let _alive = alive;
        let model = Arc::clone(&means.model);
        let mut worker = Worker::new(&model, means, terms, runtime, inbox);
        for job in waiting {
            worker.arrive(job);
        }
        worker.post_queue();
        while worker.step() == Going::On {}
        worker.give_back();
    })?;
    Ok((reports, ended))
}

/// Something that the thread reacts to.
enum Event {
    Reported(Report),
    Chosen(Choice),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Going {
    On,
    Down,
}

/// A job that waits or is under way.
struct Task<'m> {
    job: Job,
    run: Option<Run<'m>>,
    /// What its order needs of memory; `None` for one that the model cannot make.
    needs: Option<Needs>,
    /// How often it could not be admitted since it got on, though there was space for its files.
    refused: u32,
}

struct Worker<'m> {
    model: &'m Model,
    means: Means,
    terms: Terms,
    keeper: Keeper,
    runtime: Handle,
    inbox: Receiver<Report>,
    schedule: Schedule,
    tasks: BTreeMap<Seq, Task<'m>>,
    pace: Pace,
    strain: Strain,
    /// Endings that the store could not take yet.
    unwritten: Vec<(Job, Ending)>,
    /// Since the last of them could not be written.
    since_unwritten: Stopwatch,
    /// How many claims in a row the store could not take.
    unclaimed: u32,
    /// Since there has been nothing to do; `None` while there is something.
    resting: Option<Stopwatch>,
}

impl<'m> Worker<'m> {
    fn new(model: &'m Model, means: Means, terms: Terms, runtime: Handle, inbox: Receiver<Report>) -> Self {
        let mut schedule = Schedule::new(terms.rules);
        schedule.share_disk(terms.disk);
        let (tasks, pace, unwritten) = (BTreeMap::new(), Pace::default(), Vec::new());
        let budget = |tier| model.counters().tier(tier).budget_bytes;
        let wanted = Budgets { device_bytes: budget(Tier::Device), host_bytes: budget(Tier::Host) };
        let (strain, keeper) = (Strain::new(&terms.pressure, wanted), terms.keeper.clone());
        let since_unwritten = Stopwatch::start();
        Self {
            model,
            means,
            terms,
            keeper,
            runtime,
            inbox,
            schedule,
            tasks,
            pace,
            strain,
            unwritten,
            since_unwritten,
            unclaimed: 0,
            resting: None,
        }
    }

    fn step(&mut self) -> Going {
        let event = self.select();
        self.apply(event)
    }

    /// Reports first; then the next unit; waits only when there is none.
    fn select(&mut self) -> Event {
        if let Ok(report) = self.inbox.try_recv() {
            return Event::Reported(report);
        }
        if !self.unwritten.is_empty() && self.since_unwritten.elapsed() >= RETRY_AFTER {
            self.write_again();
        }
        let now = UnixMs::now();
        match self.schedule.choose(now.0) {
            Choice::Idle => self.rest(now),
            choice => {
                self.resting = None;
                Event::Chosen(choice)
            }
        }
    }

    /// The next report, if it comes within so much time.
    fn hear(&mut self, patience: Duration) -> Option<Report> {
        let next = self.inbox.recv();
        let heard = self.runtime.block_on(async { tokio::time::timeout(patience, next).await });
        heard.ok().map(|report| report.unwrap_or(Report::Shutdown))
    }

    fn apply(&mut self, event: Event) -> Going {
        match event {
            Event::Reported(Report::Shutdown) => return Going::Down,
            Event::Reported(Report::Arrived(job)) => {
                self.arrive(*job);
                self.post_queue();
            }
            Event::Reported(Report::Cancelled(job)) => {
                self.stop(job.seq);
                self.count_ending(&job, "cancelled");
                self.means.board.end(&job);
                self.post_queue();
            }
            Event::Reported(Report::Deleted(job)) => {
                self.stop(job.seq);
                self.means.metrics.forget(&job.id);
                self.means.board.delete(&job);
                self.post_queue();
            }
            Event::Reported(Report::Budgets(wanted)) => self.set_budgets(wanted),
            Event::Chosen(Choice::Start(seq)) => self.start(seq),
            Event::Chosen(Choice::Resume(seq)) => self.resume(seq),
            Event::Chosen(Choice::Park(seq, place)) => self.park(seq, place),
            Event::Chosen(Choice::Advance(seq)) => self.advance(seq),
            Event::Chosen(Choice::Idle) => {}
        }
        Going::On
    }

    fn arrive(&mut self, job: Job) {
        let seq = job.seq;
        let mut entry = Entry::new(job.order.class, job.order.device_bytes);
        entry.deadline = job.deadline().map(|at| at.0);
        let snapshot = self.keeper.of(&job.id);
        entry.can_be_saved = snapshot.is_some();
        entry.saved_bytes = snapshot.map_or(0, |snapshot| snapshot.held_bytes());
        entry.share = self.terms.shares.get(&job.tenant).copied();
        let needs = self.needs(&job.order);
        self.tasks.insert(seq, Task { job, run: None, needs, refused: 0 });
        self.schedule.arrive(seq, entry);
        self.set_needs(seq);
    }

    /// Drops what a job has under way: every byte and file that it owned is back before the next unit.
    fn stop(&mut self, seq: Seq) {
        self.schedule.leave(seq);
        if let Some(Task { job, run, .. }) = self.tasks.remove(&seq) {
            drop(run);
            self.keeper.forget(&job.id);
        }
    }

    /// Claims a job and admits it. Costs no unit of work.
    fn start(&mut self, seq: Seq) {
        let Some(task) = self.tasks.get_mut(&seq) else { return self.schedule.leave(seq) };
        let lease = self.terms.lease();
        let claim = self.means.store.claim(&task.job.id, &lease, UnixMs::now());
        let claimed = match self.runtime.block_on(claim) {
            Ok(Some(claimed)) => claimed,
            // Cancelled or deleted a moment ago; the report is on its way.
            Ok(None) => {
                self.means.board.forget(&task.job.id);
                return self.stop(seq);
            }
            Err(error) => {
                note(&task.job.id, format!("cannot be claimed, will be tried again: {error}"));
                // No other could be either, and asking may take long.
                let (first, most) = AGAIN_AFTER_MS;
                let span = first.saturating_mul(1_i64 << self.unclaimed.min(32)).min(most);
                self.unclaimed += 1;
                return self.schedule.pause_starts(UnixMs::now().0, span);
            }
        };
        self.unclaimed = 0;
        let is_first = task.job.started.is_none();
        task.job = claimed;
        if is_first {
            let waited = UnixMs::now().ms_since(task.job.created).unsigned_abs();
            self.means.metrics.started(task.job.order.class, Duration::from_millis(waited));
        }
        self.note_weights(seq);
        self.begin_smaller(seq);
        self.admit(seq);
        if let Some(Task { job, run: Some(run), .. }) = self.tasks.get(&seq) {
            self.means.board.post(job, self.live(job, run));
        }
        self.post_queue();
    }

    /// What a job that has begun is doing.
    fn live(&self, job: &Job, run: &Run<'_>) -> Live {
        Live {
            phase: run.meter.phase,
            step: run.meter.step(),
            progress: run.meter.progress(),
            eta_s: self.pace.seconds_left(&job.order, &run.meter),
            queue_position: None,
            memory: Some(run.memory(self.model)),
            holder: Some(run.holder()),
        }
    }

    /// Does a job's next unit.
    fn advance(&mut self, seq: Seq) {
        let Some(Task { job, run: Some(run), .. }) = self.tasks.get_mut(&seq) else { return self.stop(seq) };
        let watch = Stopwatch::start();
        let unit = run.advance();
        let (stage, took) = (run.meter.take_unit(), watch.elapsed());
        run.tend.count(took);
        self.pace.learn(stage, &job.order, took);
        self.means.metrics.unit(&job.id, stage.map_or("noise", Stage::as_str), took);
        self.schedule.served(seq, i64::try_from(took.as_millis()).unwrap_or(i64::MAX));
        let ending = match unit {
            Unit::More => {
                self.tend(seq);
                let Some(Task { job, run: Some(run), .. }) = self.tasks.get(&seq) else { return };
                let live = self.live(job, run);
                self.means.board.post(job, live);
                return self.tell_memory(false);
            }
            Unit::Ended(Trouble::NoSpace | Trouble::NotNow) => return self.put_off(seq),
            Unit::Ended(Trouble::Failed(failure)) => Ending::Failed(failure),
            Unit::Done => {
                let (job, Some(run)) =
                    (job.clone(), self.tasks.get_mut(&seq).and_then(|task| task.run.take()))
                else {
                    return;
                };
                let ending = match run.publish(self.model, &*self.means.videos, &job) {
                    Ok(memory) => Ending::Completed(memory),
                    Err(Trouble::Failed(failure)) => Ending::Failed(failure),
                    Err(Trouble::NoSpace | Trouble::NotNow) => return self.put_off(seq),
                };
                self.schedule.leave(seq);
                self.tasks.remove(&seq);
                return self.end(job, ending);
            }
        };
        let job = job.clone();
        self.stop(seq);
        self.end(job, ending);
    }

    /// A job that cannot go on now goes back to its snapshot and into the queue, and is tried again a little later, while others go
    /// on. It has not begun meanwhile: a service that is killed does not count as a start that failed.
    fn put_off(&mut self, seq: Seq) {
        let Some(task) = self.tasks.get_mut(&seq) else { return self.schedule.leave(seq) };
        task.run = None;
        note(&task.job.id, "waits, and will be tried again");
        let released = self.means.store.release(&task.job.id, task.job.epoch);
        let place = match self.runtime.block_on(released) {
            Ok(Fenced::No) => {
                task.job.status = Status::Queued;
                Place::Queue
            }
            // Cancelled or deleted a moment ago; the report is on its way.
            Ok(Fenced::Yes) => {
                self.means.board.forget(&task.job.id);
                return self.stop(seq);
            }
            Err(error) => {
                note(&task.job.id, format_args!("cannot be given back meanwhile: {error}"));
                Place::Snapshot
            }
        };
        self.schedule.put_off(seq, place, UnixMs::now().0, AGAIN_AFTER_MS);
        self.means.metrics.moved("put_off");
        self.post_queue();
    }

    /// Writes how a job ended, when everything of it is in place, and tells.
    fn end(&mut self, job: Job, ending: Ending) {
        let moments = self.terms.moments();
        let written = self.means.store.finish(&job.id, job.epoch, &ending, moments);
        match self.runtime.block_on(written) {
            Ok(Fenced::No) => self.keeper.forget(&job.id),
            Ok(Fenced::Yes) => {
                note(&job.id, "ended, but is no longer this worker's: what it made is removed");
                // A newer worker's video stays; one of a job that is gone does not.
                if self.runtime.block_on(self.means.store.has_video(&job.id)).is_ok_and(|has| !has) {
                    drop(self.means.videos.remove(&job.id));
                }
                self.keeper.forget(&job.id);
                return;
            }
            Err(error) => {
                note(&job.id, format!("ended, but the store cannot take it, will be tried again: {error}"));
                self.since_unwritten = Stopwatch::start();
                return self.unwritten.push((job, ending));
            }
        }
        let mut job = job;
        (job.ended, job.expires) = (Some(moments.0), Some(moments.1));
        match ending {
            Ending::Completed(memory) => (job.status, job.memory) = (Status::Completed, Some(memory)),
            Ending::Failed(failure) => (job.status, job.failure) = (Status::Failed, Some(failure)),
        }
        let why = job.failure.as_ref().map_or("its video is there", |failure| &*failure.message);
        note(&job.id, format_args!("{}: {why}", job.status.as_str()));
        self.count_ending(&job, job.status.as_str());
        self.means.board.end(&job);
        self.post_queue();
        self.tell_memory(true);
    }

    fn count_ending(&self, job: &Job, how: &'static str) {
        let ended = job.ended.unwrap_or(job.created);
        let took = Duration::from_millis(ended.ms_since(job.created).unsigned_abs());
        self.means.metrics.ended(job, how, took);
    }

    fn write_again(&mut self) {
        for (job, ending) in std::mem::take(&mut self.unwritten) {
            self.end(job, ending);
        }
    }

    /// Posts places and times of jobs that wait: what is before them is what is under way and what waits before them.
    fn post_queue(&self) {
        let seconds = |task: &Task<'_>| match &task.run {
            Some(run) => self.pace.seconds_left(&task.job.order, &run.meter),
            None => self.pace.seconds_left(&task.job.order, &Meter::new(&task.job.order)),
        };
        let waits = |seq: &Seq| self.schedule.entry(*seq).is_none_or(|entry| entry.place == Place::Queue);
        let under_way = self.tasks.iter().filter(|(seq, _)| !waits(seq));
        let mut before_s = under_way.map(|(_, task)| seconds(task)).sum::<Option<f64>>();
        for (position, seq) in (1..).zip(self.schedule.waiting()) {
            let Some(task) = self.tasks.get(&seq) else { continue };
            before_s = before_s.zip(seconds(task)).map(|(before, own)| before + own);
            let live = Live {
                phase: Phase::Queued,
                eta_s: before_s,
                queue_position: Some(position),
                ..Live::default()
            };
            self.means.board.post(&task.job, live);
        }
    }

    fn tell_memory(&self, is_last: bool) {
        let now = || MemoryNow::new(&self.model.counters(), self.strain.level);
        self.means.board.tell_memory(now, is_last);
    }

    /// Puts everything under way back into the queue.
    fn give_back(mut self) {
        self.write_again();
        for (_, task) in std::mem::take(&mut self.tasks) {
            if self.schedule.entry(task.job.seq).is_none_or(|entry| entry.place == Place::Queue) {
                continue;
            }
            let mut from = "its last snapshot, if it has one".to_owned();
            if let Some(mut run) = task.run {
                self.note_kept(&task.job.id, self.keeper.settle(&mut run));
                let kept = self.keeper.keep(&task.job.id, &mut run);
                if let Ok(Some(_)) = kept {
                    from = run.run.position().to_string();
                }
                self.note_kept(&task.job.id, kept);
            }
            match self.runtime.block_on(self.means.store.release(&task.job.id, task.job.epoch)) {
                Ok(_) => {
                    note(&task.job.id, format_args!("waits for the next start of the service, from {from}"))
                }
                Err(error) => note(&task.job.id, format!("cannot be given back: {error}")),
            }
        }
    }
}

/// What a client is told when the fault is ours; the log has the rest.
fn internal() -> Failure {
    Failure::new("internal_error", "the service failed while it made this video; its log says more")
}
