//! Relative position biases: how far a key lies from a query, and on which side, decides what is added to their logit.

use super::Umt5Config;

/// Bucket of each distance `key - query` from `-(tokens - 1)` to `tokens - 1`.
///
/// Half of the buckets serve keys after the query. Within a half, the first half are one distance each, the others grow
/// logarithmically up to the largest distance (T5, Raffel et al. 2020, section 2.1). The arithmetic is `f32` as in the
/// reference, so that a distance on the edge of two buckets falls into the same one.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the reference computes in f32; a bucket is below the number of buckets"
)]
pub(super) fn buckets(config: &Umt5Config, tokens: usize) -> Vec<usize> {
    let side = config.relative_attention_num_buckets / 2;
    let exact = side / 2;
    let octaves = (config.relative_attention_max_distance as f64 / exact as f64).ln() as f32;
    let bucket = |distance: usize| {
        if distance < exact {
            return distance;
        }
        let ratio = (distance as f32 / exact as f32).ln() / octaves;
        (exact + (ratio * (side - exact) as f32) as usize).min(side - 1)
    };
    let before = (1..tokens).rev().map(&bucket);
    let after = (1..tokens).map(|distance| side + bucket(distance));
    before.chain([bucket(0)]).chain(after).take((2 * tokens).saturating_sub(1)).collect()
}

/// Fills `out` `[heads, tokens, tokens]` from a layer's `table` `[buckets, heads]`, given what [`buckets`] returned.
pub(super) fn fill(table: &[f32], buckets: &[usize], heads: usize, out: &mut [f32]) {
    let tokens = buckets.len().div_ceil(2);
    for (head, matrix) in out.chunks_exact_mut((tokens * tokens).max(1)).enumerate() {
        for (query, row) in matrix.chunks_exact_mut(tokens).enumerate() {
            let nearest = &buckets[tokens - 1 - query..];
            for (bias, bucket) in row.iter_mut().zip(nearest) {
                *bias = table[bucket * heads + head];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_distance_falls_into_the_bucket_of_the_reference() {
        let goldens = include_str!("../../tests/goldens/text/buckets.json");
        let goldens: BTreeMap<String, Vec<usize>> = serde_json::from_str(goldens).unwrap();
        assert_eq!(goldens.len(), 4);
        for (name, expected) in goldens {
            let (count, reach) = name.split_once('/').unwrap();
            let config = Umt5Config {
                relative_attention_num_buckets: count.parse().unwrap(),
                relative_attention_max_distance: reach.parse().unwrap(),
                ..Umt5Config::xxl()
            };
            assert_eq!(buckets(&config, 512), expected, "{name}");
            assert_eq!(buckets(&config, 1), [0], "{name}");
            assert!(buckets(&config, 0).is_empty(), "{name}");
        }
    }
}
