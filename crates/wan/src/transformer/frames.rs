//! Keys and values of earlier latent frames, for models that make a video block by block.
//!
//! A page is one latent frame of one layer. Its keys carry their rotation in space, which never changes, and none in
//! time: all of a page's keys sit at one moment, so the query is turned for each page instead. A window then moves by
//! listing other pages, and what is stored does not depend on where in the window it is read.

use std::collections::BTreeSet;

use evanesce_kernels::{AttentionDims, KvSegment, Rows, Turn};

use super::config::TransformerConfig;
use super::rope::time_angles;
use crate::error::{Result, WanError};

/// Committed latent frames of one (expert, prompt), by layer, and where they stand in time.
///
/// The implementor gives back what was committed, exactly or as its codec has it, and the same in every step.
pub trait FrameKv {
    /// Positions in time of the pages that a block sees, in the order of [`Self::pages`]; each lies before
    /// [`Self::block_position`]. Only differences count.
    fn positions(&self) -> &[usize];

    /// Position in time of the first latent frame of the block under way.
    fn block_position(&self) -> usize;

    /// The pages of `layer`, one for each position.
    ///
    /// # Errors
    /// When a page is gone: there is nothing to put in its place.
    fn pages(&self, layer: usize) -> Result<Vec<Box<dyn FramePage + '_>>>;

    /// Offers keys and values of the block under way, each `[frames, tokens of a frame, dim]`. A holder keeps them when
    /// the block is clean and ignores them while it is being denoised.
    ///
    /// # Errors
    /// When the holder has no room for what it must keep.
    fn commit(&self, layer: usize, keys: &[f32], values: &[f32]) -> Result<()>;

    /// Is shown each attention to its pages, so that a holder can measure what its way of keeping them costs.
    fn attended(&self, _layer: usize, _seen: &Attended<'_>) {}
}

/// One attention to pages and to the frames of the block itself.
#[derive(Clone, Copy, Debug)]
pub struct Attended<'a> {
    /// Normalised queries, rotated in space, `[tokens, dim]`.
    pub queries: &'a [f32],
    /// The pages, in the order of [`FrameKv::pages`], then the frames of the block.
    pub segments: &'a [KvSegment<'a>],
    /// How many of the segments are pages.
    pub pages: usize,
    /// Sizes.
    pub dims: AttentionDims,
    /// What came out, `[tokens, dim]`.
    pub out: &'a [f32],
}

/// One latent frame of one layer; it stays where it is until this is dropped.
pub trait FramePage {
    /// Normalised keys, rotated in space only, `[tokens of a frame, dim]`.
    fn keys(&self) -> Rows<'_>;
    /// Values, `[tokens of a frame, dim]`.
    fn values(&self) -> Rows<'_>;
}

/// Rotations in time by every difference of positions that a block meets, and by no other: a page at the beginning of a long video
/// costs as much as one right before the block.
#[derive(Debug)]
pub(crate) struct TimeTurns {
    /// The differences, rising: one row of cosines and sines for each.
    differences: Vec<isize>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    pairs: usize,
    frames: usize,
    tokens_per_frame: usize,
}

impl TimeTurns {
    /// For a block of `frames` latent frames that sees pages so many positions before its first frame, in any order.
    pub(crate) fn new(
        config: &TransformerConfig,
        frames: usize,
        tokens_per_frame: usize,
        pages_back: impl IntoIterator<Item = isize>,
    ) -> Self {
        // The block's own frames lie before its first one by nothing or less.
        let own = (0..frames.cast_signed()).map(|frame| -frame);
        let met = own.chain(pages_back).flat_map(|back| back..back + frames.cast_signed());
        let differences: Vec<_> = met.collect::<BTreeSet<_>>().into_iter().collect();
        let (cos, sin): (Vec<_>, Vec<_>) = differences
            .iter()
            .flat_map(|difference| {
                #[expect(clippy::cast_precision_loss, reason = "positions are far below 2^53")]
                let difference = *difference as f64;
                time_angles(difference, config.head_dim)
            })
            .unzip();
        let pairs = cos.len() / differences.len().max(1);
        Self { differences, cos, sin, pairs, frames, tokens_per_frame }
    }

