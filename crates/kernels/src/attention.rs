//! Attention over pages of keys and values.
//!
//! Tiles of keys stream past a tile of queries with a running softmax (Milakov and Gimelshein 2018; Dao et al.
//! 2022), so no matrix of logits exists. Logits are computed with keys as rows: the queries then lie side by
//! side in a vector register, maxima and sums need no horizontal steps, and keys are read where they lie.
#![expect(unsafe_code, reason = "tasks write tiles of one output matrix")]

use crate::isa::{Isa, by_isa};
use crate::math::exp;
use crate::micro::{KC, Keep, Left, NR, multiply};
use crate::panel;
use crate::shared::Shared;
use crate::tasks::{self, Share};

/// Keys of a tile: whole groups of the micro-kernel's rows, and a chain of products short enough for one panel.
const TILE_KEYS: usize = 96;
/// Largest number of queries of a tile.
const TILE_QUERIES: usize = 96;
/// Multiply-adds below which threads cost more than they bring.
const ALONE: usize = 1 << 18;

/// Sizes of an attention call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionDims {
    /// Rows of the queries and of the output.
    pub queries: usize,
    /// Heads, side by side in a row.
    pub heads: usize,
    /// Numbers of one head in a row.
    pub head_dim: usize,
    /// Factor on every logit before biases.
    pub scale: f32,
}

/// A stretch of keys and values that lies contiguously.
#[derive(Clone, Copy, Debug)]
pub struct KvSegment<'a> {
    /// `[n, heads * head_dim]`.
    pub keys: &'a [f32],
    /// `[n, heads * head_dim]`.
    pub values: &'a [f32],
    /// Added to every logit of the segment. One key with bias `ln(n)` stands for `n` identical keys.
    pub logit_bias: f32,
}

/// Softmax attention of `q` over all `segments` together; `q` and `out` are `[queries, heads * head_dim]`.
///
/// # Panics
/// When a length does not fit `dims`, or there are queries but no key.
pub fn attend(q: &[f32], segments: &[KvSegment<'_>], dims: AttentionDims, out: &mut [f32]) {
    check("attend", q, segments, dims, out);
    Call::run(q, segments, None, dims, out);
}

/// Softmax attention with a bias of its own for every logit: `q` `[queries, heads * head_dim]`,
/// `k`, `v` `[keys, heads * head_dim]`, `bias` `[heads, queries, keys]`.
///
/// # Panics
/// When a length does not fit `dims`, or there are queries but no key.
pub fn attend_biased(q: &[f32], k: &[f32], v: &[f32], bias: &[f32], dims: AttentionDims, out: &mut [f32]) {
    let segments = [KvSegment { keys: k, values: v, logit_bias: 0.0 }];
    check("attend_biased", q, &segments, dims, out);
    let keys = k.len().checked_div(dims.heads * dims.head_dim).unwrap_or(0);
    assert_eq!(
        bias.len(),
        dims.heads * dims.queries * keys,
        "attend_biased: bias must be [heads, queries, keys]"
    );
    Call::run(q, &segments, Some(bias), dims, out);
}

fn check(name: &str, q: &[f32], segments: &[KvSegment<'_>], dims: AttentionDims, out: &[f32]) {
    let width = dims.heads * dims.head_dim;
    assert_eq!(q.len(), dims.queries * width, "{name}: q must be [queries, heads * head_dim]");
    assert_eq!(out.len(), q.len(), "{name}: out must be of q's length");
    for segment in segments {
        assert_eq!(segment.keys.len(), segment.values.len(), "{name}: a segment needs a value for every key");
        assert!(
            segment.keys.is_empty() || (width > 0 && segment.keys.len().is_multiple_of(width)),
            "{name}: keys must be whole rows of heads * head_dim"
        );
    }
    assert!(
        out.is_empty() || segments.iter().any(|segment| !segment.keys.is_empty()),
        "{name}: there must be a key to attend to"
    );
}

struct Call<'a> {
    isa: Isa,
    q: &'a [f32],
    segments: &'a [KvSegment<'a>],
    /// `[heads, queries, keys]`.
    bias: Option<&'a [f32]>,
    keys: usize,
    dims: AttentionDims,
    /// Queries of a tile in scratch: whole panels.
    tile: usize,
    out: Shared<'a>,
}

