//! How a video is cut into blocks of latent frames that are denoised together.

use std::ops::Range;

use evanesce_wan::checkpoint::{Positions, Rollout};

use crate::request::JobSpec;

/// One block: all latent frames of a bidirectional model, some of a causal one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Its number.
    pub(crate) at: usize,
    /// Its latent frames. The last block may hold some beyond the video's end, which are never decoded.
    pub(crate) frames: Range<usize>,
}

/// What a block sees of the video before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Latent frames in reach, rising.
    pub(crate) frames: Vec<usize>,
    /// Their positions in time.
    pub(crate) positions: Vec<usize>,
    /// Position of the block's first frame.
    pub(crate) block_position: usize,
}

/// How many latent frames the blocks of a video have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    /// Of the first block.
    first: usize,
    /// Of every other block; the last may hold some beyond the video's end.
    other: usize,
    /// Latent frames of the video.
    video: usize,
}

impl Blocks {
    /// Of a video of so many latent frames.
    #[cfg(test)]
    pub(crate) fn of(first: usize, other: usize, video: usize) -> Self {
        Self { first, other, video }
    }

    /// How many blocks there are.
    pub(crate) fn count(&self) -> usize {
        1 + self.video.saturating_sub(self.first).div_ceil(self.other)
    }

    /// The latent frames of a block.
    pub(crate) fn frames(&self, at: usize) -> Range<usize> {
        match at.checked_sub(1) {
            None => 0..self.first,
            Some(before) => self.first + before * self.other..self.first + at * self.other,
        }
    }

    /// Those of them that the video has.
    pub(crate) fn decoded(&self, at: usize) -> Range<usize> {
        let frames = self.frames(at);
        frames.start..frames.end.min(self.video)
    }

    /// The number of the block that holds a latent frame.
    pub(crate) fn holding(&self, frame: usize) -> usize {
        frame.checked_sub(self.first).map_or(0, |later| 1 + later / self.other)
    }

    /// Latent frames of the longest block.
    pub(crate) fn longest(&self) -> usize {
        if self.count() == 1 { self.first } else { self.first.max(self.other) }
    }

    /// Latent frames of the longest block that leaves pages: the last one does not.
    pub(crate) fn longest_committed(&self) -> usize {
        match self.count() {
            1 => 0,
            2 => self.first,
            _ => self.first.max(self.other),
        }
    }
}

impl JobSpec {
    /// How the video is cut.
    pub(crate) fn blocks(&self) -> Blocks {
        let video = self.latent_frames();
        match self.rollout {
            None => Blocks { first: video, other: 1, video },
            Some(rollout) => Blocks { first: rollout.first_block_frames, other: rollout.block_frames, video },
        }
    }

    /// Blocks that the video is made of.
    pub(crate) fn n_blocks(&self) -> usize {
        self.blocks().count()
    }

    /// The block with number `at`.
    pub(crate) fn block(&self, at: usize) -> Block {
        Block { at, frames: self.blocks().frames(at) }
    }

    /// Latent frames that are denoised: those of the video, in whole blocks.
    pub(crate) fn denoised_frames(&self) -> usize {
        self.block(self.n_blocks() - 1).frames.end
    }

    /// Latent frames that the video begins with and that are not made here: those of whole blocks.
    pub(crate) fn frames_given(&self) -> usize {
        self.blocks_given.checked_sub(1).map_or(0, |last| self.blocks().frames(last).end)
    }

    /// The number of the block that holds a latent frame.
    pub(crate) fn block_of(&self, frame: usize) -> usize {
        self.blocks().holding(frame)
    }

    /// The seed of a block's noise: the job's own for the first block, another one for each later block, whatever was
    /// drawn before.
    pub(crate) fn block_seed(&self, at: usize) -> u64 {
        /// The golden ratio as a fraction of 2^64: neighbouring multiples share no low bits.
        const STRIDE: u64 = 0x9E37_79B9_7F4A_7C15;
        self.seed.wrapping_add((at as u64).wrapping_mul(STRIDE))
    }
}

/// What the block that begins at latent frame `first` sees.
pub(crate) fn reach(rollout: Rollout, first: usize) -> Reach {
    let sink = rollout.sink_frames.min(first);
    let recent = first.saturating_sub(rollout.recent_frames).max(sink)..first;
    let frames: Vec<_> = (0..sink).chain(recent).collect();
    match rollout.positions {
        Positions::Window => {
            Reach { positions: (0..frames.len()).collect(), block_position: frames.len(), frames }
        }
        Positions::Absolute => Reach { positions: frames.clone(), block_position: first, frames },
    }
}

#[cfg(test)]
mod tests {
    use evanesce_wan::checkpoint::{Context, ContextSample};

    use super::*;

    fn rollout(positions: Positions) -> Rollout {
        Rollout {
            block_frames: 3,
            first_block_frames: 3,
            sink_frames: 2,
            recent_frames: 4,
            positions,
            context: Context::PerExpert,
            context_sample: ContextSample::X0,
        }
    }

    #[test]
    fn blocks_follow_each_other_and_the_first_may_be_of_its_own_length() {
        for (first, other, video) in [(3, 3, 21), (1, 3, 21), (1, 3, 1), (5, 2, 4), (2, 7, 40)] {
            let blocks = Blocks { first, other, video };
            let mut next = 0;
            for at in 0..blocks.count() {
                let frames = blocks.frames(at);
                assert_eq!((frames.start, frames.len()), (next, if at == 0 { first } else { other }));
                assert!(frames.start < video && frames.len() <= blocks.longest());
                assert!(frames.clone().all(|frame| blocks.holding(frame) == at), "{blocks:?} {at}");
                assert_eq!(blocks.decoded(at).end, frames.end.min(video));
                next = frames.end;
            }
            assert!(next >= video);
        }
        let lengths = |video| {
            let blocks = Blocks { first: 1, other: 3, video };
            (blocks.longest(), blocks.longest_committed())
        };
        assert_eq!([1, 2, 4, 5].map(lengths), [(1, 0), (3, 1), (3, 1), (3, 3)]);
    }

    #[test]
    fn sink_and_recent_frames_stay_in_reach_and_never_twice() {
        let frames = |first| reach(rollout(Positions::Window), first).frames;
        assert_eq!(frames(0), [0; 0]);
        assert_eq!(frames(3), [0, 1, 2]);
        assert_eq!(frames(6), [0, 1, 2, 3, 4, 5]);
        assert_eq!(frames(9), [0, 1, 5, 6, 7, 8]);
        assert_eq!(frames(90), [0, 1, 86, 87, 88, 89]);
    }

    #[test]
    fn positions_are_those_of_the_list_or_of_the_video() {
        let window = reach(rollout(Positions::Window), 9);
        assert_eq!((window.positions, window.block_position), (vec![0, 1, 2, 3, 4, 5], 6));
        let absolute = reach(rollout(Positions::Absolute), 9);
        assert_eq!((absolute.positions, absolute.block_position), (vec![0, 1, 5, 6, 7, 8], 9));
    }
}
