//! The scheduler's choices: readable traces, properties, and a simulator that runs the same code over many jobs.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]
#![expect(clippy::print_stdout, reason = "the simulator's figures, for whoever runs it alone")]
#![expect(clippy::cast_possible_truncation, reason = "shares of a hundred bytes are small")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use evanesce_server::config::ClassesConfig;
use evanesce_server::job::Class;
use evanesce_server::schedule::{
    Choice, DiskShares, Entry, Place, Quota, Quotas, Room, Rules, Schedule, Seq, Share,
};
use proptest::prelude::*;

/// How long a job waits that could not go on or be saved: the first time, and at most.
const SPANS: (i64, i64) = (1000, 30_000);

/// Runs a script of `rules`, `quota`, `room`, `arrive` and `run` lines; gives what was chosen, runs of the same choice on one
/// line. A unit takes one tick; a job holds as many bytes as it needs.
fn trace(script: &str) -> String {
    let number = |word: &str| word.parse::<u64>().unwrap();
    let mut rules = Rules {
        room: Room { device_bytes: 0, host_bytes: 0 },
        under_way_max: 1,
        ageing_units: 1,
        quotas: [Quotas::default(); 3],
    };
    let mut stage = Stage::default();
    for line in script.lines().filter(|line| !line.is_empty()) {
        let words: Vec<_> = line.split_whitespace().collect();
        writeln!(stage.out, "{line}").unwrap();
        match words[..] {
            ["rules", "bytes", bytes, "under-way", under_way, "ageing", units, "host", host] => {
                rules.room = Room { device_bytes: number(bytes), host_bytes: number(host) };
                rules.under_way_max = usize::try_from(number(under_way)).unwrap();
                rules.ageing_units = u32::try_from(number(units)).unwrap();
            }
            ["quota", class, "device", guarantee, limit] => {
                let quota = Quota { guarantee: guarantee.parse().unwrap(), limit: limit.parse().unwrap() };
                rules.quotas[Class::from_name(class).unwrap() as usize].device = quota;
            }
            ["room", device, host] => {
                let room = Room { device_bytes: number(device), host_bytes: number(host) };
                stage.schedule(rules).set_room(room);
            }
            ["arrive", name, class, "units", units, "bytes", bytes, "deadline", deadline, ref more @ ..] => {
                let seq = Seq::try_from(stage.names.len()).unwrap();
                let mut entry = Entry::new(Class::from_name(class).unwrap(), number(bytes));
                entry.deadline = deadline.parse().ok();
                entry.held_bytes = entry.needed_bytes;
                entry.left = i64::try_from(number(units)).ok();
                if let ["swap", swap] = more {
                    entry.swap = swap.parse().unwrap();
                }
                stage.schedule(rules).arrive(seq, entry);
                stage.names.insert(seq, name.to_owned());
                stage.left.insert(seq, number(units));
            }
            ["run", units] => stage.run(rules, number(units)),
            _ => panic!("{line}"),
        }
    }
    stage.out
}

/// What a script is about.
#[derive(Default)]
struct Stage {
    schedule: Option<Schedule>,
    names: BTreeMap<Seq, String>,
    left: BTreeMap<Seq, u64>,
    now: i64,
    out: String,
}

impl Stage {
    fn schedule(&mut self, rules: Rules) -> &mut Schedule {
        self.schedule.get_or_insert_with(|| Schedule::new(rules))
    }

    fn run(&mut self, rules: Rules, mut units: u64) {
        let mut same = (None, 0);
        while units > 0 {
            let now = self.now;
            let choice = self.schedule(rules).choose(now);
            if !matches!(choice, Choice::Advance(_)) {
                self.flush(std::mem::take(&mut same));
            }
            let (what, seq, place) = match choice {
                Choice::Idle => break,
                Choice::Start(seq) => ("start", seq, Place::Device),
                Choice::Resume(seq) => ("resume", seq, Place::Device),
                Choice::Park(seq, Place::Host) => ("park", seq, Place::Host),
                Choice::Park(seq, place) => ("park in its snapshot", seq, place),
                Choice::Advance(seq) => {
                    if same.0 != Some(seq) {
                        self.flush(std::mem::replace(&mut same, (Some(seq), 0)));
                    }
                    same.1 += 1;
                    units -= 1;
                    self.now += 1;
                    let schedule = self.schedule(rules);
                    schedule.served(seq, 1);
                    let entry = schedule.entry_mut(seq).unwrap();
                    entry.left = entry.left.map(|left| left - 1);
                    let left = self.left.get_mut(&seq).unwrap();
                    *left -= 1;
                    if *left == 0 {
                        self.schedule(rules).leave(seq);
                        self.flush(std::mem::take(&mut same));
                        writeln!(self.out, "    done {}", self.names[&seq]).unwrap();
                    }
                    continue;
                }
            };
            writeln!(self.out, "    {what} {}", self.names[&seq]).unwrap();
            self.schedule(rules).moved(seq, place);
        }
        self.flush(same);
    }

