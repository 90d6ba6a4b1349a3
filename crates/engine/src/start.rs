//! A video that goes on from given frames: they are encoded, and committed as if they had been made here.

use std::path::Path;

use candle_core::{Device, Tensor};
use evanesce_cache::{Job, Lifetime, PutSpec, Tier, Uses};
use evanesce_wan::WanError;
use evanesce_wan::checkpoint::ContextSample;
use evanesce_wan::vae::{Encoder, MapSlots};
use evanesce_wan::weights::{Component, GroupId};

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

/// Encodes the given frames and puts their latents where a denoised block leaves them. Each leaves with its last read, and may
/// wait below the device until then.
///
/// All of them are encoded before the first block is committed: to go on block by block, the encoder would have to keep the
/// last frames of each of its convolutions meanwhile, which are as large as the latents of thousands of frames (2 GiB against
/// 390 KiB at 832x480). Admission counts all of them.
pub(crate) fn put(
    model: &Model,
    spec: &JobSpec,
    job: &Job,
    itinerary: &Itinerary,
    path: &Path,
) -> Result<()> {
    let (height, width) = (spec.height, spec.width);
    if blocks_given(path, spec)? != spec.blocks_given {
        let message = "is not as it was when the job was admitted; leave it as it is until it has been read";
        return Err(EngineError::file(path, message));
    }
    let n_frames = spec.frames_given();
    let encoder = Encoder::new(model.checkpoint.vae().clone());
    let scratch_bytes = workspace_bytes(&model.blueprint, spec);
    let scratch = job.reserve(&[(Tier::Device, scratch_bytes as u64)]).map_err(EngineError::cache)?;
    announce(&model.blueprint, itinerary, job, n_frames);
    let weights = model.weights.for_job(job, itinerary.start(), &model.waits);
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

/// Tells the cache that the encoder's weights are read once for every frame: its latents, which are read later, leave the device
/// before them.
pub(crate) fn announce(blueprint: &Blueprint, itinerary: &Itinerary, job: &Job, n_frames: usize) {
    let id = GroupId { component: Component::VaeEncoder, index: 0 };
    let uses = Uses::every(0, itinerary.start().first, n_frames as u64);
    job.announce(blueprint.weights_key(id), uses);
}

/// Bytes that encoding the frames takes beyond weights and the latents that it makes, at most.
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use evanesce_cache::{Budgets, Kind};
    use evanesce_wan::checkpoint::{Context, Positions, Rollout};

    use super::*;
    use crate::request::{Request, RequestedLength};

    const ROLLOUT: Rollout = Rollout {
        block_frames: 3,
        first_block_frames: 3,
        sink_frames: 2,
        recent_frames: 3,
        positions: Positions::Window,
        context: Context::PerExpert,
        context_sample: ContextSample::X0,
    };
    /// Of a latent frame at 48x32.
    const FRAME_BYTES: u64 = 1536;

    /// Four blocks, three of which are given.
    fn spec(model: &Model) -> JobSpec {
        let request = Request {
            size: Some((48, 32)),
            length: Some(RequestedLength::Frames(45)),
            steps: Some(2),
            ..Request::new("a red ball", 1)
        };
        let spec = JobSpec::new(request, model.checkpoint()).unwrap();
        JobSpec { rollout: Some(ROLLOUT), blocks_given: 3, ..spec }
    }

    /// A file with the frames of three blocks.
    fn three_blocks(directory: &Path) -> PathBuf {
        let path = directory.join("start.safetensors");
        let data_bytes = 33 * 48 * 32 * 3 * size_of::<f32>();
        let tensor = format!(r#"{{"dtype":"F32","shape":[33,32,48,3],"data_offsets":[0,{data_bytes}]}}"#);
        let header = format!(r#"{{"frames":{tensor}}}"#);
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.into_bytes());
        bytes.resize(bytes.len() + data_bytes, 0);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn a_file_that_is_another_by_the_time_it_is_read_is_said_to_be() {
        let directory = tempfile::tempdir().unwrap();
        let path = three_blocks(directory.path());
        let model = Model::golden(Budgets { device_bytes: 1 << 30, host_bytes: 0 });
        let spec = JobSpec { blocks_given: 2, ..spec(&model) };
        let job = model.cache.open_job();
        let refused = put(&model, &spec, &job, &Itinerary::new(&model.blueprint, &spec), &path).unwrap_err();
        assert!(refused.to_string().contains("is not as it was"), "{refused}");
    }

    #[test]
    fn latents_leave_a_full_device_before_the_weights_that_make_the_next_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = three_blocks(directory.path());
        let described = Model::golden(Budgets { device_bytes: 0, host_bytes: 0 });
        let spec = spec(&described);
        let group_bytes: usize = described.blueprint.group_bytes(Component::VaeEncoder).sum();
        let start_bytes = (workspace_bytes(&described.blueprint, &spec) + group_bytes) as u64;
        // Room for two of nine latents, and for whole lines.
        let device_bytes = start_bytes + 2 * FRAME_BYTES + 256;
        let model = Model::golden(Budgets { device_bytes, host_bytes: 9 * FRAME_BYTES });
        let job = model.cache.open_job();
        put(&model, &spec, &job, &Itinerary::new(&model.blueprint, &spec), &path).unwrap();
        let entries = job.entries();
        assert_eq!(entries.len(), 9);
        assert!(entries.iter().any(|owned| owned.tier == Tier::Host));
        assert_eq!(model.counters().kind(Kind::Weights).puts, 1, "they were read once");
    }
}