    /// Turns every query of the block as a page `back` positions before the block's first frame wants it; a frame of the
    /// block itself has a negative distance.
    fn turn(&self, back: isize) -> Turn<'_> {
        // Frame f of the block differs by `back + f`, so its rows follow each other.
        let row = self.differences.binary_search(&back).expect("the holder has the positions that it had");
        let span = row * self.pairs..(row + self.frames) * self.pairs;
        Turn {
            cos: &self.cos[span.clone()],
            sin: &self.sin[span],
            pairs: self.pairs,
            queries_per_row: self.tokens_per_frame,
        }
    }

    /// The page `back` positions before the block's first frame.
    pub(crate) fn segment<'a>(&'a self, back: isize, keys: Rows<'a>, values: Rows<'a>) -> KvSegment<'a> {
        KvSegment { keys, values, logit_bias: 0.0, turn: Some(self.turn(back)) }
    }
}

/// Checks that a holder's pages fit the model and its own positions.
pub(crate) fn check_pages(
    holder: &dyn FrameKv,
    pages: &[Box<dyn FramePage + '_>],
    layer: usize,
    [tokens, dim]: [usize; 2],
) -> Result<()> {
    let what = || format!("key-value pages of layer {layer}");
    let positions = holder.positions();
    if pages.len() != positions.len() {
        return Err(WanError::mismatch(what(), format!("{} pages", pages.len()), positions.len()));
    }
    for page in pages {
        let [keys, values] = [page.keys(), page.values()].map(|rows| rows.count(dim));
        if [keys, values] != [Some(tokens); 2] {
            let got = format!("{keys:?} keys and {values:?} values of {dim} numbers");
            return Err(WanError::mismatch(what(), got, format!("{tokens} of each")));
        }
    }
    match positions.iter().find(|at| **at >= holder.block_position()) {
        Some(at) => {
            let expected = format!("before the block's, {}", holder.block_position());
            Err(WanError::mismatch(what(), format!("a page at position {at}"), expected))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transformer::{Branch, LoneBlock, NoCrossKv, TextRows, TokenGrid, Transformer};
    use crate::weights::Component;

    const HEAD_DIM: usize = 24;

    /// Two frames of the sink and the four right before a block, at their places in the video.
    struct Absolute {
        positions: Vec<usize>,
        block_position: usize,
    }

    impl FrameKv for Absolute {
        fn positions(&self) -> &[usize] {
            &self.positions
        }

        fn block_position(&self) -> usize {
            self.block_position
        }

        fn pages(&self, _layer: usize) -> Result<Vec<Box<dyn FramePage + '_>>> {
            Ok(Vec::new())
        }

        fn commit(&self, _layer: usize, _keys: &[f32], _values: &[f32]) -> Result<()> {
            Ok(())
        }
    }

    /// What a block of three frames at `block_position` is turned by.
    fn turns_at(block_position: usize) -> TimeTurns {
        let config = TransformerConfig { head_dim: HEAD_DIM, ..LoneBlock::wan22_t2v_a14b() };
        let positions = (0..2).chain(block_position - 4..block_position).collect();
        let past = Absolute { positions, block_position };
        let text = TextRows { real: &[], pad_rows: 1 };
        let branch = Branch { text, cross: &NoCrossKv, past: Some(&past) };
        let grid = TokenGrid { frames: 0..3, rows: 2, columns: 2 };
        let mut rope = vec![0.0; grid.tokens() * HEAD_DIM];
        let transformer = Transformer::new(Component::HighNoise, config);
        let places = transformer.places(&grid, &[branch], &mut rope).unwrap();
        places.turns.unwrap()
    }

    #[test]
    fn a_block_late_in_a_video_is_turned_by_as_many_angles_as_an_early_one() {
        // From two frames behind to six before, and what is between the frames of block and sink.
        let rows = [9, 9000].map(|at| {
            let turns = turns_at(at);
            [turns.cos.len(), turns.sin.len()].map(|numbers| numbers / turns.pairs)
        });
        assert_eq!(rows, [[9 + 4; 2]; 2]);
    }

    #[test]
    fn each_page_is_turned_by_its_distance_from_each_frame_of_the_block() {
        let turns = turns_at(9000);
        for back in [9000_i32, 8999, 4, 1, 0, -2] {
            let frames = (back..back + 3).flat_map(|distance| time_angles(f64::from(distance), HEAD_DIM));
            let (cos, sin): (Vec<_>, Vec<_>) = frames.unzip();
            let turn = turns.turn(isize::try_from(back).unwrap());
            assert_eq!((turn.cos, turn.sin), (&cos[..], &sin[..]), "{back} positions before the block");
        }
    }
}
