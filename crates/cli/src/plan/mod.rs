//! `evanesce plan`: what a job would hold and move, before anything is computed.

mod json;
mod page;
mod rates;
mod table;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use evanesce_engine::plan::{KvShape, Plan, Planner, TierBudgets};
use evanesce_engine::{Context, ContextSample, Description, EngineError, Positions, Request, Rollout};

use crate::args::PlanArgs;
use crate::machine;
use crate::output;
use crate::quantity::KvCodecs;
use rates::Rates;

/// The model that needs no directory.
const BUILT_IN: &str = "wan2.2-t2v-a14b";

/// Runs the command and says how it went.
pub(crate) fn run(args: &PlanArgs) -> ExitCode {
    crate::exit_code(plan(args))
}

fn plan(args: &PlanArgs) -> anyhow::Result<()> {
    evanesce_engine::use_threads(args.threads.map(usize::from))?;
    if let Some(shape) = args.shape {
        return print_shape(shape, args.json);
    }
    if let Some(path) = args.report.as_deref() {
        output::check(path, "plan.html")?;
        let codecs = args.kv_codec.as_ref().and_then(KvCodecs::file);
        let read = [("--kv-codec", codecs), ("--start-from", args.start_from.as_deref())];
        output::check_distinct(&[("--report", Some(path))], &read)?;
    }
    let (name, planner) = planner(args)?;
    if planner.rollout().is_none() && args.kv_codec.is_some() {
        let message =
            "a codec for keys and values is for videos made block by block; say how with --kv-window";
        return Err(EngineError::Request(message.to_owned()).into());
    }
    let budgets = budgets(args);
    let plan = planner.plan(request(args)?, args.prompt_tokens.map(|n| [usize::from(n); 2]), budgets)?;
    let rates = if args.no_measure { Rates::default() } else { Rates::measure(args.disk_cache.as_ref())? };
    if let Some(path) = &args.report {
        page::write(&name, &plan, &rates, path)?;
    }
    if args.json {
        return print(&json::of(&name, &plan, &rates).to_string());
    }
    print(&table::lines(&name, &plan, &rates).join("\n"))
}

fn print(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("cannot write to standard output")
}

/// What is planned for, and its name.
fn planner(args: &PlanArgs) -> anyhow::Result<(String, Planner)> {
    let (name, description) = match &args.model {
        Some(model) if model.as_os_str() == BUILT_IN => (BUILT_IN.to_owned(), Description::wan22_t2v_a14b()),
        Some(directory) => (directory.display().to_string(), open(directory)?),
        None => {
            let directory = machine::shipped_model(machine::SHAPES).ok_or_else(|| {
                let message =
                    "no checkpoint: the one that ships with evanesce was not found beside this program";
                EngineError::Request(format!("{message}; name one with --model DIR, or --model {BUILT_IN}"))
            })?;
            (directory.display().to_string(), open(&directory)?)
        }
    };
    let description = description.holding(args.weights);
    let description = match rollout(args, description.rollout()) {
        None => description,
        Some(rollout) => description.with_rollout(rollout),
    };
    let description = match &args.few_steps {
        None => description,
        Some(steps) => description.with_few_steps(steps.clone()),
    };
    Ok((name, Planner::new(description)?))
}

fn open(directory: &Path) -> Result<Description, EngineError> {
    Ok(Description::open(directory)?)
}

/// How the video is to be made block by block: as the checkpoint says, and as the flags say otherwise.
fn rollout(args: &PlanArgs, own: Option<Rollout>) -> Option<Rollout> {
    let PlanArgs { kv_window, kv_sink, block_frames, .. } = *args;
    if [kv_window, kv_sink, block_frames].iter().all(Option::is_none) {
        return None;
    }
    // Those of the published causal recipe with two experts: blocks of 3 after one of 1, 21 frames in sight.
    let own = own.unwrap_or(Rollout {
        block_frames: 3,
        first_block_frames: 1,
        sink_frames: 0,
        recent_frames: 18,
        positions: Positions::Window,
        context: Context::PerExpert,
        context_sample: ContextSample::X0,
    });
    Some(Rollout {
        block_frames: block_frames.map_or(own.block_frames, usize::from),
        first_block_frames: block_frames.map_or(own.first_block_frames, usize::from),
        sink_frames: kv_sink.map_or(own.sink_frames, usize::from),
        recent_frames: kv_window.map_or(own.recent_frames, usize::from),
        ..own
    })
}

fn budgets(args: &PlanArgs) -> TierBudgets {
    let available_bytes = machine::available_bytes();
    TierBudgets {
        device_bytes: args.device_memory.unwrap_or(available_bytes / 4 * 3) as u64,
        host_bytes: args.host_memory.unwrap_or(available_bytes / 8) as u64,
        disk_bytes: args.disk_cache.as_ref().map_or(0, |disk| disk.bytes as u64),
    }
}

fn request(args: &PlanArgs) -> Result<Request, EngineError> {
    let request = args.clip.request(args.prompt.as_deref().unwrap_or_default(), 0);
    KvCodecs::fill(args.kv_codec.as_ref(), Request { start_from: args.start_from.clone(), ..request })
}

/// Keys and values of any model, by their shape alone.
fn print_shape(shape: KvShape, as_json: bool) -> anyhow::Result<()> {
    let sizes = shape.sizes();
    if as_json {
        return print(&json::of_shape(shape, &sizes).to_string());
    }
    let KvShape { layers, tokens, dim } = shape;
    let mut lines = vec![
        format!("keys and values of {tokens} tokens in {layers} layers, {dim} numbers each"),
        format!("{:<8}{:>12}{:>12}{:>10}", "codec", "GB", "GiB", "bits"),
    ];
    lines.extend(sizes.iter().map(|size| {
        let [gb, gib] = [1e9, f64::from(1 << 30)].map(|unit| size.bytes as f64 / unit);
        format!("{:<8}{gb:>12.2}{gib:>12.2}{:>10.2}", size.codec, size.bits_per_number)
    }));
    print(&lines.join("\n"))
}

/// How often each step of the steady state is taken in the whole job: in every block that is made.
fn steps_of(plan: &Plan) -> usize {
    (plan.blocks - plan.spec.blocks_given) * plan.spec.steps()
}
