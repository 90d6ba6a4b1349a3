//! Attention over pages of keys and values.
//!
//! Tiles of keys stream past a tile of queries with a running softmax (Milakov and Gimelshein 2018; Dao et al.
//! 2022), so no matrix of logits exists. Queries lie side by side in a vector register in both products: logits have keys
//! as rows and sums of values have numbers of a head as rows, so maxima and sums need no horizontal steps.
//!
//! Pages of integer codes are multiplied as they are (`codes`): a logit over a group of a key is
//! `step * (codes . query codes) + minimum * sum(query codes)`, all in units of the query's own step, where only the inner
//! product is integer and exact. Weights become 16-bit codes for the product with codes of values in the same way. Where keys have
//! four bits or fewer, their logits lose what the noise of quantization adds to their weights on average (`jensen`).

mod call;
mod codes;
mod jensen;
mod queries;
mod scratch;
mod soften;
mod spans;

use call::Call;

use crate::codec::Rows;

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
