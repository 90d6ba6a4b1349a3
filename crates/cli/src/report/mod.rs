//! `--report FILE`: one self-contained page about a job: what the cache held, what it cost, what came out.

mod chart;
mod recorder;
mod sheet;
mod waits;

use std::path::Path;

use evanesce_engine::fidelity::Part;
use evanesce_engine::progress::Stage;
use evanesce_engine::report::KindReport;
use evanesce_engine::video::thumbnails;
use evanesce_engine::{Outcome, Wait};
use html_escape::encode_text;

pub(crate) use recorder::{Recorder, Sample};
pub(crate) use waits::Waits;

use crate::output;
use crate::progress::StageTimes;
use crate::quantity::{plural, show_bytes};

const PICTURES: usize = 16;
const PICTURE_PIXELS: usize = 96;

/// Everything that the page is about.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    pub(crate) prompt: &'a str,
    pub(crate) video: &'a Path,
    pub(crate) outcome: &'a Outcome,
    pub(crate) recorder: &'a Recorder,
    pub(crate) times: &'a StageTimes,
    pub(crate) waits: &'a Waits,
    /// A run to compare with, and how far this one is from it.
    pub(crate) fidelity: Option<(&'a Path, Vec<Part>)>,
    pub(crate) total_s: f64,
    pub(crate) process_peak_bytes: usize,
}

impl Page<'_> {
    /// Writes the page to `path`, whole or not at all.
    ///
    /// # Errors
    /// When the video cannot be read back or the page cannot be written.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        output::write(path, &self.html()?)
    }

    fn html(&self) -> anyhow::Result<String> {
        let spec = &self.outcome.spec;
        let summary = format!(
            "{} of {}x{} at {} fps, {}, seed {}, made in {:.1} s; the process held {} at its peak",
            plural(self.outcome.video.frames, "frame"),
            spec.width,
            spec.height,
            spec.fps,
            plural(spec.steps(), "step"),
            spec.seed,
            self.total_s,
            show_bytes(self.process_peak_bytes)
        );
        let pictures = thumbnails(self.video, PICTURES, PICTURE_PIXELS)?;
        let prompt = encode_text(self.prompt);
        let body = format!(
            "<h1>{prompt}</h1><p>{summary}</p>{}<h2>What was held</h2><p>After each of {} units of work (a prompt, a step, a commit, a latent frame); within a unit there \
             is scratch besides, which the peaks in the tables count.</p>{}{}<h2>What became of it</h2>{}<h2>Where the time went</h2>{}<h2>Transfers against compute</h2>{}{}",
            sheet::contact_sheet(&pictures),
            self.recorder.units(),
            areas(
                self.recorder.samples(),
                &self.outcome.memory.tiers.iter().map(|tier| tier.tier).collect::<Vec<_>>()
            ),
            self.tiers(),
            self.kinds(),
            self.stages(),
            self.transfers(),
            self.codecs(),
        );
        Ok(document(&format!("evanesce: {}", self.prompt), &body))
    }

    fn tiers(&self) -> String {
        let rows = self.outcome.memory.tiers.iter().map(|tier| {
            vec![
                tier.tier.to_owned(),
                show(tier.budget_bytes),
                show(tier.peak_bytes),
                show(tier.owned_at_end_bytes),
            ]
        });
        table(&["tier", "budget", "peak", "owned at the end"], rows)
    }

    fn kinds(&self) -> String {
        let rows = self.outcome.memory.kinds.iter().map(|kind| {
            let KindReport { puts, hits, misses, expired, pruned, evicted, demoted, promoted, .. } = *kind;
            let counts =
                [puts, hits, misses, expired, pruned, evicted, demoted, promoted].map(|n| n.to_string());
            let saved =
                if kind.encoded_bytes == 0 { 1.0 } else { kind.raw_bytes as f64 / kind.encoded_bytes as f64 };
            let first = vec![kind.kind.to_owned(), show(kind.peak_bytes)];
            [first, counts.to_vec(), vec![show(kind.returned_bytes), format!("{saved:.2}")]].concat()
        });
        let head = [
            "kind",
            "peak",
            "puts",
            "hits",
            "misses",
            "expired",
            "pruned",
            "evicted",
            "demoted",
            "promoted",
            "returned",
            "raw / encoded",
        ];
        table(&head, rows)
    }

    /// What moved, and how long arithmetic stood still for it.
    fn transfers(&self) -> String {
        let tiers = &self.outcome.memory.tiers;
        let kind = |name: &str| self.outcome.memory.kinds.iter().find(|kind| kind.kind == name);
        let pages = kind("self_kv").map_or((0, 0), |kind| (kind.arrived_before_use, kind.arrived_late));
        let read = kind("weights").map_or(0, |kind| kind.raw_bytes);
        let traffic = |at: usize| tiers.get(at).map(|tier| tier.traffic).unwrap_or_default();
        let [host, disk] = [traffic(1), traffic(2)];
        let [weights, waited] = [Wait::Weights, Wait::Pages].map(|what| self.waits.of(what));
        let show_wait = |(times, seconds): (u64, f64)| format!("{seconds:.3} s in {times} waits");
        let rows = [
            ["weights, from the checkpoint".to_owned(), show(read), String::new(), show_wait(weights)],
            [
                "device and host".to_owned(),
                show(host.demoted_bytes),
                show(host.promoted_bytes),
                String::new(),
            ],
            ["host and disk".to_owned(), show(disk.demoted_bytes), show(disk.promoted_bytes), String::new()],
            [
                format!("pages: {} in time, {} late", pages.0, pages.1),
                String::new(),
                String::new(),
                show_wait(waited),
            ],
        ];
        let denoise_s = self.times.seconds(Stage::Denoise);
        let waited_s = weights.1 + waited.1;
        let note = format!(
            "<p>Denoising took {denoise_s:.2} s; arithmetic stood still for {waited_s:.3} s of the whole job.</p>"
        );
        table(&["what", "down, or read", "up", "waited"], rows.into_iter().map(Vec::from)) + &note
    }

    /// How pages were stored, and how far the video is from the one to compare with.
    fn codecs(&self) -> String {
        let mut html = String::new();
        if let Some(kind) = self.outcome.memory.kinds.iter().find(|kind| kind.kind == "self_kv") {
            let spec = &self.outcome.spec;
            let bits = 32.0 * kind.encoded_bytes as f64 / kind.raw_bytes.max(1) as f64;
            let used = spec.kv_overrides.used(spec.kv_codec).into_iter().map(|(pages, codec)| {
                vec![pages, codec.keys.as_str().to_owned(), codec.values.as_str().to_owned()]
            });
            html += &format!("<h2>Codec and fidelity</h2>{}", table(&["pages", "keys", "values"], used));
            let sizes = vec![
                format!("{bits:.2}"),
                show(kind.encoded_bytes),
                show(kind.raw_bytes),
                show(kind.peak_bytes),
            ];
            html += &table(&["bits a number", "encoded", "in f32", "peak"], [sizes].into_iter());
        }
        if let Some((reference, parts)) = &self.fidelity {
            let decibels =
                |db: f64| if db.is_infinite() { "equal".to_owned() } else { format!("{db:.2} dB") };
            let rows = parts.iter().map(|part| {
                vec![
                    part.name.replace('_', " "),
                    decibels(part.psnr_db),
                    decibels(part.psnr_least_db),
                    format!("{:.4}", part.ssim),
                ]
            });
            let name = reference.display().to_string();
            html += &format!("<p>Against {}:</p>", encode_text(&name));
            html += &table(&["part", "PSNR", "worst frame", "SSIM"], rows);
        }
        html
    }

    fn stages(&self) -> String {
        let all: f64 = Stage::ALL.iter().map(|stage| self.times.seconds(*stage)).sum();
        let rows = Stage::ALL.iter().map(|stage| {
            let seconds = self.times.seconds(*stage);
            let share = if all > 0.0 { 100.0 * seconds / all } else { 0.0 };
            let bar = format!("<div class=\"bar\" style=\"width:{share:.1}%\"></div>");
            vec![stage.as_str().to_owned(), format!("{seconds:.2} s"), bar]
        });
        table(&["stage", "seconds", ""], rows)
    }
}

