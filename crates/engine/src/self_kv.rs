//! Keys and values of committed latent frames as pages: entries of a job, one for each latent frame and layer.

use evanesce_cache::{GroupWriter, Job, Lease, Lifetime, PutSpec, Tier};
use evanesce_wan::Result;
use evanesce_wan::checkpoint::Rollout;
use evanesce_wan::transformer::{Codec, EncodedRows, FrameKv, FramePage, Rows, encode};
use evanesce_wan::weights::Component;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::adapt::Adapt;
use crate::ahead::Ahead;
use crate::blocks::{Block, Reach, reach};
use crate::keys::{self, BranchName};
use crate::waits::{Wait, Waits};

/// How pages are stored: keys and values each in a codec of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCodec {
    /// Of keys.
    pub keys: Codec,
    /// Of values.
    pub values: Codec,
}

impl KvCodec {
    /// Keys and values alike.
    #[must_use]
    pub const fn both(codec: Codec) -> Self {
        Self { keys: codec, values: codec }
    }

    /// The codec of this name: `f32`, `bf16`, `int8`, `int4`, or `k8v4` for keys in `int8` and values in `int4`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        if name == "k8v4" {
            return Some(Self { keys: Codec::Int8, values: Codec::Int4 });
        }
        Codec::ALL.into_iter().find(|codec| codec.as_str() == name).map(Self::both)
    }

    /// The name that [`Self::from_name`] knows it by; `None` for a pair that has none.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Self::NAMES.into_iter().find(|name| Self::from_name(name) == Some(self))
    }

    /// Every name that [`Self::from_name`] knows.
    pub const NAMES: [&'static str; 5] = ["f32", "bf16", "int8", "int4", "k8v4"];

    /// Whether pages take no more bytes than in another codec.
    #[must_use]
    pub fn is_no_larger_than(self, other: Self) -> bool {
        /// A whole group of numbers, so that what a group costs is counted.
        const DIM: usize = 64;
        self.page_bytes(1, DIM) <= other.page_bytes(1, DIM)
    }

    /// Bytes of a page of `tokens` tokens of `dim` numbers.
    pub(crate) const fn page_bytes(self, tokens: usize, dim: usize) -> usize {
        tokens * (self.keys.row_bytes(dim) + self.values.row_bytes(dim))
    }
}

impl Default for KvCodec {
    /// Half of what is computed with, as everybody stores them.
    fn default() -> Self {
        Self::both(Codec::Bf16)
    }
}

/// Kept by name.
impl Serialize for KvCodec {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        let name = self.name().ok_or_else(|| serde::ser::Error::custom("a codec without a name"))?;
        name.serialize(to)
    }
}

impl<'de> Deserialize<'de> for KvCodec {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        Self::from_name(&name).ok_or_else(|| serde::de::Error::custom("not the name of a codec"))
    }
}

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
    /// How a clip is made, with the window that the next block will see.
    pub(crate) next: Rollout,
    /// How pages are stored, by block.
    pub(crate) adapt: &'a Adapt,
    /// Numbers of a row.
    pub(crate) dim: usize,
    /// Whether the block leaves pages of its own.
    pub(crate) commits: bool,
    pub(crate) reach: Reach,
    /// Asks for what the layers behind the one that is read will read.
    pub(crate) ahead: Option<Ahead<'a>>,
    pub(crate) waits: Waits,
}

impl<'a> FramePages<'a> {
    /// What `block` sees while it is being denoised, through an expert of width `dim`.
    pub(crate) fn new(
        job: &'a Job,
        (expert, dim): (Component, usize),
        branch: BranchName,
        block: &'a Block,
        rollout: Rollout,
        adapt: &'a Adapt,
    ) -> Self {
        let reach = reach(adapt.rollout(rollout), block.frames.start);
        let next = adapt.next_rollout(rollout);
        let (commits, ahead, waits) = (false, None, Waits::default());
        Self { job, expert, branch, block, next, adapt, dim, commits, reach, ahead, waits }
    }
}

/// Keys, then values, in one entry: they live together (law 7).
struct Page {
    lease: Lease,
    codec: KvCodec,
    dim: usize,
}

impl Page {
    /// Where the values begin.
    fn split_at(&self) -> usize {
        let tokens = self.lease.bytes().len() / self.codec.page_bytes(1, self.dim);
        tokens * self.codec.keys.row_bytes(self.dim)
    }

    fn rows<'a>(&self, codec: Codec, bytes: &'a [u8]) -> Rows<'a> {
        EncodedRows::new(codec, bytes, self.dim).expect("a page is written in whole rows").into()
    }
}

