//! The scheduler's choices: readable traces, properties, and a simulator that runs the same code over many jobs.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use evanesce_server::job::Class;
use evanesce_server::schedule::{Choice, Entry, Rules, Schedule, Seq};
use proptest::prelude::*;

/// Runs a script of `rules`, `arrive` and `run` lines; gives what was chosen, runs of the same choice on one line.
fn trace(script: &str) -> String {
    let number = |word: &str| word.parse::<u64>().unwrap();
    let (mut schedule, mut names, mut left) = (None, BTreeMap::new(), BTreeMap::new());
    let mut out = String::new();
    for line in script.lines().filter(|line| !line.is_empty()) {
        let words: Vec<_> = line.split_whitespace().collect();
        writeln!(out, "{line}").unwrap();
        match words[..] {
            ["rules", "bytes", bytes, "under-way", under_way, "ageing", units] => {
                schedule = Some(Schedule::new(Rules {
                    budget_bytes: number(bytes),
                    under_way_max: usize::try_from(number(under_way)).unwrap(),
                    ageing_units: u32::try_from(number(units)).unwrap(),
                }));
            }
            ["arrive", name, class, "units", units, "bytes", bytes, "deadline", deadline] => {
                let seq = Seq::try_from(names.len()).unwrap();
                let entry = Entry {
                    class: Class::from_name(class).unwrap(),
                    deadline: deadline.parse().ok(),
                    needed_bytes: number(bytes),
                    is_under_way: false,
                };
                schedule.as_mut().unwrap().arrive(seq, entry);
                names.insert(seq, name.to_owned());
                left.insert(seq, number(units));
            }
            ["run", units] => run(schedule.as_mut().unwrap(), number(units), &names, &mut left, &mut out),
            _ => panic!("{line}"),
        }
    }
    out
}

fn run(
    schedule: &mut Schedule,
    mut units: u64,
    names: &BTreeMap<Seq, String>,
    left: &mut BTreeMap<Seq, u64>,
    out: &mut String,
) {
    let mut same = (None, 0);
    let flush = |same: (Option<Seq>, u64), out: &mut String| {
        if let (Some(seq), n) = same {
            writeln!(out, "    {} x{n}", names[&seq]).unwrap();
        }
    };
    while units > 0 {
        match schedule.choose() {
            Choice::Idle => break,
            Choice::Start(seq) => {
                flush(std::mem::take(&mut same), out);
                writeln!(out, "    start {}", names[&seq]).unwrap();
                schedule.started(seq);
            }
            Choice::Advance(seq) => {
                if same.0 != Some(seq) {
                    flush(std::mem::replace(&mut same, (Some(seq), 0)), out);
                }
                same.1 += 1;
                units -= 1;
                schedule.served(seq);
                let left = left.get_mut(&seq).unwrap();
                *left -= 1;
                if *left == 0 {
                    schedule.leave(seq);
                    flush(std::mem::take(&mut same), out);
                    writeln!(out, "    done {}", names[&seq]).unwrap();
                }
            }
        }
    }
    flush(same, out);
}

#[test]
fn choices_are_those_of_the_golden_traces() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/schedule");
    let mut n_traces = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let golden = std::fs::read_to_string(&path).unwrap();
        let script: String =
            golden.lines().filter(|line| !line.starts_with("    ")).map(|line| format!("{line}\n")).collect();
        let made = trace(&script);
        if std::env::var_os("EVANESCE_WRITE_GOLDENS").is_some() {
            std::fs::write(&path, &made).unwrap();
        }
        assert_eq!(made, std::fs::read_to_string(&path).unwrap(), "{}", path.display());
        n_traces += 1;
    }
    assert!(n_traces >= 5);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes, every job ends, the budget and the places hold, and no unit is wasted while there is a job.
    #[test]
    fn every_job_ends_within_the_budget(
        jobs in prop::collection::vec((0_usize..3, 1_u64..12, 1_u64..=100, prop::option::of(0_i64..50)), 1..40),
        ageing_units in 1_u32..20,
        under_way_max in 1_usize..5,
    ) {
        let rules = Rules { budget_bytes: 100, under_way_max, ageing_units };
        let mut schedule = Schedule::new(rules);
        let mut left = BTreeMap::new();
        for (seq, (class, units, needed_bytes, deadline)) in (0..).zip(&jobs) {
            let entry = Entry { class: Class::ALL[*class], deadline: *deadline, needed_bytes: *needed_bytes, is_under_way: false };
            schedule.arrive(seq, entry);
            left.insert(seq, (*units, *needed_bytes));
        }
        let mut under_way = BTreeMap::new();
        let mut units = jobs.iter().map(|job| job.1).sum::<u64>();
        loop {
            match schedule.choose() {
                Choice::Idle => break,
                Choice::Start(seq) => {
                    prop_assert!(under_way.insert(seq, left[&seq].1).is_none());
                    schedule.started(seq);
                    prop_assert!(under_way.values().sum::<u64>() <= 100);
                    prop_assert!(under_way.len() <= under_way_max);
                }
                Choice::Advance(seq) => {
                    prop_assert!(under_way.contains_key(&seq));
                    units -= 1;
                    schedule.served(seq);
                    let job = left.get_mut(&seq).unwrap();
                    job.0 -= 1;
                    if job.0 == 0 {
                        schedule.leave(seq);
                        under_way.remove(&seq);
                    }
                }
            }
        }
        prop_assert_eq!(units, 0);
    }
}

