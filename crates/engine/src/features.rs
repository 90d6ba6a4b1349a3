//! The VAE's kept frames as entries of a job, each living exactly as many decode steps as it will be read in.

use evanesce_cache::{Job, Lease, Lifetime, PutSpec, Tier};
use evanesce_wan::vae::{FeatureFrame, FeatureSlots, SlotId};
use evanesce_wan::{Result, WanError};

use crate::bytes::{as_f32, write_f32};
use crate::keys;

/// The kept frames of one job.
#[derive(Debug)]
pub(crate) struct FeatureEntries<'a>(pub(crate) &'a Job);

struct Frame(Lease);

impl FeatureFrame for Frame {
    fn values(&self) -> &[f32] {
        as_f32(self.0.bytes())
    }
}

impl FeatureSlots for FeatureEntries<'_> {
    fn read(&self, slot: SlotId, frame_index: u64) -> Result<Box<dyn FeatureFrame + '_>> {
        let lease = self.0.get(&keys::feature(slot, frame_index)).ok_or_else(|| WanError::Store {
            what: format!("frame {frame_index} of {slot}"),
            message: "no such frame is kept".to_owned(),
            source: None,
        })?;
        Ok(Box::new(Frame(lease)))
    }

    fn commit(&self, slot: SlotId, frame_index: u64, readings: u32, frame: &[f32]) -> Result<()> {
        let key = keys::feature(slot, frame_index);
        // The step that commits ends too, so a frame read in the next n steps lives n + 1.
        let spec = PutSpec::new(Tier::Device, Lifetime::Steps(readings + 1), size_of_val(frame));
        let mut writer = self.0.put_with(key, spec).map_err(|error| crate::store_error(&key, error))?;
        write_f32(writer.bytes_mut(), frame);
        drop(writer.commit().map_err(|error| crate::store_error(&key, error.refusal))?);
        Ok(())
    }
}
