//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use evanesce_engine::plan::KvShape;
use evanesce_engine::{Codec, HeldWeights, KvCodec};

use crate::bench::Bench;
use crate::clip::Clip;
use crate::quantity::{
    DiskCache, KvCodecs, parse_bytes, parse_codec, parse_disk_cache, parse_frame_size, parse_held_weights,
    parse_kv_codec, parse_kv_codecs, parse_kv_shape, parse_whole,
};

/// Makes videos from text with Wan2.2, in memory that comes back.
#[derive(Debug, Parser)]
#[command(name = "evanesce", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make one video from a prompt.
    #[command(allow_negative_numbers = true)]
    Generate(Box<Generate>),
    /// Measure this machine's arithmetic.
    Bench(Bench),
    /// Measure on a short video which layers bear which codec of keys and values, and write the cheapest choice under a budget.
    #[command(allow_negative_numbers = true)]
    Calibrate(Box<Calibrate>),
    /// Say how far two videos are from each other: PSNR and SSIM of the first block, of 0 to 2 s, of 2 to 5 s, and of all.
    Compare(Compare),
    /// Say what a snapshot, a checkpoint or a directory of the cache holds, and check it: every checksum of snapshots, a disk tier and
    /// embeddings; of a checkpoint, which has none, names, shapes and lengths, and that all of it can be read.
    Inspect(Inspect),
    /// Say what a video would hold and move, what fits, and which policy would be chosen; no weights are needed.
    Plan(Box<PlanArgs>),
    /// Make videos for whoever asks over HTTP, with a queue that survives the process and a page to watch it.
    Serve(Serve),
}

/// Flags of `serve`; each overrides the configuration file.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// The configuration; `--print-config` prints one with every key.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Address and port [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<std::net::SocketAddr>,
    /// Where jobs and videos are kept [default: evanesce-data].
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// A checkpoint in diffusers layout or in the official Wan layout [default: the small one that ships with evanesce].
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// How the experts' matrices are held in memory: bf16, to which f32 is rounded as it is read, or stored, which is as the
    /// checkpoint has them [default: bf16].
    #[arg(long, value_name = "TYPE", value_parser = parse_held_weights)]
    pub(crate) weights: Option<HeldWeights>,
    /// Memory for weights and everything that jobs keep where arithmetic happens, such as 8GiB [default: three quarters of
    /// what is free].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) device_memory: Option<usize>,
    /// Memory for what has to make room there but is needed again [default: an eighth of what is free].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) host_memory: Option<usize>,
    /// A directory and how much of it may be used for what finds no room in memory, such as /fast/ssd:64GiB: one file, set
    /// aside at the start and removed at the end [default: none].
    #[arg(long, value_name = "DIR:BYTES", value_parser = parse_disk_cache)]
    pub(crate) disk_cache: Option<DiskCache>,
    /// Threads for arithmetic [default: one per processor].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// How the log is written: `text` or `json` [default: text].
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"])]
    pub(crate) log_format: Option<String>,
    /// Print a configuration with every key and its default, and exit.
    #[arg(long)]
    pub(crate) print_config: bool,
    /// Draw a key for a tenant, and a secret for its webhooks; print them as a section of the configuration, and exit.
    #[arg(long, value_name = "TENANT")]
    pub(crate) new_key: Option<String>,
}

/// The solvers that `--solver` offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SolverName {
    /// UniPC, second order.
    Unipc,
    /// First-order Euler on the flow.
    Euler,
}

