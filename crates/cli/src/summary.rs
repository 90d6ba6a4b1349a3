//! What a job made and used: a table for people, one JSON object for programs.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use evanesce_engine::Outcome;
use evanesce_engine::progress::Stage;
use evanesce_engine::report::{KindReport, TierReport};
use serde_json::{Map, Value, json};

use crate::progress::{StageTimes, say};
use crate::quantity::{plural, show_bytes};

/// The closing summary of one job.
#[derive(Debug)]
pub(crate) struct Summary<'a> {
    video: &'a Path,
    outcome: &'a Outcome,
    times: &'a StageTimes,
    load_s: f64,
    total_s: f64,
    process_peak_bytes: usize,
}

impl<'a> Summary<'a> {
    pub(crate) fn new(
        video: &'a Path,
        outcome: &'a Outcome,
        times: &'a StageTimes,
        load_s: f64,
        total_s: f64,
        process_peak_bytes: usize,
    ) -> Self {
        Self { video, outcome, times, load_s, total_s, process_peak_bytes }
    }

    /// Prints the table on standard error, or the JSON object on standard output.
    pub(crate) fn print(&self, as_json: bool) -> anyhow::Result<()> {
        if as_json {
            return writeln!(std::io::stdout(), "{}", self.json()).context("cannot write to standard output");
        }
        for line in self.lines() {
            say(&line);
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let spec = &self.outcome.spec;
        let memory = &self.outcome.memory;
        let tiers: Map<String, Value> =
            memory.tiers.iter().map(|t| (t.tier.to_owned(), tier_json(t))).collect();
        let kinds: Map<String, Value> =
            memory.kinds.iter().map(|k| (k.kind.to_owned(), kind_json(k))).collect();
        json!({
            "video": self.video.display().to_string(),
            "frames": self.outcome.video.frames,
            "width": spec.width,
            "height": spec.height,
            "fps": spec.fps,
            "seed": spec.seed,
            "video_bytes": self.outcome.video.bytes,
            "seconds": {
                "total": self.total_s,
                "load": self.load_s,
                "text": self.times.seconds(Stage::Text),
                "denoise": self.times.seconds(Stage::Denoise),
                "decode": self.times.seconds(Stage::Decode),
                "encode": self.times.seconds(Stage::Encode),
            },
            "memory": { "tiers": tiers, "kinds": kinds },
            "process_peak_bytes": self.process_peak_bytes,
        })
    }

    fn lines(&self) -> Vec<String> {
        let (spec, video) = (&self.outcome.spec, &self.outcome.video);
        let mut lines = vec![
            String::new(),
            format!(
                "{:<14}{:>10}{:>8}{:>8}{:>7}{:>8}{:>7}{:>8}{:>10}",
                "kind", "peak", "puts", "hits", "misses", "expired", "pruned", "evicted", "returned"
            ),
        ];
        lines.extend(self.outcome.memory.kinds.iter().map(|counted| {
            let KindReport { kind, peak_bytes, puts, hits, misses, returned_bytes, .. } = *counted;
            let KindReport { expired, pruned, evicted, .. } = *counted;
            let (peak, returned) = (show(peak_bytes), show(returned_bytes));
            format!(
                "{kind:<14}{peak:>10}{puts:>8}{hits:>8}{misses:>7}{expired:>8}{pruned:>7}{evicted:>8}{returned:>10}"
            )
        }));
        lines.extend(self.outcome.memory.tiers.iter().filter(|tier| tier.peak_bytes > 0).map(|tier| {
            let TierReport { tier, budget_bytes, peak_bytes, owned_at_end_bytes, .. } = *tier;
            let [peak, budget, left] = [peak_bytes, budget_bytes, owned_at_end_bytes].map(show);
            format!("{tier} held {peak} of {budget} at its peak; the job still owns {left}")
        }));
        lines.push(format!("the process held {} at its peak", show_bytes(self.process_peak_bytes)));
        lines.push(format!(
            "{} has {}, made in {:.1} s:",
            self.video.display(),
            show(video.bytes),
            self.total_s
        ));
        let length_s = video.duration_s;
        let frames = plural(video.frames, "frame");
        let (width, height, fps, seed) = (spec.width, spec.height, spec.fps, spec.seed);
        lines.push(format!("{frames} of {width}x{height}, {length_s:.2} s at {fps} fps, seed {seed}"));
        lines
    }
}

fn show(bytes: u64) -> String {
    show_bytes(usize::try_from(bytes).unwrap_or(usize::MAX))
}

fn tier_json(tier: &TierReport) -> Value {
    json!({
        "budget": tier.budget_bytes,
        "peak": tier.peak_bytes,
        "owned_at_end": tier.owned_at_end_bytes,
        "demoted": tier.traffic.demoted,
        "demoted_bytes": tier.traffic.demoted_bytes,
        "promoted": tier.traffic.promoted,
        "promoted_bytes": tier.traffic.promoted_bytes,
        "write_faults": tier.traffic.write_faults,
        "read_faults": tier.traffic.read_faults,
    })
}

fn kind_json(kind: &KindReport) -> Value {
    json!({
        "peak": kind.peak_bytes,
        "puts": kind.puts,
        "hits": kind.hits,
        "misses": kind.misses,
        "expired": kind.expired,
        "pruned": kind.pruned,
        "evicted": kind.evicted,
        "demoted": kind.demoted,
        "promoted": kind.promoted,
        "lost": kind.lost,
        "arrived_before_use": kind.arrived_before_use,
        "arrived_late": kind.arrived_late,
        "returned": kind.returned_bytes,
        "encoded_bytes": kind.encoded_bytes,
        "raw_bytes": kind.raw_bytes,
    })
}
