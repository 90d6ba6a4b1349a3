//! Many jobs of mixed shapes by turns, kept, parked, resumed, cancelled, failing and panicking: every byte comes back, and what
//! is made is what each makes alone.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use evanesce_cache::Tier;
use evanesce_engine::progress::{Event, Observer};
use evanesce_engine::snapshot::{SnapshotDirectory, SnapshotMode};
use evanesce_engine::video::{FrameSink, Result as VideoResult, VideoError, VideoSummary};
use evanesce_engine::{
    CancelToken, EngineError, JobRun, Model, Outputs, Request, RequestedLength, Silent, VideoTarget,
};
use support::rollout::causal_checkpoint;
use support::{AMPLE, Kept, golden};

/// A small linear congruential generator: the same campaign in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Shapes of a job, few enough to know what each makes alone.
fn request(shape: u64) -> Request {
    let size = [(32, 32), (48, 32), (32, 64)][usize::try_from(shape % 3).unwrap()];
    let frames = [5, 21, 37][usize::try_from(shape / 3 % 3).unwrap()];
    Request {
        size: Some(size),
        length: Some(RequestedLength::Frames(frames)),
        steps: Some(2 + usize::try_from(shape % 4).unwrap()),
        guidance_high: Some(if shape.is_multiple_of(2) { 3.0 } else { 1.0 }),
        guidance_low: Some(2.0),
        ..Request::new(["a red ball", "a blue cube that turns"][usize::try_from(shape % 2).unwrap()], shape)
    }
}
const SHAPES: u64 = 18;

/// Fails at the n-th frame.
struct Failing(u64);

impl FrameSink for Failing {
    fn push(&mut self, _rgb: &[f32]) -> VideoResult<()> {
        self.0 = self.0.saturating_sub(1);
        if self.0 == 0 { Err(VideoError::Empty) } else { Ok(()) }
    }

    fn finish(self: Box<Self>) -> VideoResult<VideoSummary> {
        Err(VideoError::Empty)
    }
}

struct PanicAt(u64);

impl Observer for PanicAt {
    fn on_event(&mut self, _event: Event<'_>) {
        self.0 = self.0.saturating_sub(1);
        assert!(self.0 > 0, "injected");
    }
}

/// How a job is to end.
enum Fate {
    Video(Kept),
    Cancelled(CancelToken, u64),
    Fails,
    Panics(PanicAt),
}

struct Player<'m> {
    run: Option<JobRun<'m>>,
    model: usize,
    shape: u64,
    fate: Fate,
    snapshot: SnapshotDirectory,
}

fn outputs(fate: &Fate, dice: &mut Dice) -> Outputs {
    match fate {
        Fate::Video(kept) => kept.outputs(),
        Fate::Fails => {
            let sink = Box::new(Failing(1 + dice.roll(6)));
            Outputs { video: VideoTarget::Sink(sink), latents: None, frames: None }
        }
        Fate::Cancelled(..) | Fate::Panics(_) => Kept::default().outputs(),
    }
}

/// What a process holds, in bytes.
fn process_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Jobs that were done in each way, and what the process held after each twentieth of them.
struct Tally {
    videos: u64,
    ended_otherwise: u64,
    process_bytes: Vec<u64>,
}

fn campaign(n_jobs: u64, seed: u64) -> Tally {
    let causal = causal_checkpoint("window");
    let models =
        [golden("checkpoint"), causal.path().to_path_buf()].map(|dir| Model::open(&dir, AMPLE).unwrap());
    let mut alone: BTreeMap<(usize, u64), Vec<f32>> = BTreeMap::new();
    for (at, model) in models.iter().enumerate() {
        for shape in 0..SHAPES {
            alone.insert((at, shape), support::pictures(model, request(shape)));
        }
    }
    let baseline = models.each_ref().map(|model| model.counters().tier(Tier::Device).used_bytes);
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice(seed);
    let mut tally = Tally { videos: 0, ended_otherwise: 0, process_bytes: Vec::new() };
    let (mut begun, mut under_way): (u64, Vec<Player<'_>>) = (0, Vec::new());
    while begun < n_jobs || !under_way.is_empty() {
        if begun < n_jobs && under_way.len() < 4 && dice.roll(3) == 0 || under_way.is_empty() {
            under_way.push(begin(&models, begun, dir.path(), &mut dice));
            begun += 1;
        }
        let at = usize::try_from(dice.roll(under_way.len() as u64)).unwrap();
        if let Some(is_video) = turn(&models, &mut under_way[at], &alone, &mut dice) {
            let player = under_way.swap_remove(at);
            player.snapshot.remove().unwrap();
            tally.videos += u64::from(is_video);
            tally.ended_otherwise += u64::from(!is_video);
            let ended = tally.videos + tally.ended_otherwise;
            if ended.is_multiple_of((n_jobs / 20).max(1)) {
                tally.process_bytes.push(process_bytes());
            }
        }
    }
    for (model, baseline) in models.iter().zip(baseline) {
        let counters = model.counters();
        assert_eq!(counters.tier(Tier::Device).used_bytes, baseline, "used bytes return to the baseline");
        assert_eq!((counters.tier(Tier::Host).used_bytes, counters.jobs), (0, 0));
        model.cache().verify().unwrap();
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    tally
}

fn begin<'m>(models: &'m [Model; 2], number: u64, dir: &std::path::Path, dice: &mut Dice) -> Player<'m> {
    let (model, shape) = (usize::try_from(dice.roll(2)).unwrap(), dice.roll(SHAPES));
    let cancel = CancelToken::new();
    let fate = match dice.roll(10) {
        0..6 => Fate::Video(Kept::default()),
        6..8 => Fate::Cancelled(cancel.clone(), 1 + dice.roll(12)),
        8 => Fate::Fails,
        _ => Fate::Panics(PanicAt(1 + dice.roll(20))),
    };
    let outputs = outputs(&fate, dice);
    let run = JobRun::admit(&models[model], request(shape), outputs, cancel).unwrap();
    let snapshot = SnapshotDirectory::new(dir.join(number.to_string()));
    Player { run: Some(run), model, shape, fate, snapshot }
}