/// A job of the simulator; times are in units of work.
#[derive(Clone, Copy)]
struct Synthetic {
    arrival: u64,
    class: Class,
    units: u64,
    deadline: Option<i64>,
}

/// A mix at 80 % of the machine: many short interactive jobs, standard ones, few long background ones.
fn mixed_jobs(n: usize) -> Vec<Synthetic> {
    let mut state = 0x1234_5678_u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut now = 0;
    let jobs = (0..n).map(|_| {
        let (class, units) = match random(100) {
            0..50 => (Class::Interactive, 10 + random(10)),
            50..85 => (Class::Standard, 30 + random(40)),
            _ => (Class::Background, 100 + random(200)),
        };
        // 54.8 units a job on average, over 68.5 units of time.
        now += random(137);
        let slack = if class == Class::Interactive { 4 } else { 20 };
        Synthetic { arrival: now, class, units, deadline: i64::try_from(now + slack * units).ok() }
    });
    jobs.collect()
}

/// When each job ended.
fn simulate(jobs: &[Synthetic], ageing_units: u32) -> Vec<u64> {
    let mut schedule = Schedule::new(Rules { budget_bytes: 4, under_way_max: 4, ageing_units });
    let mut left: Vec<u64> = jobs.iter().map(|job| job.units).collect();
    let mut ends = vec![0; jobs.len()];
    let (mut now, mut arrived) = (0, 0);
    loop {
        while arrived < jobs.len() && jobs[arrived].arrival <= now {
            let Synthetic { class, deadline, .. } = jobs[arrived];
            let entry = Entry { class, deadline, needed_bytes: 1, is_under_way: false };
            schedule.arrive(Seq::try_from(arrived).unwrap(), entry);
            arrived += 1;
        }
        match schedule.choose() {
            Choice::Idle if arrived == jobs.len() => return ends,
            Choice::Idle => now = jobs[arrived].arrival,
            Choice::Start(seq) => schedule.started(seq),
            Choice::Advance(seq) => {
                now += 1;
                schedule.served(seq);
                let at = usize::try_from(seq).unwrap();
                left[at] -= 1;
                if left[at] == 0 {
                    schedule.leave(seq);
                    ends[at] = now;
                }
            }
        }
    }
}

/// Whole jobs, first in, first out: what servers of this kind do.
fn first_in_first_out(jobs: &[Synthetic]) -> Vec<u64> {
    let mut now = 0;
    jobs.iter()
        .map(|job| {
            now = job.arrival.max(now) + job.units;
            now
        })
        .collect()
}

fn p99_wait(jobs: &[Synthetic], ends: &[u64], class: Class) -> u64 {
    let of_class = jobs.iter().zip(ends).filter(|(job, _)| job.class == class);
    let mut waits: Vec<_> = of_class.map(|(job, end)| end - job.arrival).collect();
    waits.sort_unstable();
    waits[waits.len() * 99 / 100]
}

fn met(jobs: &[Synthetic], ends: &[u64]) -> usize {
    jobs.iter().zip(ends).filter(|(job, end)| i64::try_from(**end).unwrap() <= job.deadline.unwrap()).count()
}

#[test]
fn a_hundred_thousand_jobs_all_end_and_interactive_ones_five_times_sooner_than_first_in_first_out() {
    let jobs = mixed_jobs(100_000);
    let (ours, fifo) = (simulate(&jobs, 32), first_in_first_out(&jobs));
    assert!(ours.iter().all(|end| *end > 0));
    // The same work is done by the same time: choosing costs none of it.
    assert_eq!(ours.iter().max(), fifo.iter().max());
    let [ours_p99, fifo_p99] = [&ours, &fifo].map(|ends| p99_wait(&jobs, ends, Class::Interactive));
    println!("interactive p99: {ours_p99} units, first in first out {fifo_p99}");
    println!("deadlines met: {} and {} of {}", met(&jobs, &ours), met(&jobs, &fifo), jobs.len());
    for class in [Class::Standard, Class::Background] {
        let [ours, fifo] = [&ours, &fifo].map(|ends| p99_wait(&jobs, ends, class));
        println!("{} p99: {ours} units, first in first out {fifo}", class.as_str());
    }
    assert!(ours_p99 * 5 <= fifo_p99, "{ours_p99} against {fifo_p99}");
    assert!(met(&jobs, &ours) * 5 >= met(&jobs, &fifo) * 6);
}

#[test]
fn background_ends_even_when_interactive_jobs_never_stop_coming() {
    let mut jobs = vec![Synthetic { arrival: 0, class: Class::Background, units: 20, deadline: None }];
    // More interactive work than the machine can do.
    jobs.extend((0..200).map(|at| Synthetic {
        arrival: at * 10,
        class: Class::Interactive,
        units: 15,
        deadline: None,
    }));
    let ends = simulate(&jobs, 32);
    assert!(ends[0] <= 20 * 33 + 33, "{}", ends[0]);
    assert!(ends[0] < *ends.iter().max().unwrap());
}
