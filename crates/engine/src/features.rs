//! The VAE's kept frames as entries of a job, each living exactly until the last decode step that reads it has ended.

use evanesce_cache::{Job, Key, Lease, Lifetime, PutSpec, Tier, Uses, Writer};
use evanesce_wan::Result;
use evanesce_wan::vae::{Decoder, FeatureFrame, FeatureSlots, SlotId};

use crate::bytes::{as_f32, write_f32};
use crate::itinerary::Itinerary;
use crate::keys;
use crate::request::JobSpec;

/// The kept frames that decoding a latent frame reads, slot by slot in its order.
pub(crate) fn read_by(decoder: &Decoder, spec: &JobSpec, frame: usize) -> Vec<Key> {
    let slots = decoder.slot_uses(frame as u64, spec.height / 8, spec.width / 8).into_iter();
    slots.flat_map(|slot| slot.read.map(move |at| keys::feature(slot.slot, at))).collect()
}

/// The kept frames of one job, as the decoding of one latent frame sees them.
#[derive(Debug)]
pub(crate) struct FeatureEntries<'a> {
    pub(crate) job: &'a Job,
    pub(crate) spec: &'a JobSpec,
    pub(crate) itinerary: &'a Itinerary,
    /// The latent frame that is being decoded.
    pub(crate) frame: usize,
}

impl FeatureEntries<'_> {
    /// Steps that the job ends from now until `readings` more latent frames have been decoded: the step under way,
    /// theirs, and the denoising steps of every block that begins in between.
    fn steps_until_read(&self, readings: usize) -> usize {
        let blocks = self.spec.block_of(self.frame + readings) - self.spec.block_of(self.frame);
        readings + 1 + blocks * self.spec.steps()
    }
}

struct Frame(Lease);

impl FeatureFrame for Frame {
    fn values(&self) -> &[f32] {
        as_f32(self.0.bytes())
    }
}

impl FeatureSlots for FeatureEntries<'_> {
    fn read(&self, slot: SlotId, frame_index: u64) -> Result<Box<dyn FeatureFrame + '_>> {
        Ok(Box::new(Frame(self.take(slot, frame_index)?)))
    }

    fn commit(&self, slot: SlotId, frame_index: u64, readings: u32, frame: &[f32]) -> Result<()> {
        let mut writer = self.begin(slot, frame_index, readings, size_of_val(frame))?;
        write_f32(writer.bytes_mut(), frame);
        let key = *writer.key();
        drop(writer.commit().map_err(|error| crate::store_error(&key, error.refusal))?);
        Ok(())
    }
}

impl FeatureEntries<'_> {
    /// Reads a kept frame. Read for the last time, it ends with the lease instead of at the step's end.
    pub(crate) fn take(&self, slot: SlotId, frame_index: u64) -> Result<Lease> {
        let taken = self.job.try_take(&keys::feature(slot, frame_index));
        taken.map_err(|error| crate::store_error(&format_args!("frame {frame_index} of {slot}"), error))
    }

    /// Begins a kept frame of `len_bytes` and announces its readings.
    pub(crate) fn begin(
        &self,
        slot: SlotId,
        frame_index: u64,
        readings: u32,
        len_bytes: usize,
    ) -> Result<Writer> {
        let key = keys::feature(slot, frame_index);
        let readings = usize::try_from(readings).unwrap_or(usize::MAX);
        let later = self.frame + 1..(self.frame + readings + 1).min(self.spec.latent_frames());
        for frame in later {
            self.job.announce(key, Uses::once(self.itinerary.end_of_latent_frame(frame)));
        }
        let steps = self.steps_until_read(readings);
        let lifetime = Lifetime::Steps(u32::try_from(steps).expect("a slot is read a few times at most"));
        let spec = PutSpec::new(Tier::Device, lifetime, len_bytes);
        self.job.put_with(key, spec).map_err(|error| crate::store_error(&key, error))
    }
}
