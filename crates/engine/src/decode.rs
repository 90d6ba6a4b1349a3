//! Latents into pictures, one latent frame at a time, straight into the video.

use candle_core::{Device, Tensor};
use evanesce_cache::{Job, Tier};
use evanesce_wan::WanError;
use evanesce_wan::weights::Component;

use crate::blueprint::Blueprint;
use crate::bytes::as_f32;
use crate::error::{EngineError, Result};
use crate::features::FeatureEntries;
use crate::itinerary::Itinerary;
use crate::keys::{self, LatentRole};
use crate::model::Model;
use crate::request::JobSpec;

/// What decoding reads besides entries of the job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decode<'a> {
    pub(crate) model: &'a Model,
    pub(crate) spec: &'a JobSpec,
    pub(crate) job: &'a Job,
    pub(crate) itinerary: &'a Itinerary,
}

impl Decode<'_> {
    /// Decodes latent frame `frame`, ends its step, and gives its pictures `[n, height, width, 3]` in 0..=1.
    pub(crate) fn take(&self, frame: usize) -> Result<Vec<f32>> {
        let (height, width) = (self.spec.height / 8, self.spec.width / 8);
        let workspace_bytes = workspace_bytes(&self.model.blueprint, self.spec);
        let scratch =
            self.job.reserve(&[(Tier::Device, workspace_bytes as u64)]).map_err(EngineError::cache)?;
        let key = keys::latent(LatentRole::Final, frame);
        let latent = self.job.try_take(&key).map_err(EngineError::cache)?;
        let numbers = as_f32(&latent);
        let channels = numbers.len() / (height * width);
        let latents = Tensor::from_slice(numbers, (channels, 1, height, width), &Device::Cpu)
            .map_err(WanError::from)?;
        drop(latent);
        let weights =
            self.model.weights.for_job(self.job, self.itinerary.latent_frame(frame), &self.model.waits);
        let features = FeatureEntries { job: self.job, spec: self.spec, itinerary: self.itinerary, frame };
        let pictures =
            self.model.blueprint.decoder.decode_chunk(&latents, frame as u64, &weights, &features)?;
        let mut pictures = pictures.flatten_all().and_then(|t| t.to_vec1::<f32>()).map_err(WanError::from)?;
        for value in &mut pictures {
            *value = (*value / 2.0 + 0.5).clamp(0.0, 1.0);
        }
        drop(scratch);
        self.job.step();
        Ok(pictures)
    }
}

/// Bytes that decoding one latent frame takes beyond weights, kept frames and the latent, at most.
pub(crate) fn workspace_bytes(blueprint: &Blueprint, spec: &JobSpec) -> usize {
    let picture_bytes = 4 * spec.height * spec.width * 3 * size_of::<f32>();
    let turned_bytes = blueprint.description.turned_bytes(Component::VaeDecoder);
    blueprint.decoder.workspace_bytes(spec.height / 8, spec.width / 8) + 2 * picture_bytes + turned_bytes
}
