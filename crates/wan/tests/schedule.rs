//! Schedules against diffusers' and the official ones, as stored by `xtask/goldens/schedule.py`.

use evanesce_wan::WanError;
use evanesce_wan::schedule::{
    Grid, History, Keeps, STEPS_MAX, Schedule, Solver, StepInput, StepOutput, expert_for,
};
use evanesce_wan::weights::Component;
use safetensors::SafeTensors;

static GOLDENS: &[u8] = include_bytes!("goldens/schedule/schedules.safetensors");
const STEPS: [usize; 8] = [1, 2, 3, 4, 8, 20, 40, 50];
const SHIFTS: [f64; 3] = [3.0, 5.0, 12.0];

fn floats(goldens: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let bytes = goldens.tensor(name).expect("stored").data();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn doubles(goldens: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let bytes = goldens.tensor(name).expect("stored").data();
    bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("eight bytes"))).collect()
}

fn every_schedule(mut check: impl FnMut(&str, &Schedule)) {
    for (solver_name, solver) in [("unipc", Solver::UniPc), ("euler", Solver::Euler)] {
        for (grid_name, grid) in [("diffusers", Grid::Diffusers), ("official", Grid::Official)] {
            for shift in SHIFTS {
                for steps in STEPS {
                    let schedule = Schedule::new(solver, grid, steps, shift).expect("a common schedule");
                    check(&format!("{solver_name}/{grid_name}/{shift}/{steps}"), &schedule);
                }
            }
        }
    }
}

/// The velocity field of the goldens, in the reference's `f32`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the reference divides in double precision and adds in single"
)]
fn velocity(x: f32, timestep: f64) -> f32 {
    (3.0 * x).sin() * 0.7 + 0.1 * x + (timestep / 1000.0) as f32
}

/// Runs a schedule the way an engine would: keeping each piece for as many steps as `keeps` says and no longer.
fn trajectory(schedule: &Schedule, start: &[f32]) -> Vec<Vec<f32>> {
    let len = start.len();
    let mut kept: Vec<(Option<Vec<f32>>, Option<Vec<f32>>)> = Vec::new();
    let mut samples: Vec<Vec<f32>> = Vec::new();
    for index in 0..schedule.steps() {
        let sample = samples.last().map_or(start, |last| last);
        let velocity: Vec<f32> = sample.iter().map(|&x| velocity(x, schedule.timesteps()[index])).collect();
        let alive = |age: usize| {
            let from = index.checked_sub(age)?;
            (schedule.keeps(from).x0_steps >= age).then(|| kept[from].0.as_deref())?
        };
        let corrected = index.checked_sub(1).and_then(|from| kept[from].1.as_deref());
        let history = History { x0: [alive(1), alive(2)], corrected };
        let Keeps { x0_steps, corrected_steps } = schedule.keeps(index);
        let mut next = vec![0.0; len];
        let mut x0 = (x0_steps > 0).then(|| vec![0.0; len]);
        let mut corrected = (corrected_steps > 0).then(|| vec![0.0; len]);
        let output =
            StepOutput { next: &mut next, x0: x0.as_deref_mut(), corrected: corrected.as_deref_mut() };
        let input = StepInput { velocity: &velocity, sample, history, noise: None };
        schedule.step(index, &input, output).expect("a whole history");
        kept.push((x0, corrected));
        samples.push(next);
    }
    samples
}

