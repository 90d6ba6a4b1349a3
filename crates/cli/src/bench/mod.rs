//! `evanesce bench`: what this machine makes of the operations that a video consists of.

mod measure;
mod operations;
mod shape;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use evanesce_engine::kernels::Isa;
use evanesce_engine::{Codec, EngineError, KvCodec, LoneBlock};
use serde::Serialize;

use crate::machine;
use crate::quantity::{parse_codec, parse_kv_codec, parse_measured_seconds, plural, show_bytes};
use measure::{Measured, Timing};
pub(crate) use shape::LinearShape;

/// Flags of `bench`.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub(crate) what: What,
    /// Print one JSON object a line on standard output, and nothing else there.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Threads for arithmetic [default: one per processor].
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// How long to repeat the operation, after one run that is not counted; three runs are made in any case.
    #[arg(long, global = true, value_name = "S", default_value_t = 2.0, value_parser = parse_measured_seconds)]
    pub(crate) seconds: f64,
}

/// What to measure.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum What {
    /// A linear layer with packed weights.
    Linear {
        /// Rows, inputs and outputs, as 1560x5120x5120.
        #[arg(value_name = "MxKxN")]
        shape: LinearShape,
        /// Type of the weights.
        #[arg(long, value_name = "TYPE", default_value = "bf16")]
        weights: WeightType,
    },
    /// Attention without a mask, over numbers or over pages.
    Attention {
        /// Heads.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=512))]
        heads: u16,
        /// Queries.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        queries: u32,
        /// Keys.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        keys: u32,
        /// Numbers of a head.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
        head_dim: u16,
        /// Keys and values lie in pages of this codec, of 1560 tokens each [default: they are plain numbers].
        #[arg(long, value_name = "NAME", value_parser = parse_kv_codec)]
        codec: Option<KvCodec>,
    },
    /// Encoding rows of keys or values.
    Encode {
        /// Rows.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        rows: u32,
        /// Numbers of a row.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
        width: u32,
        /// The codec.
        #[arg(long, value_name = "NAME", value_parser = parse_codec)]
        codec: Codec,
    },
    /// A causal 3x3x3 convolution with both past frames there.
    Conv3d {
        /// Channels of the input.
        #[arg(value_parser = clap::value_parser!(u16).range(1..=4096))]
        cin: u16,
        /// Channels of the output.
        #[arg(value_parser = clap::value_parser!(u16).range(1..=4096))]
        cout: u16,
        /// Frames.
        #[arg(value_parser = clap::value_parser!(u16).range(1..=1024))]
        frames: u16,
        /// Rows of pixels.
        #[arg(value_parser = clap::value_parser!(u16).range(1..=4096))]
        height: u16,
        /// Pixels of a row.
        #[arg(value_parser = clap::value_parser!(u16).range(1..=4096))]
        width: u16,
    },
    /// One transformer block with drawn bfloat16 weights.
    Block {
        /// The sizes of which model.
        #[arg(long, value_name = "NAME")]
        model: ModelSizes,
        /// Tokens that pass the block.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        tokens: u32,
        /// Tokens of earlier frames that they attend to as well.
        #[arg(long, value_name = "M", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
        context_tokens: u32,
    },
    /// The limits of the machine: fused multiply-adds in registers, and copying memory.
    Peak,
}

impl What {
    /// Bytes that the operation's numbers take: at least, since some operations need room to work in besides.
    fn bytes(&self) -> usize {
        let numbers = match *self {
            Self::Linear { shape: LinearShape { rows, inputs, outputs }, .. } => {
                // Weights are there as they are drawn and as they are packed.
                rows * (inputs + outputs) + 2 * inputs * outputs
            }
            Self::Attention { heads, queries, keys, head_dim, .. } => {
                2 * usize::from(heads) * usize::from(head_dim) * (queries as usize + keys as usize)
            }
            Self::Encode { rows, width, .. } => rows as usize * width as usize,
            Self::Conv3d { cin, cout, frames, height, width } => {
                let [cin, cout, frames, height, width] = [cin, cout, frames, height, width].map(usize::from);
                (cin + cout) * frames * height * width + 27 * cin * cout
            }
            Self::Block { model: ModelSizes::Wan22T2vA14b, tokens, context_tokens } => {
                LoneBlock::wan22_t2v_a14b().dim() * (5 * tokens as usize + 2 * context_tokens as usize)
            }
            Self::Peak => 0,
        };
        numbers * size_of::<f32>()
    }