/// Scratch of one task. `tile` is the number of queries it has room for; `depth` is `head_dim` in whole panels.
struct Scratch<'a> {
    /// The queries, as panels of NR queries `[head_dim, NR]`.
    queries: &'a mut [f32],
    /// The tile's values, as panels of NR columns `[TILE_KEYS, NR]`.
    values: &'a mut [f32],
    /// Logits, then weights: `[TILE_KEYS, tile]`.
    logits: &'a mut [f32],
    /// Weighted sums of values: `[tile, depth]`.
    sums: &'a mut [f32],
    /// Largest logit so far, per query.
    max: &'a mut [f32],
    /// Sum of weights so far, per query.
    total: &'a mut [f32],
    /// What the newest tile makes of everything before it, per query.
    decay: &'a mut [f32],
    /// Biases of NR queries, turned: `[TILE_KEYS, NR]`.
    bias: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn lengths(tile: usize, head_dim: usize) -> [usize; 8] {
        let depth = head_dim.next_multiple_of(NR);
        [tile * head_dim, TILE_KEYS * depth, TILE_KEYS * tile, tile * depth, tile, tile, tile, TILE_KEYS * NR]
    }

    fn split(mut all: &'a mut [f32], tile: usize, head_dim: usize) -> Self {
        let [queries, values, logits, sums, max, total, decay, bias] = Self::lengths(tile, head_dim)
            .map(|length| all.split_off_mut(..length).expect("scratch holds all its parts"));
        Self { queries, values, logits, sums, max, total, decay, bias }
    }
}

/// The tile of one task.
#[derive(Clone, Copy)]
struct Place {
    head: usize,
    query: usize,
    queries: usize,
}

impl<'a> Call<'a> {
    fn run(
        q: &'a [f32],
        segments: &'a [KvSegment<'a>],
        bias: Option<&'a [f32]>,
        dims: AttentionDims,
        out: &'a mut [f32],
    ) {
        if out.is_empty() {
            return;
        }
        let AttentionDims { queries, heads, head_dim, .. } = dims;
        let keys = segments.iter().map(|segment| segment.keys.len()).sum::<usize>() / (heads * head_dim);
        let tile = TILE_QUERIES.min(queries.next_multiple_of(NR));
        let call = Self { isa: Isa::detect(), q, segments, bias, keys, dims, tile, out: Shared::new(out) };
        let tiles = queries.div_ceil(tile);
        let share = Share::from_work(q.len().saturating_mul(keys), ALONE);
        let scratch_len = Scratch::lengths(tile, head_dim).iter().sum();
        tasks::run(tiles * heads, share, scratch_len, |scratch, at| {
            let query = at % tiles * tile;
            let place = Place { head: at / tiles, query, queries: tile.min(queries - query) };
            call.tile(place, &mut Scratch::split(scratch, tile, head_dim));
        });
    }

    fn width(&self) -> usize {
        self.dims.heads * self.dims.head_dim
    }

    fn tile(&self, place: Place, scratch: &mut Scratch<'_>) {
        self.load_queries(place, scratch);
        scratch.sums.fill(0.0);
        scratch.max.fill(f32::NEG_INFINITY);
        scratch.total.fill(0.0);
        let mut before = 0;
        for segment in self.segments {
            let keys = segment.keys.len() / self.width();
            for key in (0..keys).step_by(TILE_KEYS) {
                let count = TILE_KEYS.min(keys - key);
                self.load_values(place, segment, key, count, scratch);
                self.logits(place, segment, key, count, scratch);
                if let Some(bias) = self.bias {
                    self.add_bias(bias, place, before + key, count, scratch);
                }
                let logits = &mut scratch.logits[..count * self.tile];
                soften(self.isa, logits, self.tile, scratch.max, scratch.total, scratch.decay);
                self.weigh(place, count, scratch);
            }
            before += keys;
        }
        self.store(place, scratch);
    }

    fn load_queries(&self, place: Place, scratch: &mut Scratch<'_>) {
        let head_dim = self.dims.head_dim;
        let row = |i: usize| &self.q[(place.query + i) * self.width() + place.head * head_dim..][..head_dim];
        for (i, panel) in scratch.queries.chunks_exact_mut(head_dim * NR).enumerate() {
            let first = i * NR;
            let count = NR.min(place.queries.saturating_sub(first));
            panel::from_rows(self.isa, count, head_dim, |i| row(first + i), panel);
        }
    }

    fn load_values(
        &self,
        place: Place,
        segment: &KvSegment<'_>,
        key: usize,
        count: usize,
        scratch: &mut Scratch<'_>,
    ) {
        let head_dim = self.dims.head_dim;
        for (i, value) in
            segment.values[key * self.width()..].chunks_exact(self.width()).take(count).enumerate()
        {
            let value = &value[place.head * head_dim..][..head_dim];
            for (columns, panel) in value.chunks(NR).zip(scratch.values.chunks_exact_mut(TILE_KEYS * NR)) {
                panel[i * NR..][..columns.len()].copy_from_slice(columns);
            }
        }
    }

    fn logits(
        &self,
        place: Place,
        segment: &KvSegment<'_>,
        key: usize,
        count: usize,
        scratch: &mut Scratch<'_>,
    ) {
        let AttentionDims { head_dim, scale, .. } = self.dims;
        let starts: [usize; TILE_KEYS] =
            std::array::from_fn(|i| (key + i) * self.width() + place.head * head_dim);
        for (group, starts) in starts[..count].chunks(TILE_KEYS).enumerate() {
            for depth in (0..head_dim).step_by(KC) {
                let left = Left {
                    values: segment.keys,
                    starts,
                    spans: &[depth],
                    span_len: KC.min(head_dim - depth),
                    stride: 1,
                };
                let keep = if depth == 0 { Keep::Nothing } else { Keep::Sum };
                let logits = &mut scratch.logits[group * self.tile..];
                for (i, panel) in scratch.queries.chunks_exact(head_dim * NR).enumerate() {
                    multiply(self.isa, &left, &panel[depth * NR..], &mut logits[i * NR..], self.tile, keep);
                }
            }
        }
        scale_logits(self.isa, &mut scratch.logits[..count * self.tile], scale, segment.logit_bias);
    }

    fn add_bias(&self, bias: &[f32], place: Place, key: usize, count: usize, scratch: &mut Scratch<'_>) {
        let row = |i: usize| {
            let query = place.head * self.dims.queries + place.query + i;
            &bias[query * self.keys + key..][..count]
        };
        for first in (0..place.queries).step_by(NR) {
            let rows = NR.min(place.queries - first);
            panel::from_rows(self.isa, rows, count, |i| row(first + i), scratch.bias);
            for (logits, bias) in
                scratch.logits.chunks_exact_mut(self.tile).zip(scratch.bias.chunks_exact(NR)).take(count)
            {
                logits[first..first + NR].iter_mut().zip(bias).for_each(|(logit, bias)| *logit += bias);
            }
        }
    }

    fn weigh(&self, place: Place, count: usize, scratch: &mut Scratch<'_>) {
        let depth = self.dims.head_dim.next_multiple_of(NR);
        for (sums, decay) in scratch.sums.chunks_exact_mut(depth).zip(scratch.decay.iter()) {
            if *decay != 1.0 {
                sums.iter_mut().for_each(|sum| *sum *= decay);
            }
        }
        let starts: [usize; TILE_QUERIES] = std::array::from_fn(|i| i);
        let left = Left {
            values: scratch.logits,
            starts: &starts[..place.queries],
            spans: &[0],
            span_len: count,
            stride: self.tile,
        };
        for (i, panel) in scratch.values.chunks_exact(TILE_KEYS * NR).enumerate() {
            multiply(self.isa, &left, panel, &mut scratch.sums[i * NR..], depth, Keep::Sum);
        }
    }

    fn store(&self, place: Place, scratch: &Scratch<'_>) {
        let head_dim = self.dims.head_dim;
        let sums = scratch.sums.chunks_exact(head_dim.next_multiple_of(NR));
        for (i, (sums, total)) in sums.zip(scratch.total.iter()).take(place.queries).enumerate() {
            // SAFETY: each (query, head) of the output belongs to one task.
            let out =
                unsafe { self.out.range((place.query + i) * self.width() + place.head * head_dim, head_dim) };
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum / total);
        }
    }
}

