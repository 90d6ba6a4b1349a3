//! Counters of the service in Prometheus' text format; bytes are the cache's own counters, read when somebody asks.

mod cache;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use evanesce_engine::{Counters, JobId, Usage};

pub(crate) use cache::Holders;

use crate::board::Board;
use crate::clock::UnixMs;
use crate::id::VideoId;
use crate::job::{Class, Job, Status};
use crate::pressure::Level;
use crate::traces::{StageTime, Tracer};

/// Upper ends in seconds: videos take from seconds to an hour.
const BUCKETS_S: [f64; 14] =
    [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0];

/// How jobs end.
const ENDINGS: [&str; 3] = ["completed", "failed", "cancelled"];

#[derive(Clone, Copy, Debug, Default)]
struct Histogram {
    counts: [u64; BUCKETS_S.len()],
    count: u64,
    sum_s: f64,
}

impl Histogram {
    fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        for (count, end) in self.counts.iter_mut().zip(BUCKETS_S) {
            *count += u64::from(seconds <= end);
        }
        self.count += 1;
        self.sum_s += seconds;
    }

    fn write(&self, out: &mut Text, name: &str, label: &str) {
        for (count, end) in self.counts.iter().zip(BUCKETS_S) {
            out.line(&format!("{name}_bucket{{{label},le=\"{end}\"}}"), count);
        }
        out.line(&format!("{name}_bucket{{{label},le=\"+Inf\"}}"), self.count);
        out.line(&format!("{name}_sum{{{label}}}"), self.sum_s);
        out.line(&format!("{name}_count{{{label}}}"), self.count);
    }
}

#[derive(Debug, Default)]
struct Counted {
    requests: BTreeMap<(String, u16), u64>,
    jobs: BTreeMap<(Class, &'static str), u64>,
    queue_wait: BTreeMap<Class, Histogram>,
    job_time: BTreeMap<Class, Histogram>,
    unit_time: BTreeMap<&'static str, Histogram>,
    stage_time: BTreeMap<&'static str, Histogram>,
    /// Where the time of jobs under way went so far.
    stages: BTreeMap<VideoId, Vec<StageTime>>,
    /// When jobs under way were kept last.
    kept: BTreeMap<VideoId, UnixMs>,
    deadlines: BTreeMap<(Class, bool), u64>,
    webhooks: BTreeMap<&'static str, u64>,
    refused: u64,
    restarted: u64,
    memory: Memory,
}

/// Snapshots, parking and pressure.
#[derive(Debug, Default)]
struct Memory {
    snapshots: u64,
    snapshots_failed: u64,
    snapshots_over_quota: u64,
    written_bytes: u64,
    held_bytes: u64,
    snapshot_time: Histogram,
    snapshot_pause: Histogram,
    moves: BTreeMap<&'static str, u64>,
    level: Level,
    gave_way: BTreeMap<&'static str, u64>,
}

/// What the service has counted since it started.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    counted: Mutex<Counted>,
    tracer: Option<Tracer>,
}

impl Metrics {
    /// Counters whose jobs are also told to a tracer.
    pub(crate) fn new(tracer: Option<Tracer>) -> Self {
        Self { tracer, ..Self::default() }
    }

    /// Every change is one statement, so a panic elsewhere cannot spoil it.
    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn request(&self, method: &str, status: u16) {
        *self.counted().requests.entry((method.to_owned(), status)).or_default() += 1;
    }

    pub(crate) fn refused_for_full_queue(&self) {
        self.counted().refused += 1;
    }

    pub(crate) fn requeued(&self, jobs: usize) {
        self.counted().restarted += jobs as u64;
    }

    pub(crate) fn started(&self, class: Class, waited: Duration) {
        self.counted().queue_wait.entry(class).or_default().observe(waited);
    }

    pub(crate) fn unit(&self, job: &VideoId, stage: &'static str, took: Duration) {
        let mut counted = self.counted();
        counted.unit_time.entry(stage).or_default().observe(took);
        let ended = UnixMs::now();
        let began = UnixMs(ended.0 - i64::try_from(took.as_millis()).unwrap_or(0));
        let stages = counted.stages.entry(job.clone()).or_default();
        match stages.iter_mut().find(|known| known.name == stage) {
            Some(known) => (known.ended, known.worked) = (ended, known.worked + took),
            None => stages.push(StageTime { name: stage, began, ended, worked: took }),
        }
    }

    pub(crate) fn webhook(&self, outcome: &'static str) {
        *self.counted().webhooks.entry(outcome).or_default() += 1;
    }

    pub(crate) fn ended(&self, job: &Job, how: &'static str, took: Duration) {
        let class = job.order.class;
        let mut counted = self.counted();
        *counted.jobs.entry((class, how)).or_default() += 1;
        let stages = counted.stages.remove(&job.id).unwrap_or_default();
        counted.kept.remove(&job.id);
        if let Some(tracer) = &self.tracer {
            tracer.job(job, &stages);
        }
        if how == Status::Completed.as_str() {
            counted.job_time.entry(class).or_default().observe(took);
            for stage in stages {
                counted.stage_time.entry(stage.name).or_default().observe(stage.worked);
            }
        }
        if let Some(deadline) = job.deadline() {
            let is_met =
                how == Status::Completed.as_str() && job.ended.is_some_and(|ended| ended <= deadline);
            *counted.deadlines.entry((class, is_met)).or_default() += 1;
        }
    }

