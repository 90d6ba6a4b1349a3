//! Counters of the service in Prometheus' text format; bytes are the cache's own counters, read when somebody asks.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use evanesce_engine::{Counters, Kind, Tier};

use crate::board::Board;
use crate::job::{Class, Status};
use crate::pressure::Level;

/// Upper ends in seconds: videos take from seconds to an hour.
const BUCKETS_S: [f64; 14] =
    [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0];

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
    refused: u64,
    restarted: u64,
    memory: Memory,
}

/// Snapshots, parking and pressure.
#[derive(Debug, Default)]
struct Memory {
    snapshots: u64,
    snapshots_failed: u64,
    written_bytes: u64,
    held_bytes: u64,
    snapshot_time: Histogram,
    moves: BTreeMap<&'static str, u64>,
    level: Level,
    gave_way: BTreeMap<&'static str, u64>,
}

/// What the service has counted since it started.
#[derive(Debug, Default)]
pub(crate) struct Metrics(Mutex<Counted>);

impl Metrics {
    /// Every change is one statement, so a panic elsewhere cannot spoil it.
    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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

    pub(crate) fn unit(&self, stage: &'static str, took: Duration) {
        self.counted().unit_time.entry(stage).or_default().observe(took);
    }

    pub(crate) fn ended(&self, class: Class, how: &'static str, took: Duration) {
        let mut counted = self.counted();
        *counted.jobs.entry((class, how)).or_default() += 1;
        if how == Status::Completed.as_str() {
            counted.job_time.entry(class).or_default().observe(took);
        }
    }

    /// A snapshot was taken: bytes that it wrote, and that it holds.
    pub(crate) fn kept(&self, written_bytes: u64, held_bytes: u64, took: Duration) {
        let memory = &mut self.counted().memory;
        memory.snapshots += 1;
        memory.written_bytes += written_bytes;
        memory.held_bytes = held_bytes;
        memory.snapshot_time.observe(took);
    }

    pub(crate) fn not_kept(&self) {
        self.counted().memory.snapshots_failed += 1;
    }

    /// A job was parked or resumed.
    pub(crate) fn moved(&self, how: &'static str) {
        *self.counted().memory.moves.entry(how).or_default() += 1;
    }

    pub(crate) fn pressure(&self, level: Level) {
        self.counted().memory.level = level;
    }

    /// Something gave way for lack of memory.
    pub(crate) fn gave_way(&self, what: &'static str) {
        *self.counted().memory.gave_way.entry(what).or_default() += 1;
    }

    /// All of it as Prometheus reads it.
    pub(crate) fn text(&self, cache: &Counters, board: &Board) -> String {
        let mut out = Text(String::new());
        write_cache(&mut out, cache);
        let counted = self.counted();
        out.head("evanesce_jobs", "gauge", "Jobs that wait or are under way.");
        for (class, waiting, under_way) in board.counts() {
            let class = class.as_str();
            out.line(&format!("evanesce_jobs{{class=\"{class}\",status=\"queued\"}}"), waiting);
            out.line(&format!("evanesce_jobs{{class=\"{class}\",status=\"in_progress\"}}"), under_way);
        }
        out.head("evanesce_jobs_ended_total", "counter", "Jobs that have ended.");
        for ((class, how), count) in &counted.jobs {
            let class = class.as_str();
            out.line(&format!("evanesce_jobs_ended_total{{class=\"{class}\",how=\"{how}\"}}"), count);
        }
        out.head("evanesce_jobs_refused_total", "counter", "Requests refused because the queue was full.");
        out.line("evanesce_jobs_refused_total", counted.refused);
        out.head("evanesce_jobs_requeued_total", "counter", "Jobs that a restart put back into the queue.");
        out.line("evanesce_jobs_requeued_total", counted.restarted);
        out.head("evanesce_http_requests_total", "counter", "Answered requests.");
        for ((method, status), count) in &counted.requests {
            out.line(
                &format!("evanesce_http_requests_total{{method=\"{method}\",status=\"{status}\"}}"),
                count,
            );
        }
        let by_class = [
            ("evanesce_queue_wait_seconds", "From asking to the first unit.", &counted.queue_wait),
            ("evanesce_job_seconds", "From asking to the video.", &counted.job_time),
        ];
        for (name, help, histograms) in by_class {
            out.head(name, "histogram", help);
            for (class, histogram) in histograms {
                histogram.write(&mut out, name, &format!("class=\"{}\"", class.as_str()));
            }
        }
        out.head("evanesce_unit_seconds", "histogram", "One unit of work: a prompt, a step, a latent frame.");
        for (stage, histogram) in &counted.unit_time {
            histogram.write(&mut out, "evanesce_unit_seconds", &format!("stage=\"{stage}\""));
        }
        counted.memory.write(&mut out);
        out.0
    }
}

