//! Rotary position embedding.

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
    assert!(cos.len().is_multiple_of(pairs), "rotate: cos must be whole rows of head_dim / 2");
    for ((token, c), s) in x.chunks_mut(heads * head_dim).zip(cos.chunks(pairs)).zip(sin.chunks(pairs)) {
        for head in token.chunks_mut(head_dim) {
            for ((pair, c), s) in head.chunks_exact_mut(2).zip(c).zip(s) {
                let (a, b) = (pair[0], pair[1]);
                pair[0] = a * c - b * s;
                pair[1] = a * s + b * c;
            }
        }
    }
}