    /// A job that was deleted before it ended.
    pub(crate) fn forget(&self, job: &VideoId) {
        let mut counted = self.counted();
        counted.stages.remove(job);
        counted.kept.remove(job);
    }

    /// A snapshot was taken: bytes that it wrote, and that it holds.
    pub(crate) fn kept(&self, job: &VideoId, written_bytes: u64, held_bytes: u64, took: Duration) {
        let mut counted = self.counted();
        counted.kept.insert(job.clone(), UnixMs::now());
        let memory = &mut counted.memory;
        memory.snapshots += 1;
        memory.written_bytes += written_bytes;
        memory.held_bytes = held_bytes;
        memory.snapshot_time.observe(took);
    }

    /// A job waited so long for what a snapshot takes out of the cache.
    pub(crate) fn paused_to_keep(&self, paused: Duration) {
        self.counted().memory.snapshot_pause.observe(paused);
    }

    pub(crate) fn not_kept(&self) {
        self.counted().memory.snapshots_failed += 1;
    }

    /// A snapshot was due, and its class may have no more on disk.
    pub(crate) fn over_quota(&self) {
        self.counted().memory.snapshots_over_quota += 1;
    }

    /// A job was parked or resumed.
    pub(crate) fn moved(&self, how: &'static str) {
        *self.counted().memory.moves.entry(how).or_default() += 1;
    }

    /// How short memory is.
    pub(crate) fn level(&self) -> Level {
        self.counted().memory.level
    }

    pub(crate) fn pressure(&self, level: Level) {
        self.counted().memory.level = level;
    }

    /// Something gave way for lack of memory.
    pub(crate) fn gave_way(&self, what: &'static str) {
        *self.counted().memory.gave_way.entry(what).or_default() += 1;
    }

