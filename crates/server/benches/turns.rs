//! What taking turns is worth on a real machine. First the guarantee: background fills the device, and interactive jobs come at any
//! moment. Then a mix of jobs at 80 % of what the machine can do, served as the service does and as a queue of whole jobs would be.
//!
//! ```text
//! cargo bench -p evanesce-server --bench turns -- [guarantee | mixed | both] [jobs of the mix = 60] [rounds = 3]
//! ```
//!
//! Rounds alternate which of the two comes first, since what else the machine does comes and goes; besides the time, the time on
//! the processor is compared.
#![expect(clippy::unwrap_used, reason = "a bench that cannot be set up has failed")]
#![expect(clippy::print_stdout, reason = "its results")]
#![expect(clippy::disallowed_methods, reason = "benches measure time")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use evanesce_engine::{Budgets, JobSpec, Model, Request, RequestedLength};
use evanesce_server::Config;
use serde_json::{Value, json};
use support::{Client, Running, config, shipped, start_over};

/// A job of the shipped checkpoint at 64 x 64.
#[derive(Clone, Copy)]
struct Shape {
    class: &'static str,
    frames: usize,
    steps: u64,
}

impl Shape {
    fn request(self, seed: u64) -> Value {
        json!({"prompt": "a red ball moving to the left on a black background", "size": "64x64", "num_frames": self.frames,
            "num_inference_steps": self.steps, "seed": seed, "priority": self.class})
    }
}

/// Bytes of the device in which the longest jobs run, one at a time.
fn device_for_one(frames: usize) -> u64 {
    let ample = Budgets { device_bytes: 2 << 30, host_bytes: 1 << 30 };
    let model = Model::open(&shipped(), ample).unwrap();
    let length = Some(RequestedLength::Frames(frames));
    let request = Request { size: Some((64, 64)), length, ..Request::new("a red ball", 1) };
    model.device_bytes_needed(&JobSpec::new(request, model.checkpoint()).unwrap()).unwrap()
}

fn service(data: &Path, change: impl FnOnce(&mut Config)) -> Running {
    let mut config = config(data);
    change(&mut config);
    let budgets = Budgets { device_bytes: device_for_one(81), host_bytes: 1 << 30 };
    start_over(shipped(), config, budgets).unwrap()
}

fn metric(client: &Client, name: &str) -> f64 {
    let text = client.get("/metrics").text();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0.0)
}

/// The mean of a histogram, in milliseconds, and how many it has.
fn mean_ms(client: &Client, name: &str, label: &str) -> (f64, f64) {
    let of = |what: &str| metric(client, &format!("{name}_{what}{{{label}}}"));
    (1000.0 * of("sum") / of("count").max(1.0), of("count"))
}

