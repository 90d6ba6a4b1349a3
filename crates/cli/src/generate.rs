//! `evanesce generate`: one prompt, one video.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use evanesce_engine::{
    Budgets, CancelToken, Disk, EngineError, JobRun, Model, Outcome, Outputs, Request, RequestedLength,
    Solver, VideoTarget, WaitWatcher, fidelity,
};

use crate::args::{Generate, SolverName};
use crate::machine;
use crate::progress::{Display, say};
use crate::quantity::{DiskCache, KvCodecs};
use crate::report::{Page, Recorder, Waits};
use crate::summary::Summary;

/// Runs the command and says how it went.
pub(crate) fn run(args: &Generate) -> ExitCode {
    crate::exit_code(make_video(args))
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
    let mut model = match &args.disk_cache {
        None => Model::open(&directory, budgets(args))?,
        Some(DiskCache { directory: disk, bytes }) => {
            let disk = Disk::open(disk, *bytes as u64)
                .map_err(|error| EngineError::Request(format!("--disk-cache cannot be used: {error}")))?;
            Model::open_with_disk(&directory, budgets(args), disk)?
        }
    };
    let load_s = started.elapsed().as_secs_f64();
    let waits = Arc::new(Waits::default());
    model.watch_waits(Arc::clone(&waits) as Arc<dyn WaitWatcher>);

    let mut display = Display::new();
    let mut recorder = Recorder::default();
    let outcome = drive(&model, args, &cancel, &mut display, &mut recorder)?;
    let (times, total_s) = (display.into_times(), started.elapsed().as_secs_f64());
    let process_peak_bytes = machine::process_peak_bytes();
    if let Some(path) = &args.report {
        let (prompt, video) = (args.prompt.as_deref().unwrap_or_default(), &args.output);
        let fidelity = args.reference.as_deref().map(|reference| {
            let ours = args.frames_out.as_deref().unwrap_or(video);
            let block_frames = outcome.spec.rollout.map_or(3, |rollout| rollout.block_frames);
            Ok::<_, EngineError>((reference, fidelity::compare(ours, reference, block_frames, None)?))
        });
        Page {
            waits: &waits,
            fidelity: fidelity.transpose()?,
            prompt,
            video,
            outcome: &outcome,
            recorder: &recorder,
            times: &times,
            total_s,
            process_peak_bytes,
        }
        .write(path)?;
    }
    Summary::new(&args.output, &outcome, &times, load_s, total_s, process_peak_bytes).print(args.json)
}

fn drive(
    model: &Model,
    args: &Generate,
    cancel: &CancelToken,
    display: &mut Display,
    recorder: &mut Recorder,
) -> Result<Outcome, EngineError> {
    if let Some(path) = &args.report {
        check_report(path)?;
    }
    let mut job = JobRun::admit(model, request(args)?, outputs(args), cancel.clone())?;
    while job.advance(display)?.is_more() {
        recorder.note(display.stage(), model.memory_now());
    }
    job.finish()
}

/// Refuses a report that could not be written, before anything is computed.
fn check_report(path: &Path) -> Result<(), EngineError> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() {
        return Err(EngineError::file(
            path,
            "is a directory; name a file for the report, such as report.html",
        ));
    }
    if !directory.is_dir() {
        let message = format!("there is no directory {}: create it first", directory.display());
        return Err(EngineError::file(path, message));
    }
    Ok(())
}

fn budgets(args: &Generate) -> Budgets {
    let available_bytes = machine::available_bytes();
    Budgets {
        device_bytes: args.device_memory.unwrap_or(available_bytes / 4 * 3) as u64,
        host_bytes: args.host_memory.unwrap_or(available_bytes / 8) as u64,
    }
}

fn request(args: &Generate) -> Result<Request, EngineError> {
    let codecs = args.kv_codec.as_ref().map(KvCodecs::read).transpose()?;
    let (kv_codec, kv_overrides) =
        codecs.map_or_else(Default::default, |(codec, others)| (Some(codec), others));
    Ok(Request {
        prompt: args.prompt.clone().unwrap_or_default(),
        unconditional: args.unconditional,
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
        kv_codec,
        kv_overrides,
    })
}

fn outputs(args: &Generate) -> Outputs {
    Outputs {
        video: VideoTarget::Mp4 { path: args.output.clone(), qp: args.quality, growing: args.growing },
        latents: args.latents_out.clone(),
        frames: args.frames_out.clone(),
    }
}
