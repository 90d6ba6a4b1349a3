//! Memory of one task: everything it holds of the queries, and one tile of keys and values.

use super::spans::{spans_max, words_max};
use crate::micro::NR;
use crate::scratch::LINE;

/// Keys of a tile: whole groups of the micro-kernel's rows, and a chain of products short enough for one panel.
pub(super) const TILE_KEYS: usize = 96;
/// Panels of queries that meet a tile of keys before the next ones do: what the micro-kernels take at once, so that logits
/// stay in the nearest cache.
pub(super) const PANELS: usize = 3;

/// Sizes of a task's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Panels of NR queries.
    pub(super) panels: usize,
    /// Numbers of a head.
    pub(super) head_dim: usize,
}

/// One word for every number or for every word of codes. "Lanes" are the NR queries of every panel in turn.
pub(super) struct Scratch<'a> {
    /// `[panels, head_dim, NR]`.
    pub(super) queries: &'a mut [f32],
    /// The queries in codes: `[panels, words, NR]`, four bytes each.
    pub(super) query_words: &'a mut [f32],
    /// Sums of a query's codes over each span: `[spans, lanes]`.
    pub(super) query_sums: &'a mut [f32],
    /// What a key's squared step is multiplied by, for each span: `[spans, lanes]`. See `jensen`.
    pub(super) query_noise: &'a mut [f32],
    /// Steps of the queries' codes: `[lanes]`.
    pub(super) query_steps: &'a mut [f32],
    /// Keys `[TILE_KEYS, head_dim]`, or their codes, a byte each, in whole words.
    pub(super) keys: &'a mut [f32],
    /// Values `[TILE_KEYS, head_dim]`, or pairs of their codes `[TILE_KEYS / 2, head_dim]`.
    pub(super) values: &'a mut [f32],
    /// Steps of the tile's keys, `[spans, TILE_KEYS]`.
    pub(super) key_steps: &'a mut [f32],
    /// Their minima, likewise.
    pub(super) key_minima: &'a mut [f32],
    /// Steps of the tile's values in units of the largest one over the largest weight code, `[spans, TILE_KEYS]`.
    pub(super) value_ratios: &'a mut [f32],
    /// Minima of the tile's values, `[spans, TILE_KEYS]`.
    pub(super) value_minima: &'a mut [f32],
    /// What one product of codes of weights and values stands for, for each span.
    pub(super) value_units: &'a mut [f32],
    /// Logits, then weights, of some panels: `[PANELS, TILE_KEYS, NR]`.
    pub(super) logits: &'a mut [f32],
    /// Pairs of codes of weights: `[PANELS, TILE_KEYS / 2, NR]`.
    pub(super) weights: &'a mut [f32],
    /// Weighted sums of values: `[panels, head_dim, NR]`.
    pub(super) sums: &'a mut [f32],
    /// What all numbers of a span have in common: `[spans, lanes]`.
    pub(super) bases: &'a mut [f32],
    /// Largest logit so far in units of ln 2, `[lanes]`.
    pub(super) max: &'a mut [f32],
    /// Sum of weights so far, `[lanes]`.
    pub(super) total: &'a mut [f32],
    /// What the newest tile makes of everything before it, `[lanes]`.
    pub(super) decay: &'a mut [f32],
    /// What its own weights are multiplied by, `[lanes]`.
    pub(super) gain: &'a mut [f32],
    /// `gain` times a span's unit, for some panels: `[PANELS, NR]`.
    pub(super) gains: &'a mut [f32],
    /// Biases of NR queries, turned: `[TILE_KEYS, NR]`.
    pub(super) bias: &'a mut [f32],
    /// One query, key or value on its way: `[NR, head_dim]`, and its codes `[words]`.
    pub(super) rows: &'a mut [f32],
    pub(super) words: &'a mut [f32],
}

/// The parts of a task's memory and how long each is.
macro_rules! parts {
    ($sizes:ident => $($part:ident: $length:expr),* $(,)?) => {
        impl<'a> Scratch<'a> {
            /// Words that a task needs.
            pub(super) fn len(sizes: Sizes) -> usize {
                let $sizes = Lengths::of(sizes);
                0 $(+ $length.next_multiple_of(LINE))*
            }

            /// Every part begins with a cache line where `all` does.
            pub(super) fn split(mut all: &'a mut [f32], sizes: Sizes) -> Self {
                let $sizes = Lengths::of(sizes);
                Self {
                    $($part: {
                        let length = $length;
                        let part = all.split_off_mut(..length.next_multiple_of(LINE));
                        &mut part.expect("scratch holds all its parts")[..length]
                    }),*
                }
            }
        }
    };
}

/// What lengths of parts are made of.
struct Lengths {
    head_dim: usize,
    lanes: usize,
    spans: usize,
    words: usize,
    /// Grids of a tile.
    grids: usize,
}

impl Lengths {
    fn of(Sizes { panels, head_dim }: Sizes) -> Self {
        let (lanes, spans, words) = (panels * NR, spans_max(head_dim), words_max(head_dim));
        Self { head_dim, lanes, spans, words, grids: spans * TILE_KEYS }
    }
}

parts!(of =>
    queries: of.head_dim * of.lanes,
    query_words: of.words * of.lanes,
    query_sums: of.spans * of.lanes,
    query_noise: of.spans * of.lanes,
    query_steps: of.lanes,
    keys: TILE_KEYS * of.head_dim.max(of.words),
    values: TILE_KEYS * of.head_dim,
    key_steps: of.grids,
    key_minima: of.grids,
    value_ratios: of.grids,
    value_minima: of.grids,
    value_units: of.spans,
    logits: PANELS * TILE_KEYS * NR,
    weights: PANELS * TILE_KEYS / 2 * NR,
    sums: of.head_dim * of.lanes,
    bases: of.spans * of.lanes,
    max: of.lanes,
    total: of.lanes,
    decay: of.lanes,
    gain: of.lanes,
    gains: PANELS * NR,
    bias: TILE_KEYS * NR,
    rows: NR * of.head_dim,
    words: of.words,
);

impl Scratch<'_> {
    /// Forgets earlier tiles.
    pub(super) fn begin(&mut self) {
        self.sums.fill(0.0);
        self.bases.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.total.fill(0.0);
    }
}
