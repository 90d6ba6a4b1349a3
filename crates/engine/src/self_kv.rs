//! Keys and values of committed latent frames as pages: entries of a job, one for each latent frame and layer.

use evanesce_cache::{Job, Lease, Lifetime, PutSpec, Tier};
use evanesce_wan::checkpoint::Rollout;
use evanesce_wan::transformer::{FrameKv, FramePage};
use evanesce_wan::weights::Component;
use evanesce_wan::{Result, WanError};

use crate::blocks::{Block, Reach, reach};
use crate::bytes::{as_f32, write_f32};
use crate::keys::{self, BranchName};

/// The pages of one expert and branch, as one block sees them.
#[derive(Debug)]
pub(crate) struct FramePages<'a> {
    /// Their owner.
    pub(crate) job: &'a Job,
    /// Whose weights made them.
    pub(crate) expert: Component,
    /// Whose text.
    pub(crate) branch: BranchName,
    pub(crate) block: &'a Block,
    rollout: Rollout,
    reach: Reach,
    commits: bool,
}

impl<'a> FramePages<'a> {
    /// What `block` sees; it leaves pages of its own when it `commits`.
    pub(crate) fn new(
        job: &'a Job,
        expert: Component,
        branch: BranchName,
        block: &'a Block,
        rollout: Rollout,
        commits: bool,
    ) -> Self {
        Self { job, expert, branch, block, rollout, reach: reach(rollout, block.frames.start), commits }
    }
}

/// Keys, then values, in one entry: they live together (law 7).
struct Page(Lease);

impl Page {
    fn halves(&self) -> (&[f32], &[f32]) {
        let numbers = as_f32(self.0.bytes());
        numbers.split_at(numbers.len() / 2)
    }
}

impl FramePage for Page {
    fn keys(&self) -> &[f32] {
        self.halves().0
    }

    fn values(&self) -> &[f32] {
        self.halves().1
    }
}

impl FrameKv for FramePages<'_> {
    fn positions(&self) -> &[usize] {
        &self.reach.positions
    }

    fn block_position(&self) -> usize {
        self.reach.block_position
    }

    fn pages(&self, layer: usize) -> Result<Vec<Box<dyn FramePage + '_>>> {
        let page = |frame: &usize| {
            let key = keys::self_kv(self.expert, self.branch, layer, *frame);
            let lease = self.job.get(&key).ok_or_else(|| WanError::Store {
                what: key.to_string(),
                message: "the page is gone".to_owned(),
                source: None,
            })?;
            Ok(Box::new(Page(lease)) as Box<dyn FramePage>)
        };
        self.reach.frames.iter().map(page).collect()
    }

    /// Pages that slide out of the window leave as these arrive.
    fn commit(&self, layer: usize, keys: &[f32], values: &[f32]) -> Result<()> {
        if !self.commits {
            return Ok(());
        }
        let frames = self.block.frames.clone();
        let numbers = keys.len() / frames.len();
        let [sink, recent] = [self.rollout.sink_frames, self.rollout.recent_frames]
            .map(|frames| u32::try_from(frames).expect("a checkpoint names at most 1024"));
        let put =
            PutSpec::new(Tier::Device, Lifetime::Window { sink, recent }, 2 * size_of::<f32>() * numbers);
        let key = |frame| keys::self_kv(self.expert, self.branch, layer, frame);
        let first = key(frames.start);
        let mut group = self
            .job
            .put_group(frames.map(|frame| (key(frame), put)))
            .map_err(|error| crate::store_error(&first, error))?;
        for (at, (keys, values)) in keys.chunks_exact(numbers).zip(values.chunks_exact(numbers)).enumerate() {
            let (first, second) = group.bytes_mut(at).split_at_mut(size_of::<f32>() * numbers);
            write_f32(first, keys);
            write_f32(second, values);
        }
        group.commit().map_err(|error| crate::store_error(&first, error.refusal))?;
        Ok(())
    }
}