impl Memory {
    fn write(&self, out: &mut Text) {
        out.head(
            "evanesce_snapshots_total",
            "counter",
            "Snapshots of jobs under way, and those that failed.",
        );
        out.line("evanesce_snapshots_total{how=\"taken\"}", self.snapshots);
        out.line("evanesce_snapshots_total{how=\"failed\"}", self.snapshots_failed);
        out.head("evanesce_snapshot_written_bytes_total", "counter", "Bytes that snapshots wrote.");
        out.line("evanesce_snapshot_written_bytes_total", self.written_bytes);
        out.head("evanesce_snapshot_held_bytes", "gauge", "Bytes that the last snapshot holds.");
        out.line("evanesce_snapshot_held_bytes", self.held_bytes);
        out.head("evanesce_snapshot_seconds", "histogram", "Taking a snapshot.");
        self.snapshot_time.write(out, "evanesce_snapshot_seconds", "how=\"taken\"");
        out.head("evanesce_job_moves_total", "counter", "Jobs that were parked or resumed.");
        for (how, count) in &self.moves {
            out.line(&format!("evanesce_job_moves_total{{how=\"{how}\"}}"), count);
        }
        out.head("evanesce_pressure", "gauge", "How short memory is: 1 for the level that holds.");
        for level in [Level::Calm, Level::Watch, Level::High, Level::Critical] {
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
}

/// Law 2's counters as they are.
fn write_cache(out: &mut Text, cache: &Counters) {
    out.head("evanesce_cache_tier_bytes", "gauge", "Bytes of a tier, by account.");
    for tier in Tier::ALL {
        let counted = cache.tier(tier);
        let accounts = [
            ("budget", counted.budget_bytes),
            ("used", counted.used_bytes),
            ("peak", counted.peak_bytes),
            ("live", counted.live_bytes),
            ("writing", counted.writing_bytes),
            ("reserved", counted.reserved_bytes),
            ("moving", counted.moving_bytes),
            ("quiescing", counted.quiescing_bytes),
            ("quarantined", counted.quarantined_bytes),
            ("shared", cache.shared.bytes[tier]),
        ];
        for (account, bytes) in accounts {
            out.line(&format!("evanesce_cache_tier_bytes{{tier=\"{tier}\",account=\"{account}\"}}"), bytes);
        }
    }
    out.head("evanesce_cache_kind_bytes", "gauge", "Bytes of a kind in a tier.");
    for (kind, tier) in Kind::ALL.into_iter().flat_map(|kind| Tier::ALL.map(|tier| (kind, tier))) {
        let bytes = cache.kind(kind).bytes[tier];
        let kind = kind.as_str();
        out.line(&format!("evanesce_cache_kind_bytes{{kind=\"{kind}\",tier=\"{tier}\"}}"), bytes);
    }
    out.head("evanesce_cache_events_total", "counter", "What happened to entries of a kind.");
    for kind in Kind::ALL {
        let counted = cache.kind(kind);
        let events = [
            ("put", counted.puts),
            ("hit", counted.hits),
            ("miss", counted.misses),
            ("expired", counted.expired),
            ("removed", counted.removed),
            ("pruned", counted.evicted),
            ("demoted", counted.demoted),
            ("promoted", counted.promoted),
        ];
        for (event, count) in events {
            let kind = kind.as_str();
            out.line(&format!("evanesce_cache_events_total{{kind=\"{kind}\",event=\"{event}\"}}"), count);
        }
    }
}
