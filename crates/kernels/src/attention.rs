//! Attention over pages of keys and values.

use rayon::prelude::*;

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
    let width = check("attend", q, segments, dims, out);
    if out.is_empty() {
        return;
    }
    naive(q, segments, dims, out, |_, _, _| 0.0);
    let _ = width;
}

/// Softmax attention with a bias of its own for every logit: `q` `[queries, heads * head_dim]`,
/// `k`, `v` `[keys, heads * head_dim]`, `bias` `[heads, queries, keys]`.
///
/// # Panics
/// When a length does not fit `dims`, or there are queries but no key.
pub fn attend_biased(q: &[f32], k: &[f32], v: &[f32], bias: &[f32], dims: AttentionDims, out: &mut [f32]) {
    let segments = [KvSegment { keys: k, values: v, logit_bias: 0.0 }];
    let width = check("attend_biased", q, &segments, dims, out);
    if out.is_empty() {
        return;
    }
    let keys = k.len() / width;
    assert_eq!(bias.len(), dims.heads * dims.queries * keys, "attend_biased: bias must be [heads, queries, keys]");
    naive(q, &segments, dims, out, |head, query, key| bias[(head * dims.queries + query) * keys + key]);
}

fn check(name: &str, q: &[f32], segments: &[KvSegment<'_>], dims: AttentionDims, out: &[f32]) -> usize {
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
    width
}

fn naive(
    q: &[f32],
    segments: &[KvSegment<'_>],
    dims: AttentionDims,
    out: &mut [f32],
    bias: impl Fn(usize, usize, usize) -> f32 + Sync,
) {
    let width = dims.heads * dims.head_dim;
    out.par_chunks_mut(width).enumerate().for_each(|(query, row)| {
        for head in 0..dims.heads {
            let span = head * dims.head_dim..(head + 1) * dims.head_dim;
            let from = &q[query * width..][span.clone()];
            let mut logits = Vec::new();
            for segment in segments {
                for key in segment.keys.chunks(width) {
                    let dot: f32 = from.iter().zip(&key[span.clone()]).map(|(a, b)| a * b).sum();
                    logits.push(dot * dims.scale + segment.logit_bias + bias(head, query, logits.len()));
                }
            }
            let max = logits.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            let sum: f32 = logits.iter().map(|l| (l - max).exp()).sum();
            let to = &mut row[span.clone()];
            to.fill(0.0);
            let values = segments.iter().flat_map(|s| s.values.chunks(width));
            for (logit, value) in logits.iter().zip(values) {
                let p = (logit - max).exp() / sum;
                to.iter_mut().zip(&value[span.clone()]).for_each(|(o, v)| *o += p * v);
            }
        }
    });
}