impl FramePage for Page {
    fn keys(&self) -> Rows<'_> {
        self.rows(self.codec.keys, &self.lease.bytes()[..self.split_at()])
    }

    fn values(&self) -> Rows<'_> {
        self.rows(self.codec.values, &self.lease.bytes()[self.split_at()..])
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
            let lease = self.job.try_get(&key).map_err(|error| crate::store_error(&key, error))?;
            let codec = self.adapt.codec_of(self.next, *frame);
            Ok(Box::new(Page { lease, codec, dim: self.dim }) as Box<dyn FramePage>)
        };
        let key = |frame: &usize| keys::self_kv(self.expert, self.branch, layer, *frame);
        let is_home = |frame: &usize| self.job.tier_of(&key(frame)) == Some(Tier::Device);
        let waits = self.waits.0.is_some() && !self.reach.frames.iter().all(is_home);
        let pages = self.waits.around(Wait::Pages, waits, || self.reach.frames.iter().map(page).collect());
        if let Some(ahead) = &self.ahead {
            ahead.request_behind(layer);
        }
        pages
    }

    /// Encoded once, straight from the projection (law 8); pages that slide out of the window leave as these arrive.
    fn commit(&self, layer: usize, keys: &[f32], values: &[f32]) -> Result<()> {
        if !self.commits {
            return Ok(());
        }
        let numbers = keys.len() / self.block.frames.len();
        let tokens = numbers / self.dim;
        let codec = self.adapt.codec(self.block.at);
        let mut group = self.begin(layer, tokens)?;
        for (at, (keys, values)) in keys.chunks_exact(numbers).zip(values.chunks_exact(numbers)).enumerate() {
            let (first, second) = group.bytes_mut(at).split_at_mut(tokens * codec.keys.row_bytes(self.dim));
            encode(codec.keys, keys, self.dim, first);
            encode(codec.values, values, self.dim, second);
        }
        let first = keys::self_kv(self.expert, self.branch, layer, self.block.frames.start);
        group.commit().map_err(|error| crate::store_error(&first, error.refusal))?;
        Ok(())
    }
}

impl FramePages<'_> {
    /// Begins the pages of the block, of `tokens` tokens a frame: all of them or none.
    pub(crate) fn begin(&self, layer: usize, tokens: usize) -> Result<GroupWriter> {
        let [sink, recent] = [self.next.sink_frames, self.next.recent_frames]
            .map(|frames| u32::try_from(frames).expect("a checkpoint names at most 1024"));
        let page_bytes = self.adapt.codec(self.block.at).page_bytes(tokens, self.dim);
        let put = PutSpec::new(Tier::Device, Lifetime::Window { sink, recent }, page_bytes)
            .raw_bytes((2 * size_of::<f32>() * tokens * self.dim) as u64);
        let key = |frame| keys::self_kv(self.expert, self.branch, layer, frame);
        let frames = self.block.frames.clone();
        self.job
            .put_group(frames.clone().map(|frame| (key(frame), put)))
            .map_err(|error| crate::store_error(&key(frames.start), error))
    }
}

#[cfg(test)]
mod tests {
    use evanesce_cache::{Budgets, Cache};
    use evanesce_wan::checkpoint::{Context, ContextSample, Positions};

    use super::*;

    const ROLLOUT: Rollout = Rollout {
        block_frames: 1,
        first_block_frames: 1,
        sink_frames: 0,
        recent_frames: 1,
        positions: Positions::Window,
        context: Context::PerExpert,
        context_sample: ContextSample::X0,
    };

    /// The same frame and layer of both experts and branches, each poisoned with numbers of its own: whatever order they are
    /// written in, each reads its own.
    #[test]
    fn experts_and_branches_poisoned_against_each_other_read_their_own_pages() {
        let cache = Cache::new(Budgets { device_bytes: 1 << 20, host_bytes: 0 });
        let (job, other) = (cache.open_job(), cache.open_job());
        let [first, second] = [0, 1].map(|at| Block { at, frames: at..at + 1 });
        let all = [Component::HighNoise, Component::LowNoise]
            .into_iter()
            .flat_map(|expert| [BranchName::Cond, BranchName::Uncond].map(|branch| (expert, branch)));
        let all: Vec<_> =
            all.flat_map(|(expert, branch)| [&job, &other].map(|job| (job, expert, branch))).collect();
        let numbers = |at: usize, layer: usize| [f32::from(u8::try_from(at * 2 + layer).expect("few")); 4];
        let adapt = Adapt::constant(KvCodec::both(Codec::F32), ROLLOUT.recent_frames);
        for (at, (job, expert, branch)) in all.iter().enumerate().rev() {
            let pages = FramePages::new(job, (*expert, 4), *branch, &first, ROLLOUT, &adapt);
            let pages = FramePages { commits: true, ..pages };
            for layer in 0..2 {
                pages.commit(layer, &numbers(at, layer), &numbers(at + 100, layer)).expect("there is room");
            }
        }
        for (at, (job, expert, branch)) in all.iter().enumerate() {
            let pages = FramePages::new(job, (*expert, 4), *branch, &second, ROLLOUT, &adapt);
            for layer in 0..2 {
                assert_eq!(pages.pages(layer).expect("it was committed").len(), 1);
                let page = job.try_get(&keys::self_kv(*expert, *branch, layer, 0)).expect("it was committed");
                let expected = [numbers(at, layer), numbers(at + 100, layer)].concat();
                assert_eq!(crate::bytes::as_f32(&page), expected, "{expert:?} {branch:?} {layer}");
            }
        }
    }
}