/// Flags of `generate`. What is not given comes from the checkpoint, then from Wan2.2's own settings.
#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// What the video should show.
    #[arg(required_unless_present = "unconditional", conflicts_with = "unconditional")]
    pub(crate) prompt: Option<String>,
    /// Follow no prompt: the video shows what the model makes of nothing.
    #[arg(long)]
    pub(crate) unconditional: bool,
    /// Where the video goes; it appears when it is complete.
    #[arg(short, long, default_value = "out.mp4", value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// A checkpoint in diffusers layout or in the official Wan layout [default: the small one that ships with evanesce].
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// How the experts' matrices are held in memory: bf16, to which f32 is rounded as it is read, or stored, which is as the
    /// checkpoint has them.
    #[arg(long, value_name = "TYPE", value_parser = parse_held_weights, default_value = "bf16")]
    pub(crate) weights: HeldWeights,
    #[command(flatten)]
    pub(crate) clip: Clip,
    /// Timesteps at or above this part of 1 use the high-noise expert.
    #[arg(long, value_name = "B")]
    pub(crate) boundary: Option<f64>,
    /// How far the steps are shifted towards high noise.
    #[arg(long, value_name = "K")]
    pub(crate) shift: Option<f64>,
    /// The sampler.
    #[arg(long, value_name = "NAME")]
    pub(crate) solver: Option<SolverName>,
    /// How keys and values of earlier frames are stored, where the checkpoint makes a video block by block: f32, bf16, int8,
    /// int4, int2, k8v4 (keys int8, values int4) or k4v2, or a file that says it for every layer, such as `calibrate` writes
    /// [default: bf16].
    #[arg(long, value_name = "NAME|FILE", value_parser = parse_kv_codecs)]
    pub(crate) kv_codec: Option<KvCodecs>,
    /// Latent frames right before a block that it sees [default: the checkpoint's].
    #[arg(long, value_name = "N", value_parser = parse_whole::<usize>)]
    pub(crate) kv_window: Option<usize>,
    /// Latent frames at the beginning that every block sees, besides [default: the checkpoint's].
    #[arg(long, value_name = "N", value_parser = parse_whole::<usize>)]
    pub(crate) kv_sink: Option<usize>,
    /// The same number gives the same noise as `torch.Generator("cpu")` [default: drawn, and reported].
    #[arg(long, value_name = "N", value_parser = parse_whole::<u64>)]
    pub(crate) seed: Option<u64>,
    /// Quality of the video file, 12 (finest) to 51: the quantizer that H.264 keeps constant.
    #[arg(long, value_name = "QP", default_value_t = 18)]
    pub(crate) quality: u8,
    /// Let the video be there from its first half second on, to be played while it grows. What the file held before goes at
    /// once; if the job fails, nothing is left.
    #[arg(long)]
    pub(crate) growing: bool,
    /// Memory for weights and everything the job keeps where arithmetic happens, such as 8GiB [default: three quarters of
    /// what is free].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) device_memory: Option<usize>,
    /// Memory for what has to make room there but is needed again [default: an eighth of what is free].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) host_memory: Option<usize>,
    /// A directory and how much of it may be used for what finds no room in memory, such as /fast/ssd:64GiB: one file, set
    /// aside at the start and removed at the end [default: none].
    #[arg(long, value_name = "DIR:BYTES", value_parser = parse_disk_cache)]
    pub(crate) disk_cache: Option<DiskCache>,
    /// Keep the job in this directory while it is made, which takes a tenth of the time at most. After a crash, a power cut or an
    /// interrupt the same command goes on from there and makes the same file; what is kept goes when the video is there. A directory
    /// that keeps another job is refused.
    #[arg(long, value_name = "DIR", requires = "seed", conflicts_with_all = [
        "noise_in", "start_from", "latents_out", "frames_out"])]
    pub(crate) snapshots: Option<PathBuf>,
    /// Threads for arithmetic [default: one per processor].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Print one JSON object on standard output, and nothing else there.
    #[arg(long)]
    pub(crate) json: bool,
    /// Also write a page about the job: what the cache held, what became of it, where the time went, pictures of the video.
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
    /// Say in that page how far the video is from this one: a video or a file of frames of the same size and length, such as a
    /// run with other pages.
    #[arg(long, value_name = "FILE", requires = "report")]
    pub(crate) reference: Option<PathBuf>,
    /// Start from this noise: a safetensors file with `noise` [16, T, height/8, width/8] in f32.
    #[arg(long, value_name = "FILE")]
    pub(crate) noise_in: Option<PathBuf>,
    /// Panic at this event, for tests of what that leaves.
    #[arg(long, hide = true, value_name = "N")]
    pub(crate) panic_at: Option<usize>,
    /// Frames that the video begins with and goes on from, as `--frames-out` writes them: whole blocks of a checkpoint that makes
    /// a video block by block.
    #[arg(long, value_name = "FILE")]
    pub(crate) start_from: Option<PathBuf>,
    /// Also write the latents, before the VAE de-normalises them: safetensors, `latents` [16, T, height/8, width/8] f32.
    #[arg(long, value_name = "FILE")]
    pub(crate) latents_out: Option<PathBuf>,
    /// Also write the frames, before video encoding: safetensors, `frames` [T, height, width, 3] f32 in 0..1.
    #[arg(long, value_name = "FILE")]
    pub(crate) frames_out: Option<PathBuf>,
}

