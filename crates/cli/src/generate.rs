//! `evanesce generate`: one prompt, one video.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow};
use evanesce_engine::fidelity::Part;
use evanesce_engine::progress::{Event, Observer};
use evanesce_engine::{
    Budgets, CancelToken, Disk, EngineError, JobRun, JobSpec, Model, Outcome, Outputs, Progress, Request,
    Solver, VideoTarget, WaitWatcher, fidelity,
};

use crate::args::{Generate, SolverName};
use crate::keep::Keeper;
use crate::machine;
use crate::output;
use crate::progress::{Display, say};
use crate::quantity::{DiskCache, KvCodecs, plural};
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
    check_files(args)?;
    let mut keeper = args.snapshots.as_deref().map(Keeper::open).transpose()?;

    let directory = match &args.model {
        Some(directory) => directory.clone(),
        None => machine::shipped_model(machine::SHAPES).ok_or_else(|| {
            EngineError::Request("no checkpoint: the one that ships with evanesce was not found beside this program; name one with --model DIR".to_owned())
        })?,
    };
    let disk = args.disk_cache.as_ref().map(open_disk).transpose()?;
    let mut model = Model::open_holding(&directory, args.weights, budgets(args), disk)?;
    let load_s = started.elapsed().as_secs_f64();
    let waits = Arc::new(Waits::default());
    model.watch_waits(Arc::clone(&waits) as Arc<dyn WaitWatcher>);

    let mut display = Display::new();
    let mut recorder = Recorder::default();
    let outcome = drive(&model, args, &cancel, &mut display, &mut recorder, keeper.as_mut())?;
    if let Some(keeper) = keeper {
        keeper.forget();
    }
    let (times, total_s) = (display.into_times(), started.elapsed().as_secs_f64());
    let process_peak_bytes = machine::process_peak_bytes();
    let page = args.report.as_deref().map(|path| -> anyhow::Result<()> {
        let (prompt, video) = (args.prompt.as_deref().unwrap_or_default(), &args.output);
        // The page is there without this part, whatever became of the reference meanwhile.
        let (fidelity, compared) = match fidelity_of(args, &outcome) {
            Ok(fidelity) => (fidelity, Ok(())),
            Err(wrong) => (None, Err(wrong)),
        };
        let page = Page {
            waits: &waits,
            fidelity,
            prompt,
            video,
            outcome: &outcome,
            recorder: &recorder,
            times: &times,
            total_s,
            process_peak_bytes,
        };
        page.write(path)?;
        compared.map_err(Into::into)
    });
    // The video is there, whatever becomes of the page about it.
    Summary::new(&args.output, &outcome, &times, load_s, total_s, process_peak_bytes).print(args.json)?;
    page.unwrap_or(Ok(()))
}

fn open_disk(DiskCache { directory, bytes }: &DiskCache) -> Result<Disk, EngineError> {
    Disk::open(directory, *bytes as u64)
        .map_err(|error| EngineError::Request(format!("--disk-cache cannot be used: {error}")))
}

/// The reference, if there is one, and how far what was made is from it.
fn fidelity_of<'a>(
    args: &'a Generate,
    outcome: &Outcome,
) -> Result<Option<(&'a Path, Vec<Part>)>, EngineError> {
    let Some(reference) = args.reference.as_deref() else { return Ok(None) };
    let ours = args.frames_out.as_deref().unwrap_or(&args.output);
    let block_frames = outcome.spec.rollout.map_or(3, |rollout| rollout.block_frames);
    Ok(Some((reference, fidelity::compare(ours, reference, block_frames, None)?)))
}

/// Refuses files that could not be written, or would be written over each other or over what is read, before anything is opened.
fn check_files(args: &Generate) -> Result<(), EngineError> {
    let written = [
        ("--output", Some(&*args.output), "out.mp4"),
        ("--latents-out", args.latents_out.as_deref(), "latents.safetensors"),
        ("--frames-out", args.frames_out.as_deref(), "frames.safetensors"),
        ("--report", args.report.as_deref(), "report.html"),
    ];
    for (_, path, such_as) in written {
        if let Some(path) = path {
            output::check(path, such_as)?;
        }
    }
    let read = [
        ("--reference", args.reference.as_deref()),
        ("--noise-in", args.noise_in.as_deref()),
        ("--start-from", args.start_from.as_deref()),
        ("--kv-codec", args.kv_codec.as_ref().and_then(KvCodecs::file)),
    ];
    output::check_distinct(&written.map(|(flag, path, _)| (flag, path)), &read)
}

