//! Attention over pages of keys and values.
//!
//! Tiles of keys stream past a tile of queries with a running softmax (Milakov and Gimelshein 2018; Dao et al.
//! 2022), so no matrix of logits exists. Logits are computed with keys as rows: the queries then lie side by
//! side in a vector register, maxima and sums need no horizontal steps, and keys are read where they lie.
#![expect(unsafe_code, reason = "tasks write tiles of one output matrix")]

use std::f32::consts::LOG2_E;

use crate::codec::Rows;
use crate::isa::{Isa, by_isa};
use crate::math::exp2_of_negative;
use crate::micro::{KC, Keep, Left, MR, NR, Out, Panels, Right, multiply};
use crate::panel;
use crate::rope::turn_head;
use crate::shared::Shared;
use crate::tasks::{self, Share};

/// Keys of a tile: whole groups of the micro-kernel's rows, and a chain of products short enough for one panel.
const TILE_KEYS: usize = 96;
/// Numbers of keys that stay in the nearest cache while all queries of a tile meet them.
const NEAR: usize = 3072;
/// Queries of a tile where there are many: each key and value that is read serves more of them.
const TILE_QUERIES: usize = 192;
/// Queries of a tile otherwise: more tasks.
const SMALL_TILE_QUERIES: usize = 96;
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

/// A stretch of keys and values that lies contiguously, each plain or in a codec of its own.
#[derive(Clone, Copy, Debug)]
pub struct KvSegment<'a> {
    /// `[n, heads * head_dim]`.
    pub keys: Rows<'a>,
    /// `[n, heads * head_dim]`.
    pub values: Rows<'a>,
    /// Added to every logit of the segment. One key with bias `ln(n)` stands for `n` identical keys.
    pub logit_bias: f32,
    /// Rotation of the queries before they meet this segment.
    pub turn: Option<Turn<'a>>,
}

/// A rotation of queries. With rotary positions a logit depends on the difference of two angles only, so where all keys
/// of a segment have one angle, the queries can be turned instead, and the keys stay as they are stored.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// Cosines, `[rows, pairs]`: those of the first `pairs` interleaved pairs of every head. Later pairs stay.
    pub cos: &'a [f32],
    /// Sines, likewise.
    pub sin: &'a [f32],
    /// Interleaved pairs that are turned, at most half of a head.
    pub pairs: usize,
    /// Neighbouring queries that share a row of angles.
    pub queries_per_row: usize,
}

impl Turn<'_> {
    fn check(&self, name: &str, dims: AttentionDims) {
        let Self { cos, sin, pairs, queries_per_row } = *self;
        assert!(2 * pairs <= dims.head_dim && pairs > 0, "{name}: a turn has 1 to head_dim / 2 pairs");
        assert!(
            queries_per_row > 0
                && cos.len() == sin.len()
                && cos.len() >= dims.queries.div_ceil(queries_per_row) * pairs,
            "{name}: a turn needs angles for every query"
        );
    }

    /// Cosines and sines for one query.
    fn angles(&self, query: usize) -> (&[f32], &[f32]) {
        let row = query / self.queries_per_row * self.pairs;
        (&self.cos[row..][..self.pairs], &self.sin[row..][..self.pairs])
    }
}

/// Softmax attention of `q` over all `segments` together; `q` and `out` are `[queries, heads * head_dim]`.
///
/// # Panics
/// When a length or a turn does not fit `dims`, or there are queries but no key.
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
    let segments = [KvSegment { keys: k.into(), values: v.into(), logit_bias: 0.0, turn: None }];
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
        let [keys, values] = [segment.keys, segment.values].map(|rows| rows.count(width));
        assert!(keys.is_some(), "{name}: keys must be whole rows of heads * head_dim");
        assert_eq!(keys, values, "{name}: a segment needs a value for every key");
        if let Some(turn) = segment.turn {
            turn.check(name, dims);
        }
    }
    assert!(
        out.is_empty() || segments.iter().any(|segment| segment.keys.count(width) != Some(0)),
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
    /// [`logits_stride`] of the tile.
    stride: usize,
    out: Shared<'a>,
}

