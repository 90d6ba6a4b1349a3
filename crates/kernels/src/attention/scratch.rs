//! Memory of one task: everything it holds of the queries, and one tile of keys and values.

use super::spans::{spans_max, words_max};
use crate::micro::NR;

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

impl<'a> Scratch<'a> {
    fn lengths(Sizes { panels, head_dim }: Sizes) -> [usize; 24] {
        let (lanes, spans, words) = (panels * NR, spans_max(head_dim), words_max(head_dim));
        let grids = spans * TILE_KEYS;
        [
            head_dim * lanes,
            words * lanes,
            spans * lanes,
            spans * lanes,
            lanes,
            TILE_KEYS * head_dim.max(words),
            TILE_KEYS * head_dim,
            grids,
            grids,
            grids,
            grids,
            spans,
            PANELS * TILE_KEYS * NR,
            PANELS * TILE_KEYS / 2 * NR,
            head_dim * lanes,
            spans * lanes,
            lanes,
            lanes,
            lanes,
            lanes,
            PANELS * NR,
            TILE_KEYS * NR,
            NR * head_dim,
            words,
        ]
    }

    /// Words that a task needs.
    pub(super) fn len(sizes: Sizes) -> usize {
        Self::lengths(sizes).iter().sum()
    }

    pub(super) fn split(mut all: &'a mut [f32], sizes: Sizes) -> Self {
        let parts = Self::lengths(sizes)
            .map(|length| all.split_off_mut(..length).expect("scratch holds all its parts"));
        let [
            queries,
            query_words,
            query_sums,
            query_noise,
            query_steps,
            keys,
            values,
            key_steps,
            key_minima,
            value_ratios,
            value_minima,
            value_units,
            logits,
            weights,
            sums,
            bases,
            max,
            total,
            decay,
            gain,
            gains,
            bias,
            rows,
            words,
        ] = parts;
        Self {
            queries,
            query_words,
            query_sums,
            query_noise,
            query_steps,
            keys,
            values,
            key_steps,
            key_minima,
            value_ratios,
            value_minima,
            value_units,
            logits,
            weights,
            sums,
            bases,
            max,
            total,
            decay,
            gain,
            gains,
            bias,
            rows,
            words,
        }
    }

    /// Forgets earlier tiles.
    pub(super) fn begin(&mut self) {
        self.sums.fill(0.0);
        self.bases.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.total.fill(0.0);
    }
}
