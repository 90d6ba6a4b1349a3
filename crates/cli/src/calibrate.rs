//! `evanesce calibrate`: which layers bear which codec of keys and values.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use evanesce_engine::calibration::{Assignment, Budget, Measurement, Side};
use evanesce_engine::request::MAX_STEPS;
use evanesce_engine::video::{FrameSink, Result as VideoResult, VideoSummary};
use evanesce_engine::{
    Budgets, CancelToken, Codec, Component, EngineError, HeldWeights, JobRun, JobSpec, KvCodec, Model,
    Outputs, Request, RequestedLength, VideoTarget,
};
use serde_json::{Map, Value, json};

use crate::args::Calibrate;
use crate::machine;
use crate::output;
use crate::progress::{Display, say};
use crate::quantity::show_bytes;

/// The experts and their names in results.
const EXPERTS: [(Component, &str); 2] =
    [(Component::HighNoise, "high_noise"), (Component::LowNoise, "low_noise")];

/// Takes pictures and keeps none.
#[derive(Debug, Default)]
struct Nowhere {
    frames: usize,
}

impl FrameSink for Nowhere {
    fn push(&mut self, _rgb: &[f32]) -> VideoResult<()> {
        self.frames += 1;
        Ok(())
    }

    fn finish(self: Box<Self>) -> VideoResult<VideoSummary> {
        Ok(VideoSummary { frames: self.frames, duration_s: 0.0, bytes: 0 })
    }
}

/// Runs the command and says how it went.
pub(crate) fn run(args: &Calibrate) -> ExitCode {
    crate::exit_code(calibrate(args))
}

fn calibrate(args: &Calibrate) -> anyhow::Result<()> {
    check(args)?;
    evanesce_engine::use_threads(args.threads.map(usize::from))?;
    let directory = args.model.clone().or_else(|| machine::shipped_model(machine::SHAPES_CAUSAL));
    let directory =
        directory.ok_or_else(|| refusal("no checkpoint: name one with --model DIR".to_owned()))?;
    let available_bytes = machine::available_bytes();
    let budgets = Budgets {
        device_bytes: args.device_memory.unwrap_or(available_bytes / 4 * 3) as u64,
        host_bytes: (available_bytes / 8) as u64,
    };
    // As `generate` holds them unless it is told otherwise.
    let model = Model::open_holding(&directory, HeldWeights::Bf16, budgets, None)?;
    let mut display = Display::new();
    let outputs =
        Outputs { video: VideoTarget::Sink(Box::<Nowhere>::default()), latents: None, frames: None };
    let mut job = JobRun::admit(&model, request(args), outputs, CancelToken::new())?;
    let tokens = job.kept_tokens();
    let short =
        || refusal("the video has one block only, so nothing reads a page; ask for more --frames".to_owned());
    if tokens == 0 {
        return Err(short().into());
    }
    let budget = match (args.kv_memory, args.error) {
        (Some(bytes), _) => Budget::TokenBytes(bytes / tokens),
        (None, error) => Budget::Error(error.unwrap_or_default()),
    };
    let least = least_token_bytes(args, &model, job.spec());
    if matches!(budget, Budget::TokenBytes(most) if most < least) {
        let least = show_bytes(least * tokens);
        let message = format!("the budget cannot be met: in the smallest of the codecs, pages take {least}");
        return Err(refusal(message).into());
    }
    job.measure(&args.codecs);
    while job.advance(&mut display)?.is_more() {}
    let mut chosen = job.choose(budget).ok_or_else(short)?;
    (chosen.overrides.sink, chosen.overrides.newest) = (args.sink, args.newest);
    if !chosen.fits {
        let Assignment { token_bytes, error, .. } = chosen;
        let least = show_bytes(token_bytes * tokens);
        let message = format!("the budget cannot be met: the nearest is {least} with an error of {error:.4}");
        return Err(refusal(message).into());
    }
    let measured = job.measured().map(|measured| table(args, &model, measured)).unwrap_or_default();
    write(args, &chosen, &measured)?;
    report(args, &chosen, tokens, &measured)
}

