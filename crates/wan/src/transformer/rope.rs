//! Rotary position embedding over (frame, row, column), in diffusers' interleaved-pair order.

use std::ops::Range;

/// Base of the angular frequencies of each axis.
const THETA: f64 = 10_000.0;

/// Where the tokens of one call sit in the video, in latent frames and patches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenGrid {
    /// Latent frames.
    pub frames: Range<usize>,
    /// Rows of patches.
    pub rows: usize,
    /// Columns of patches.
    pub columns: usize,
}

impl TokenGrid {
    /// Tokens of the call, frame by frame, row by row.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.frames.len() * self.rows * self.columns
    }
}

/// Cosines and sines of every token, each `[tokens, head_dim / 2]`.
#[derive(Debug)]
pub(crate) struct RopeTable<'a> {
    pub(crate) cos: &'a [f32],
    pub(crate) sin: &'a [f32],
}

/// Which axes rotations follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Axes {
    /// Time and space.
    All,
    /// Space alone.
    Space,
}

/// Dimensions of a head that turn with (frame, row, column): `d - 4 (d / 6)`, `2 (d / 6)`, `2 (d / 6)`.
fn axis_dims(head_dim: usize) -> [usize; 3] {
    let spatial = 2 * (head_dim / 6);
    [head_dim - 2 * spatial, spatial, spatial]
}

/// (cosine, sine) of every pair of an axis at `position`; angles in f64, as the official code and diffusers have them.
fn axis_angles(position: f64, dims: usize) -> Vec<(f32, f32)> {
    #[expect(clippy::cast_precision_loss, reason = "positions and widths are far below 2^53")]
    let angle = |pair: usize| position * THETA.powf(-((2 * pair) as f64) / dims as f64);
    #[expect(clippy::cast_possible_truncation, reason = "the tables are f32 by definition")]
    let rounded = |(sin, cos): (f64, f64)| (cos as f32, sin as f32);
    (0..dims / 2).map(|pair| rounded(angle(pair).sin_cos())).collect()
}

/// (cosine, sine) of the pairs of a head that turn with time, for a difference of positions.
pub(crate) fn time_angles(difference: f64, head_dim: usize) -> Vec<(f32, f32)> {
    axis_angles(difference, axis_dims(head_dim)[0])
}

impl<'a> RopeTable<'a> {
    /// Writes the rotations of `grid` into memory of `tokens * head_dim` numbers.
    pub(crate) fn new(grid: &TokenGrid, head_dim: usize, axes: Axes, memory: &'a mut [f32]) -> Self {
        let [frame_dims, row_dims, column_dims] = axis_dims(head_dim);
        #[expect(clippy::cast_precision_loss, reason = "positions are far below 2^53")]
        let axis =
            |range: Range<usize>, dims| range.map(|at| axis_angles(at as f64, dims)).collect::<Vec<_>>();
        let frames = match axes {
            Axes::All => axis(grid.frames.clone(), frame_dims),
            Axes::Space => vec![axis_angles(0.0, frame_dims); grid.frames.len()],
        };
        let rows = axis(0..grid.rows, row_dims);
        let columns = axis(0..grid.columns, column_dims);
        let (cos, sin) = memory.split_at_mut(grid.tokens() * (head_dim / 2));
        let mut to = cos.iter_mut().zip(&mut *sin);
        for frame in &frames {
            for row in &rows {
                for column in &columns {
                    let token = frame.iter().chain(row).chain(column);
                    for ((cos, sin), (to_cos, to_sin)) in token.zip(to.by_ref()) {
                        (*to_cos, *to_sin) = (*cos, *sin);
                    }
                }
            }
        }
        Self { cos, sin }
    }
}