/// Flags of `calibrate`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("budget").required(true)))]
pub(crate) struct Calibrate {
    /// What the video should show.
    pub(crate) prompt: String,
    /// Where the choice goes: a file for `generate --kv-codec`.
    #[arg(short, long, default_value = "kv-codecs.json", value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// The most bytes that the pages of a video of this size may take: the least error under it.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, group = "budget")]
    pub(crate) kv_memory: Option<usize>,
    /// The largest relative error of attention, such as 0.02: the fewest bytes under it.
    #[arg(long, value_name = "E", group = "budget")]
    pub(crate) error: Option<f64>,
    /// Codecs to choose from.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = parse_codec, default_value = "bf16,int8,int4,int2")]
    pub(crate) codecs: Vec<Codec>,
    /// A codec of its own for the first frames, which every block sees; not counted in the budget.
    #[arg(long, value_name = "NAME", value_parser = parse_kv_codec)]
    pub(crate) sink: Option<KvCodec>,
    /// A codec for the frames right before a block, beside the one that they have later; not counted in the budget.
    #[arg(long, value_name = "NAME", value_parser = parse_kv_codec)]
    pub(crate) newest: Option<KvCodec>,
    /// A checkpoint that makes videos block by block [default: the small one of that kind that ships with evanesce].
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// What the video should not show.
    #[arg(long, value_name = "TEXT")]
    pub(crate) negative: Option<String>,
    /// Width and height in pixels, multiples of 16.
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = parse_frame_size)]
    pub(crate) size: Option<(usize, usize)>,
    /// How many frames: one more than a multiple of 4. At least two blocks, or there are no pages.
    #[arg(long, value_name = "N", value_parser = parse_whole::<usize>)]
    pub(crate) frames: Option<usize>,
    /// Denoising steps.
    #[arg(long, value_name = "N", value_parser = parse_whole::<usize>)]
    pub(crate) steps: Option<usize>,
    /// Guidance of the high-noise expert; 1 turns guidance off.
    #[arg(long, value_name = "G")]
    pub(crate) guidance_high: Option<f64>,
    /// Guidance of the low-noise expert; 1 turns guidance off.
    #[arg(long, value_name = "G")]
    pub(crate) guidance_low: Option<f64>,
    /// Seed of the noise.
    #[arg(long, value_name = "N", value_parser = parse_whole::<u64>, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Memory for weights and everything the job keeps [default: three quarters of what is free].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) device_memory: Option<usize>,
    /// Threads for arithmetic [default: one per processor].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Print one JSON object on standard output, and nothing else there.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `inspect`.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// A snapshot, the directory with all snapshots of a service, a checkpoint, a disk tier's directory, or a service's embeddings.
    pub(crate) directory: PathBuf,
    /// Print one JSON object on standard output, and nothing else there.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `compare`.