/// Scratch of one task. `tile` is the number of queries it has room for; `depth` is `head_dim` in whole panels.
struct Scratch<'a> {
    /// The queries, as panels of NR queries `[head_dim, NR]`.
    queries: &'a mut [f32],
    /// The tile's keys: `[TILE_KEYS, head_dim]`.
    keys: &'a mut [f32],
    /// The tile's values, as panels of NR columns `[TILE_KEYS, NR]`.
    values: &'a mut [f32],
    /// Logits, then weights: `[TILE_KEYS, stride]`.
    logits: &'a mut [f32],
    /// Weighted sums of values: `[tile, depth]`.
    sums: &'a mut [f32],
    /// Largest logit so far, per query, in units of ln 2.
    max: &'a mut [f32],
    /// Sum of weights so far, per query.
    total: &'a mut [f32],
    /// What the newest tile makes of everything before it, per query.
    decay: &'a mut [f32],
    /// Biases of NR queries, turned: `[TILE_KEYS, NR]`.
    bias: &'a mut [f32],
    /// One decoded key or value: `[head_dim]`.
    row: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn lengths(tile: usize, head_dim: usize) -> [usize; 10] {
        let depth = head_dim.next_multiple_of(NR);
        [
            tile * head_dim,
            TILE_KEYS * head_dim,
            TILE_KEYS * depth,
            TILE_KEYS * logits_stride(tile),
            tile * depth,
            tile,
            tile,
            tile,
            TILE_KEYS * NR,
            head_dim,
        ]
    }

    fn split(mut all: &'a mut [f32], tile: usize, head_dim: usize) -> Self {
        let [queries, keys, values, logits, sums, max, total, decay, bias, row] =
            Self::lengths(tile, head_dim)
                .map(|length| all.split_off_mut(..length).expect("scratch holds all its parts"));
        Self { queries, keys, values, logits, sums, max, total, decay, bias, row }
    }
}