    /// All of it as Prometheus reads it; `ledger`: what the cache holds, taken in one moment.
    pub(crate) fn text(&self, ledger: &(Counters, Vec<(JobId, Usage)>), board: &Board) -> String {
        let mut out = Text(String::new());
        out.head("evanesce_build_info", "gauge", "Always 1; the label says which version runs.");
        out.line(concat!("evanesce_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1);
        cache::write(&mut out, &ledger.0, &ledger.1, &board.holders());
        let counted = self.counted();
        out.head("evanesce_event_listeners", "gauge", "Clients that listen to events.");
        out.line("evanesce_event_listeners", board.listeners());
        write_jobs(&mut out, &counted, board);
        write_times(&mut out, &counted);
        counted.memory.write(&mut out);
        out.head(
            "evanesce_snapshot_age_seconds",
            "gauge",
            "Work that a power cut would cost: from the last snapshot of a job under way to its last unit, at most.",
        );
        out.line("evanesce_snapshot_age_seconds", counted.snapshot_age_s());
        out.0
    }
}

fn write_jobs(out: &mut Text, counted: &Counted, board: &Board) {
    out.head("evanesce_jobs", "gauge", "Jobs that wait or are under way.");
    for (class, waiting, under_way) in board.counts() {
        let class = class.as_str();
        out.line(&format!("evanesce_jobs{{class=\"{class}\",status=\"queued\"}}"), waiting);
        out.line(&format!("evanesce_jobs{{class=\"{class}\",status=\"in_progress\"}}"), under_way);
    }
    out.head("evanesce_jobs_ended_total", "counter", "Jobs that have ended.");
    // What has not happened yet is written as 0, so that the first time is an increase.
    for (class, how) in Class::ALL.into_iter().flat_map(|class| ENDINGS.map(|how| (class, how))) {
        let count = counted.jobs.get(&(class, how)).copied().unwrap_or(0);
        let class = class.as_str();
        out.line(&format!("evanesce_jobs_ended_total{{class=\"{class}\",how=\"{how}\"}}"), count);
    }
    out.head("evanesce_deadlines_total", "counter", "Deadlines of jobs that have ended.");
    for (class, is_met) in Class::ALL.into_iter().flat_map(|class| [(class, true), (class, false)]) {
        let count = counted.deadlines.get(&(class, is_met)).copied().unwrap_or(0);
        let class = class.as_str();
        out.line(&format!("evanesce_deadlines_total{{class=\"{class}\",met=\"{is_met}\"}}"), count);
    }
    out.head("evanesce_jobs_refused_total", "counter", "Requests refused because the queue was full.");
    out.line("evanesce_jobs_refused_total", counted.refused);
    out.head("evanesce_jobs_requeued_total", "counter", "Jobs that a restart put back into the queue.");
    out.line("evanesce_jobs_requeued_total", counted.restarted);
    out.head("evanesce_webhook_attempts_total", "counter", "Attempts to deliver a webhook.");
    for outcome in ["delivered", "will_be_tried_again", "given_up"] {
        let count = counted.webhooks.get(outcome).copied().unwrap_or(0);
        out.line(&format!("evanesce_webhook_attempts_total{{outcome=\"{outcome}\"}}"), count);
    }
    out.head("evanesce_http_requests_total", "counter", "Answered requests.");
    for ((method, status), count) in &counted.requests {
        out.line(&format!("evanesce_http_requests_total{{method=\"{method}\",status=\"{status}\"}}"), count);
    }
}

fn write_times(out: &mut Text, counted: &Counted) {
    let by_class = [
        ("evanesce_queue_wait_seconds", "From asking to the first unit.", &counted.queue_wait),
        ("evanesce_job_seconds", "From asking to the video.", &counted.job_time),
    ];
    for (name, help, histograms) in by_class {
        out.head(name, "histogram", help);
        for (class, histogram) in histograms {
            histogram.write(out, name, &format!("class=\"{}\"", class.as_str()));
        }
    }
    let by_stage = [
        ("evanesce_unit_seconds", "One unit of work: a prompt, a step, a latent frame.", &counted.unit_time),
        ("evanesce_stage_seconds", "All units of a stage of a finished video.", &counted.stage_time),
    ];
    for (name, help, histograms) in by_stage {
        out.head(name, "histogram", help);
        for (stage, histogram) in histograms {
            histogram.write(out, name, &format!("stage=\"{stage}\""));
        }
    }
}

impl Counted {
    /// From when a job under way was kept, or began, to its last unit: the most of all jobs. One that is parked does no work that
    /// could be lost.
    fn snapshot_age_s(&self) -> f64 {
        let ages = self.stages.iter().filter_map(|(job, stages)| {
            let begun = stages.iter().map(|stage| stage.began).min()?;
            let last = stages.iter().map(|stage| stage.ended).max()?;
            Some(last.ms_since(self.kept.get(job).copied().unwrap_or(begun)))
        });
        ages.max().map_or(0.0, |age_ms| age_ms as f64 / 1000.0)
    }
}

impl Memory {
    fn write(&self, out: &mut Text) {
        out.head(
            "evanesce_snapshots_total",
            "counter",
            "Snapshots of jobs under way, those that failed, and those for which their class had no room on disk.",
        );
        out.line("evanesce_snapshots_total{how=\"taken\"}", self.snapshots);
        out.line("evanesce_snapshots_total{how=\"failed\"}", self.snapshots_failed);
        out.line("evanesce_snapshots_total{how=\"over_quota\"}", self.snapshots_over_quota);
        out.head("evanesce_snapshot_written_bytes_total", "counter", "Bytes that snapshots wrote.");
        out.line("evanesce_snapshot_written_bytes_total", self.written_bytes);
        out.head("evanesce_snapshot_held_bytes", "gauge", "Bytes that the last snapshot holds.");
        out.line("evanesce_snapshot_held_bytes", self.held_bytes);
        out.head("evanesce_snapshot_seconds", "histogram", "Writing a snapshot, while its job goes on.");
        self.snapshot_time.write(out, "evanesce_snapshot_seconds", "how=\"taken\"");
        out.head(
            "evanesce_snapshot_pause_seconds",
            "histogram",
            "What a snapshot keeps its job waiting: copying, or writing where there is no room for a copy.",
        );
        self.snapshot_pause.write(out, "evanesce_snapshot_pause_seconds", "how=\"taken\"");
        out.head(
            "evanesce_job_moves_total",
            "counter",
            "Jobs that were parked, resumed, or put off because they could not go on, for want of disk space mostly.",
        );
        for how in ["parked_in_host", "parked_in_snapshot", "resumed", "put_off"] {
            let count = self.moves.get(how).copied().unwrap_or(0);
            out.line(&format!("evanesce_job_moves_total{{how=\"{how}\"}}"), count);
        }
        out.head("evanesce_pressure", "gauge", "How short memory is: 1 for the level that holds.");
        for level in Level::ALL {
            let name = level.as_str();
            out.line(&format!("evanesce_pressure{{level=\"{name}\"}}"), u8::from(level == self.level));
        }
        out.head(
            "evanesce_degradations_total",
            "counter",
            "What gave way for lack of memory, and what was undone.",
        );
        for (what, count) in &self.gave_way {
            out.line(&format!("evanesce_degradations_total{{what=\"{what}\"}}"), count);
        }
    }
}

struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, value: impl std::fmt::Display) {
        _ = writeln!(self.0, "{name} {value}");
    }

    /// A line for each of `items`.
    fn each<T, V: std::fmt::Display>(
        &mut self,
        items: impl IntoIterator<Item = T>,
        line: impl Fn(T) -> (String, V),
    ) {
        for item in items {
            let (name, value) = line(item);
            self.line(&name, value);
        }
    }
}