/// One unit of a job, or something done to it. Whether it made its video, once it has ended.
fn turn<'m>(
    models: &'m [Model; 2],
    player: &mut Player<'m>,
    alone: &BTreeMap<(usize, u64), Vec<f32>>,
    dice: &mut Dice,
) -> Option<bool> {
    let mut run = player.run.take().unwrap();
    let advanced = match &mut player.fate {
        Fate::Panics(panic) => {
            let outcome = catch_unwind(AssertUnwindSafe(|| run.advance(panic)));
            let Ok(advanced) = outcome else { return Some(false) };
            advanced
        }
        Fate::Cancelled(cancel, left) => {
            *left = left.saturating_sub(1);
            if *left == 0 {
                cancel.cancel();
            }
            run.advance(&mut Silent)
        }
        Fate::Video(_) | Fate::Fails => run.advance(&mut Silent),
    };
    let more = match advanced {
        Ok(progress) => progress.is_more(),
        Err(EngineError::Cancelled) => return Some(false),
        Err(error) => {
            assert!(matches!(player.fate, Fate::Fails), "{error}");
            return Some(false);
        }
    };
    if !more {
        let id = run.id();
        // One that was to fail or panic may have been done before.
        let made = run.finish().is_ok();
        let held = models[player.model].cache().owned_by(id);
        assert_eq!(held.bytes.total(), 0);
        if let Fate::Video(kept) = &player.fate {
            assert!(kept.take() == alone[&(player.model, player.shape)], "shape {} differs", player.shape);
        }
        return Some(made && matches!(player.fate, Fate::Video(_)));
    }
    match dice.roll(8) {
        0 => assert_eq!(run.park(), 0),
        1 => drop(run.snapshot(&player.snapshot, SnapshotMode::Full).unwrap()),
        // A crash: what is not in the snapshot is done again.
        2 if matches!(player.fate, Fate::Video(_))
            && run.snapshot(&player.snapshot, SnapshotMode::Compact).unwrap().is_some() =>
        {
            drop(run);
            let (model, outputs) = (&models[player.model], outputs(&player.fate, dice));
            let again = (request(player.shape), outputs, CancelToken::new());
            run = JobRun::resume(model, again.0, again.1, again.2, &player.snapshot).unwrap().unwrap();
        }
        _ => {}
    }
    player.run = Some(run);
    None
}

#[test]
fn every_byte_comes_back_from_jobs_that_end_in_every_way() {
    let tally = campaign(40, 7);
    assert!(tally.videos > 10 && tally.ended_otherwise > 5, "{} {}", tally.videos, tally.ended_otherwise);
}

/// Least squares over the second half, in bytes for each job.
#[test]
#[ignore = "two thousand jobs take minutes"]
fn two_thousand_jobs_leave_the_process_as_large_as_it_was() {
    // What is said of them is kept until the test ends, and would count.
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload().downcast_ref::<&str>() != Some(&"injected") {
            say(panic);
        }
    }));
    let n_jobs = 2000;
    let tally = campaign(n_jobs, 11);
    let samples = &tally.process_bytes[tally.process_bytes.len() / 4..];
    let n = samples.len() as f64;
    let x_mean = (n - 1.0) / 2.0;
    let y_mean = samples.iter().map(|bytes| *bytes as f64).sum::<f64>() / n;
    let (mut above, mut below) = (0.0, 0.0);
    for (x, bytes) in samples.iter().enumerate() {
        above += (x as f64 - x_mean) * (*bytes as f64 - y_mean);
        below += (x as f64 - x_mean).powi(2);
    }
    let per_job = above / below / (n_jobs as f64 / 20.0);
    println!("{} videos, {} ended otherwise", tally.videos, tally.ended_otherwise);
    println!("process memory by twentieths: {:?}", tally.process_bytes);
    println!("slope: {per_job:.0} bytes a job");
    assert!(per_job.abs() <= 2000.0, "{per_job} bytes a job");
}