    /// Refuses what this machine has no memory for.
    fn check(&self) -> Result<(), EngineError> {
        let (bytes, most) = (self.bytes(), machine::most_bytes());
        if bytes <= most {
            return Ok(());
        }
        let [bytes, most] = [bytes, most].map(show_bytes);
        let message = format!(
            "the numbers of this operation take {bytes}, and {most} can be had: ask for smaller sizes"
        );
        Err(EngineError::Request(message))
    }
}

/// Types of weights that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightType {
    /// Two bytes each.
    Bf16,
    /// Four bytes each.
    F32,
}

/// Models whose sizes are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModelSizes {
    /// Wan2.2-T2V-A14B.
    #[value(name = "wan2.2-t2v-a14b")]
    Wan22T2vA14b,
}

/// One line of results.
#[derive(Debug, Serialize)]
struct Line {
    op: String,
    isa: &'static str,
    threads: usize,
    median_s: f64,
    min_s: f64,
    runs: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    gflops: Option<f64>,
    /// Of the fused multiply-adds that the same threads did just before.
    #[serde(skip_serializing_if = "Option::is_none")]
    fraction_of_peak: Option<f64>,
    /// Bytes read and written, of what only moves them.
    #[serde(skip_serializing_if = "Option::is_none")]
    gb_per_s: Option<f64>,
    /// Of what copying memory moved just before.
    #[serde(skip_serializing_if = "Option::is_none")]
    fraction_of_copy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    copy_gb_per_s: Option<f64>,
}

/// Bytes that copying moves a second, each counted once, and multiplications and additions that a linear layer in bfloat16
/// does: what a plan reckons with.
pub(crate) fn machine_rates() -> anyhow::Result<(f64, f64)> {
    let timing = Timing { seconds: 0.3 };
    let shape = LinearShape { rows: 256, inputs: 2048, outputs: 2048 };
    let (_, linear) = operations::run(&What::Linear { shape, weights: WeightType::Bf16 }, timing)?;
    Ok((operations::copy_gb_per_s(timing)? * 1e9 / 2.0, linear.gflops() * 1e9))
}

/// Runs the command; a mistake in its flags was refused before.
pub(crate) fn run(args: &Bench) -> ExitCode {
    crate::exit_code(bench(args))
}

fn bench(args: &Bench) -> anyhow::Result<()> {
    args.what.check()?;
    evanesce_engine::use_threads(args.threads.map(usize::from))?;
    let timing = Timing { seconds: args.seconds };
    let peak = operations::peak(timing)?;
    let copies = matches!(args.what, What::Peak | What::Encode { .. });
    let copy_gb_per_s = copies.then(|| operations::copy_gb_per_s(timing)).transpose()?;
    let (op, measured) = match &args.what {
        What::Peak => ("peak".to_owned(), peak.multiply_adds),
        what => operations::run(what, timing)?,
    };
    let Measured { median_s, min_s, runs, .. } = measured;
    let moves = matches!(args.what, What::Encode { .. });
    let rate = measured.gflops();
    let line = Line {
        op,
        isa: Isa::current().as_str(),
        threads: evanesce_engine::kernels::threads(),
        median_s,
        min_s,
        runs,
        gflops: (!moves).then_some(rate),
        fraction_of_peak: (!moves).then(|| rate / peak.multiply_adds.best_gflops()),
        gb_per_s: moves.then_some(rate),
        fraction_of_copy: copy_gb_per_s.filter(|_| moves).map(|copy| rate / copy),
        copy_gb_per_s,
    };
    print(&line, args.json)
}

fn print(line: &Line, as_json: bool) -> anyhow::Result<()> {
    let text = if as_json {
        serde_json::to_string(line).context("a result cannot be written as JSON")?
    } else {
        sentences(line).join("\n")
    };
    writeln!(std::io::stdout(), "{text}").context("cannot write to standard output")
}

fn sentences(line: &Line) -> Vec<String> {
    let Line { op, isa, threads, median_s, min_s, runs, .. } = line;
    let threads = plural(*threads, "thread");
    let mut sentences =
        vec![format!("{op}, {isa}, {threads}: median {median_s:.6} s, min {min_s:.6} s of {runs} runs")];
    if let (Some(gflops), Some(fraction)) = (line.gflops, line.fraction_of_peak) {
        let percent = 100.0 * fraction;
        sentences.push(format!("{gflops:.1} GFLOP/s, {percent:.0} % of the peak of multiply-adds"));
    }
    if let (Some(rate), Some(fraction)) = (line.gb_per_s, line.fraction_of_copy) {
        let percent = 100.0 * fraction;
        sentences.push(format!("{rate:.1} GB/s, {percent:.0} % of copying memory, reads and writes counted"));
    }
    if let Some(rate) = line.copy_gb_per_s {
        sentences.push(format!("copying memory: {rate:.1} GB/s, reads and writes counted"));
    }
    sentences
}