/// Refuses a reference that no video of this job could be compared with, or that cannot be read, before anything is computed.
fn check_reference(model: &Model, args: &Generate) -> Result<(), EngineError> {
    let Some(reference) = &args.reference else { return Ok(()) };
    let spec = JobSpec::new(request(args)?, model.checkpoint())?;
    let (wanted, held) = ([spec.frames, spec.height, spec.width], fidelity::shape_of(reference)?);
    if wanted != held {
        let said =
            |[frames, height, width]: [usize; 3]| format!("{} of {width}x{height}", plural(frames, "frame"));
        let message = format!("has {}, this video will have {}", said(held), said(wanted));
        return Err(EngineError::file(reference, message));
    }
    fidelity::read_through(reference)
}

fn drive(
    model: &Model,
    args: &Generate,
    cancel: &CancelToken,
    display: &mut Display,
    recorder: &mut Recorder,
    mut keeper: Option<&mut Keeper>,
) -> anyhow::Result<Outcome> {
    check_reference(model, args)?;
    let mut job = begin(model, args, cancel, keeper.as_deref_mut())?;
    let id = job.id();
    let mut lent = keeper.as_deref_mut();
    let ended = catch_unwind(AssertUnwindSafe(move || {
        let mut display = Bomb { events_left: args.panic_at, display };
        while advance(&mut job, &mut display, lent.as_deref_mut())?.is_more() {
            recorder.note(display.display.stage(), model.memory_now());
        }
        job.finish()
    }));
    let error = match ended {
        Ok(Ok(outcome)) => return Ok(outcome),
        Ok(Err(error)) => error.into(),
        Err(_) => anyhow!("a mistake in evanesce stopped the job; what it was stands above"),
    };
    let left_bytes = model.cache().owned_by(id).bytes.total();
    say(&match (left_bytes, model.cache().verify()) {
        (0, Ok(())) => "no video was made; every byte that the job held was returned".to_owned(),
        (bytes, Ok(())) => format!(
            "no video was made; {bytes} bytes of the job were not returned, which is a mistake in evanesce"
        ),
        (_, Err(wrong)) => format!("no video was made, and the cache contradicts itself: {wrong}"),
    });
    // However it ended: what was kept stands.
    if let Some(parting) = keeper.as_deref().and_then(Keeper::parting) {
        say(&parting);
    }
    Err(error)
}

/// The job, where it was kept last if it was.
fn begin<'m>(
    model: &'m Model,
    args: &Generate,
    cancel: &CancelToken,
    keeper: Option<&mut Keeper>,
) -> Result<JobRun<'m>, EngineError> {
    let kept = match keeper {
        Some(keeper) => keeper.resume(model, request(args)?, outputs(args), cancel.clone())?,
        None => None,
    };
    match kept {
        Some(job) => Ok(job),
        None => JobRun::admit(model, request(args)?, outputs(args), cancel.clone()),
    }
}

/// Does the next unit; a job that is to be kept is, when that is due.
fn advance(
    job: &mut JobRun<'_>,
    observer: &mut dyn Observer,
    keeper: Option<&mut Keeper>,
) -> Result<Progress, EngineError> {
    match keeper {
        Some(keeper) => keeper.advance(job, observer),
        None => job.advance(observer),
    }
}

/// Panics at an event, where a test asks for it.
struct Bomb<'a> {
    events_left: Option<usize>,
    display: &'a mut Display,
}

impl Observer for Bomb<'_> {
    fn on_event(&mut self, event: Event<'_>) {
        self.events_left =
            self.events_left.map(|left| left.checked_sub(1).expect("--panic-at asked for this"));
        self.display.on_event(event);
    }
}

fn budgets(args: &Generate) -> Budgets {
    let available_bytes = machine::available_bytes();
    Budgets {
        device_bytes: args.device_memory.unwrap_or(available_bytes / 4 * 3) as u64,
        host_bytes: args.host_memory.unwrap_or(available_bytes / 8) as u64,
    }
}

fn request(args: &Generate) -> Result<Request, EngineError> {
    let seed = args.seed.unwrap_or_else(machine::drawn_seed);
    let request = Request {
        boundary: args.boundary,
        shift: args.shift,
        solver: args.solver.map(|solver| match solver {
            SolverName::Unipc => Solver::UniPc,
            SolverName::Euler => Solver::Euler,
        }),
        noise_in: args.noise_in.clone(),
        start_from: args.start_from.clone(),
        kv_window: args.kv_window,
        kv_sink: args.kv_sink,
        unconditional: args.unconditional,
        ..args.clip.request(args.prompt.as_deref().unwrap_or_default(), seed)
    };
    KvCodecs::fill(args.kv_codec.as_ref(), request)
}

fn outputs(args: &Generate) -> Outputs {
    Outputs {
        video: VideoTarget::Mp4 { path: args.output.clone(), qp: args.quality, growing: args.growing },
        latents: args.latents_out.clone(),
        frames: args.frames_out.clone(),
    }
}
