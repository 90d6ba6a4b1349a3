//! A video that goes on from given frames: they are encoded, and committed as if they had been made here.

use std::path::Path;

use candle_core::{Device, Tensor};
use evanesce_cache::{Job, Lifetime, PutSpec, Tier, Uses};
use evanesce_wan::WanError;
use evanesce_wan::checkpoint::ContextSample;
use evanesce_wan::vae::{Encoder, MapSlots};
use evanesce_wan::weights::Component;

use crate::blueprint::Blueprint;
use crate::bytes::write_f32;
use crate::error::{EngineError, Result};
use crate::itinerary::Itinerary;
use crate::keys::{self, LatentRole};
use crate::model::Model;
use crate::request::JobSpec;
use crate::tensors::TensorFile;

/// The blocks that a start file gives.
///
/// # Errors
/// When the file holds no frames of the video's size, or not whole blocks of them and fewer than the video has.
pub(crate) fn blocks_given(path: &Path, spec: &JobSpec) -> Result<usize> {
    let fault = |message: String| EngineError::file(path, message);
    let Some(rollout) = spec.rollout else {
        return Err(fault(
            "is for checkpoints that make a video block by block; this one makes it at once".into(),
        ));
    };
    if rollout.context_sample == ContextSample::Boundary {
        return Err(fault("cannot be gone on from: this checkpoint remembers what it made half way, which frames do not show".into()));
    }
    let file = TensorFile::open(path, "frames")?;
    let shape = file.shape();
    let size = [spec.height, spec.width, 3];
    if shape.len() != 4 || shape[1..] != size {
        return Err(fault(format!(
            "`frames` is {shape:?}; expected [frames, {}, {}, 3]",
            spec.height, spec.width
        )));
    }
    let blocks = spec.blocks();
    let frames_of = |count: usize| (blocks.frames(count - 1).end - 1) * 4 + 1;
    let given = (1..spec.n_blocks()).find(|count| frames_of(*count) == shape[0]);
    given.ok_or_else(|| {
        let right: Vec<_> = (1..spec.n_blocks()).map(frames_of).take(8).map(|n| n.to_string()).collect();
        fault(if right.is_empty() {
            "cannot be gone on from: the video is a single block; ask for a longer one".to_owned()
        } else {
            format!(
                "has {} frames; a video of {} frames can go on from {}",
                shape[0],
                spec.frames,
                right.join(", ")
            )
        })
    })
}

/// Encodes the given frames and puts their latents where a denoised block leaves them. Each leaves with its last read.
pub(crate) fn put(
    model: &Model,
    spec: &JobSpec,
    job: &Job,
    itinerary: &Itinerary,
    path: &Path,
) -> Result<()> {
    let (height, width) = (spec.height, spec.width);
    let blocks = blocks_given(path, spec)?;
    let n_frames = spec.blocks().frames(blocks - 1).end;
    let encoder = Encoder::new(model.checkpoint.vae().clone());
    let scratch_bytes = workspace_bytes(&model.blueprint, spec);
    let scratch = job.reserve(&[(Tier::Device, scratch_bytes as u64)]).map_err(EngineError::cache)?;
    let weights = model.weights.for_job(job, itinerary.step(0, 0), &model.waits);
    let slots = MapSlots::default();
    let mut file = TensorFile::open(path, "frames")?;
    for frame in 0..n_frames {
        let first = if frame == 0 { 0 } else { 4 * frame - 3 };
        let count = if frame == 0 { 1 } else { 4 };
        let picture = height * width * 3;
        let numbers = file.read(std::iter::once(first * picture..(first + count) * picture))?;
        let numbers: Vec<f32> = numbers.into_iter().map(|x| x * 2.0 - 1.0).collect();
        let pictures =
            Tensor::from_vec(numbers, (count, height, width, 3), &Device::Cpu).map_err(WanError::from)?;
        let latent = encoder.encode_chunk(&pictures, first as u64, &weights, &slots)?;
        let latent = latent.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(WanError::from)?;
        put_latent(job, itinerary, frame, &latent)?;
    }
    drop(scratch);
    Ok(())
}

/// Bytes that encoding the frames takes beyond weights, at most.
pub(crate) fn workspace_bytes(blueprint: &Blueprint, spec: &JobSpec) -> usize {
    let (height, width) = (spec.height, spec.width);
    let encoder = Encoder::new(blueprint.description.vae().clone());
    let picture_bytes = 4 * height * width * 3 * size_of::<f32>();
    let kept_bytes = encoder.slot_bytes(height / 8, width / 8) + 2 * picture_bytes;
    let turned_bytes = blueprint.description.turned_bytes(Component::VaeEncoder);
    encoder.workspace_bytes(height / 8, width / 8) + kept_bytes + turned_bytes
}

fn put_latent(job: &Job, itinerary: &Itinerary, frame: usize, latent: &[f32]) -> Result<()> {
    let key = keys::latent(LatentRole::Final, frame);
    for read_by in itinerary.reads_of_final(frame) {
        job.announce(key, Uses::once(read_by));
    }
    let put = PutSpec::new(Tier::Device, Lifetime::Job, size_of_val(latent));
    let mut writer = job.put_with(key, put).map_err(EngineError::cache)?;
    write_f32(writer.bytes_mut(), latent);
    drop(writer.commit().map_err(EngineError::cache)?);
    Ok(())
}
