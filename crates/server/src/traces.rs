//! Traces for a collector that speaks OTLP over HTTP with JSON (OpenTelemetry protocol 1.x): one trace for each job that ends, named by
//! the job, with a span for its wait and one for each stage. Off unless an address is configured; nothing waits for it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::clock::UnixMs;
use crate::job::{Job, Status};
use crate::journal::note;
use crate::webhooks::{Reach, Target, Trust, post};

/// Traces that may wait to be sent; what comes when there are more is dropped.
const WAITING_MAX: usize = 256;
/// One line of the log for so many failures.
const TOLD_EVERY: u64 = 100;

/// When a job's stage began and ended, and how much of that it worked; others had their turns in between.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StageTime {
    pub(crate) name: &'static str,
    pub(crate) began: UnixMs,
    pub(crate) ended: UnixMs,
    pub(crate) worked: Duration,
}

/// Takes traces of jobs that have ended.
#[derive(Clone, Debug)]
pub(crate) struct Tracer(Sender<Value>);

impl Tracer {
    /// A tracer, and what the exporter takes from it.
    fn new() -> (Self, Receiver<Value>) {
        let (sender, traces) = channel(WAITING_MAX);
        (Self(sender), traces)
    }

    /// Takes a job that has ended and where its time went.
    pub(crate) fn job(&self, job: &Job, stages: &[StageTime]) {
        // A collector that is slow or gone must not slow anything down.
        drop(self.0.try_send(trace(job, stages)));
    }
}

/// Sends what comes, one by one, until nothing more can come.
async fn export(endpoint: String, mut traces: Receiver<Value>) {
    let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
    let mut n_failed: u64 = 0;
    while let Some(trace) = traces.recv().await {
        let sent = match (Target::parse(&url, true), Trust::new(None)) {
            (Ok(target), Ok(trust)) => {
                post(&target, Reach { private_addresses: true, trust: &trust }, &[], trace.to_string()).await
            }
            (Err(sentence), _) | (_, Err(sentence)) => Err(sentence),
        };
        let failed = match sent {
            Ok(200..300) => continue,
            Ok(status) => format!("the collector answered {status}"),
            Err(sentence) => sentence,
        };
        if n_failed.is_multiple_of(TOLD_EVERY) {
            note("traces", format_args!("cannot be sent: {failed}"));
        }
        n_failed += 1;
    }
}

fn trace(job: &Job, stages: &[StageTime]) -> Value {
    let ended = job.ended.unwrap_or(job.created);
    let root = Span { job, name: "video", parent: None, began: job.created, ended };
    let order = &job.order;
    let mut of_job = root.json(&[
        ("evanesce.class", json!({"stringValue": order.class.as_str()})),
        ("evanesce.model", json!({"stringValue": order.model})),
        ("evanesce.size", json!({"stringValue": format!("{}x{}", order.width, order.height)})),
        ("evanesce.frames", json!({"intValue": order.frames.to_string()})),
        ("evanesce.steps", json!({"intValue": order.steps.to_string()})),
    ]);
    let message = job.failure.as_ref().map_or("", |failure| failure.message.as_str());
    of_job["status"] =
        json!({"code": if job.status == Status::Completed { 1 } else { 2 }, "message": message});
    let mut spans = vec![of_job];
    let child = |name, began, ended| Span { job, name, parent: Some("video"), began, ended };
    spans.push(child("queued", job.created, job.started.unwrap_or(ended)).json(&[]));
    spans.extend(stages.iter().map(|stage| {
        let worked = json!({"doubleValue": stage.worked.as_secs_f64()});
        child(stage.name, stage.began, stage.ended).json(&[("evanesce.worked_s", worked)])
    }));
    let service = json!({"key": "service.name", "value": {"stringValue": "evanesce"}});
    let scope = json!({"name": "evanesce", "version": env!("CARGO_PKG_VERSION")});
    json!({"resourceSpans": [{
        "resource": {"attributes": [service]},
        "scopeSpans": [{"scope": scope, "spans": spans}]
    }]})
}

struct Span<'a> {
    job: &'a Job,
    name: &'static str,
    parent: Option<&'static str>,
    began: UnixMs,
    ended: UnixMs,
}

impl Span<'_> {
    /// 8 bytes that only this span of this job has.
    fn id(&self, name: &str) -> String {
        blake3::hash(format!("{} {name}", self.job.id).as_bytes()).to_hex()[..16].to_owned()
    }

    fn json(&self, attributes: &[(&str, Value)]) -> Value {
        let nanos = |at: UnixMs| format!("{}000000", at.0);
        let attributes: Vec<_> =
            attributes.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
        // A video's name is 16 bytes in hexadecimal, as is a trace's.
        let trace = self.job.id.as_str().rsplit('_').next().unwrap_or_default();
        json!({
            "traceId": trace, "spanId": self.id(self.name), "parentSpanId": self.parent.map(|name| self.id(name)).unwrap_or_default(),
            "name": self.name, "kind": 1, "startTimeUnixNano": nanos(self.began), "endTimeUnixNano": nanos(self.ended),
            "attributes": attributes,
        })
    }
}

/// Starts sending to a collector, if there is one.
pub(crate) fn start(endpoint: Option<&String>) -> Option<Tracer> {
    let (tracer, traces) = Tracer::new();
    tokio::spawn(export(endpoint?.clone(), traces));
    Some(tracer)
}
