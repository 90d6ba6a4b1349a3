//! What a stream of latent frames reads and keeps, without decoding any.

use std::ops::Range;

use super::decoder::Decoder;
use super::memory::walk;
use super::plan::{Layer, Slot};
use super::slots::SlotId;

/// What one convolution does with its slot while a latent frame is decoded: it reads, then gives up what it read for the
/// last time, then keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotUse {
    /// Which slot.
    pub slot: SlotId,
    /// The f32 numbers of one frame.
    pub frame_bytes: usize,
    /// The frames that it reads, by their numbers.
    pub read: Range<u64>,
    /// The frames that it keeps: each one's number, and in how many later latent frames it is read.
    pub kept: Vec<(u64, u32)>,
}

impl Decoder {
    /// What decoding latent frame `chunk` of a stream of `latent_height` x `latent_width` does with every slot, in order.
    #[must_use]
    pub fn slot_uses(&self, chunk: u64, latent_height: usize, latent_width: usize) -> Vec<SlotUse> {
        let mut uses = Vec::new();
        let mut add = |slot: &Slot, pixels: usize| {
            uses.push(SlotUse {
                slot: slot.id,
                frame_bytes: size_of::<f32>() * pixels * slot.channels,
                read: slot.past(chunk),
                kept: slot.committed(chunk).map(|frame| (frame, slot.readings(chunk, frame))).collect(),
            });
        };
        walk(self.stages(), latent_height, latent_width, |stage, height, width| match &stage.layer {
            Layer::Input { slot, .. } | Layer::Output { slot, .. } => add(slot, height * width),
            Layer::Residual { slots, .. } => slots.iter().for_each(|slot| add(slot, height * width)),
            Layer::Upsample { time: Some(slot), .. } => add(slot, height * width),
            Layer::Downsample { time: Some(slot), .. } => add(slot, (height / 2) * (width / 2)),
            _ => {}
        });
        uses
    }
}