/// Distance of the logits of neighbouring keys: an odd number of cache lines, so that a column of them is spread
/// over the whole cache.
fn logits_stride(tile: usize) -> usize {
    ((tile / NR) | 1) * NR
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
        let keys = segments.iter().filter_map(|segment| segment.keys.count(heads * head_dim)).sum();
        let tile = if queries < 4 * TILE_QUERIES { SMALL_TILE_QUERIES } else { TILE_QUERIES };
        let tile = tile.min(queries.next_multiple_of(NR));
        let (isa, stride, out) = (Isa::current(), logits_stride(tile), Shared::new(out));
        let call = Self { isa, q, segments, bias, keys, dims, stride, out };
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
        let mut straight = false;
        scratch.sums.fill(0.0);
        scratch.max.fill(f32::NEG_INFINITY);
        scratch.total.fill(0.0);
        let mut before = 0;
        for segment in self.segments {
            let keys = segment.keys.count(self.width()).unwrap_or(0);
            match segment.turn {
                Some(turn) => self.load_turned_queries(place, turn, scratch),
                None if !straight => self.load_queries(place, scratch),
                None => {}
            }
            straight = segment.turn.is_none();
            for key in (0..keys).step_by(TILE_KEYS) {
                let count = TILE_KEYS.min(keys - key);
                self.load_keys(place, segment, key, count, scratch);
                self.load_values(place, segment, key, count, scratch);
                self.logits(count, scratch);
                let mut affine = [self.dims.scale * LOG2_E, segment.logit_bias * LOG2_E];
                if let Some(bias) = self.bias {
                    self.add_bias(bias, place, before + key, count, scratch);
                    affine = [LOG2_E, 0.0];
                }
                let logits = &mut scratch.logits[..count * self.stride];
                soften(self.isa, logits, affine, scratch.max, scratch.total, scratch.decay);
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

    fn load_turned_queries(&self, place: Place, turn: Turn<'_>, scratch: &mut Scratch<'_>) {
        let head_dim = self.dims.head_dim;
        for (i, panel) in scratch.queries.chunks_exact_mut(head_dim * NR).enumerate() {
            let first = i * NR;
            let count = NR.min(place.queries.saturating_sub(first));
            // No keys are loaded yet, so their place is free for the rows of a panel.
            for (j, row) in scratch.keys.chunks_exact_mut(head_dim).take(count).enumerate() {
                let query = place.query + first + j;
                row.copy_from_slice(&self.q[query * self.width() + place.head * head_dim..][..head_dim]);
                let (cos, sin) = turn.angles(query);
                turn_head(self.isa, row, cos, sin);
            }
            let rows = &*scratch.keys;
            panel::from_rows(self.isa, count, head_dim, |i| &rows[i * head_dim..][..head_dim], panel);
        }
    }

    fn load_keys(
        &self,
        place: Place,
        segment: &KvSegment<'_>,
        key: usize,
        count: usize,
        scratch: &mut Scratch<'_>,
    ) {
        let head_dim = self.dims.head_dim;
        for (i, to) in scratch.keys.chunks_exact_mut(head_dim).take(count).enumerate() {
            let row = segment.keys.row(self.isa, self.width(), key + i, place.head * head_dim, scratch.row);
            to.copy_from_slice(row);
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
        for i in 0..count {
            let row = segment.values.row(self.isa, self.width(), key + i, place.head * head_dim, scratch.row);
            let (whole, rest) = row.as_chunks::<NR>();
            let mut panels = scratch.values.chunks_exact_mut(TILE_KEYS * NR);
            for (columns, panel) in whole.iter().zip(&mut panels) {
                panel.as_chunks_mut::<NR>().0[i] = *columns;
            }
            if let Some(panel) = panels.next() {
                panel[i * NR..][..rest.len()].copy_from_slice(rest);
            }
        }
    }

    fn logits(&self, count: usize, scratch: &mut Scratch<'_>) {
        let head_dim = self.dims.head_dim;
        let starts: [usize; TILE_KEYS] = std::array::from_fn(|i| i * head_dim);
        let near = (NEAR / head_dim).clamp(MR, TILE_KEYS) / MR * MR;
        // A few keys meet all queries before the next few are read, so that each key is fetched once.
        let groups = starts[..count].chunks(near).zip(scratch.logits.chunks_mut(near * self.stride));
        for (starts, logits) in groups {
            for depth in (0..head_dim).step_by(KC) {
                let left = Left {
                    values: scratch.keys,
                    starts,
                    spans: &[depth],
                    span_len: KC.min(head_dim - depth),
                    stride: 1,
                };
                let keep = if depth == 0 { Keep::Nothing } else { Keep::Sum };
                let count = scratch.queries.len() / (head_dim * NR);
                let panels = Panels::F32(scratch.queries);
                let right = Right { panels, depth: head_dim, from: depth, count };
                multiply(
                    self.isa,
                    &left,
                    &right,
                    &mut Out { values: &mut *logits, stride: self.stride, keep },
                );
            }
        }
    }

    fn add_bias(&self, bias: &[f32], place: Place, key: usize, count: usize, scratch: &mut Scratch<'_>) {
        let row = |i: usize| {
            let query = place.head * self.dims.queries + place.query + i;
            &bias[query * self.keys + key..][..count]
        };
        for first in (0..place.queries).step_by(NR) {
            let rows = NR.min(place.queries - first);
            panel::from_rows(self.isa, rows, count, |i| row(first + i), scratch.bias);
            let logits = &mut scratch.logits[..count * self.stride];
            scale_and_add(self.isa, logits, self.stride, first, self.dims.scale, scratch.bias);
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
            stride: self.stride,
        };
        let panels = Panels::F32(scratch.values);
        let right = Right { panels, depth: TILE_KEYS, from: 0, count: depth / NR };
        let sums = &mut Out { values: &mut *scratch.sums, stride: depth, keep: Keep::Sum };
        multiply(self.isa, &left, &right, sums);
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
    /// `logits = logits * scale + bias` for NR queries from `first` on, `bias` `[keys, NR]`.
    fn scale_and_add(logits: &mut [f32], stride: usize, first: usize, scale: f32, bias: &[f32]) = scale_and_add_inner
}

#[inline(always)]
fn scale_and_add_inner(logits: &mut [f32], stride: usize, first: usize, scale: f32, bias: &[f32]) {
    for (row, bias) in logits.chunks_exact_mut(stride).zip(bias.chunks_exact(NR)) {
        for (logit, bias) in row[first..first + NR].iter_mut().zip(bias) {
            *logit = logit.mul_add(scale, *bias);
        }
    }
}

by_isa! {
    /// Turns the products `[keys, stride]` into weights `2^(product * scale + bias - max)`, and brings `max` and `total`
    /// up to date; `decay` is what the sums from before must be multiplied by.
    fn soften(
        logits: &mut [f32],
        [scale, bias]: [f32; 2],
        max: &mut [f32],
        total: &mut [f32],
        decay: &mut [f32],
    ) = soften_inner
}

#[inline(always)]
fn soften_inner(
    logits: &mut [f32],
    [scale, bias]: [f32; 2],
    max: &mut [f32],
    total: &mut [f32],
    decay: &mut [f32],
) {
    let stride = logits_stride(max.len());
    let running = max.as_chunks_mut::<NR>().0.iter_mut().zip(total.as_chunks_mut::<NR>().0);
    for (block, ((max, total), decay)) in running.zip(decay.as_chunks_mut::<NR>().0).enumerate() {
        let mut largest = *max;
        for row in logits.chunks_exact(stride) {
            let products = &row.as_chunks::<NR>().0[block];
            for i in 0..NR {
                let logit = products[i].mul_add(scale, bias);
                largest[i] = if logit > largest[i] { logit } else { largest[i] };
            }
        }
        // While every logit was -inf there is nothing to be relative to; any finite base gives weights of zero.
        let base = largest.map(|largest| if largest == f32::NEG_INFINITY { 0.0 } else { largest });
        let mut sum = [0.0; NR];
        for row in logits.chunks_exact_mut(stride) {
            let products = &mut row.as_chunks_mut::<NR>().0[block];
            for i in 0..NR {
                let weight = exp2_of_negative(products[i].mul_add(scale, bias) - base[i]);
                sum[i] += weight;
                products[i] = weight;
            }
        }
        for i in 0..NR {
            decay[i] = exp2_of_negative(max[i] - base[i]);
            total[i] = total[i].mul_add(decay[i], sum[i]);
        }
        *max = largest;
    }
}
