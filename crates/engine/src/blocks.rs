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

impl JobSpec {
    /// Blocks that the video is made of.
    pub(crate) fn n_blocks(&self) -> usize {
        self.rollout.map_or(1, |rollout| self.latent_frames().div_ceil(rollout.block_frames))
    }

    /// The block with number `at`.
    pub(crate) fn block(&self, at: usize) -> Block {
        let frames = match self.rollout {
            None => 0..self.latent_frames(),
            Some(Rollout { block_frames, .. }) => at * block_frames..(at + 1) * block_frames,
        };
        Block { at, frames }
    }

    /// Latent frames that are denoised: those of the video, in whole blocks.
    pub(crate) fn denoised_frames(&self) -> usize {
        self.block(self.n_blocks() - 1).frames.end
    }

    /// The number of the block that holds a latent frame.
    pub(crate) fn block_of(&self, frame: usize) -> usize {
        self.rollout.map_or(0, |rollout| frame / rollout.block_frames)
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
    use super::*;

    fn rollout(positions: Positions) -> Rollout {
        Rollout { block_frames: 3, sink_frames: 2, recent_frames: 4, positions }
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
