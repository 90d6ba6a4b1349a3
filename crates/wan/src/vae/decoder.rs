//! Latents into pictures.

use candle_core::{Device, Tensor};
use evanesce_kernels::clamp;

use super::config::VaeConfig;
use super::memory;
use super::pass::{Features, Pass};
use super::plan::{Stage, decoder_stages};
use super::slots::FeatureSlots;
use crate::error::{Result, WanError};
use crate::weights::{Component, GroupId, WeightSource};

/// Frame numbers of a stream end here: years of video, and no sum of them overflows.
pub(super) const MAX_FRAME_INDEX: u64 = 1 << 40;

/// The decoder half. Holds no weights and no state of any stream.
#[derive(Clone, Debug)]
pub struct Decoder {
    config: VaeConfig,
    stages: Vec<Stage>,
}

impl Decoder {
    /// A decoder of this shape.
    #[must_use]
    pub fn new(config: VaeConfig) -> Self {
        let stages = decoder_stages(&config);
        Self { config, stages }
    }

    /// Its layers, in forward order.
    pub(super) fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// Decodes the next latent frames of a stream.
    ///
    /// `latents` is `[z, n, h, w]` f32 as the transformer has them (normalised per channel); `first_frame_index` is
    /// the number of the first of them in the stream. The result is `[pictures, H, W, 3]` f32 in -1..=1. However a
    /// stream is cut into calls, its pictures have the same bits, since latent frames go through one by one.
    ///
    /// # Errors
    /// [`WanError::Mismatch`] when `latents` does not fit, or the errors of `weights` and `slots`.
    pub fn decode_chunk(
        &self,
        latents: &Tensor,
        first_frame_index: u64,
        weights: &dyn WeightSource,
        slots: &dyn FeatureSlots,
    ) -> Result<Tensor> {
        let (z_dim, frames, h, w) = latents.dims4().map_err(|_| self.wrong_latents(latents))?;
        if z_dim != self.config.z_dim || frames * h * w == 0 || first_frame_index >= MAX_FRAME_INDEX {
            return Err(self.wrong_latents(latents));
        }
        let latents = latents.flatten_all()?.to_vec1::<f32>()?;
        let group = weights.lease(GroupId { component: Component::VaeDecoder, index: 0 })?;
        let (mut pictures, mut values) = (0, Vec::new());
        for frame in 0..frames {
            let chunk = first_frame_index + frame as u64;
            let pass = Pass { group: &*group, slots, chunk };
            let x = self.latent_frame(&latents, frame, [frames, h, w]);
            let mut decoded = pass.run(&self.stages, x)?;
            clamp(&mut decoded.values, -1.0, 1.0);
            pictures += decoded.frames;
            values.extend_from_slice(&decoded.values);
        }
        let factor = self.config.spatial_factor();
        Ok(Tensor::from_vec(values, (pictures, factor * h, factor * w, 3), &Device::Cpu)?)
    }

    /// Bytes that the slots of one stream hold between two latent frames of `latent_height` x `latent_width`, from the
    /// third on.
    #[must_use]
    pub fn slot_bytes(&self, latent_height: usize, latent_width: usize) -> usize {
        memory::slot_bytes(&self.stages, latent_height, latent_width)
    }

    /// Bytes of activations and of re-ordered weights while one latent frame is decoded, at most; the result of
    /// [`Self::decode_chunk`] not included.
    #[must_use]
    pub fn workspace_bytes(&self, latent_height: usize, latent_width: usize) -> usize {
        memory::workspace_bytes(&self.stages, latent_height, latent_width)
    }

    /// Frame `frame` of `latents` `[z, n, h, w]` as features, with the normalisation undone. Divides by the reciprocal
    /// of the standard deviation, as the Python pipelines do.
    fn latent_frame(&self, latents: &[f32], frame: usize, [frames, h, w]: [usize; 3]) -> Features {
        let channels = self.config.z_dim;
        let mut values = vec![0.0; h * w * channels];
        let statistics = self.config.latents_mean.iter().zip(&self.config.latents_std);
        for (channel, (mean, std)) in statistics.enumerate() {
            let plane = &latents[(channel * frames + frame) * h * w..][..h * w];
            let scale = 1.0 / std;
            for (to, from) in values[channel..].iter_mut().step_by(channels).zip(plane) {
                *to = from / scale + mean;
            }
        }
        Features { values, frames: 1, height: h, width: w, channels }
    }

    fn wrong_latents(&self, latents: &Tensor) -> WanError {
        let expected = format!("[{}, frames, height, width], none of them zero", self.config.z_dim);
        WanError::mismatch("shape of the latents to decode", format!("{:?}", latents.dims()), expected)
    }
}
