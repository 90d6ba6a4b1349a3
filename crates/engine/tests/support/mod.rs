//! The committed golden checkpoint, requests for it, and a sink that keeps pictures in memory.
#![allow(dead_code, clippy::allow_attributes, reason = "every test file uses a part")]

pub(crate) mod rollout;
pub(crate) mod tree;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use evanesce_cache::JobId;
use evanesce_engine::progress::{Event, Observer};
use evanesce_engine::video::{
    EncoderPool, FrameSink, Result as VideoResult, SinkState, VideoError, VideoSummary,
};
use evanesce_engine::{
    Budgets, CancelToken, JobRun, Model, Outcome, Outputs, Request, RequestedLength, Result, Silent,
    VideoTarget,
};
use safetensors::SafeTensors;

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/pipeline").join(name)
}

/// Shape and numbers of one tensor of a file.
pub(crate) fn tensor(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor(name).unwrap();
    let numbers = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    (view.shape().to_vec(), numbers)
}

/// Writes frames to a file of `directory` that videos can go on from.
pub(crate) fn frames_file(directory: &Path, frames: &[f32], shape: [usize; 4]) -> PathBuf {
    let path = directory.join("start.safetensors");
    let header = format!(
        "{{\"frames\":{{\"dtype\":\"F32\",\"shape\":{shape:?},\"data_offsets\":[0,{}]}}}}",
        4 * frames.len()
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.into_bytes());
    bytes.extend(frames.iter().flat_map(|number| number.to_le_bytes()));
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Norm of the difference over the norm of what is expected.
pub(crate) fn relative_error(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let square = |x: f64| x * x;
    let error: f64 = got.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = expected.iter().map(|b| square(f64::from(*b))).sum();
    (error / norm).sqrt()
}

/// Of numbers in 0..=1.
pub(crate) fn psnr_db(got: &[f32], expected: &[f32]) -> f64 {
    let n = f64::from(u32::try_from(expected.len()).unwrap());
    let error: f64 = got.iter().zip(expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    -10.0 * (error / n).log10()
}

pub(crate) const AMPLE: Budgets = Budgets { device_bytes: 1 << 30, host_bytes: 1 << 30 };

pub(crate) fn open(budgets: Budgets) -> Model {
    Model::open(&golden("checkpoint"), budgets).unwrap()
}

/// The request of the golden run.
pub(crate) fn request() -> Request {
    let text = std::fs::read_to_string(golden("request.json")).unwrap();
    request_from(&serde_json::from_str(&text).unwrap())
}

/// The request that a golden's `request.json` holds.
pub(crate) fn request_from(json: &serde_json::Value) -> Request {
    let number = |name: &str| usize::try_from(json[name].as_u64().unwrap()).unwrap();
    Request {
        negative: Some(json["negative"].as_str().unwrap().to_owned()),
        size: Some((number("width"), number("height"))),
        length: Some(RequestedLength::Frames(number("frames"))),
        steps: Some(number("steps")),
        guidance_high: json["guidance_high"].as_f64(),
        guidance_low: json["guidance_low"].as_f64(),
        shift: json["shift"].as_f64(),
        ..Request::new(json["prompt"].as_str().unwrap(), json["seed"].as_u64().unwrap())
    }
}

/// Pictures, once they are complete.
#[derive(Clone, Default)]
pub(crate) struct Kept(pub(crate) Arc<Mutex<Option<Vec<f32>>>>);

struct KeepingSink {
    pictures: Vec<f32>,
    n_pictures: usize,
    kept: Kept,
}

impl FrameSink for KeepingSink {
    fn push(&mut self, rgb: &[f32]) -> VideoResult<()> {
        self.pictures.extend_from_slice(rgb);
        self.n_pictures += 1;
        Ok(())
    }

    fn save(&mut self, from_bytes: u64) -> VideoResult<Option<SinkState>> {
        let stream_bytes = 4 * self.pictures.len() as u64;
        let from = usize::try_from(from_bytes).unwrap() / 4;
        let tail: Vec<u8> = self.pictures[from..].iter().flat_map(|number| number.to_le_bytes()).collect();
        let facts = self.n_pictures.to_le_bytes().to_vec();
        Ok(Some(SinkState { facts, stream_bytes, tail: Box::new(std::io::Cursor::new(tail)) }))
    }

    fn restore(&mut self, facts: &[u8], stream: &mut dyn Read) -> VideoResult<()> {
        self.n_pictures = usize::from_le_bytes(facts.try_into().unwrap());
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).map_err(|_| VideoError::State("the stream ends early"))?;
        self.pictures = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        Ok(())
    }

    fn finish(self: Box<Self>) -> VideoResult<VideoSummary> {
        *self.kept.0.lock().unwrap() = Some(self.pictures);
        Ok(VideoSummary { frames: self.n_pictures, duration_s: 0.0, bytes: 0 })
    }
}

impl Kept {
    fn fresh(&self) -> KeepingSink {
        KeepingSink { pictures: Vec::new(), n_pictures: 0, kept: self.clone() }
    }

    pub(crate) fn sink(&self) -> VideoTarget {
        VideoTarget::Sink(Box::new(self.fresh()))
    }

    /// The same, by the threads of a pool.
    pub(crate) fn pooled(&self, pool: &Arc<EncoderPool>) -> Outputs {
        let video = VideoTarget::Pooled { sink: Box::new(self.fresh()), pool: Arc::clone(pool) };
        Outputs { video, latents: None, frames: None }
    }

    pub(crate) fn outputs(&self) -> Outputs {
        Outputs { video: self.sink(), latents: None, frames: None }
    }

    pub(crate) fn take(&self) -> Vec<f32> {
        self.0.lock().unwrap().take().expect("a finished job")
    }
}

/// Runs a job to its end.
pub(crate) fn run(
    model: &Model,
    request: Request,
    outputs: Outputs,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let mut job = JobRun::admit(model, request, outputs, CancelToken::new())?;
    while job.advance(observer)?.is_more() {}
    job.finish()
}

/// Runs two jobs by turns, a unit each; gives their pictures and ids.
pub(crate) fn interleaved(model: &Model, requests: [Request; 2]) -> ([Vec<f32>; 2], [JobId; 2]) {
    let kept = [Kept::default(), Kept::default()];
    let mut outputs = kept.iter().map(Kept::outputs);
    let admitted = requests
        .map(|request| JobRun::admit(model, request, outputs.next().unwrap(), CancelToken::new()).unwrap());
    let ids = admitted.each_ref().map(JobRun::id);
    let mut jobs = admitted.map(Some);
    while jobs.iter().any(Option::is_some) {
        for slot in &mut jobs {
            if let Some(mut job) = slot.take() {
                if job.advance(&mut Silent).unwrap().is_more() {
                    *slot = Some(job);
                } else {
                    job.finish().unwrap();
                }
            }
        }
    }
    (kept.map(|kept| kept.take()), ids)
}

/// Runs a job and gives its pictures.
pub(crate) fn pictures(model: &Model, request: Request) -> Vec<f32> {
    let kept = Kept::default();
    run(model, request, kept.outputs(), &mut |_: Event<'_>| {}).unwrap();
    kept.take()
}
