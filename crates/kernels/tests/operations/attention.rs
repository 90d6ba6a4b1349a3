use evanesce_kernels::{AttentionDims, KvSegment, Turn, attend, attend_biased};
use proptest::prelude::*;

use crate::reference;
use crate::support::{Numbers, assert_alike_on_any_threads, assert_near, bits, on_every_isa, poisoned};

struct Case {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dims: AttentionDims,
}

impl Case {
    fn new(queries: usize, keys: usize, heads: usize, head_dim: usize) -> Self {
        let width = heads * head_dim;
        let mut numbers = Numbers::new((queries * 1009 + keys * 31 + width) as u64);
        let scale = 3.0 / (head_dim as f32).sqrt();
        Self {
            q: numbers.many(queries * width),
            k: numbers.many(keys * width),
            v: numbers.many(keys * width),
            dims: AttentionDims { queries, heads, head_dim, scale },
        }
    }

    fn keys(&self) -> usize {
        self.k.len() / self.width()
    }

    fn width(&self) -> usize {
        self.dims.heads * self.dims.head_dim
    }

    /// Cut into segments that end at `cuts` and at the last key.
    fn attend(&self, cuts: &[usize]) -> Vec<f32> {
        let mut segments = Vec::new();
        let mut start = 0;
        for end in cuts.iter().copied().chain([self.keys()]) {
            let span = start * self.width()..end * self.width();
            segments.push(KvSegment {
                keys: self.k[span.clone()].into(),
                values: self.v[span].into(),
                logit_bias: 0.0,
                turn: None,
            });
            start = end;
        }
        on_every_isa(&format!("{:?} with {} keys", self.dims, self.keys()), || {
            let mut out = poisoned(self.q.len());
            attend(&self.q, &segments, self.dims, &mut out);
            out
        })
    }

    fn expected(&self) -> Vec<f64> {
        reference::attention(&self.q, &self.k, &self.v, self.dims, |_, _, _| 0.0)
    }

    fn check(&self, cuts: &[usize]) {
        let what = format!("{:?} with {} keys cut at {cuts:?}", self.dims, self.keys());
        assert_near(&what, &self.attend(cuts), &self.expected(), 2e-6);
    }
}

#[test]
fn it_agrees_with_its_definition_at_the_edges_of_every_tile() {
    for queries in [1, 15, 16, 17, 95, 96, 97, 193] {
        Case::new(queries, 23, 3, 8).check(&[]);
    }
    for keys in [1, 2, 5, 6, 7, 95, 96, 97, 200, 389] {
        Case::new(19, keys, 2, 16).check(&[]);
    }
    for head_dim in [1, 2, 13, 15, 16, 17, 31, 32, 64, 80, 128, 255, 256, 257, 384] {
        Case::new(21, 101, 2, head_dim).check(&[]);
    }
}

#[test]
fn pages_of_any_lengths_are_one_sequence() {
    let case = Case::new(37, 300, 3, 20);
    for cuts in [&[1][..], &[0, 96, 96, 192], &[299], &[5, 6, 7, 150], &[100, 200]] {
        case.check(cuts);
    }
}

#[test]
fn one_pad_key_with_the_logarithm_of_a_count_stands_for_that_many() {
    let real = Case::new(29, 26, 2, 32);
    let mut numbers = Numbers::new(77);
    let (pad_key, pad_value) = (numbers.many(real.width()), numbers.many(real.width()));
    let count = 486;
    let mut whole = Case { q: real.q.clone(), k: real.k.clone(), v: real.v.clone(), dims: real.dims };
    for _ in 0..count {
        whole.k.extend(&pad_key);
        whole.v.extend(&pad_value);
    }
    let segments = [
        KvSegment { keys: real.k[..].into(), values: real.v[..].into(), logit_bias: 0.0, turn: None },
        KvSegment {
            keys: pad_key[..].into(),
            values: pad_value[..].into(),
            logit_bias: (count as f32).ln(),
            turn: None,
        },
    ];
    let mut out = poisoned(real.q.len());
    attend(&real.q, &segments, real.dims, &mut out);
    assert_near("collapsed pads", &out, &whole.expected(), 2e-6);
}

/// Rotates the first `pairs` pairs of every head of a row by `position` times a frequency per pair.
fn turned(row: &[f32], dims: AttentionDims, pairs: usize, position: f64) -> Vec<f32> {
    let mut row = row.to_vec();
    for head in row.chunks_exact_mut(dims.head_dim) {
        for (i, pair) in head.chunks_exact_mut(2).take(pairs).enumerate() {
            let (sin, cos) = (position * frequency(i)).sin_cos();
            let (a, b) = (f64::from(pair[0]), f64::from(pair[1]));
            (pair[0], pair[1]) = (rounded(a * cos - b * sin), rounded(a * sin + b * cos));
        }
    }
    row
}