by_isa! {
    fn scale_logits(logits: &mut [f32], scale: f32, bias: f32) = scale_logits_inner
}

#[inline(always)]
fn scale_logits_inner(logits: &mut [f32], scale: f32, bias: f32) {
    logits.iter_mut().for_each(|logit| *logit = logit.mul_add(scale, bias));
}

by_isa! {
    /// Turns the logits `[keys, tile]` into weights relative to the largest so far, and brings `max` and `total` up
    /// to date; `decay` is what the sums from before must be multiplied by.
    fn soften(logits: &mut [f32], tile: usize, max: &mut [f32], total: &mut [f32], decay: &mut [f32]) = soften_inner
}

#[inline(always)]
fn soften_inner(logits: &mut [f32], tile: usize, max: &mut [f32], total: &mut [f32], decay: &mut [f32]) {
    for first in (0..tile).step_by(NR) {
        let block = first..first + NR;
        let mut largest = [0.0; NR];
        largest.copy_from_slice(&max[block.clone()]);
        for row in logits.chunks_exact(tile) {
            for (largest, logit) in largest.iter_mut().zip(&row[block.clone()]) {
                *largest = if *logit > *largest { *logit } else { *largest };
            }
        }
        let (max, total, decay) =
            (&mut max[block.clone()], &mut total[block.clone()], &mut decay[block.clone()]);
        let mut base = [0.0; NR];
        for i in 0..NR {
            // While every logit was -inf there is nothing to be relative to; any finite base gives weights of zero.
            base[i] = if largest[i] == f32::NEG_INFINITY { 0.0 } else { largest[i] };
            decay[i] = exp(max[i] - base[i]);
            max[i] = largest[i];
        }
        let mut sum = [0.0; NR];
        for row in logits.chunks_exact_mut(tile) {
            for ((logit, base), sum) in row[block.clone()].iter_mut().zip(&base).zip(&mut sum) {
                *logit = exp(*logit - base);
                *sum += *logit;
            }
        }
        for i in 0..NR {
            total[i] = total[i].mul_add(decay[i], sum[i]);
        }
    }
}
