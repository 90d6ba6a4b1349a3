//! Keys and values of committed latent frames as pages: entries of a job, one for each latent frame and layer.

use evanesce_cache::{GroupWriter, Job, Lease, Lifetime, PutSpec, Tier};
use evanesce_wan::Result;
use evanesce_wan::checkpoint::Rollout;
use evanesce_wan::transformer::{Attended, Codec, EncodedRows, FrameKv, FramePage, Rows, encode};
use evanesce_wan::weights::Component;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::adapt::Adapt;
use crate::ahead::Ahead;
use crate::blocks::{Block, Reach, reach};
use crate::calibration::Measurement;
use crate::keys::{self, BranchName};
use crate::page_codecs::PageCodecs;
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

    /// The codec of this name: `f32`, `bf16`, `int8`, `int4`, `int2`, or two of them as `k8v4` for keys in `int8` and values in
    /// `int4`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "k8v4" => return Some(Self { keys: Codec::Int8, values: Codec::Int4 }),
            "k4v2" => return Some(Self { keys: Codec::Int4, values: Codec::Int2 }),
            _ => {}
        }
        Codec::ALL.into_iter().find(|codec| codec.as_str() == name).map(Self::both)
    }

    /// The name that [`Self::from_name`] knows it by; `None` for a pair that has none.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Self::NAMES.into_iter().find(|name| Self::from_name(name) == Some(self))
    }

    /// Every name that [`Self::from_name`] knows.
    pub const NAMES: [&'static str; 7] = ["f32", "bf16", "int8", "int4", "k8v4", "int2", "k4v2"];

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

/// Kept by name, or as `f32/int2` where the pair has none.
impl Serialize for KvCodec {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        match self.name() {
            Some(name) => to.serialize_str(name),
            None => to.collect_str(&format_args!("{}/{}", self.keys.as_str(), self.values.as_str())),
        }
    }
}

impl<'de> Deserialize<'de> for KvCodec {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        let codec = Self::from_name(&name).or_else(|| pair(&name));
        codec.ok_or_else(|| serde::de::Error::custom("not the name of a codec"))
    }
}

/// A pair that has no name.
fn pair(text: &str) -> Option<KvCodec> {
    let (keys, values) = text.split_once('/')?;
    let codec = |name: &str| Codec::ALL.into_iter().find(|codec| codec.as_str() == name);
    Some(KvCodec { keys: codec(keys)?, values: codec(values)? })
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
    /// How the pages of the job are stored.
    pub(crate) codecs: PageCodecs<'a>,
    /// What gave way of that, by block.
    pub(crate) adapt: &'a Adapt,
    /// Numbers of a row.
    pub(crate) dim: usize,
    /// Whether the block leaves pages of its own.
    pub(crate) commits: bool,
    pub(crate) reach: Reach,
    /// Asks for what the layers behind the one that is read will read.
    pub(crate) ahead: Option<Ahead<'a>>,
    /// Measures what other codecs would cost.
    pub(crate) measured: Option<&'a Measurement>,
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
        (codecs, adapt): (PageCodecs<'a>, &'a Adapt),
    ) -> Self {
        let reach = reach(adapt.rollout(rollout), block.frames.start);
        let next = adapt.next_rollout(rollout);
        let (commits, ahead, measured, waits) = (false, None, None, Waits::default());
        Self { job, expert, branch, block, next, codecs, adapt, dim, commits, reach, ahead, measured, waits }
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
            let owner = (self.expert, self.branch);
            let (key, codec) = self.codecs.page_read(owner, layer, *frame, self.block.at);
            let lease = self.job.try_get(&key).map_err(|error| crate::store_error(&key, error))?;
            let codec = self.stored(codec, *frame);
            Ok(Box::new(Page { lease, codec, dim: self.dim }) as Box<dyn FramePage>)
        };
        let owner = (self.expert, self.branch);
        let key = |frame: &usize| self.codecs.page_read(owner, layer, *frame, self.block.at).0;
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
        let mut group = self.begin(layer, tokens)?;
        for (at, (frame, codec)) in self.written(layer).into_iter().enumerate() {
            let from = (frame - self.block.frames.start) * numbers;
            let (first, second) = group.bytes_mut(at).split_at_mut(tokens * codec.keys.row_bytes(self.dim));
            encode(codec.keys, &keys[from..from + numbers], self.dim, first);
            encode(codec.values, &values[from..from + numbers], self.dim, second);
        }
        let first = keys::self_kv(self.expert, self.branch, layer, self.block.frames.start);
        group.commit().map_err(|error| crate::store_error(&first, error.refusal))?;
        Ok(())
    }

    fn attended(&self, layer: usize, seen: &Attended<'_>) {
        if let Some(measured) = self.measured {
            measured.take(self.expert, layer, seen);
        }
    }
}