#[expect(clippy::cast_possible_truncation, reason = "the operands are f32")]
fn rounded(x: f64) -> f32 {
    x as f32
}

fn frequency(pair: usize) -> f64 {
    0.9_f64.powi(i32::try_from(pair * pair).expect("few pairs"))
}

#[test]
fn turning_the_query_for_each_page_is_turning_every_key() {
    for (pages, page_keys, frames, frame_queries, heads, head_dim, pairs) in [
        (4, 16, 3, 16, 2, 32, 6),
        (5, 97, 2, 101, 3, 24, 12),
        (1, 1, 1, 1, 1, 2, 1),
        (7, 5, 4, 50, 2, 128, 22),
    ] {
        let case = Case::new(frames * frame_queries, pages * page_keys, heads, head_dim);
        let rows = |x: &[f32]| x.chunks_exact(case.width()).map(<[f32]>::to_vec).collect::<Vec<_>>();
        let mut whole = Case::new(case.dims.queries, case.keys(), heads, head_dim);
        let at = |frame: usize| f64::from(u32::try_from(frame).expect("small"));
        let keys = rows(&case.k).into_iter().enumerate();
        whole.k = keys.flat_map(|(i, k)| turned(&k, case.dims, pairs, at(i / page_keys))).collect();
        let queries = rows(&case.q).into_iter().enumerate();
        whole.q =
            queries.flat_map(|(i, q)| turned(&q, case.dims, pairs, at(pages + i / frame_queries))).collect();

        let angles = |page: usize| {
            let relative = (0..frames).map(move |frame| at(pages + frame - page));
            relative.flat_map(|n| (0..pairs).map(move |pair| n * frequency(pair))).collect::<Vec<_>>()
        };
        let wave = |page, wave: fn(f64) -> f64| {
            angles(page).into_iter().map(|x| rounded(wave(x))).collect::<Vec<_>>()
        };
        let tables: Vec<_> = (0..pages).map(|page| (wave(page, f64::cos), wave(page, f64::sin))).collect();
        let page_numbers = page_keys * case.width();
        let segments: Vec<_> = tables
            .iter()
            .zip(case.k.chunks_exact(page_numbers).zip(case.v.chunks_exact(page_numbers)))
            .map(|((cos, sin), (keys, values))| {
                let turn = Some(Turn { cos, sin, pairs, queries_per_row: frame_queries });
                KvSegment { keys: keys.into(), values: values.into(), logit_bias: 0.0, turn }
            })
            .collect();
        let out = on_every_isa("turned pages", || {
            let mut out = poisoned(case.q.len());
            attend(&case.q, &segments, case.dims, &mut out);
            out
        });
        assert_near(&format!("{pages} pages, head of {head_dim}"), &out, &whole.expected(), 3e-6);
    }
}

#[test]
fn a_segment_without_a_turn_sees_the_query_as_it_is_wherever_it_stands() {
    let case = Case::new(20, 30, 2, 8);
    let (one, zero) = ([1.0; 4], [0.0; 4]);
    let identity = Turn { cos: &one, sin: &zero, pairs: 4, queries_per_row: 20 };
    let turns = [Some(identity), None, None, Some(identity), None];
    let step = 6 * case.width();
    let pages = case.k.chunks_exact(step).zip(case.v.chunks_exact(step)).zip(turns);
    let segments: Vec<_> = pages
        .map(|((keys, values), turn)| KvSegment {
            keys: keys.into(),
            values: values.into(),
            logit_bias: 0.0,
            turn,
        })
        .collect();
    let mut out = poisoned(case.q.len());
    attend(&case.q, &segments, case.dims, &mut out);
    assert_eq!(bits(&out), bits(&case.attend(&[6, 12, 18, 24])));
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let case = Case::new(210, 150, 5, 24);
    assert_alike_on_any_threads("attend", case.q.len(), |out| {
        let segments =
            [KvSegment { keys: case.k[..].into(), values: case.v[..].into(), logit_bias: 0.0, turn: None }];
        attend(&case.q, &segments, case.dims, out);
    });
}

#[test]
fn a_query_has_the_same_bits_alone_and_among_others() {
    let case = Case::new(130, 111, 3, 32);
    let all = case.attend(&[]);
    for query in [0, 15, 16, 95, 96, 129] {
        let span = query * case.width()..(query + 1) * case.width();
        let dims = AttentionDims { queries: 1, ..case.dims };
        let one = Case { q: case.q[span.clone()].to_vec(), k: case.k.clone(), v: case.v.clone(), dims };
        assert_eq!(bits(&one.attend(&[])), bits(&all[span]), "query {query}");
    }
}