#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// An MP4 video, or the frames that `--frames-out` wrote.
    pub(crate) a: PathBuf,
    /// Another one of the same size and length.
    pub(crate) b: PathBuf,
    /// Latent frames of the first block.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) block_frames: u16,
    /// Frames per second [default: what the video says, else 16].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=240))]
    pub(crate) fps: Option<u16>,
    /// Print one JSON object on standard output, and nothing else there.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `plan`. What is not given comes from the checkpoint, then from Wan2.2's own settings.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// `wan2.2-t2v-a14b`, or a checkpoint's directory; its weights need not be there [default: the small checkpoint that
    /// ships with evanesce].
    #[arg(long, value_name = "NAME|DIR")]
    pub(crate) model: Option<PathBuf>,
    /// How the experts' matrices are held in memory: bf16, to which f32 is rounded as it is read, or stored, which is as the
    /// checkpoint has them. Where its weights are not there, they are taken to be as Wan publishes them: experts in f32.
    #[arg(long, value_name = "TYPE", value_parser = parse_held_weights, default_value = "bf16")]
    pub(crate) weights: HeldWeights,
    /// What the video would show; only its length counts.
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    #[command(flatten)]
    pub(crate) clip: Clip,
    /// Tokens of either prompt [default: counted where there is a prompt and a tokenizer, else 512, the most].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub(crate) prompt_tokens: Option<u16>,
    /// The timesteps that a checkpoint was distilled to, such as 1000,750,500,250; turns guidance off.
    #[arg(long, value_name = "T,T,...", value_delimiter = ',')]
    pub(crate) few_steps: Option<Vec<usize>>,
    /// How keys and values of earlier frames are stored: a name, or a file that says it for every layer, such as `calibrate`
    /// writes [default: bf16].
    #[arg(long, value_name = "NAME|FILE", value_parser = parse_kv_codecs)]
    pub(crate) kv_codec: Option<KvCodecs>,
    /// Frames that the video would go on from, as `generate` takes them; only their number counts.
    #[arg(long, value_name = "FILE")]
    pub(crate) start_from: Option<PathBuf>,
    /// Latent frames right before a block that it sees. Makes the plan one for a video made block by block.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) kv_window: Option<u16>,
    /// Latent frames at the beginning that every block sees, besides.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub(crate) kv_sink: Option<u16>,
    /// Latent frames of a block.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) block_frames: Option<u16>,
    /// Memory for weights and everything the job keeps where arithmetic happens, such as 24GiB [default: three quarters of
    /// what is free].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) device_memory: Option<usize>,
    /// Memory for what has to make room there but is needed again [default: an eighth of what is free].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) host_memory: Option<usize>,
    /// A directory and how much of it may be used for what finds no room in memory; its speed is measured.
    #[arg(long, value_name = "DIR:BYTES", value_parser = parse_disk_cache)]
    pub(crate) disk_cache: Option<DiskCache>,
    /// Only the size of a plain cache of keys and values: layers, tokens and numbers of a key, such as 32x8192x4096.
    #[arg(long, value_name = "LxTxD", value_parser = parse_kv_shape, conflicts_with_all = [
        "model", "weights", "prompt", "prompt_tokens", "few_steps", "kv_codec", "kv_window", "kv_sink", "block_frames", "device_memory",
        "host_memory", "disk_cache", "report", "size", "frames", "seconds", "steps", "fps", "guidance_high", "guidance_low",
        "negative", "no_measure", "threads", "start_from"])]
    pub(crate) shape: Option<KvShape>,
    /// Do not measure how fast this machine copies, computes and reads its disk.
    #[arg(long)]
    pub(crate) no_measure: bool,
    /// Threads for measuring [default: one per processor].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Also write the plan as a page with pictures.
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,
    /// Print one JSON object on standard output, and nothing else there.
    #[arg(long)]
    pub(crate) json: bool,
}