impl FramePages<'_> {
    /// Begins the pages of the block, of `tokens` tokens a frame: all of them or none.
    pub(crate) fn begin(&self, layer: usize, tokens: usize) -> Result<GroupWriter> {
        let [sink, recent] = [self.next.sink_frames, self.next.recent_frames]
            .map(|frames| u32::try_from(frames).expect("a checkpoint names at most 1024"));
        let newest = u32::try_from(self.block.frames.len()).expect("a block has few frames");
        let frames = self.block.frames.len();
        let puts = self.written(layer).into_iter().enumerate().map(|(at, (frame, codec))| {
            let (key, lifetime) = if at < frames {
                (keys::self_kv(self.expert, self.branch, layer, frame), Lifetime::Window { sink, recent })
            } else {
                let lifetime = Lifetime::Window { sink: 0, recent: newest };
                (keys::newest_kv(self.expert, self.branch, layer, frame), lifetime)
            };
            let put = PutSpec::new(Tier::Device, lifetime, codec.page_bytes(tokens, self.dim));
            (key, put.raw_bytes((2 * size_of::<f32>() * tokens * self.dim) as u64))
        });
        let first = keys::self_kv(self.expert, self.branch, layer, self.block.frames.start);
        self.job.put_group(puts).map_err(|error| crate::store_error(&first, error))
    }

    /// The codec in which the page of a frame is stored whose own one is `own`.
    fn stored(&self, own: KvCodec, frame: usize) -> KvCodec {
        self.adapt.smaller(own, self.codecs.blocks.holding(frame))
    }

    /// The pages that the block leaves, in order: one of each frame, then the second ones of those that have one.
    fn written(&self, layer: usize) -> Vec<(usize, KvCodec)> {
        let frames = self.block.frames.clone();
        let own = frames.clone().map(|frame| (frame, self.codecs.page_codec(self.expert, layer, frame)));
        let newest = frames.filter_map(|frame| Some((frame, self.codecs.newest_codec(frame)?)));
        own.chain(newest).map(|(frame, codec)| (frame, self.stored(codec, frame))).collect()
    }
}

#[cfg(test)]
mod tests {
    use evanesce_cache::{Budgets, Cache};
    use evanesce_wan::checkpoint::{Context, ContextSample, Positions};

    use super::*;
    use crate::blocks::Blocks;
    use crate::page_codecs::KvOverrides;

    const ROLLOUT: Rollout = Rollout {
        block_frames: 1,
        first_block_frames: 1,
        sink_frames: 0,
        recent_frames: 1,
        positions: Positions::Window,
        context: Context::PerExpert,
        context_sample: ContextSample::X0,
    };

    #[test]
    fn every_pair_of_codecs_is_kept_also_one_that_has_no_name() {
        for keys in Codec::ALL {
            for values in Codec::ALL {
                let codec = KvCodec { keys, values };
                let kept = serde_json::to_string(&codec).expect("it is text");
                assert_eq!(serde_json::from_str::<KvCodec>(&kept).expect("it was kept"), codec, "{kept}");
            }
        }
        assert!(serde_json::from_str::<KvCodec>("\"int8/int3\"").is_err());
    }

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
        let overrides = KvOverrides::default();
        let base = KvCodec::both(Codec::F32);
        let codecs = PageCodecs { base, overrides: &overrides, sink_frames: 0, blocks: Blocks::of(1, 1, 2) };
        let adapt = Adapt::constant(base, ROLLOUT.recent_frames);
        let stored = (codecs, &adapt);
        for (at, (job, expert, branch)) in all.iter().enumerate().rev() {
            let pages = FramePages::new(job, (*expert, 4), *branch, &first, ROLLOUT, stored);
            let pages = FramePages { commits: true, ..pages };
            for layer in 0..2 {
                pages.commit(layer, &numbers(at, layer), &numbers(at + 100, layer)).expect("there is room");
            }
        }
        for (at, (job, expert, branch)) in all.iter().enumerate() {
            let pages = FramePages::new(job, (*expert, 4), *branch, &second, ROLLOUT, stored);
            for layer in 0..2 {
                assert_eq!(pages.pages(layer).expect("it was committed").len(), 1);
                let page = job.try_get(&keys::self_kv(*expert, *branch, layer, 0)).expect("it was committed");
                let expected = [numbers(at, layer), numbers(at + 100, layer)].concat();
                assert_eq!(crate::bytes::as_f32(&page), expected, "{expert:?} {branch:?} {layer}");
            }
        }
    }
}