/// Bytes of one token's keys and values in the smallest of the codecs, over all layers of those experts that take a step.
fn least_token_bytes(args: &Calibrate, model: &Model, spec: &JobSpec) -> usize {
    let config = |expert| model.checkpoint().transformer(expert);
    let (is_alone, meeting) = (config(Component::LowNoise).is_none(), spec.boundary * MAX_STEPS as f64);
    let steps = |expert| {
        let is_high = expert == Component::HighNoise;
        spec.schedule.timesteps().iter().any(|timestep| is_alone || (*timestep >= meeting) == is_high)
    };
    let of_expert = |(expert, _): (Component, &str)| {
        let config = config(expert).filter(|_| steps(expert))?;
        let row_bytes = args.codecs.iter().map(|codec| codec.row_bytes(config.dim())).min()?;
        Some(Side::ALL.len() * config.layers * row_bytes)
    };
    EXPERTS.into_iter().filter_map(of_expert).sum()
}

fn refusal(message: String) -> EngineError {
    EngineError::Request(message)
}

fn check(args: &Calibrate) -> Result<(), EngineError> {
    if let Some(error) = args.error.filter(|error| !(*error > 0.0 && *error < 1.0)) {
        return Err(refusal(format!("--error is {error}; it lies between 0 and 1, such as 0.02")));
    }
    output::check(&args.output, "kv-codecs.json")
}

fn request(args: &Calibrate) -> Request {
    Request {
        negative: args.negative.clone(),
        size: args.size,
        length: args.frames.map(RequestedLength::Frames),
        steps: args.steps,
        guidance_high: args.guidance_high,
        guidance_low: args.guidance_low,
        // What others are measured against.
        kv_codec: KvCodec::from_name("f32"),
        ..Request::new(args.prompt.clone(), args.seed)
    }
}

/// Errors by expert, layer, side and codec.
fn table(args: &Calibrate, model: &Model, measured: &Measurement) -> Map<String, Value> {
    let of_side = |expert, layer, side| -> Option<Map<String, Value>> {
        let error = |codec: &Codec| {
            Some((codec.as_str().to_owned(), measured.error(expert, layer, side, *codec)?.into()))
        };
        args.codecs.iter().map(error).collect()
    };
    let of_layer = |expert, layer| -> Option<Value> {
        let [keys, values] = Side::ALL.map(|side| of_side(expert, layer, side));
        Some(json!({ "keys": keys?, "values": values? }))
    };
    let of_expert = |(expert, name): (Component, &str)| {
        let layers = model.checkpoint().transformer(expert)?.layers;
        let layers: Vec<Value> = (0..layers).map_while(|layer| of_layer(expert, layer)).collect();
        (!layers.is_empty()).then(|| (name.to_owned(), layers.into()))
    };
    EXPERTS.into_iter().filter_map(of_expert).collect()
}

/// The file appears complete or not at all.
fn write(args: &Calibrate, chosen: &Assignment, measured: &Map<String, Value>) -> anyhow::Result<()> {
    let mut file = chosen.overrides.to_json(chosen.base);
    file["measured"] = json!({ "error": chosen.error, "layers": measured });
    let text = serde_json::to_string_pretty(&file).context("a choice cannot be written as JSON")?;
    output::write(&args.output, &(text + "\n"))
}

fn report(
    args: &Calibrate,
    chosen: &Assignment,
    tokens: usize,
    measured: &Map<String, Value>,
) -> anyhow::Result<()> {
    let pages_bytes = chosen.token_bytes * tokens;
    if args.json {
        let line = json!({
            "output": args.output.display().to_string(),
            "pages_bytes": pages_bytes,
            "token_bytes": chosen.token_bytes,
            "error": chosen.error,
            "choice": chosen.overrides.to_json(chosen.base),
            "measured": measured,
        });
        return writeln!(std::io::stdout(), "{line}").context("cannot write to standard output");
    }
    let choice = chosen.overrides.to_json(chosen.base);
    for (expert, layers) in measured {
        for (layer, errors) in layers.as_array().into_iter().flatten().enumerate() {
            let codec = &choice["layers"][expert.as_str()][layer];
            say(&format!("{expert} layer {layer}: {}", shown(codec, errors)));
        }
    }
    let pages = show_bytes(pages_bytes);
    say(&format!("pages take {pages}, attention is off by {:.4}: {}", chosen.error, args.output.display()));
    Ok(())
}

/// The codec of each side and its error.
fn shown(codec: &Value, errors: &Value) -> String {
    let of_side = |side: &str| {
        let name = codec.as_str().or_else(|| codec[side].as_str()).unwrap_or("?");
        format!("{side} {name} ({:.4})", errors[side][name].as_f64().unwrap_or(f64::NAN))
    };
    Side::ALL.map(|side| of_side(side.as_str())).join(", ")
}
