//! What gives way in a job while it runs, where its quality allows: how pages are stored, and how far back a block sees. Changes
//! take effect with the next block, so a block sees one window throughout; pages that no block will see then leave at once.

use evanesce_wan::checkpoint::Rollout;
use serde::{Deserialize, Serialize};

use crate::request::JobSpec;
use crate::self_kv::KvCodec;

/// How the pages of each block are stored, and which frames the block under way and the next one see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Adapt {
    /// First block and codec of every change, in order; the first is the job's own.
    codecs: Vec<(usize, KvCodec)>,
    /// Recent frames that the block under way sees.
    recent_frames: usize,
    /// Recent frames that the next block will see: what this block's commits leave.
    recent_next: usize,
    /// What is wanted from the next block on.
    wanted_codec: KvCodec,
    wanted_recent_frames: usize,
}

impl Adapt {
    pub(crate) fn new(spec: &JobSpec) -> Self {
        Self::constant(spec.kv_codec, spec.rollout.map_or(0, |rollout| rollout.recent_frames))
    }

    /// Nothing gives way yet.
    pub(crate) fn constant(codec: KvCodec, recent_frames: usize) -> Self {
        Self {
            codecs: vec![(0, codec)],
            recent_frames,
            recent_next: recent_frames,
            wanted_codec: codec,
            wanted_recent_frames: recent_frames,
        }
    }

    /// Whether a job like this can have come to it: changes are in order, the first of them is the job's own codec, and nothing
    /// beyond its window is seen.
    pub(crate) fn is_of(&self, spec: &JobSpec) -> bool {
        let (own, n_blocks) = (Self::new(spec), spec.n_blocks());
        let seen = [self.recent_frames, self.recent_next, self.wanted_recent_frames];
        self.codecs.first() == own.codecs.first()
            && self.codecs.is_sorted_by_key(|(first, _)| *first)
            && self.codecs.iter().all(|(first, _)| *first < n_blocks)
            && seen.iter().all(|frames| *frames <= own.recent_frames)
    }

    pub(crate) fn want_codec(&mut self, codec: KvCodec) {
        self.wanted_codec = codec;
    }

    /// What the next block will see follows at once: of the block under way `frames_to_come` will leave pages, or, where `None`, all
    /// pages are there or on their way, and there can only be fewer of them.
    pub(crate) fn want_recent_frames(&mut self, frames: usize, frames_to_come: Option<usize>) {
        self.wanted_recent_frames = frames;
        let most = frames_to_come.map_or(self.recent_next, |to_come| self.recent_frames + to_come);
        self.recent_next = frames.min(most);
    }

    /// Takes over what is wanted, as block `at` begins. A window that grows again fills up block by block: what left
    /// it is gone.
    pub(crate) fn begin_block(&mut self, at: usize, block_frames: usize) {
        if self.codecs.last().is_none_or(|(_, codec)| *codec != self.wanted_codec) {
            self.codecs.push((at, self.wanted_codec));
        }
        if at > 0 {
            self.recent_frames = self.recent_next;
        }
        self.recent_next = self.wanted_recent_frames.min(self.recent_frames + block_frames);
    }

    /// How the pages that block `at` left, or will leave, are stored.
    pub(crate) fn codec(&self, at: usize) -> KvCodec {
        let before = self.codecs.iter().take_while(|(first, _)| *first <= at);
        before.last().map_or(self.wanted_codec, |(_, codec)| *codec)
    }

    /// How a page that block `at` left, or will leave, is stored if `own` is its own codec: where the job's codec gave way, in the
    /// smaller of the two.
    pub(crate) fn smaller(&self, own: KvCodec, at: usize) -> KvCodec {
        let given = self.codec(at);
        let gave_way = self.codecs.first().is_some_and(|(_, asked)| *asked != given);
        if gave_way && given.is_no_larger_than(own) { given } else { own }
    }

    /// What the block under way sees.
    pub(crate) fn rollout(&self, rollout: Rollout) -> Rollout {
        Rollout { recent_frames: self.recent_frames, ..rollout }
    }

    /// What the block after the one under way will see.
    pub(crate) fn next_rollout(&self, rollout: Rollout) -> Rollout {
        Rollout { recent_frames: self.recent_next, ..rollout }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapt(recent: usize) -> Adapt {
        Adapt::constant(KvCodec::default(), recent)
    }

    #[test]
    fn a_window_shrinks_with_the_next_block_and_grows_by_what_blocks_leave() {
        let mut adapt = adapt(6);
        let mut seen = Vec::new();
        for at in 0..8 {
            match at {
                2 => adapt.want_recent_frames(2, None),
                5 => adapt.want_recent_frames(6, None),
                _ => {}
            }
            adapt.begin_block(at, 3);
            seen.push((adapt.recent_frames, adapt.recent_next));
        }
        assert_eq!(seen, [(6, 6), (6, 6), (2, 2), (2, 2), (2, 2), (2, 5), (5, 6), (6, 6)]);
    }

    #[test]
    fn a_block_under_way_sees_what_it_began_with_and_its_commits_leave_what_is_wanted_then() {
        let mut adapt = adapt(6);
        adapt.begin_block(0, 3);
        adapt.begin_block(1, 3);
        let mut seen = |wanted, frames_to_come| {
            adapt.want_recent_frames(wanted, frames_to_come);
            (adapt.recent_frames, adapt.recent_next)
        };
        assert_eq!([seen(2, Some(3)), seen(6, Some(3))], [(6, 2), (6, 6)], "nothing has left yet");
        assert_eq!([seen(2, None), seen(6, None)], [(6, 2), (6, 2)], "what has left does not come back");
    }

    #[test]
    fn each_block_keeps_the_codec_that_its_pages_were_made_with() {
        let mut adapt = adapt(6);
        let int8 = KvCodec::from_name("int8").expect("it is a codec");
        adapt.begin_block(0, 3);
        adapt.want_codec(int8);
        assert_eq!(adapt.codec(0), KvCodec::default());
        adapt.begin_block(1, 3);
        adapt.want_codec(KvCodec::default());
        adapt.begin_block(2, 3);
        assert_eq!([0, 1, 2].map(|at| adapt.codec(at)), [KvCodec::default(), int8, KvCodec::default()]);
        let [int4, f32] = ["int4", "f32"].map(|name| KvCodec::from_name(name).expect("it is a codec"));
        assert_eq!(
            [0, 1, 2].map(|at| adapt.smaller(f32, at)),
            [f32, int8, f32],
            "a layer's own codec gives way too"
        );
        assert_eq!([0, 1, 2].map(|at| adapt.smaller(int4, at)), [int4; 3], "unless it is smaller already");
    }
}
