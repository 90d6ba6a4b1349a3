//! `evanesce generate`: one prompt, one video.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use evanesce_engine::{
    Budgets, CancelToken, Disk, EngineError, Fault, JobRun, Model, Outcome, Outputs, Request,
    RequestedLength, Solver, VideoTarget,
};

use crate::args::{Generate, SolverName};
use crate::machine;
use crate::progress::{Display, say};
use crate::quantity::DiskCache;
use crate::summary::Summary;

/// Runs the command and says how it went: 0 done, 2 bad input, 1 anything else.
pub(crate) fn run(args: &Generate) -> ExitCode {
    match make_video(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}"));
            let fault = error.downcast_ref::<EngineError>().map_or(Fault::Internal, EngineError::fault);
            ExitCode::from(if fault == Fault::Input { crate::BAD_INPUT } else { 1 })
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the command line may look at the clock")]
fn make_video(args: &Generate) -> anyhow::Result<()> {
    let started = Instant::now();
    let cancel = CancelToken::new();
    let on_interrupt = cancel.clone();
    ctrlc::set_handler(move || {
        say("stopping after this step");
        on_interrupt.cancel();
    })
    .context("cannot listen for interrupts")?;
    evanesce_engine::use_threads(args.threads.map(usize::from))?;

    let directory = match &args.model {
        Some(directory) => directory.clone(),
        None => machine::shipped_model().ok_or_else(|| {
            EngineError::Request("no checkpoint: the one that ships with evanesce was not found beside this program; name one with --model DIR".to_owned())
        })?,
    };
    let model = match &args.disk_cache {
        None => Model::open(&directory, budgets(args))?,
        Some(DiskCache { directory: disk, bytes }) => {
            let disk = Disk::open(disk, *bytes as u64)
                .map_err(|error| EngineError::Request(format!("--disk-cache cannot be used: {error}")))?;
            Model::open_with_disk(&directory, budgets(args), disk)?
        }
    };
    let load_s = started.elapsed().as_secs_f64();

    let mut display = Display::new();
    let outcome = drive(&model, args, &cancel, &mut display)?;
    let (times, total_s) = (display.into_times(), started.elapsed().as_secs_f64());
    Summary::new(&args.output, &outcome, &times, load_s, total_s, machine::process_peak_bytes())
        .print(args.json)
}

fn drive(
    model: &Model,
    args: &Generate,
    cancel: &CancelToken,
    display: &mut Display,
) -> Result<Outcome, EngineError> {
    let mut job = JobRun::admit(model, request(args), outputs(args), cancel.clone())?;
    while job.advance(display)?.is_more() {}
    job.finish()
}

fn budgets(args: &Generate) -> Budgets {
    let available_bytes = machine::available_bytes();
    Budgets {
        device_bytes: args.device_memory.unwrap_or(available_bytes / 4 * 3) as u64,
        host_bytes: args.host_memory.unwrap_or(available_bytes / 8) as u64,
    }
}

fn request(args: &Generate) -> Request {
    Request {
        prompt: args.prompt.clone(),
        negative: args.negative.clone(),
        size: args.size,
        length: match (args.frames, args.seconds) {
            (Some(frames), _) => Some(RequestedLength::Frames(frames)),
            (None, seconds) => seconds.map(RequestedLength::Seconds),
        },
        fps: args.fps,
        steps: args.steps,
        guidance_high: args.guidance_high,
        guidance_low: args.guidance_low,
        boundary: args.boundary,
        shift: args.shift,
        solver: args.solver.map(|solver| match solver {
            SolverName::Unipc => Solver::UniPc,
            SolverName::Euler => Solver::Euler,
        }),
        seed: args.seed.unwrap_or_else(machine::drawn_seed),
        noise_in: args.noise_in.clone(),
        kv_codec: args.kv_codec,
    }
}

fn outputs(args: &Generate) -> Outputs {
    Outputs {
        video: VideoTarget::Mp4 { path: args.output.clone(), qp: args.quality },
        latents: args.latents_out.clone(),
        frames: args.frames_out.clone(),
    }
}