fn relative_error(got: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let distance: f64 = got.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (distance / expected.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

#[test]
fn noise_levels_and_timesteps_are_those_of_the_references() {
    let goldens = SafeTensors::deserialize(GOLDENS).unwrap();
    every_schedule(|name, schedule| {
        let sigmas = floats(&goldens, &format!("{name}/sigmas"));
        let timesteps = doubles(&goldens, &format!("{name}/timesteps"));
        assert_eq!(schedule.sigmas().len(), sigmas.len(), "{name}");
        assert_eq!(schedule.timesteps().len(), timesteps.len(), "{name}");
        for (got, expected) in schedule.sigmas().iter().zip(sigmas) {
            assert!((got - f64::from(expected)).abs() <= 1e-7, "{name}: {got} {expected}");
        }
        for (&got, &expected) in schedule.timesteps().iter().zip(&timesteps) {
            let tolerance = if name.starts_with("euler/diffusers") { 1e-4 } else { 0.0 };
            assert!((got - expected).abs() <= tolerance, "{name}: {got} {expected}");
        }
    });
}

#[test]
fn trajectories_are_those_of_the_references() {
    let goldens = SafeTensors::deserialize(GOLDENS).unwrap();
    let start = floats(&goldens, "start");
    every_schedule(|name, schedule| {
        let steps = schedule.steps();
        let samples = trajectory(schedule, &start);
        let stored: Vec<usize> =
            if steps <= 8 { (0..steps).collect() } else { (4..steps).step_by(5).collect() };
        let expected = floats(&goldens, &format!("{name}/samples"));
        for (index, expected) in stored.into_iter().zip(expected.chunks_exact(start.len())) {
            let error = relative_error(&samples[index], expected);
            assert!(error <= 1e-5, "{name}, step {index}: relative error {error:e}");
        }
    });
}

#[test]
fn what_is_kept_is_just_what_later_steps_read() {
    let unipc = Schedule::new(Solver::UniPc, Grid::Diffusers, 4, 3.0).unwrap();
    let kept: Vec<_> = (0..4).map(|i| (unipc.keeps(i).x0_steps, unipc.keeps(i).corrected_steps)).collect();
    assert_eq!(kept, [(2, 1), (2, 1), (1, 1), (0, 0)]);
    let euler = Schedule::new(Solver::Euler, Grid::Official, 4, 3.0).unwrap();
    assert!((0..4).all(|i| euler.keeps(i) == Keeps { x0_steps: 0, corrected_steps: 0 }));
}

#[test]
fn a_step_without_its_history_is_refused() {
    let schedule = Schedule::new(Solver::UniPc, Grid::Diffusers, 5, 3.0).unwrap();
    let numbers = [1.0; 4];
    let pieces = [None, Some(&numbers[..])];
    let mut served = Vec::new();
    for index in 0..5 {
        for (first, second, corrected) in
            (0..8).map(|bits| (pieces[bits & 1], pieces[bits >> 1 & 1], pieces[bits >> 2 & 1]))
        {
            let history = History { x0: [first, second], corrected };
            let input = StepInput { velocity: &numbers, sample: &numbers, history, noise: None };
            let mut next = [f32::NAN; 4];
            let result =
                schedule.step(index, &input, StepOutput { next: &mut next, x0: None, corrected: None });
            let enough =
                (index < 1 || first.is_some() && corrected.is_some()) && (index < 2 || second.is_some());
            assert_eq!(result.is_ok(), enough, "step {index} with {history:?}");
            served.extend(result.is_ok().then_some(next));
        }
    }
    assert!(served.iter().flatten().all(|x| x.is_finite()));
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let schedule = Schedule::new(Solver::Euler, Grid::Diffusers, 2, 3.0).unwrap();
    let (long, short) = ([0.0; 4], [0.0; 3]);
    let mut next = [0.0; 4];
    let input = StepInput { velocity: &short, sample: &long, history: History::default(), noise: None };
    let output = StepOutput { next: &mut next, x0: None, corrected: None };
    assert!(matches!(schedule.step(0, &input, output), Err(WanError::Mismatch { .. })));
    let input = StepInput { velocity: &long, sample: &long, history: History::default(), noise: None };
    let output = StepOutput { next: &mut next, x0: None, corrected: None };
    assert!(matches!(schedule.step(2, &input, output), Err(WanError::Mismatch { .. })));
}

#[test]
fn absurd_requests_are_refused_and_the_extremes_work() {
    for solver in [Solver::UniPc, Solver::Euler] {
        for grid in [Grid::Diffusers, Grid::Official] {
            for (steps, shift) in
                [(0, 3.0), (1001, 3.0), (4, 0.0), (4, -1.0), (4, f64::NAN), (4, f64::INFINITY), (40, 1e300)]
            {
                let made = Schedule::new(solver, grid, steps, shift);
                assert!(matches!(made, Err(WanError::Request(_))), "{solver:?} {grid:?} {steps} {shift}");
            }
            for (steps, shift) in [(STEPS_MAX, 12.0), (STEPS_MAX, 1.0), (1, 0.01), (50, 30.0)] {
                let schedule = Schedule::new(solver, grid, steps, shift).unwrap();
                let samples = trajectory(&schedule, &[0.5, -1.5]);
                assert!(
                    samples.iter().flatten().all(|x| x.is_finite()),
                    "{solver:?} {grid:?} {steps} {shift}"
                );
            }
        }
    }
}

#[test]
fn the_boundary_itself_belongs_to_the_high_noise_expert() {
    assert_eq!(expert_for(875.0, 0.875), Component::HighNoise);
    assert_eq!(expert_for(874.999, 0.875), Component::LowNoise);
    let high = |grid| {
        let schedule = Schedule::new(Solver::UniPc, grid, 40, 12.0).unwrap();
        schedule.timesteps().iter().filter(|&&t| expert_for(t, 0.875) == Component::HighNoise).count()
    };
    assert_eq!((high(Grid::Diffusers), high(Grid::Official)), (26, 26));
}

#[test]
fn few_steps_are_warped_and_experts_meet_at_the_nearest_level_of_the_table() {
    let steps = [1000, 850, 700, 550, 350, 275, 200, 125];
    let schedule = Schedule::few_step(&steps, 12.0, Some(0.875)).unwrap();
    let expected = [1000.0, 985.507_3, 965.517_2, 936.170_2, 865.979_4, 819.875_8, 750.0, 631.578_9];
    for (got, expected) in schedule.timesteps().iter().zip(expected) {
        assert!((got - expected).abs() < 1e-3, "{got} is not {expected}");
    }
    assert_eq!((schedule.high_steps(), schedule.solver()), (Some(4), Solver::FewStep));
    // No noise at the meeting, where the low-noise expert goes on, and none at the end.
    let draws: Vec<bool> = (0..8).map(|step| schedule.draws_noise(step)).collect();
    assert_eq!(draws, [true, true, true, false, true, true, true, false]);
    let one = Schedule::few_step(&[1000, 750, 500, 250], 5.0, None).unwrap();
    assert_eq!((one.high_steps(), one.draws_noise(2), one.draws_noise(3)), (None, true, false));
}

/// A sample `(1 - s) clean + s noise` stays one at every level that a step of either expert arrives at.
#[test]
fn few_steps_keep_the_noise_level_that_they_name() {
    let steps = [1000, 850, 700, 550, 350, 275, 200, 125];
    let schedule = Schedule::few_step(&steps, 12.0, Some(0.875)).unwrap();
    let sigmas = schedule.sigmas();
    let (clean, first) = (2.0_f32, 3.0_f32);
    let at = |sigma: f64, noise: f32| ((1.0 - sigma) * f64::from(clean) + sigma * f64::from(noise)) as f32;
    for step in 0..schedule.steps() {
        // The velocity of a model that knows both: what it leads to lies on the line between them.
        let (sample, velocity) = ([at(sigmas[step], first)], [first - clean]);
        let with = |fresh: f32| {
            let (noise, mut next) = ([fresh], [0.0]);
            let input = StepInput {
                velocity: &velocity,
                sample: &sample,
                history: History::default(),
                noise: Some(&noise),
            };
            let output = StepOutput { next: &mut next, x0: None, corrected: None };
            schedule.step(step, &input, output).unwrap();
            f64::from(next[0])
        };
        let (without, unit) = (with(0.0), with(1.0) - with(0.0));
        if schedule.draws_noise(step) {
            // Deviations of the noise that is left and of the fresh one add up to the level, in squares.
            let sigma = sigmas[step + 1];
            let left = (without - (1.0 - sigma) * f64::from(clean)) / f64::from(first);
            assert!((left.hypot(unit) - sigma).abs() < 1e-5, "step {step}: {left} and {unit}, not {sigma}");
        } else {
            assert_eq!(unit, 0.0, "step {step} draws nothing");
        }
    }
    // The boundary, 875, lies nearest to entry 632 of the table.
    let met = 12.0 * 0.368 / (1.0 + 11.0 * 0.368);
    let (sample, velocity, mut next) = ([at(sigmas[3], first)], [first - clean], [0.0]);
    let input = StepInput { velocity: &velocity, sample: &sample, history: History::default(), noise: None };
    schedule.step(3, &input, StepOutput { next: &mut next, x0: None, corrected: None }).unwrap();
    assert!((f64::from(next[0]) - f64::from(at(met, first))).abs() < 1e-6);
}

#[test]
fn few_steps_that_make_no_sense_are_refused() {
    let refuses = |steps: &[usize], shift, boundary, says: &str| {
        let error = Schedule::few_step(steps, shift, boundary).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    refuses(&[], 5.0, None, "falling whole numbers");
    refuses(&[500, 750], 5.0, None, "falling whole numbers");
    refuses(&[1001, 750], 5.0, None, "falling whole numbers");
    refuses(&[750, 0], 5.0, None, "falling whole numbers");
    refuses(&[1000, 750], 0.0, None, "positive number");
    refuses(&[1000, 990], 12.0, Some(0.875), "belongs to the high-noise expert");
    let schedule = Schedule::few_step(&[1000, 500], 5.0, None).unwrap();
    let (numbers, mut next) = ([1.0], [0.0]);
    let input = StepInput { velocity: &numbers, sample: &numbers, history: History::default(), noise: None };
    let output = StepOutput { next: &mut next, x0: None, corrected: None };
    let error = schedule.step(0, &input, output).unwrap_err().to_string();
    assert_eq!(error, "noise of step 0: got none, expected 1");
    assert!(Schedule::new(Solver::FewStep, Grid::Diffusers, 4, 5.0).is_err());
}
