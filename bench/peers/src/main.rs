//! Median seconds of `out = x · weightᵀ` by other crates, as one JSON number.
//!
//! `evanesce-bench-peers gemm|numkong-f32|numkong-bf16 ROWSxINPUTSxOUTPUTS THREADS SECONDS`
//!
//! `gemm` takes f32 on both sides and packs by itself in every call; it is what candle uses. `numkong` packs weights once;
//! its f32 is accumulated in f64, its bf16 has both sides in bfloat16 and sums in f32.

use std::process::ExitCode;
use std::time::Instant;

use fork_union::ThreadPool;
use gemm::Parallelism;
use numkong::{PackedMatrix, Tensor, bf16};

struct Job {
    rows: usize,
    inputs: usize,
    outputs: usize,
    threads: usize,
    seconds: f64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((library, job)) = parse(&arguments) else {
        eprintln!("usage: gemm|numkong-f32|numkong-bf16 ROWSxINPUTSxOUTPUTS THREADS SECONDS");
        return ExitCode::from(2);
    };
    let median_s = match library {
        "gemm" => with_gemm(&job),
        "numkong-f32" => with_numkong(&job, |number| number),
        "numkong-bf16" => with_numkong(&job, bf16::from_f32),
        _ => {
            eprintln!("no library {library:?}; there are gemm, numkong-f32 and numkong-bf16");
            return ExitCode::from(2);
        }
    };
    println!("{median_s}");
    ExitCode::SUCCESS
}

fn parse(arguments: &[String]) -> Option<(&str, Job)> {
    let [library, shape, threads, seconds] = arguments else { return None };
    let sizes: Vec<usize> = shape.split('x').map(|size| size.parse().ok()).collect::<Option<_>>()?;
    let &[rows, inputs, outputs] = sizes.as_slice() else { return None };
    let (threads, seconds) = (threads.parse().ok()?, seconds.parse().ok()?);
    Some((library, Job { rows, inputs, outputs, threads, seconds }))
}

/// Numbers between -1 and 1.
fn drawn(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let draw = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(draw).collect()
}

/// Median seconds of at least three runs after one that is not counted.
fn median(seconds: f64, mut work: impl FnMut()) -> f64 {
    work();
    let (started, mut times) = (Instant::now(), Vec::new());
    while times.len() < 3 || started.elapsed().as_secs_f64() < seconds {
        let begun = Instant::now();
        work();
        times.push(begun.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn with_gemm(job: &Job) -> f64 {
    let &Job { rows, inputs, outputs, threads, seconds } = job;
    let (x, weight) = (drawn(rows * inputs), drawn(outputs * inputs));
    let mut out = vec![0.0_f32; rows * outputs];
    let [wide, deep] = [outputs, inputs].map(|size| isize::try_from(size).expect("a row fits memory"));
    median(seconds, || {
        // SAFETY: `out` is [rows, outputs], `x` [rows, inputs] and `weight` [outputs, inputs], all row-major; the right side
        // is the weight turned, so its columns are `deep` apart.
        unsafe {
            gemm::gemm(
                rows,
                outputs,
                inputs,
                out.as_mut_ptr(),
                1,
                wide,
                false,
                x.as_ptr(),
                1,
                deep,
                weight.as_ptr(),
                deep,
                1,
                0.0_f32,
                1.0_f32,
                false,
                false,
                false,
                Parallelism::Rayon(threads),
            );
        }
    })
}

fn with_numkong<T>(job: &Job, cast: impl Fn(f32) -> T) -> f64
where
    T: numkong::Dots + Copy + Send + Sync,
    T::Accumulator: Copy + Default + Send + Sync,
{
    let &Job { rows, inputs, outputs, threads, seconds } = job;
    let tensor = |height: usize| {
        let numbers: Vec<T> = drawn(height * inputs).into_iter().map(&cast).collect();
        Tensor::<T>::try_from_slice(&numbers, &[height, inputs]).expect("numbers fill their shape")
    };
    let (x, weight) = (tensor(rows), tensor(outputs));
    let packed = PackedMatrix::try_pack(&weight).expect("weights can be packed");
    let mut out = Tensor::<T::Accumulator>::try_full(&[rows, outputs], T::Accumulator::default())
        .expect("there is memory for the output");
    let mut pool = ThreadPool::try_spawn(threads).expect("threads can be started");
    median(seconds, || {
        x.try_dots_packed_parallel_into(&packed, &mut out, &mut pool).expect("shapes fit each other");
    })
}
