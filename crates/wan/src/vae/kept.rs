//! What a stream of latent frames keeps, without decoding any.

use super::decoder::Decoder;
use super::memory::walk;
use super::plan::{Layer, Slot};
use super::slots::SlotId;

/// A frame that a convolution keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptFrame {
    /// Whose.
    pub slot: SlotId,
    /// Which of the frames that the convolution is given.
    pub frame_index: u64,
    /// In how many later latent frames it is read.
    pub readings: u32,
    /// Its f32 numbers.
    pub len_bytes: usize,
}

impl Decoder {
    /// What decoding latent frame `chunk` of a stream of `latent_height` x `latent_width` keeps, in that order.
    #[must_use]
    pub fn kept_frames(&self, chunk: u64, latent_height: usize, latent_width: usize) -> Vec<KeptFrame> {
        let mut kept = Vec::new();
        let mut keep = |slot: &Slot, pixels: usize| {
            kept.extend(slot.committed(chunk).map(|frame_index| KeptFrame {
                slot: slot.id,
                frame_index,
                readings: slot.readings(chunk, frame_index),
                len_bytes: size_of::<f32>() * pixels * slot.channels,
            }));
        };
        walk(self.stages(), latent_height, latent_width, |stage, height, width| match &stage.layer {
            Layer::Input { slot, .. } | Layer::Output { slot, .. } => keep(slot, height * width),
            Layer::Residual { slots, .. } => slots.iter().for_each(|slot| keep(slot, height * width)),
            Layer::Upsample { time: Some(slot), .. } => keep(slot, height * width),
            Layer::Downsample { time: Some(slot), .. } => keep(slot, (height / 2) * (width / 2)),
            _ => {}
        });
        kept
    }
}
