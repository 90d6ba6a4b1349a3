//! Rotary position embedding.

use crate::isa::{Isa, by_isa};
use crate::tasks;

/// Rotates interleaved pairs of `x` `[tokens, heads * head_dim]` in place:
/// `(a, b) -> (a cos - b sin, a sin + b cos)` with `cos`, `sin` `[tokens, head_dim / 2]` shared by all heads.
///
/// # Panics
/// When `head_dim` is odd or the lengths do not describe the same whole tokens.
pub fn rotate(x: &mut [f32], heads: usize, head_dim: usize, cos: &[f32], sin: &[f32]) {
    assert!(head_dim.is_multiple_of(2), "rotate: head_dim must be even");
    assert_eq!(cos.len(), sin.len(), "rotate: cos and sin must be of one length");
    assert_eq!(x.len(), 2 * heads * cos.len(), "rotate: x must hold 2 * heads numbers for each cosine");
    if x.is_empty() {
        return;
    }
    let pairs = head_dim / 2;
    assert!(pairs > 0 && cos.len().is_multiple_of(pairs), "rotate: cos must be whole rows of head_dim / 2");
    let isa = Isa::current();
    tasks::rows(x, heads * head_dim, |at, chunk| {
        let angle = at / heads / 2;
        turn(isa, chunk, heads, pairs, &cos[angle..], &sin[angle..]);
    });
}

by_isa! {
    fn turn(x: &mut [f32], heads: usize, pairs: usize, cos: &[f32], sin: &[f32]) = turn_inner
}

#[inline(always)]
fn turn_inner(x: &mut [f32], heads: usize, pairs: usize, cos: &[f32], sin: &[f32]) {
    let angles = cos.chunks_exact(pairs).zip(sin.chunks_exact(pairs));
    for (token, (cos, sin)) in x.chunks_exact_mut(heads * pairs * 2).zip(angles) {
        for head in token.chunks_exact_mut(pairs * 2) {
            for ((pair, cos), sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                let (a, b) = (pair[0], pair[1]);
                pair[0] = a.mul_add(*cos, -(b * sin));
                pair[1] = a.mul_add(*sin, b * cos);
            }
        }
    }
}

by_isa! {
    /// Rotates the first pairs of one head, as many as there are angles.
    pub(crate) fn turn_head(head: &mut [f32], cos: &[f32], sin: &[f32]) = turn_head_inner
}

#[inline(always)]
fn turn_head_inner(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((pair, cos), sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
        let (a, b) = (pair[0], pair[1]);
        pair[0] = a.mul_add(*cos, -(b * sin));
        pair[1] = a.mul_add(*sin, b * cos);
    }
}