    fn flush(&mut self, (seq, n): (Option<Seq>, u64)) {
        if let Some(seq) = seq {
            writeln!(self.out, "    {} x{n}", self.names[&seq]).unwrap();
        }
    }
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
    assert!(n_traces >= 12);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes, every job ends, budgets, quotas and places hold, and no unit is wasted while there is a job.
    #[test]
    fn every_job_ends_within_the_budget(
        jobs in prop::collection::vec((0_usize..3, 1_u64..12, 1_u64..=100, prop::option::of(0_i64..50)), 1..40),
        ageing_units in 1_u32..20,
        under_way_max in 1_usize..5,
        host_bytes in 0_u64..200,
        (guarantee, limit, swap) in (0.0..0.4_f64, 0.5..=1.0_f64, 0_i64..3),
    ) {
        let device = Quota { guarantee, limit };
        let quotas = [Quotas::default(), Quotas::default(), Quotas { device, host: Quota::default() }];
        let rules = Rules { room: Room { device_bytes: 100, host_bytes }, under_way_max, ageing_units, quotas };
        // None is past the limit of its class by itself: such a job is refused.
        let most = |class: usize| if class == 2 { (limit * 100.0) as u64 } else { 100 };
        let jobs: Vec<_> = jobs.iter().map(|job| (job.0, job.1, job.2.min(most(job.0)), job.3)).collect();
        let mut schedule = Schedule::new(rules);
        let mut left = BTreeMap::new();
        for (seq, (class, units, bytes, deadline)) in (0..).zip(&jobs) {
            let entry = Entry { deadline: *deadline, held_bytes: *bytes, swap, ..Entry::new(Class::ALL[*class], *bytes) };
            schedule.arrive(seq, entry);
            left.insert(seq, *units);
        }
        let mut units = jobs.iter().map(|job| job.1).sum::<u64>();
        let (mut now, mut moves) = (0, 0);
        loop {
            let on = |place| {
                let is_there = |entry: &Entry| entry.place == place;
                let there: Vec<_> =
                    (0..).zip(&jobs).filter(|(seq, _)| schedule.entry(*seq).is_some_and(is_there)).collect();
                there.into_iter()
            };
            let (device_bytes, n) = on(Place::Device).fold((0, 0), |(bytes, n), (_, job)| (bytes + job.2, n + 1));
            prop_assert!(device_bytes <= 100 && n <= under_way_max);
            prop_assert!(on(Place::Host).map(|(_, job)| job.2).sum::<u64>() <= host_bytes);
            let background: u64 = on(Place::Device).filter(|(_, job)| job.0 == 2).map(|(_, job)| job.2).sum();
            prop_assert!(background as f64 <= limit * 100.0);
            let choice = schedule.choose(now);
            match choice {
                Choice::Idle => break,
                Choice::Start(seq) => schedule.moved(seq, Place::Device),
                Choice::Resume(seq) => schedule.moved(seq, Place::Device),
                Choice::Park(seq, place) => schedule.moved(seq, place),
                Choice::Advance(seq) => {
                    prop_assert_eq!(schedule.entry(seq).unwrap().place, Place::Device);
                    (units, now, moves) = (units - 1, now + 1, 0);
                    schedule.served(seq, 1);
                    let units_left = left.get_mut(&seq).unwrap();
                    *units_left -= 1;
                    if *units_left == 0 {
                        schedule.leave(seq);
                    }
                    continue;
                }
            }
            // What is moved serves the unit that comes next.
            moves += 1;
            prop_assert!(moves <= 2 * jobs.len(), "{choice:?}");
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

/// What a simulated machine did.
struct Run {
    /// When each job ended.
    ends: Vec<u64>,
    /// Time that moves between device and host took.
    moving: u64,
}

/// The device holds 100: one background job, or one standard one beside an interactive one.
fn needed_bytes(class: Class) -> u64 {
    match class {
        Class::Interactive => 40,
        Class::Standard => 60,
        Class::Background => 80,
    }
}

/// Runs jobs over the schedule that the service uses; each move to or from the device takes `moved_ticks` of the
/// `unit_ticks` that a unit takes. Times of the result are in ticks.
fn simulate(jobs: &[Synthetic], ageing_units: u32, (unit_ticks, moved_ticks): (u64, u64)) -> Run {
    let ticks = |units: u64| i64::try_from(units * unit_ticks).unwrap();
    let rules = Rules {
        room: Room { device_bytes: 100, host_bytes: 1000 },
        under_way_max: 4,
        ageing_units,
        quotas: [Quotas::default(); 3],
    };
    let mut schedule = Schedule::new(rules);
    let mut left: Vec<u64> = jobs.iter().map(|job| job.units).collect();
    let mut run = Run { ends: vec![0; jobs.len()], moving: 0 };
    let (mut now, mut arrived) = (0, 0);
    loop {
        while arrived < jobs.len() && jobs[arrived].arrival * unit_ticks <= now {
            let Synthetic { class, deadline, units, .. } = jobs[arrived];
            let mut entry = Entry::new(class, needed_bytes(class));
            entry.deadline = deadline.map(|units| units * i64::try_from(unit_ticks).unwrap());
            (entry.held_bytes, entry.left) = (entry.needed_bytes, Some(ticks(units)));
            entry.swap = i64::try_from(2 * moved_ticks).unwrap();
            schedule.arrive(Seq::try_from(arrived).unwrap(), entry);
            arrived += 1;
        }
        let moved = match schedule.choose(i64::try_from(now).unwrap()) {
            Choice::Idle if arrived == jobs.len() => return run,
            Choice::Idle => {
                now = jobs[arrived].arrival * unit_ticks;
                continue;
            }
            Choice::Start(seq) => {
                schedule.moved(seq, Place::Device);
                continue;
            }
            Choice::Resume(seq) => (seq, Place::Device),
            Choice::Park(seq, place) => (seq, place),
            Choice::Advance(seq) => {
                now += unit_ticks;
                schedule.served(seq, ticks(1));
                let at = usize::try_from(seq).unwrap();
                left[at] -= 1;
                schedule.entry_mut(seq).unwrap().left = Some(ticks(left[at]));
                if left[at] == 0 {
                    schedule.leave(seq);
                    run.ends[at] = now;
                }
                continue;
            }
        };
        now += moved_ticks;
        run.moving += moved_ticks;
        schedule.moved(moved.0, moved.1);
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

/// Against first in, first out with whole jobs, at 80 % load, where a move costs a twentieth of a unit: interactive jobs wait a fifth
/// at most, 1.4 times as many deadlines are met, and no more than 3 % of the work goes into moves.
fn assert_better_than_first_in_first_out(n_jobs: usize) {
    const UNIT: u64 = 20;
    let jobs = mixed_jobs(n_jobs);
    let run = simulate(&jobs, 32, (UNIT, 1));
    assert!(run.ends.iter().all(|end| *end > 0));
    let ours: Vec<u64> = run.ends.iter().map(|end| end.div_ceil(UNIT)).collect();
    let fifo = first_in_first_out(&jobs);
    let [ours_p99, fifo_p99] = [&ours, &fifo].map(|ends| p99_wait(&jobs, ends, Class::Interactive));
    let [ours_met, fifo_met] = [&ours, &fifo].map(|ends| met(&jobs, ends));
    let work: u64 = jobs.iter().map(|job| job.units * UNIT).sum();
    let worked = work as f64 / (work + run.moving) as f64;
    println!("interactive p99: {ours_p99} units, first in first out {fifo_p99}");
    println!("deadlines met: {ours_met} and {fifo_met} of {}", jobs.len());
    println!("share of the time that is work: {worked:.4}");
    for class in [Class::Standard, Class::Background] {
        let [ours, fifo] = [&ours, &fifo].map(|ends| p99_wait(&jobs, ends, class));
        println!("{} p99: {ours} units, first in first out {fifo}", class.as_str());
    }
    assert!(ours_p99 * 5 <= fifo_p99, "{ours_p99} against {fifo_p99}");
    assert!(ours_met * 10 >= fifo_met * 14, "{ours_met} against {fifo_met}");
    assert!(worked >= 0.97, "{worked}");
}

#[test]
fn a_hundred_thousand_jobs_do_better_than_first_in_first_out() {
    assert_better_than_first_in_first_out(100_000);
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
    for moved_ticks in [0, 1] {
        let ends = simulate(&jobs, 32, (20, moved_ticks)).ends;
        assert!(ends[0] < *ends.iter().max().unwrap(), "{}", ends[0]);
    }
    let ends = simulate(&jobs, 32, (20, 0)).ends;
    assert!(ends[0] <= (20 * 33 + 33) * 20, "{}", ends[0]);
}

#[test]
fn an_interactive_job_starts_within_a_unit_and_a_swap_and_is_hardly_slower_than_alone() {
    let mut jobs: Vec<_> = (0..6)
        .map(|_| Synthetic { arrival: 0, class: Class::Background, units: 400, deadline: None })
        .collect();
    jobs.push(Synthetic { arrival: 100, class: Class::Interactive, units: 60, deadline: None });
    let run = simulate(&jobs, 32, (20, 1));
    let took = run.ends[6] - 100 * 20;
    // One unit that was under way, a move, and what ageing gives to background.
    assert!(took as f64 <= 60.0 * 20.0 * 1.15, "{took} ticks instead of {}", 60 * 20);
    assert!(run.ends[..6].iter().all(|end| *end > 0));
}

#[test]
fn nobody_has_more_jobs_begun_than_their_share() {
    let room = Room { device_bytes: 100, host_bytes: 100 };
    let rules = Rules { room, under_way_max: 8, ageing_units: 100, quotas: [Quotas::default(); 3] };
    let mut schedule = Schedule::new(rules);
    let share = Some(Share { tenant: 0, under_way_max: 1 });
    for seq in 0..2 {
        schedule.arrive(seq, Entry { share, ..Entry::new(Class::Interactive, 10) });
    }
    assert_eq!(schedule.choose(0), Choice::Start(0));
    schedule.moved(0, Place::Device);
    schedule.arrive(2, Entry { deadline: Some(1), ..Entry::new(Class::Interactive, 10) });
    // There is room for all, and somebody else's job takes it.
    assert_eq!(schedule.choose(0), Choice::Start(2));
    schedule.leave(2);
    assert_eq!(schedule.choose(0), Choice::Advance(0));
    // What is parked has begun.
    schedule.moved(0, Place::Host);
    assert_eq!(schedule.choose(0), Choice::Resume(0));
    schedule.leave(0);
    assert_eq!(schedule.choose(0), Choice::Start(1));
}

#[test]
fn a_job_that_could_not_be_parked_is_let_be_until_it_has_done_another_unit() {
    let room = Room { device_bytes: 100, host_bytes: 100 };
    let rules = Rules { room, under_way_max: 8, ageing_units: 100, quotas: [Quotas::default(); 3] };
    let mut schedule = Schedule::new(rules);
    for (seq, class) in [(0, Class::Background), (1, Class::Standard)] {
        schedule.arrive(seq, Entry { place: Place::Device, held_bytes: 10, ..Entry::new(class, 50) });
    }
    schedule.arrive(2, Entry::new(Class::Interactive, 50));
    assert_eq!(schedule.choose(0), Choice::Park(0, Place::Host));
    assert!(schedule.keep_there(0, 0, SPANS));
    // The next in line is, and where that does not work out either, somebody goes on.
    assert_eq!(schedule.choose(0), Choice::Park(1, Place::Host));
    assert!(schedule.keep_there(1, 0, SPANS));
    assert_eq!(schedule.choose(0), Choice::Advance(1));
    // A unit of another job is none of its own.
    schedule.served(1, 1);
    assert_eq!(schedule.choose(1), Choice::Park(1, Place::Host));
    assert!(schedule.keep_there(1, 0, SPANS));
    assert_eq!(schedule.choose(1), Choice::Advance(1));
    schedule.served(0, 1);
    assert_eq!(schedule.choose(2), Choice::Park(0, Place::Host));
    // One that cannot do a unit where it is is asked again a little later.
    schedule.set_room(Room { device_bytes: 40, ..room });
    assert!(schedule.keep_there(0, 2, SPANS));
    assert_eq!((schedule.choose(2), schedule.next_try(2)), (Choice::Park(1, Place::Host), Some(1002)));
    assert_eq!(schedule.choose(1002), Choice::Park(0, Place::Host));
}

#[test]
fn a_job_without_space_for_its_files_is_tried_again_later_and_others_go_on_meanwhile() {
    let room = Room { device_bytes: 100, host_bytes: 100 };
    let rules = Rules { room, under_way_max: 2, ageing_units: 100, quotas: [Quotas::default(); 3] };
    let mut schedule = Schedule::new(rules);
    schedule.arrive(0, Entry::new(Class::Interactive, 100));
    assert_eq!(schedule.choose(0), Choice::Start(0));
    schedule.moved(0, Place::Device);
    schedule.put_off(0, Place::Snapshot, 0, SPANS);
    assert_eq!((schedule.choose(999), schedule.next_try(999)), (Choice::Idle, Some(1000)));
    schedule.arrive(1, Entry::new(Class::Background, 100));
    assert_eq!(schedule.choose(999), Choice::Start(1));
    // Nobody stands back for a job that only waits.
    schedule.hold_back(Some(Class::Background));
    assert_eq!(schedule.choose(999), Choice::Start(1));
    schedule.hold_back(None);
    schedule.moved(1, Place::Device);
    schedule.served(1, 1);
    assert_eq!(schedule.choose(999), Choice::Advance(1));
    assert_eq!((schedule.choose(1000), schedule.next_try(1000)), (Choice::Park(1, Place::Host), None));
    schedule.leave(1);
    assert_eq!(schedule.choose(1000), Choice::Resume(0));
    // It finds no space again and again.
    let delays = [2000, 4000, 8000, 16_000, 30_000, 30_000];
    for delay in delays {
        schedule.moved(0, Place::Device);
        assert_eq!((schedule.choose(5), schedule.next_try(5)), (Choice::Advance(0), None));
        schedule.put_off(0, Place::Snapshot, 5, SPANS);
        assert_eq!((schedule.choose(5), schedule.next_try(5)), (Choice::Idle, Some(5 + delay)));
    }
    schedule.entry_mut(0).unwrap().put_off = 0;
    schedule.put_off(0, Place::Queue, 5, SPANS);
    assert_eq!((schedule.next_try(5), schedule.choose(1004)), (Some(1005), Choice::Idle));
    assert_eq!(schedule.choose(1005), Choice::Start(0));
    // A clock that is set back, by hours, does not make it wait for them.
    assert_eq!((schedule.next_try(4), schedule.choose(4)), (None, Choice::Start(0)));
}

#[test]
fn a_job_that_could_not_go_on_takes_nobodys_place_but_for_the_host() {
    let room = Room { device_bytes: 100, host_bytes: 0 };
    let rules = Rules { room, under_way_max: 4, ageing_units: 100, quotas: [Quotas::default(); 3] };
    let mut schedule = Schedule::new(rules);
    schedule.arrive(0, Entry { place: Place::Device, held_bytes: 50, ..Entry::new(Class::Background, 100) });
    schedule.arrive(1, Entry::new(Class::Interactive, 100));
    assert_eq!(schedule.choose(0), Choice::Park(0, Place::Snapshot));
    schedule.put_off(1, Place::Queue, 0, (10, 10));
    assert_eq!((schedule.choose(5), schedule.choose(10)), (Choice::Advance(0), Choice::Advance(0)));
    // Nor does it hide others, which may.
    schedule.arrive(2, Entry::new(Class::Interactive, 100));
    assert_eq!(schedule.choose(10), Choice::Park(0, Place::Snapshot));
    schedule.leave(2);
    schedule.set_room(Room { host_bytes: 50, ..room });
    assert_eq!(schedule.choose(10), Choice::Park(0, Place::Host));
}

#[test]
fn a_job_that_counts_on_the_host_waits_for_what_is_parked_there_or_has_it_saved() {
    let room = Room { device_bytes: 100, host_bytes: 100 };
    let rules = Rules { room, under_way_max: 4, ageing_units: 100, quotas: [Quotas::default(); 3] };
    let mut schedule = Schedule::new(rules);
    schedule.set_room(Room { device_bytes: 60, ..room });
    let parked = Entry { place: Place::Host, held_bytes: 50, ..Entry::new(Class::Background, 40) };
    schedule.arrive(0, Entry { can_be_saved: false, ..parked });
    let counts = Entry { least_bytes: 50, host_bytes: 60, ..Entry::new(Class::Interactive, 90) };
    schedule.arrive(1, counts);
    // 50 bytes of the host are left and it counts on 60: what holds the others goes on, and it waits.
    assert_eq!(schedule.choose(0), Choice::Resume(0));
    schedule.moved(0, Place::Device);
    // Parked for it in the host that job would be in its way again.
    assert_eq!(schedule.choose(0), Choice::Advance(0));
    schedule.entry_mut(0).unwrap().can_be_saved = true;
    assert_eq!(schedule.choose(0), Choice::Park(0, Place::Snapshot));
    // From the host it goes there too. What cannot be saved after all stays, and is not asked again.
    schedule.moved(0, Place::Host);
    assert_eq!(schedule.choose(0), Choice::Park(0, Place::Snapshot));
    assert!(schedule.keep_there(0, 0, SPANS));
    assert_eq!(schedule.choose(0), Choice::Resume(0));
    schedule.moved(0, Place::Snapshot);
    assert_eq!(schedule.choose(0), Choice::Start(1));
    // With the whole device it counts on nothing below.
    schedule.moved(0, Place::Host);
    schedule.set_room(room);
    assert_eq!(schedule.choose(0), Choice::Start(1));
}

#[test]
fn what_a_cut_budget_parks_leaves_the_host_to_the_job_that_stays() {
    let room = Room { device_bytes: 100, host_bytes: 100 };
    let rules = Rules { room, under_way_max: 4, ageing_units: 100, quotas: [Quotas::default(); 3] };
    let mut schedule = Schedule::new(rules);
    let there = |class, needed_bytes, held_bytes| Entry {
        held_bytes,
        place: Place::Device,
        ..Entry::new(class, needed_bytes)
    };
    let stays = Entry { least_bytes: 30, host_bytes: 60, ..there(Class::Standard, 60, 10) };
    schedule.arrive(0, stays);
    schedule.arrive(1, there(Class::Background, 40, 50));
    assert_eq!(schedule.choose(0), Choice::Advance(0));
    schedule.set_room(Room { device_bytes: 50, ..room });
    assert_eq!(schedule.choose(0), Choice::Park(1, Place::Snapshot));
    // Where nothing can be saved one of the two waits in the host for the other.
    schedule.entry_mut(1).unwrap().can_be_saved = false;
    assert_eq!(schedule.choose(0), Choice::Park(1, Place::Host));
    schedule.moved(1, Place::Host);
    assert_eq!(schedule.choose(0), Choice::Park(0, Place::Host));
    schedule.moved(0, Place::Host);
    assert_eq!(schedule.choose(0), Choice::Resume(1));
    schedule.leave(1);
    assert_eq!(schedule.choose(0), Choice::Resume(0));
}

#[test]
fn what_could_not_be_saved_stays_in_the_host_and_is_asked_again_a_little_later() {
    let room = Room { device_bytes: 100, host_bytes: 100 };
    let rules = Rules { room, under_way_max: 4, ageing_units: 100, quotas: [Quotas::default(); 3] };
    let mut schedule = Schedule::new(rules);
    schedule.set_room(Room { device_bytes: 60, ..room });
    schedule.arrive(0, Entry { place: Place::Host, held_bytes: 50, ..Entry::new(Class::Background, 40) });
    schedule.arrive(1, Entry { place: Place::Device, ..Entry::new(Class::Standard, 10) });
    schedule.arrive(2, Entry { least_bytes: 50, host_bytes: 60, ..Entry::new(Class::Interactive, 90) });
    for (at, again) in [(0, 1000), (1000, 3000), (3000, 7000)] {
        assert_eq!(schedule.choose(at), Choice::Park(0, Place::Snapshot));
        assert!(schedule.keep_there(0, at, SPANS));
        assert_eq!(schedule.next_try(at), Some(again));
        let meanwhile = [at, again - 1].map(|at| schedule.choose(at));
        assert_eq!(meanwhile, [Choice::Advance(1); 2]);
    }
    // The disk has room again.
    assert_eq!(schedule.choose(7000), Choice::Park(0, Place::Snapshot));
    schedule.moved(0, Place::Snapshot);
    assert_eq!(schedule.choose(7000), Choice::Park(1, Place::Host));
    // For one that could not go on itself nobody is sent to the disk.
    schedule.moved(0, Place::Host);
    schedule.put_off(2, Place::Queue, 7000, SPANS);
    assert_eq!((schedule.choose(8000), schedule.next_try(8000)), (Choice::Advance(1), None));
}

#[test]
fn of_two_jobs_that_wait_for_what_the_other_holds_in_the_host_one_makes_way() {
    let room = Room { device_bytes: 100, host_bytes: 100 };
    let rules = Rules { room, under_way_max: 4, ageing_units: 100, quotas: [Quotas::default(); 3] };
    let tight = |class, place, held_bytes| Entry {
        place,
        held_bytes,
        least_bytes: 30,
        host_bytes: 60,
        can_be_saved: false,
        ..Entry::new(class, 90)
    };
    let mut schedule = Schedule::new(rules);
    schedule.arrive(0, tight(Class::Standard, Place::Device, 50));
    schedule.arrive(1, tight(Class::Background, Place::Host, 50));
    schedule.set_room(Room { device_bytes: 50, ..room });
    assert_eq!(schedule.choose(0), Choice::Park(0, Place::Host));
    schedule.moved(0, Place::Host);
    // Each would fit without the other.
    let makes_way = |schedule: &mut Schedule| {
        assert_eq!(schedule.choose(0), Choice::Park(1, Place::Snapshot));
        assert!(schedule.keep_there(1, 0, SPANS), "what is in its way may go");
        assert_eq!((schedule.choose(999), schedule.next_try(999)), (Choice::Idle, Some(1000)));
        assert_eq!(schedule.choose(1000), Choice::Park(1, Place::Snapshot));
        assert!(!schedule.keep_there(1, 1000, SPANS), "it makes way though it cannot be saved");
        schedule.moved(1, Place::Snapshot);
    };
    makes_way(&mut schedule);
    assert_eq!(schedule.choose(0), Choice::Resume(0));
    schedule.moved(0, Place::Device);
    assert_eq!(schedule.choose(0), Choice::Advance(0));
    schedule.leave(0);
    assert_eq!(schedule.choose(0), Choice::Resume(1));

    // So does what is in the host where there is no room for the other one to be parked.
    let mut schedule = Schedule::new(rules);
    schedule.arrive(0, tight(Class::Standard, Place::Device, 50));
    schedule.arrive(1, tight(Class::Background, Place::Host, 80));
    schedule.set_room(Room { device_bytes: 50, ..room });
    makes_way(&mut schedule);
    assert_eq!(schedule.choose(0), Choice::Advance(0));

    // While anybody can do a unit nobody has to.
    schedule.moved(1, Place::Host);
    schedule.moved(0, Place::Host);
    schedule.arrive(2, Entry::new(Class::Background, 10));
    assert_eq!(schedule.choose(0), Choice::Start(2));
}

/// Does what the schedule says, as the service does, until somebody does a unit or nothing is left to wait for; what was said of whom.
/// `is_written` says whether a snapshot of a job can be written at a moment.
fn played(mut schedule: Schedule, is_written: impl Fn(Seq, i64) -> bool) -> Vec<String> {
    let (mut said, mut now) = (Vec::new(), 0);
    for _ in 0..100 {
        let (seq, what) = match schedule.choose(now) {
            Choice::Advance(seq) => {
                said.push(format!("{seq} goes on"));
                return said;
            }
            Choice::Idle => {
                let Some(until) = schedule.next_try(now) else { return said };
                assert!(until > now, "{said:?}");
                now = until;
                said.push(format!("until {now}"));
                continue;
            }
            Choice::Start(seq) | Choice::Resume(seq) => {
                schedule.moved(seq, Place::Device);
                continue;
            }
            Choice::Park(seq, Place::Host) => (seq, "is parked"),
            Choice::Park(seq, _) if is_written(seq, now) => (seq, "is saved"),
            Choice::Park(seq, _) if schedule.keep_there(seq, now, SPANS) => (seq, "stays"),
            Choice::Park(seq, _) => (seq, "is dropped"),
        };
        match what {
            "is parked" => schedule.moved(seq, Place::Host),
            "is saved" | "is dropped" => schedule.moved(seq, Place::Snapshot),
            _ => {}
        }
        said.push(format!("{seq} {what}"));
    }
    panic!("no end: {said:?}")
}

/// A table of jobs whose numbers are their places, over a device that was cut to half.
fn over_half_a_device(jobs: &[Entry]) -> Schedule {
    let room = Room { device_bytes: 100, host_bytes: 100 };
    let rules = Rules { room, under_way_max: 4, ageing_units: 100, quotas: [Quotas::default(); 3] };
    let mut schedule = Schedule::new(rules);
    (0..).zip(jobs).for_each(|(seq, entry)| schedule.arrive(seq, *entry));
    schedule.set_room(Room { device_bytes: 50, ..room });
    schedule
}

/// One that half a device is too small for, whatever the tiers below take.
fn unfit(class: Class, place: Place, held_bytes: u64) -> Entry {
    Entry { place, held_bytes, ..Entry::new(class, 80) }
}

/// One that does its units on half a device beside so much of the host.
fn tight(class: Class, place: Place, (held_bytes, host_bytes): (u64, u64)) -> Entry {
    Entry { place, held_bytes, least_bytes: 30, host_bytes, ..Entry::new(class, 90) }
}

/// One that no snapshot is taken of.
fn unsaved(entry: Entry) -> Entry {
    Entry { can_be_saved: false, ..entry }
}

#[test]
fn a_job_that_was_put_off_is_made_way_for_where_nobody_else_can_go_on() {
    let jobs = [
        unfit(Class::Background, Place::Host, 50),
        Entry { put_off: 1, ..tight(Class::Interactive, Place::Queue, (0, 60)) },
    ];
    let said = |entries: &[Entry], from: i64| played(over_half_a_device(entries), |_, now| now >= from);
    assert_eq!(said(&jobs, 0), ["0 is saved", "1 goes on"]);
    // A disk that is full for a moment costs nobody anything.
    assert_eq!(said(&jobs, 1000), ["0 stays", "until 1000", "0 is saved", "1 goes on"]);
    assert_eq!(said(&jobs, 9000), ["0 stays", "until 1000", "0 is dropped", "1 goes on"]);
    // Whoever goes on meanwhile, nobody is asked.
    let other = Entry::new(Class::Background, 10);
    assert_eq!(said(&[jobs[0], jobs[1], other], 0), ["2 goes on"]);
}

#[test]
fn nobody_makes_way_for_a_job_behind_it_but_saved_or_as_the_last_that_can_and_after_a_pause() {
    let first = unfit(Class::Interactive, Place::Host, 50);
    let wanted = tight(Class::Standard, Place::Queue, (0, 60));
    let never = |_: Seq, _: i64| false;
    assert_eq!(played(over_half_a_device(&[first, wanted]), |_, _| true), ["0 is saved", "1 goes on"]);
    let alone = over_half_a_device(&[unsaved(first), wanted]);
    assert_eq!(played(alone, never), ["0 stays", "until 1000", "0 is dropped", "1 goes on"]);
    // With one behind that is enough.
    let behind = unsaved(tight(Class::Background, Place::Host, (50, 75)));
    let first = unsaved(unfit(Class::Interactive, Place::Host, 30));
    let said = played(over_half_a_device(&[first, wanted, behind]), never);
    assert_eq!(said, ["2 stays", "until 1000", "2 is dropped", "1 goes on"]);
    // What has begun comes in its order, though it was put off once.
    let put_off = Entry { put_off: 1, ..unsaved(tight(Class::Interactive, Place::Host, (50, 60))) };
    let other = unsaved(tight(Class::Background, Place::Host, (50, 60)));
    let said = played(over_half_a_device(&[put_off, other]), never);
    assert_eq!(said, ["1 stays", "until 1000", "1 is dropped", "0 goes on"]);
}

#[test]
fn only_those_make_way_that_help_and_those_that_can_be_saved_before_others() {
    let jobs = [
        tight(Class::Standard, Place::Host, (30, 60)),
        tight(Class::Background, Place::Host, (50, 75)),
        tight(Class::Background, Place::Host, (1, 25)),
    ];
    let said = played(over_half_a_device(&jobs.map(unsaved)), |_, _| false);
    assert_eq!(said, ["1 stays", "until 1000", "1 is dropped", "0 goes on"]);
    assert_eq!(played(over_half_a_device(&jobs), |_, _| true), ["1 is saved", "0 goes on"]);
    // Either is enough, and of the last no snapshot can be written.
    let jobs = [
        tight(Class::Interactive, Place::Host, (20, 60)),
        tight(Class::Standard, Place::Host, (30, 60)),
        tight(Class::Background, Place::Host, (30, 60)),
    ];
    let said = played(over_half_a_device(&jobs), |seq, _| seq == 1);
    assert_eq!(said, ["2 stays", "1 is saved", "0 goes on"]);
    let said = played(over_half_a_device(&[jobs[0], jobs[1], unsaved(jobs[2])]), |seq, _| seq == 1);
    assert_eq!(said, ["1 is saved", "0 goes on"]);
}

#[test]
fn a_job_without_a_place_on_a_cut_device_is_not_dropped_for_a_disk_that_is_full_for_a_moment() {
    let there = unfit(Class::Background, Place::Device, 90);
    let parked = Entry { place: Place::Host, held_bytes: 40, ..Entry::new(Class::Standard, 40) };
    let said = |from: i64| played(over_half_a_device(&[there, parked]), |_, now| now >= from);
    assert_eq!(said(0), ["0 is saved", "1 goes on"]);
    assert_eq!(said(1000), ["0 stays", "until 1000", "0 is saved", "1 goes on"]);
    assert_eq!(said(9000), ["0 stays", "until 1000", "0 is dropped", "1 goes on"]);
}

/// A job of a table in which there is little room, how often its snapshot cannot be written, and its units.
fn squeezed_job() -> impl Strategy<Value = (Entry, u32, u64)> {
    let bytes = (1_u64..=150, 1_u64..=100, prop_oneof![Just(0_u64), 0_u64..=100], 0_u64..=50, 1_u64..=80);
    let state = (0_usize..3, 0_usize..5, any::<bool>(), 0_u32..2);
    let failures = prop_oneof![Just(0_u32), Just(1_u32), Just(u32::MAX)];
    let parts = (bytes, state, failures, 1_u64..5);
    parts.prop_map(|(bytes, state, failures, units)| {
        let (needed_bytes, least_bytes, host_bytes, disk_spare_bytes, held_bytes) = bytes;
        let (class, place, can_be_saved, put_off) = state;
        let least_bytes = least_bytes.min(needed_bytes);
        let place = [Place::Queue, Place::Device, Place::Host, Place::Host, Place::Snapshot][place];
        let entry = Entry {
            least_bytes,
            least_ever_bytes: least_bytes,
            host_bytes,
            disk_spare_bytes,
            held_bytes,
            place,
            can_be_saved,
            put_off,
            ..Entry::new(Class::ALL[class], needed_bytes)
        };
        (entry, failures, units)
    })
}

/// A table of such jobs, and what the disk and the jobs do.
struct Squeezed {
    schedule: Schedule,
    now: i64,
    /// How often each job's snapshot cannot be written any more.
    failures: BTreeMap<Seq, u32>,
    units: BTreeMap<Seq, u64>,
    dropped: BTreeMap<Seq, u64>,
}

impl Squeezed {
    fn new(rules: Rules, room: Room, jobs: &[(Entry, u32, u64)]) -> Self {
        let mut schedule = Schedule::new(rules);
        schedule.set_room(room);
        let (mut failures, mut units) = (BTreeMap::new(), BTreeMap::new());
        for (seq, (entry, n_failures, n_units)) in (0..).zip(jobs) {
            schedule.arrive(seq, *entry);
            failures.insert(seq, *n_failures);
            units.insert(seq, *n_units);
        }
        Self { schedule, now: 0, failures, units, dropped: BTreeMap::new() }
    }

    /// Whether somebody could do a unit if nobody else were there.
    fn is_anybody_fit(&self, room: Room) -> bool {
        let is_fit = |entry: &Entry| {
            entry.least_bytes <= room.device_bytes
                && (entry.needed_bytes <= room.device_bytes || entry.host_bytes <= room.host_bytes)
        };
        self.units.keys().any(|seq| self.schedule.entry(*seq).is_some_and(is_fit))
    }

    /// What would be done if everybody else of whom a snapshot can be written had left.
    fn choice_without_saved(&self, seq: Seq) -> Choice {
        let mut schedule = self.schedule.clone();
        for (other, _) in self.failures.iter().filter(|(other, left)| **other != seq && **left == 0) {
            let leaves =
                |entry: &Entry| entry.can_be_saved && matches!(entry.place, Place::Device | Place::Host);
            if schedule.entry(*other).is_some_and(leaves) {
                schedule.moved(*other, Place::Snapshot);
            }
        }
        schedule.choose(self.now)
    }

    /// Takes a job off the device or the host.
    fn park(&mut self, seq: Seq, place: Place) -> Result<(), TestCaseError> {
        let can_be_saved = self.schedule.entry(seq).unwrap().can_be_saved;
        let failures = self.failures.get_mut(&seq).unwrap();
        let is_written = can_be_saved && *failures == 0;
        if place == Place::Host || is_written {
            self.schedule.moved(seq, place);
            return Ok(());
        }
        *failures = if *failures == u32::MAX { u32::MAX } else { failures.saturating_sub(1) };
        if self.schedule.keep_there(seq, self.now, SPANS) {
            return Ok(());
        }
        let choice = self.choice_without_saved(seq);
        let goes_on = matches!(choice, Choice::Start(_) | Choice::Resume(_) | Choice::Advance(_));
        prop_assert!(!goes_on, "{seq} is dropped, and others could be saved: {choice:?}");
        let times = self.dropped.entry(seq).or_default();
        *times += 1;
        prop_assert!(*times == 1, "{seq} is dropped again");
        self.schedule.moved(seq, Place::Snapshot);
        Ok(())
    }

    fn advance(&mut self, seq: Seq) {
        self.now += 1;
        self.schedule.served(seq, 1);
        let left = self.units.get_mut(&seq).unwrap();
        *left -= 1;
        if *left == 0 {
            self.units.remove(&seq);
            self.schedule.leave(seq);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// However little room there is and whatever cannot be saved: while there is a job that could go on alone somebody does, in the end
    /// and without asking again and again; and nobody is dropped twice, or while it would be enough to save others.
    #[test]
    fn somebody_always_goes_on_in_the_end_and_nobody_is_dropped_in_vain(
        (device_bytes, host_bytes) in (30_u64..=100, 0_u64..=100),
        under_way_max in 1_usize..5,
        jobs in prop::collection::vec(squeezed_job(), 1..7),
    ) {
        let room = Room { device_bytes: 100, host_bytes: 100 };
        let rules = Rules { room, under_way_max, ageing_units: 1000, quotas: [Quotas::default(); 3] };
        let room = Room { device_bytes, host_bytes };
        let mut table = Squeezed::new(rules, room, &jobs);
        let most = 8 * jobs.len() + 8;
        let (mut moves, mut waits) = (0, 0);
        while table.is_anybody_fit(room) {
            let choice = table.schedule.choose(table.now);
            moves += 1;
            prop_assert!(moves <= most && waits <= most, "{choice:?}");
            match choice {
                Choice::Idle => {
                    let until = table.schedule.next_try(table.now);
                    prop_assert!(until.is_some_and(|until| until > table.now), "nobody goes on for good: {until:?}");
                    (table.now, moves, waits) = (until.unwrap(), 0, waits + 1);
                }
                Choice::Start(seq) | Choice::Resume(seq) => table.schedule.moved(seq, Place::Device),
                Choice::Park(seq, place) => table.park(seq, place)?,
                Choice::Advance(seq) => {
                    table.advance(seq);
                    (moves, waits) = (0, 0);
                }
            }
        }
    }
}

#[test]
fn a_job_that_needs_the_disk_waits_while_what_is_parked_in_a_cut_host_takes_of_it_what_it_cannot_spare() {
    let room = Room { device_bytes: 100, host_bytes: 100 };
    let rules = Rules { room, under_way_max: 4, ageing_units: 100, quotas: [Quotas::default(); 3] };
    let mut schedule = Schedule::new(rules);
    // It counts on nothing of the host: what finds no room on the device finds it on the disk.
    let on_disk = Entry { least_bytes: 50, least_ever_bytes: 50, ..Entry::new(Class::Standard, 150) };
    schedule.arrive(0, on_disk);
    assert_eq!(schedule.choose(0), Choice::Start(0));
    // It may be as small as it likes while nobody is parked there.
    schedule.set_room(Room { host_bytes: 10, ..room });
    assert_eq!(schedule.choose(0), Choice::Start(0));
    // What was parked before the host was cut lies on the disk in part.
    schedule.set_room(Room { host_bytes: 40, ..room });
    schedule.arrive(1, Entry { place: Place::Host, held_bytes: 80, ..Entry::new(Class::Background, 40) });
    assert_eq!(schedule.choose(0), Choice::Park(1, Place::Snapshot));
    schedule.entry_mut(1).unwrap().can_be_saved = false;
    assert_eq!(schedule.choose(0), Choice::Resume(1));
    // Nobody waits while the disk has room for that too.
    let with_spare = |disk_spare_bytes| {
        let mut schedule = schedule.clone();
        schedule.entry_mut(0).unwrap().disk_spare_bytes = disk_spare_bytes;
        schedule.choose(0)
    };
    assert_eq!([39, 40].map(with_spare), [Choice::Resume(1), Choice::Start(0)]);
    schedule.leave(1);
    assert_eq!(schedule.choose(0), Choice::Start(0));
    // What never could run is started, to be told so.
    schedule.entry_mut(0).unwrap().least_ever_bytes = 150;
    schedule.entry_mut(0).unwrap().least_bytes = 150;
    assert_eq!(schedule.choose(0), Choice::Start(0));
}

#[test]
fn nothing_starts_while_starts_are_paused_and_the_rest_goes_on() {
    let room = Room { device_bytes: 100, host_bytes: 100 };
    let rules = Rules { room, under_way_max: 4, ageing_units: 100, quotas: [Quotas::default(); 3] };
    let mut schedule = Schedule::new(rules);
    schedule.arrive(0, Entry { place: Place::Device, ..Entry::new(Class::Background, 50) });
    for seq in 1..=3 {
        schedule.arrive(seq, Entry::new(Class::Interactive, 10));
    }
    schedule.pause_starts(0, 10);
    assert_eq!((schedule.choose(9), schedule.next_try(9)), (Choice::Advance(0), Some(10)));
    assert_eq!(schedule.choose(10), Choice::Start(1));
}

#[test]
fn nobody_stands_back_for_a_job_that_waits_for_the_one_that_stands_back() {
    let room = Room { device_bytes: 100, host_bytes: 100 };
    let rules = Rules { room, under_way_max: 4, ageing_units: 100, quotas: [Quotas::default(); 3] };
    let mut schedule = Schedule::new(rules);
    let share = Some(Share { tenant: 0, under_way_max: 1 });
    schedule.arrive(0, Entry { place: Place::Host, share, ..Entry::new(Class::Background, 50) });
    schedule.arrive(1, Entry { share, ..Entry::new(Class::Standard, 50) });
    schedule.hold_back(Some(Class::Background));
    assert_eq!(schedule.choose(0), Choice::Resume(0));
}

#[test]
fn the_last_in_order_gives_way_first_and_only_worse_classes_on_the_device_come_before_a_job() {
    let room = Room { device_bytes: 100, host_bytes: 100 };
    let rules = Rules { room, under_way_max: 8, ageing_units: 100, quotas: [Quotas::default(); 3] };
    let mut schedule = Schedule::new(rules);
    let at = |class, place| Entry { place, ..Entry::new(class, 10) };
    schedule.arrive(0, at(Class::Background, Place::Device));
    schedule.arrive(1, at(Class::Interactive, Place::Device));
    schedule.arrive(2, at(Class::Standard, Place::Host));
    schedule.arrive(3, at(Class::Background, Place::Device));
    assert_eq!(schedule.last_first(), [3, 0, 2, 1]);
    let before = |schedule: &Schedule| Class::ALL.map(|class| schedule.worse_on_device(class));
    assert_eq!(before(&schedule), [1, 1, 0], "two of a class count once, and what is parked does not");
    schedule.moved(2, Place::Device);
    assert_eq!(before(&schedule), [2, 1, 0]);
    schedule.moved(0, Place::Host);
    schedule.moved(3, Place::Snapshot);
    assert_eq!(before(&schedule), [1, 0, 0]);
}

#[test]
fn a_guarantee_is_lent_while_its_class_has_no_jobs_and_otherwise_not_even_ageing_takes_it() {
    let room = Room { device_bytes: 100, host_bytes: 100 };
    let choice = |guarantee: f64, is_alone: bool| {
        let mut quotas = [Quotas::default(); 3];
        quotas[Class::Interactive as usize].device.guarantee = guarantee;
        let mut schedule = Schedule::new(Rules { room, under_way_max: 4, ageing_units: 2, quotas });
        schedule.arrive(0, Entry::new(Class::Background, 100));
        if !is_alone {
            let there = Entry { place: Place::Device, held_bytes: 10, ..Entry::new(Class::Interactive, 50) };
            schedule.arrive(1, there);
            schedule.served(1, 1);
            schedule.served(1, 1);
        }
        schedule.choose(0)
    };
    assert_eq!(choice(0.25, true), Choice::Start(0), "nobody else is there");
    assert_eq!(choice(0.25, false), Choice::Advance(1), "it needs what is guaranteed to another class");
    // So there is none unless somebody sets it: background always has its turn.
    let unless_set = ClassesConfig::default().interactive.device_guarantee;
    assert_eq!(choice(unless_set, false), Choice::Park(1, Place::Host));
}

#[test]
fn snapshots_of_a_class_stay_within_its_share_of_the_disk() {
    let rules = Rules {
        room: Room { device_bytes: 100, host_bytes: 0 },
        under_way_max: 8,
        ageing_units: 100,
        quotas: [Quotas::default(); 3],
    };
    let mut schedule = Schedule::new(rules);
    let on_device = |class, held_bytes, saved_bytes| Entry {
        held_bytes,
        saved_bytes,
        place: Place::Device,
        ..Entry::new(class, 50)
    };
    schedule.arrive(0, on_device(Class::Background, 30, 30));
    schedule.arrive(1, on_device(Class::Background, 30, 0));
    assert!(schedule.may_save(1), "without shares there is room for all");
    let mut quotas = [Quota::default(); 3];
    quotas[Class::Background as usize].limit = 0.5;
    quotas[Class::Interactive as usize].guarantee = 0.4;
    schedule.share_disk(DiskShares { bytes: 100, quotas });
    assert!(
        schedule.may_save(0) && !schedule.may_save(1),
        "it may have what it has, and 60 of 50 is too much"
    );
    // With no host to go to, only one of them can be parked.
    schedule.arrive(2, Entry::new(Class::Interactive, 50));
    assert_eq!(schedule.choose(0), Choice::Park(0, Place::Snapshot));
    // What is guaranteed to interactive jobs is not for others, though it lies free.
    schedule.arrive(3, on_device(Class::Standard, 40, 0));
    assert!(!schedule.may_save(3));
    schedule.leave(0);
    assert!(schedule.may_save(3) && schedule.may_save(1));
}