#[test]
fn large_logits_neither_overflow_nor_lose_the_winner() {
    for factor in [30.0, 1000.0] {
        let mut case = Case::new(33, 207, 2, 16);
        case.q.iter_mut().for_each(|v| *v *= factor);
        // Rounding of the logits themselves, which grow with the factor, is what is left.
        assert_near("large logits", &case.attend(&[]), &case.expected(), 2e-6 * f64::from(factor));
    }
}

#[test]
fn later_tiles_with_larger_logits_take_over() {
    let mut case = Case::new(20, 400, 1, 8);
    let width = case.width();
    for (key, row) in case.k.chunks_mut(width).enumerate() {
        row.iter_mut().for_each(|v| *v = v.abs() * (1.0 + key as f32 / 20.0));
    }
    case.q.iter_mut().for_each(|v| *v = v.abs());
    assert_near("growing logits", &case.attend(&[50]), &case.expected(), 2e-5);
}

fn biased(case: &Case, bias: &[f32]) -> Vec<f32> {
    on_every_isa("biased", || {
        let mut out = poisoned(case.q.len());
        attend_biased(&case.q, &case.k, &case.v, bias, case.dims, &mut out);
        out
    })
}

#[test]
fn a_bias_for_every_logit_is_added() {
    for (queries, keys) in [(1, 1), (17, 95), (96, 97), (113, 201)] {
        let case = Case::new(queries, keys, 3, 20);
        let bias = Numbers::new(9).many(3 * queries * keys);
        let expected = reference::attention(&case.q, &case.k, &case.v, case.dims, |h, q, k| {
            f64::from(bias[(h * queries + q) * keys + k])
        });
        assert_near("biased", &biased(&case, &bias), &expected, 2e-6);
    }
}

/// Queries and keys that are denormal, or so large that products of a few nearly overflow.
#[test]
fn extreme_magnitudes_keep_their_precision() {
    for (query, key, bound) in
        [(1e-40, 1.0, 2e-6), (1e19, 1e-19, 2e-6), (1.0, 1e-42, 2e-6), (3e4, 3e-3, 2e-4)]
    {
        let mut case = Case::new(25, 130, 2, 24);
        case.q.iter_mut().enumerate().for_each(|(i, v)| *v *= if i % 89 == 0 { 10.0 * query } else { query });
        case.k.iter_mut().for_each(|v| *v *= key);
        assert_near(&format!("{query:e} x {key:e}"), &case.attend(&[50]), &case.expected(), bound);
    }
}

#[test]
fn masked_keys_do_not_exist_and_a_fully_masked_query_is_not_a_number() {
    let case = Case::new(18, 250, 2, 16);
    let mask = |h: usize, q: usize, k: usize| match (h, q) {
        (0, 3) => f32::NEG_INFINITY,
        // The first tiles hold nothing for this query.
        (1, 5) if k < 220 => f32::NEG_INFINITY,
        _ if k.is_multiple_of(3) => f32::NEG_INFINITY,
        _ => 0.0,
    };
    let (queries, keys) = (18, 250);
    let bias: Vec<f32> =
        (0..2 * queries * keys).map(|i| mask(i / (queries * keys), i / keys % queries, i % keys)).collect();
    let expected =
        reference::attention(&case.q, &case.k, &case.v, case.dims, |h, q, k| f64::from(mask(h, q, k)));
    for (i, (a, b)) in biased(&case, &bias).iter().zip(&expected).enumerate() {
        let fully_masked = i / 32 == 3 && i % 32 < 16;
        assert_eq!(a.is_nan(), fully_masked, "number {i}");
        assert!(fully_masked || (f64::from(*a) - b).abs() < 1e-5, "number {i}");
    }
}

#[test]
fn a_query_that_is_not_a_number_leaves_the_others_alone() {
    let mut case = Case::new(40, 60, 2, 16);
    let before = case.attend(&[]);
    let at = 7 * case.width() + 3;
    case.q[at] = f32::NAN;
    for (i, (before, after)) in before.iter().zip(case.attend(&[])).enumerate() {
        let touched = i / 32 == 7 && i % 32 < 16;
        assert_eq!(after.is_nan(), touched, "number {i}");
        assert!(touched || before.to_bits() == after.to_bits(), "number {i}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn it_agrees_with_its_definition_at_any_shape(
        queries in 1..120_usize, keys in 1..250_usize, heads in 1..4_usize, head_dim in 1..70_usize, cut in 0..100_usize,
    ) {
        let case = Case::new(queries, keys, heads, head_dim);
        case.check(&[cut.min(keys)]);
    }
}
