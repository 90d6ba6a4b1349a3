//! The Wan 2.1 VAE: latent frames into pictures and back, as a stream, one latent frame at a time.
//!
//! The first latent frame stands for one picture and every later one for four. Each causal convolution needs the last
//! two frames that it was given before; they are not held here but by a [`FeatureSlots`], so one [`Decoder`] serves
//! any number of streams, and a stream can stop, be stored, and go on.
//!
//! Follows `AutoencoderKLWan` of diffusers (`autoencoder_kl_wan.py`), which keeps the same frames in a list on the
//! module, addressed by a counter. Activations are channels-last `[frames, height, width, channels]` in f32.

mod config;
mod decoder;
mod encoder;
mod kept;
mod memory;
mod names;
mod pass;
mod plan;
mod slots;

pub use config::VaeConfig;
pub use decoder::Decoder;
pub use encoder::Encoder;
pub use kept::SlotUse;
pub(crate) use names::LINEAR_LAYERS;
pub use names::{canonical_name, expected_tensors};
pub use slots::{FeatureFrame, FeatureSlots, Half, MapSlots, Place, SlotId};
