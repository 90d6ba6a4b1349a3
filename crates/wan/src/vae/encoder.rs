//! Pictures into latents.

use candle_core::{Device, Tensor};

use super::config::VaeConfig;
use super::decoder::MAX_FRAME_INDEX;
use super::memory;
use super::pass::{Features, Pass};
use super::plan::{Stage, encoder_stages};
use super::slots::FeatureSlots;
use crate::error::{Result, WanError};
use crate::weights::{Component, GroupId, WeightSource};

/// The encoder half. Holds no weights and no state of any stream.
#[derive(Clone, Debug)]
pub struct Encoder {
    config: VaeConfig,
    stages: Vec<Stage>,
}

impl Encoder {
    /// An encoder of this shape.
    #[must_use]
    pub fn new(config: VaeConfig) -> Self {
        let stages = encoder_stages(&config);
        Self { config, stages }
    }

    /// Encodes the next pictures of a stream.
    ///
    /// `pictures` is `[n, H, W, 3]` f32 in -1..=1, `first_picture_index` the number of the first of them in the
    /// stream. A call covers whole latent frames: one picture for the stream's first, [`VaeConfig::temporal_factor`]
    /// for every later one. The result is `[z, latent frames, h, w]` f32: the most likely latents, normalised per
    /// channel as the transformer has them. However a stream is cut into calls, its latents have the same bits.
    ///
    /// # Errors
    /// [`WanError::Mismatch`] when `pictures` does not fit, or the errors of `weights` and `slots`.
    pub fn encode_chunk(
        &self,
        pictures: &Tensor,
        first_picture_index: u64,
        weights: &dyn WeightSource,
        slots: &dyn FeatureSlots,
    ) -> Result<Tensor> {
        let [n, height, width] = self.check_size(pictures)?;
        let (first_chunk, chunks) = self.chunks(first_picture_index, n)?;
        let pictures = pictures.flatten_all()?.to_vec1::<f32>()?;
        let group = weights.lease(GroupId { component: Component::VaeEncoder, index: 0 })?;
        let factor = self.config.spatial_factor();
        let (h, w) = (height / factor, width / factor);
        let mut latents = vec![0.0; self.config.z_dim * chunks * h * w];
        let mut rest = pictures.as_slice();
        for index in 0..chunks {
            let chunk = first_chunk + index as u64;
            let frames = if chunk == 0 { 1 } else { self.config.temporal_factor() };
            let (values, later) = rest.split_at(frames * height * width * 3);
            rest = later;
            let x = Features { values: values.to_vec(), frames, height, width, channels: 3 };
            let moments = Pass { group: &*group, slots, chunk }.run(&self.stages, x)?;
            self.place(&moments, index, chunks, &mut latents);
        }
        Ok(Tensor::from_vec(latents, (self.config.z_dim, chunks, h, w), &Device::Cpu)?)
    }

    /// Bytes that the slots of one stream hold between two chunks for latents of `latent_height` x `latent_width`, from
    /// the third chunk on.
    #[must_use]
    pub fn slot_bytes(&self, latent_height: usize, latent_width: usize) -> usize {
        let factor = self.config.spatial_factor();
        memory::slot_bytes(&self.stages, factor * latent_height, factor * latent_width)
    }

    /// Bytes of activations and of re-ordered weights while one latent frame is encoded, at most; the result of
    /// [`Self::encode_chunk`] not included.
    #[must_use]
    pub fn workspace_bytes(&self, latent_height: usize, latent_width: usize) -> usize {
        let factor = self.config.spatial_factor();
        memory::workspace_bytes(&self.stages, factor * latent_height, factor * latent_width)
    }

    fn check_size(&self, pictures: &Tensor) -> Result<[usize; 3]> {
        let factor = self.config.spatial_factor();
        match pictures.dims() {
            &[n, height, width, 3]
                if n * height * width > 0
                    && height.is_multiple_of(factor)
                    && width.is_multiple_of(factor) =>
            {
                Ok([n, height, width])
            }
            dims => {
                let expected = format!("[frames, height, width, 3], height and width multiples of {factor}");
                Err(WanError::mismatch("shape of the pictures to encode", format!("{dims:?}"), expected))
            }
        }
    }

    /// First latent frame and number of latent frames that pictures `first..first + n` make up.
    fn chunks(&self, first: u64, n: usize) -> Result<(u64, usize)> {
        let factor = self.config.temporal_factor();
        let (chunk, behind_first) = match first.checked_sub(1) {
            None => (0, n - 1),
            Some(before) => (1 + before / factor as u64, n),
        };
        let starts_chunk = first == 0 || (first - 1).is_multiple_of(factor as u64);
        if !starts_chunk || !behind_first.is_multiple_of(factor) || first >= MAX_FRAME_INDEX {
            let got = format!("{n} from picture {first} on");
            let expected = format!("picture 0 alone or with whole groups of {factor} behind it");
            return Err(WanError::mismatch("pictures to encode", got, expected));
        }
        Ok((chunk, behind_first / factor + usize::from(first == 0)))
    }

    /// Writes the mean half of `moments` `[1, h, w, 2 z]` as frame `index` of `latents` `[z, frames, h, w]`.
    fn place(&self, moments: &Features, index: usize, frames: usize, latents: &mut [f32]) {
        let pixels = moments.height * moments.width;
        let statistics = self.config.latents_mean.iter().zip(&self.config.latents_std);
        for (channel, (mean, std)) in statistics.enumerate() {
            let scale = 1.0 / std;
            let plane = &mut latents[(channel * frames + index) * pixels..][..pixels];
            let mu = moments.values[channel..].iter().step_by(moments.channels);
            for (to, mu) in plane.iter_mut().zip(mu) {
                *to = (mu - mean) * scale;
            }
        }
    }
}
