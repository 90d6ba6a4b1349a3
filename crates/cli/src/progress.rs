//! Shows a job's progress: bars on a terminal, plain lines otherwise; and times its stages.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use evanesce_engine::progress::{Event, Observer, Stage};
use indicatif::{ProgressBar, ProgressStyle};

use crate::quantity::plural;

/// Seconds that each stage took.
#[derive(Debug, Default)]
pub(crate) struct StageTimes {
    stages: BTreeMap<Stage, Duration>,
}

impl StageTimes {
    /// Seconds of `stage`; 0 when it did not run.
    pub(crate) fn seconds(&self, stage: Stage) -> f64 {
        self.stages.get(&stage).map_or(0.0, Duration::as_secs_f64)
    }
}

/// Watches one job.
#[derive(Debug)]
pub(crate) struct Display {
    style: Style,
    bar: Option<ProgressBar>,
    stage: Stage,
    /// The block under way and how many there are, for a video that is made block by block.
    block: Option<(usize, usize)>,
    /// The first block that began, and the time that blocks had taken by then.
    first_block: Option<(usize, Duration)>,
    n_units: usize,
    /// Units of the stage that were done before: those of a job that goes on from a snapshot.
    units_before: Option<usize>,
    last_shown_percent: usize,
    started: Instant,
    encoding_since: Option<Instant>,
    /// Time of the current stage that went to the encoder instead.
    lent: Duration,
    times: StageTimes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Bars,
    Lines,
}

#[expect(clippy::disallowed_methods, reason = "the command line may look at the clock")]
fn now() -> Instant {
    Instant::now()
}

/// Seconds that `left` more will take if each takes what one of the `done` took.
#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn eta_s(spent: Duration, done: usize, left: usize) -> f64 {
    spent.as_secs_f64() / done.max(1) as f64 * left as f64
}

impl Display {
    /// Bars when standard error is a terminal, else a line now and then.
    pub(crate) fn new() -> Self {
        let style = if std::io::stderr().is_terminal() { Style::Bars } else { Style::Lines };
        Self {
            style,
            bar: None,
            stage: Stage::Text,
            block: None,
            first_block: None,
            n_units: 0,
            units_before: None,
            last_shown_percent: 0,
            started: now(),
            encoding_since: None,
            lent: Duration::ZERO,
            times: StageTimes::default(),
        }
    }

    /// The stage under way, or the last one.
    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    /// What each stage took.
    pub(crate) fn into_times(self) -> StageTimes {
        self.times
    }

    fn start(&mut self, stage: Stage, n_units: usize) {
        self.stage = stage;
        self.started = now();
        self.lent = Duration::ZERO;
        self.n_units = n_units;
        self.units_before = None;
        self.last_shown_percent = 0;
        if self.style == Style::Bars {
            let bar = ProgressBar::new(n_units as u64);
            if let Ok(style) =
                ProgressStyle::with_template("{prefix:>8} {wide_bar} {pos:>4}/{len} {elapsed} ETA {eta}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(match self.block {
                Some((at, n_blocks)) => format!("{} {}/{n_blocks}", stage.as_str(), at + 1),
                None => stage.as_str().to_owned(),
            });
            bar.enable_steady_tick(Duration::from_millis(250));
            self.bar = Some(bar);
        }
    }

    /// Says how far the video is, at every tenth of it.
    fn begin_block(&mut self, at: usize, n_blocks: usize) {
        let tenths = |blocks: usize| blocks * 10 / n_blocks.max(1);
        let is_due = at > 0 && tenths(at) > tenths(at - 1);
        self.block = Some((at, n_blocks));
        let spent: Duration = [Stage::Denoise, Stage::Decode, Stage::Encode]
            .iter()
            .filter_map(|s| self.times.stages.get(s))
            .sum();
        let (first, spent_before) = *self.first_block.get_or_insert((at, spent));
        if self.style == Style::Lines && is_due && at > first {
            let eta_s = eta_s(spent.saturating_sub(spent_before), at - first, n_blocks - at);
            say(&format!("  blocks {at}/{n_blocks} {:.1} s, about {eta_s:.1} s to go", spent.as_secs_f64()));
        }
    }

    fn advance(&mut self, stage: Stage, done_units: usize) {
        if stage != self.stage {
            // A job that goes on from a snapshot may stand in the middle of a stage.
            self.start(stage, done_units);
        }
        self.n_units = self.n_units.max(done_units);
        let is_first = self.units_before.is_none();
        let before = *self.units_before.get_or_insert(done_units.saturating_sub(1));
        if let Some(bar) = &self.bar {
            bar.set_length(self.n_units as u64);
            if is_first {
                bar.set_position(before as u64);
                bar.reset_eta();
            }
            bar.set_position(done_units as u64);
            return;
        }
        if self.block.is_some() {
            return;
        }
        let percent = done_units * 100 / self.n_units.max(1);
        if percent >= self.last_shown_percent + 10 && done_units < self.n_units {
            self.last_shown_percent = percent;
            let elapsed = self.started.elapsed();
            let eta_s = eta_s(elapsed, done_units.saturating_sub(before), self.n_units - done_units);
            let elapsed_s = elapsed.as_secs_f64();
            say(&format!(
                "{:>8} {done_units}/{} {elapsed_s:.1} s, about {eta_s:.1} s to go",
                stage.as_str(),
                self.n_units
            ));
        }
    }

    fn finish(&mut self, stage: Stage) {
        let elapsed = self.started.elapsed();
        *self.times.stages.entry(stage).or_default() += elapsed.saturating_sub(self.lent);
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let mut n_units = self.n_units;
        let mut elapsed = elapsed;
        let mut unit = match stage {
            Stage::Text => "prompt",
            Stage::Denoise => "step",
            Stage::Decode => "latent frame",
            Stage::Encode => "file",
        };
        if let Some((at, n_blocks)) = self.block.filter(|_| matches!(stage, Stage::Denoise | Stage::Decode)) {
            if at + 1 < n_blocks {
                return;
            }
            (n_units, unit) = (n_blocks, "block");
            elapsed = self.times.stages.get(&stage).copied().unwrap_or_default();
        }
        let units = plural(n_units, unit);
        say(&format!("{:>8} {units} in {:.1} s", stage.as_str(), elapsed.as_secs_f64()));
    }

    fn encoding(&mut self, begins: bool) {
        if begins {
            self.encoding_since = Some(now());
        } else if let Some(since) = self.encoding_since.take() {
            let took = since.elapsed();
            self.lent += took;
            *self.times.stages.entry(Stage::Encode).or_default() += took;
        }
    }
}

/// A line on standard error; nothing can be done when that is closed.
pub(crate) fn say(line: &str) {
    drop(writeln!(std::io::stderr(), "{line}"));
}

impl Observer for Display {
    fn on_event(&mut self, event: Event<'_>) {
        match event {
            Event::Block { at, n_blocks } => self.begin_block(at, n_blocks),
            Event::Started { stage, n_units } => self.start(stage, n_units),
            Event::Advanced { stage, done_units } => self.advance(stage, done_units),
            Event::Finished { stage } => self.finish(stage),
            Event::Encoding(begins) => self.encoding(begins),
            Event::Notice(text) => match &self.bar {
                Some(bar) => bar.suspend(|| say(&format!("    note {text}"))),
                None => say(&format!("    note {text}")),
            },
        }
    }
}
