//! A plan as lines of at most 80 columns.

use evanesce_engine::plan::{PagesIn, Plan, WeightsIn};

use super::rates::Rates;
use super::steps_of;
use crate::quantity::{plural, show_bytes};

pub(super) fn show(bytes: u64) -> String {
    show_bytes(usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// The whole plan.
pub(super) fn lines(name: &str, plan: &Plan, rates: &Rates) -> Vec<String> {
    let spec = &plan.spec;
    let mut lines = vec![
        name.to_owned(),
        format!(
            "{} of {}x{} at {} fps, {}, {} in {}",
            plural(spec.frames, "frame"),
            spec.width,
            spec.height,
            spec.fps,
            plural(spec.steps(), "step"),
            plural(spec.latent_frames(), "latent frame"),
            plural(plan.blocks, "block"),
        ),
        String::new(),
    ];
    lines.extend(tiers(plan));
    lines.push(String::new());
    lines.extend(kinds(plan));
    lines.extend(codecs(plan));
    lines.extend(traffic(plan, rates));
    lines.push(String::new());
    lines.extend(policy(plan, rates));
    lines
}

fn tiers(plan: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    if plan.memory.is_some() {
        lines.push(format!("{:<10}{:>13}{:>13}", "tier", "budget", "peak"));
    }
    for tier in plan.memory.iter().flat_map(|memory| &memory.tiers) {
        let (budget, peak) = (show(tier.budget_bytes), show(tier.peak_bytes));
        lines.push(format!("{:<10}{budget:>13}{peak:>13}", tier.tier));
    }
    let (least, alone) = (show(plan.device_bytes_needed), show(plan.device_bytes_alone));
    lines.push(format!("the device needs {least} at least; {alone} without the tiers below"));
    lines
}

/// The most of every kind over all tiers, and when it is held.
fn kinds(plan: &Plan) -> Vec<String> {
    let Some(memory) = &plan.memory else { return Vec::new() };
    let head = format!("{:<16}{:>13}{:>9}{:>13}{:>13}", "kind", "peak", "entries", "written", "of raw");
    let mut lines = vec![head];
    lines.extend(memory.kinds.iter().map(|kind| {
        let [peak, written, raw] = [kind.peak_bytes, kind.encoded_bytes, kind.raw_bytes].map(show);
        format!("{:<16}{peak:>13}{:>9}{written:>13}{raw:>13}", kind.kind, kind.puts)
    }));
    if plan.blocks_left_out + plan.steps_left_out > 0 {
        let (blocks, steps) = (plural(plan.blocks_left_out, "block"), plural(plan.steps_left_out, "step"));
        lines.push(format!("entries and bytes written are without {blocks} and {steps} that repeat"));
    }
    lines
}

fn codecs(plan: &Plan) -> Vec<String> {
    if plan.choice.codecs.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![
        String::new(),
        format!("{:<8}{:>13}{:>17}{:>17}{:>8}", "codec", "pages", "needs", "alone", "fits"),
    ];
    lines.extend(plan.choice.codecs.iter().map(|codec| {
        let [pages, needed, alone] =
            [codec.pages_bytes, codec.device_bytes_needed, codec.device_bytes_alone].map(show);
        let fits = if codec.fits { "yes" } else { "no" };
        format!("{:<8}{pages:>13}{needed:>17}{alone:>17}{fits:>8}", codec.codec)
    }));
    lines
}

/// What a step moves and computes in the steady state, and how long that takes here.
fn traffic(plan: &Plan, rates: &Rates) -> Vec<String> {
    let Some((moved, flop)) = plan.steady_step() else { return Vec::new() };
    let seconds = |amount: f64, rate: Option<f64>| {
        rate.map_or_else(|| "-".to_owned(), |rate| show_seconds(amount / rate))
    };
    let mut lines =
        vec![String::new(), format!("{:<34}{:>14}{:>14}", "a step, on average", "amount", "takes")];
    let rows = [
        ("weights read from the checkpoint", moved.weights_bytes, None),
        ("device to host", moved.to_host_bytes, rates.copy_bytes_per_s),
        ("host to device", moved.from_host_bytes, rates.copy_bytes_per_s),
        ("onto the disk", moved.to_disk_bytes, rates.disk_write_bytes_per_s),
        ("off the disk", moved.from_disk_bytes, rates.disk_read_bytes_per_s),
    ];
    lines.extend(rows.iter().map(|(what, bytes, rate)| {
        let takes = if *bytes == 0 { "-".to_owned() } else { seconds(*bytes as f64, *rate) };
        format!("{what:<34}{:>14}{takes:>14}", show(*bytes))
    }));
    let computes = seconds(flop, rates.flop_per_s);
    lines.push(format!("{:<34}{:>14}{computes:>14}", "arithmetic", show_flop(flop)));
    if plan.recompute_flop > 0.0 {
        let takes = seconds(plan.recompute_flop, rates.flop_per_s);
        let what = "arithmetic to make the window anew";
        lines.push(format!("{what:<34}{:>14}{takes:>14}", show_flop(plan.recompute_flop)));
    }
    if let Some(rate) = rates.flop_per_s {
        let total_s = flop / rate * steps_of(plan) as f64;
        let (steps, seconds) = (steps_of(plan), show_seconds(total_s));
        let compute = if steps == 1 { "computes" } else { "compute" };
        lines.push(format!("{} {compute} for about {seconds}", plural(steps, "step")));
    }
    lines
}

/// What would be done, and why.
fn policy(plan: &Plan, rates: &Rates) -> Vec<String> {
    if !plan.fits() {
        let most =
            plan.choice.codec.map_or("give it that much, or ask for a smaller size".to_owned(), |codec| {
                format!("with --kv-codec {codec} it fits")
            });
        return vec![
            format!("it does not fit: the device tier has {}", show(plan.budgets.device_bytes)),
            most,
        ];
    }
    let weights = match plan.choice.weights {
        WeightsIn::Device => "weights stay in the device from their first use on",
        WeightsIn::Streamed => "weights are streamed: what is read farthest ahead leaves first",
    };
    let mut lines = vec![format!("it fits; {weights}")];
    let codec = plan.choice.codec.unwrap_or("none");
    match plan.choice.pages {
        PagesIn::Nowhere => {}
        PagesIn::Device => lines.push("all pages stay in the device".to_owned()),
        PagesIn::Host => lines.push("pages that the device cannot hold wait in the host".to_owned()),
        PagesIn::Disk => {
            lines.push("pages that the device cannot hold wait in the host and on the disk".to_owned());
        }
    }
    if let Some((fetch_s, recompute_s)) = fetch_or_recompute(plan, rates) {
        let [fetch, recompute] = [fetch_s, recompute_s].map(show_seconds);
        let verdict =
            if fetch_s <= recompute_s { "fetching is cheaper" } else { "making anew would be cheaper" };
        lines.push(format!("pages: fetching takes {fetch} a step, making anew {recompute}: {verdict}"));
    }
    if plan.choice.pages != PagesIn::Nowhere {
        lines.push(format!("the most exact codec for these budgets is {codec}"));
    }
    lines
}

/// Seconds a step that bringing pages back takes, and that making them anew would take (law 12); nothing where no page
/// leaves or nothing was measured.
pub(super) fn fetch_or_recompute(plan: &Plan, rates: &Rates) -> Option<(f64, f64)> {
    let (moved, _) = plan.steady_step()?;
    let copied = (moved.to_host_bytes + moved.from_host_bytes) as f64 / rates.copy_bytes_per_s?;
    let part =
        |bytes: u64, rate: Option<f64>| if bytes == 0 { Some(0.0) } else { Some(bytes as f64 / rate?) };
    let written = part(moved.to_disk_bytes, rates.disk_write_bytes_per_s)?;
    let read = part(moved.from_disk_bytes, rates.disk_read_bytes_per_s)?;
    let recompute_s = plan.recompute_flop / rates.flop_per_s?;
    let moves = moved.from_host_bytes + moved.from_disk_bytes > 0 && recompute_s > 0.0;
    moves.then_some((copied + written + read, recompute_s))
}

fn show_flop(flop: f64) -> String {
    if flop >= 1e12 { format!("{:.1} TFLOP", flop / 1e12) } else { format!("{:.1} GFLOP", flop / 1e9) }
}

pub(super) fn show_seconds(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s if s < 600.0 => format!("{s:.1} s"),
        s if s < 36_000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h", s / 3600.0),
    }
}