/// Makes a video; when it began to be made, and when it was there.
fn make(client: &Client, request: &Value) -> (Duration, Duration) {
    let asked = Instant::now();
    let id = client.create(request);
    let mut began = None;
    for (_, video) in client.events(&format!("/v1/videos/{id}/events")) {
        if video["phase"] != "queued" {
            began.get_or_insert_with(|| asked.elapsed());
        }
        assert!(video["status"] != "failed", "{video}");
    }
    (began.unwrap_or_default(), asked.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn guarantee() {
    let dir = tempfile::tempdir().unwrap();
    let running = service(dir.path(), |_| {});
    let client = running.client();
    let quick = Shape { class: "interactive", frames: 81, steps: 60 };
    make(&client, &quick.request(0));
    let rounds = 1..=5_u64;
    let alone = median(rounds.clone().map(|seed| make(&client, &quick.request(seed)).1).collect());
    let slow = Shape { class: "background", frames: 81, steps: 150 };
    let background: Vec<_> = (0..3).map(|seed| client.create(&slow.request(seed))).collect();
    let mut began = Vec::new();
    let mut among = Vec::new();
    for seed in rounds {
        // Some moment in the middle of a background unit.
        std::thread::sleep(Duration::from_millis(250 + 37 * seed));
        let (begin, end) = make(&client, &quick.request(seed));
        began.push(begin);
        among.push(end);
    }
    let open = |id: &&String| client.get(&format!("/v1/videos/{id}")).json()["status"] != "completed";
    let still_open = background.iter().filter(open).count();
    println!("interactive alone {alone:.2?}; among background {among:.2?}");
    let most = began.iter().max().unwrap();
    println!("it began after {began:.2?}, at most {most:.2?}");
    println!(
        "latency {:.3} times that of being alone (median)",
        median(among).as_secs_f64() / alone.as_secs_f64()
    );
    let (step_ms, steps) = mean_ms(&client, "evanesce_unit_seconds", "stage=\"denoise\"");
    println!("a denoising step takes {step_ms:.1} ms (mean of {steps})");
    assert!(still_open > 0, "background was done before it could be in the way");
    for id in &background {
        assert_eq!(client.wait(id)["status"], "completed");
    }
    let moved = |how: &str| metric(&client, &format!("evanesce_job_moves_total{{how=\"{how}\"}}"));
    let moves = ["parked_in_host", "parked_in_snapshot", "resumed"].map(|how| (how, moved(how)));
    println!("{still_open} background jobs were under way throughout, and all finished; {moves:?}");
    for name in ["evanesce_snapshot_pause_seconds", "evanesce_snapshot_seconds"] {
        let (ms, n) = mean_ms(&client, name, "how=\"taken\"");
        println!("{name}: {ms:.2} ms (mean of {n})");
    }
}

/// A job of the mix, and when it comes.
#[derive(Clone, Copy)]
struct Arrival {
    at: Duration,
    shape: Shape,
    deadline: Duration,
}

/// The mix of the simulator: half of the jobs interactive and short, a third standard, the rest long background jobs.
fn mix(n_jobs: usize, step: impl Fn(Shape) -> Duration) -> Vec<Arrival> {
    let mut state = 0x1234_5678_u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut jobs: Vec<_> = (0..n_jobs)
        .map(|_| {
            let (class, frames, steps) = match random(100) {
                0..50 => ("interactive", 17, 10 + random(10)),
                50..85 => ("standard", 41, 20 + random(30)),
                _ => ("background", 81, 40 + random(80)),
            };
            (Shape { class, frames, steps }, random(1000))
        })
        .map(|(shape, dice)| {
            let slack = if shape.class == "interactive" { 4 } else { 20 };
            (Arrival { at: Duration::ZERO, shape, deadline: slack * step(shape) }, dice)
        })
        .collect();
    let work: Duration = jobs.iter().map(|(job, _)| step(job.shape)).sum();
    let dice: u64 = jobs.iter().map(|(_, dice)| dice).sum();
    let mut now = Duration::ZERO;
    for (job, gap) in &mut jobs {
        now += work.mul_f64(*gap as f64 / dice as f64 / 0.8);
        job.at = now;
    }
    jobs.into_iter().map(|(job, _)| job).collect()
}

/// What became of the mix: how long each job took from its arrival, and how long the machine had something to do, by the clock
/// and on its processors.
struct Served {
    took: Vec<Duration>,
    busy_s: f64,
    processors_s: f64,
}

/// Seconds that all threads of this process have had on processors.
fn processors_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The name of the program may hold spaces; after it come 11 fields, then the ticks in user and in kernel mode, 100 a second.
    let fields = stat[stat.rfind(')').unwrap()..].split(' ').skip(12);
    fields.take(2).map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

fn serve(jobs: &[Arrival], in_turns: bool) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let running = service(dir.path(), |config| {
        if !in_turns {
            config.queue.under_way_max = 1;
        }
    });
    let client = running.client();
    make(&client, &Shape { class: "interactive", frames: 17, steps: 5 }.request(0));
    let ends = Arc::new(Mutex::new(vec![(Duration::ZERO, Duration::ZERO); jobs.len()]));
    let (begun, used_s) = (Instant::now(), processors_s());
    let waiting: Vec<_> = (0..)
        .zip(jobs)
        .map(|(at, job)| {
            std::thread::sleep(job.at.saturating_sub(begun.elapsed()));
            let mut request = job.shape.request(at);
            if in_turns {
                request["deadline_s"] = json!(job.deadline.as_secs_f64());
            } else {
                request["priority"] = json!("standard");
            }
            let (client, ends) = (client.clone(), Arc::clone(&ends));
            let came = begun.elapsed();
            let id = client.create(&request);
            std::thread::spawn(move || {
                assert_eq!(client.wait(&id)["status"], "completed");
                ends.lock().unwrap()[usize::try_from(at).unwrap()] = (came, begun.elapsed());
            })
        })
        .collect();
    waiting.into_iter().for_each(|thread| thread.join().unwrap());
    let processors_s = processors_s() - used_s;
    let spans = ends.lock().unwrap().clone();
    let (mut busy, mut until) = (Duration::ZERO, Duration::ZERO);
    for (came, end) in &spans {
        busy += end.saturating_sub(until.max(*came));
        until = until.max(*end);
    }
    let moved = |how: &str| metric(&client, &format!("evanesce_job_moves_total{{how=\"{how}\"}}"));
    println!("    {:?}", ["parked_in_host", "parked_in_snapshot", "resumed"].map(|how| (how, moved(how))));
    for stage in ["text", "noise", "denoise", "decode", "encode"] {
        let (ms, n) = mean_ms(&client, "evanesce_unit_seconds", &format!("stage=\"{stage}\""));
        println!("    {stage}: {n} units, {:.2} s", ms * n / 1000.0);
    }
    for name in ["evanesce_snapshot_pause_seconds", "evanesce_snapshot_seconds"] {
        let (ms, n) = mean_ms(&client, name, "how=\"taken\"");
        println!("    {name}: {n} times, {:.2} s", ms * n / 1000.0);
    }
    let took = spans.iter().map(|(came, end)| *end - *came).collect();
    Served { took, busy_s: busy.as_secs_f64(), processors_s }
}

fn p99(jobs: &[Arrival], served: &Served, class: &str) -> Duration {
    let of_class = jobs.iter().zip(&served.took).filter(|(job, _)| job.shape.class == class);
    let mut times: Vec<_> = of_class.map(|(_, took)| *took).collect();
    times.sort();
    times[times.len() * 99 / 100]
}

fn mixed(n_jobs: usize, rounds: usize) {
    // What each shape takes alone: the median of three.
    let dir = tempfile::tempdir().unwrap();
    let running = service(dir.path(), |_| {});
    let client = running.client();
    let alone = [17, 41, 81].map(|frames| {
        let time = |steps: u64| {
            let shape = Shape { class: "interactive", frames, steps };
            make(&client, &shape.request(1));
            median((0..3).map(|seed| make(&client, &shape.request(seed)).1).collect()).as_secs_f64()
        };
        let (few, many) = (time(10), time(40));
        let step = (many - few) / 30.0;
        (frames, few - 10.0 * step, step)
    });
    drop(running);
    for (frames, base, step) in alone {
        println!("{frames} frames: {:.0} ms and {:.1} ms a step", base * 1000.0, step * 1000.0);
    }
    let jobs = mix(n_jobs, |shape| {
        let (_, base, step) = alone.into_iter().find(|(frames, ..)| *frames == shape.frames).unwrap();
        Duration::from_secs_f64(base.max(0.0) + step * shape.steps as f64)
    });
    println!("{} jobs over {:.1?} at 80 % load", jobs.len(), jobs.last().unwrap().at);
    let mut ratios = Vec::new();
    for round in 0..rounds {
        let mut served = [round % 2 == 0, round % 2 != 0].map(|in_turns| (in_turns, serve(&jobs, in_turns)));
        served.sort_by_key(|(in_turns, _)| !in_turns);
        let [(_, ours), (_, fifo)] = served;
        compare(&jobs, &ours, &fifo);
        ratios.push([fifo.busy_s / ours.busy_s, fifo.processors_s / ours.processors_s]);
    }
    let [time, processors] = [0, 1].map(|at| {
        let mut all: Vec<_> = ratios.iter().map(|ratio| ratio[at]).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    });
    println!(
        "in {rounds} rounds: {time:.3} times the work in the same time, {processors:.3} times on the processors (medians)"
    );
}

fn compare(jobs: &[Arrival], ours: &Served, fifo: &Served) {
    let met =
        |served: &Served| jobs.iter().zip(&served.took).filter(|(job, took)| **took <= job.deadline).count();
    for class in ["interactive", "standard", "background"] {
        let [ours, fifo] = [ours, fifo].map(|served| p99(jobs, served, class));
        let ratio = fifo.as_secs_f64() / ours.as_secs_f64();
        println!("{class} p99: {ours:.2?}, first in first out {fifo:.2?} ({ratio:.2} times)");
    }
    let (ours_met, fifo_met) = (met(ours), met(fifo));
    println!(
        "deadlines met: {ours_met} and {fifo_met} of {} ({:.2} times)",
        jobs.len(),
        ours_met as f64 / fifo_met as f64
    );
    let (time, processors) = (fifo.busy_s / ours.busy_s, fifo.processors_s / ours.processors_s);
    println!(
        "busy {:.1} s and {:.1} s: {time:.3} times the work in the same time; on the processors {:.1} s and {:.1} s: {processors:.3}",
        ours.busy_s, fifo.busy_s, ours.processors_s, fifo.processors_s
    );
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let what = words.first().map_or("both", String::as_str);
    if what != "mixed" {
        guarantee();
    }
    if what != "guarantee" {
        let number = |at: usize, default| words.get(at).and_then(|n| n.parse().ok()).unwrap_or(default);
        mixed(number(1, 60), number(2, 3));
    }
}