/// What every tier held, one picture each; `tiers` are their names.
pub(crate) fn areas(samples: &[Sample], tiers: &[&str]) -> String {
    let picture =
        |(at, tier): (usize, &&str)| Some(format!("<h3>{tier}</h3>{}", chart::stacked_areas(samples, at)?));
    tiers.iter().enumerate().filter_map(picture).collect()
}

/// A whole page around `body`, which is HTML; the title is text.
pub(crate) fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{}</title><style>{STYLE}</style></head><body>{body}</body></html>\n",
        encode_text(title)
    )
}

fn show(bytes: u64) -> String {
    show_bytes(usize::try_from(bytes).unwrap_or(usize::MAX))
}

fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head: String = head.iter().map(|name| format!("<th>{name}</th>")).collect();
    let row = |cells: Vec<String>| -> String {
        format!("<tr>{}</tr>", cells.iter().map(|cell| format!("<td>{cell}</td>")).collect::<String>())
    };
    format!("<div class=\"wide\"><table><tr>{head}</tr>{}</table></div>", rows.map(row).collect::<String>())
}

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}h3{font-size:1rem;margin-bottom:0}\
svg{width:100%;height:auto}svg text{font-size:12px;fill:currentColor}\
.grid{stroke:currentColor;stroke-opacity:.2}.mark{stroke:currentColor;stroke-opacity:.5;stroke-dasharray:3}\
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;padding:0;list-style:none}\
.legend i{display:inline-block;width:.8em;height:.8em;margin-right:.4em}\
.sheet{display:flex;flex-wrap:wrap;gap:4px}figure{margin:0}figcaption{font-size:11px;opacity:.7}\
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}\
th,td{text-align:right;white-space:nowrap;padding:.2rem .6rem;border-bottom:1px solid color-mix(in srgb,currentColor 20%,transparent)}\
th:first-child,td:first-child{text-align:left}\
.bar{height:.8em;background:#0072b2;min-width:1px}td:has(.bar){width:60%;text-align:left}";
