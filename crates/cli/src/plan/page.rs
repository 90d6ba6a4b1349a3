//! A plan as a page: what will be held, as the page about a job shows what was.

use std::path::Path;

use evanesce_engine::plan::Plan;
use html_escape::encode_text;

use super::rates::Rates;
use super::table;
use crate::output;
use crate::report::{Recorder, areas, document};

/// Writes the page to `path`, whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub(super) fn write(name: &str, plan: &Plan, rates: &Rates, path: &Path) -> anyhow::Result<()> {
    let mut recorder = Recorder::default();
    for unit in &plan.units {
        recorder.note(unit.stage, unit.memory.clone());
    }
    let tiers: Vec<_> =
        plan.memory.iter().flat_map(|memory| memory.tiers.iter().map(|tier| tier.tier)).collect();
    let left_out = match plan.blocks_left_out {
        0 => String::new(),
        1 => " One more block repeats the last ones.".to_owned(),
        n => format!(" {n} more blocks repeat the last ones."),
    };
    let body = format!(
        "<h1>{name}: a plan</h1><h2>What will be held</h2><p>After each of {} units of work (a prompt, a step, a commit, a \
         latent frame); within a unit there is scratch besides, which the peaks below count.{left_out}</p>{}<pre>{}</pre>",
        recorder.units(),
        areas(recorder.samples(), &tiers),
        encode_text(&table::lines(name, plan, rates).join("\n")),
        name = encode_text(name),
    );
    output::write(path, &document(&format!("evanesce: a plan for {name}"), &body))
}
