//! Attention over encoded pages: what it must equal, and what it may differ by.

use evanesce_kernels::{AttentionDims, Codec, EncodedRows, GROUP, KvSegment, Rows, Turn, attend};
use proptest::prelude::*;

use crate::codec::{encoded, normal};
use crate::support::{Numbers, assert_alike_on_any_threads, assert_near, bits, on_every_isa, poisoned};

/// A page: codecs of keys and values, and their bytes.
struct Page {
    codecs: [Codec; 2],
    bytes: [Vec<u8>; 2],
    width: usize,
}

impl Page {
    fn new(codecs: [Codec; 2], rows: usize, width: usize, numbers: &mut Numbers) -> Self {
        let bytes = codecs.map(|codec| encoded(codec, &normal(numbers, rows * width), width));
        Self { codecs, bytes, width }
    }

    fn rows(&self) -> [EncodedRows<'_>; 2] {
        [0, 1].map(|i| EncodedRows::new(self.codecs[i], &self.bytes[i], self.width).expect("whole rows"))
    }

    fn segment<'a>(&'a self, turn: Option<Turn<'a>>) -> KvSegment<'a> {
        let [keys, values] = self.rows().map(Rows::from);
        KvSegment { keys, values, logit_bias: 0.25, turn }
    }
}

fn dims(queries: usize, heads: usize, head_dim: usize) -> AttentionDims {
    AttentionDims { queries, heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt() }
}

fn attended(q: &[f32], segments: &[KvSegment<'_>], dims: AttentionDims) -> Vec<f32> {
    on_every_isa("attention over pages", || {
        let mut out = poisoned(q.len());
        attend(q, segments, dims, &mut out);
        out
    })
}

/// What a row of queries is before it meets a page: turned, and in codes where the page has codes.
fn as_met(q: &[f32], page: &Page, turn: Option<Turn<'_>>, dims: AttentionDims, query: usize) -> Vec<f32> {
    let mut row = q[query * page.width..][..page.width].to_vec();
    for head in row.chunks_mut(dims.head_dim) {
        if let Some(turn) = turn {
            let at = query / turn.queries_per_row * turn.pairs;
            for (i, pair) in head.chunks_exact_mut(2).take(turn.pairs).enumerate() {
                let (cos, sin, a, b) = (turn.cos[at + i], turn.sin[at + i], pair[0], pair[1]);
                (pair[0], pair[1]) = (a.mul_add(cos, -(b * sin)), a.mul_add(sin, b * cos));
            }
        }
        if matches!(page.codecs[0], Codec::Int8 | Codec::Int4) {
            let step = head.iter().fold(0.0_f32, |a, x| a.max(x.abs())) / 127.0;
            head.iter_mut().for_each(|x| *x = (*x / step).round_ties_even() * step);
        }
    }
    row
}

/// The steps of a row of keys, as its bytes have them: by differences of decoded numbers they are known only roughly.
fn correction(page: &Page, q: &[f32], key: usize, span: [usize; 2], scale: f64) -> f64 {
    let group_steps = |group: usize| -> f64 {
        let row_bytes = page.codecs[0].row_bytes(page.width);
        let row = &page.bytes[0][key * row_bytes..][..row_bytes];
        let bf16 = |at: usize| f64::from(half::bf16::from_le_bytes([row[at], row[at + 1]]).to_f32());
        let groups = page.width.div_ceil(GROUP);
        match page.codecs[0] {
            Codec::Int4 => bf16(row_bytes - 4 * groups + 4 * group),
            Codec::Int2 => {
                let code = i32::from(row[row_bytes - 2 - 3 * groups + 3 * group]);
                let (exponent, fraction) = (code >> 4, f64::from(code & 15));
                let one = if exponent > 0 { 16.0 } else { 0.0 };
                (one + fraction) * 2_f64.powi(exponent.max(1) - 20) * bf16(row_bytes - 2)
            }
            _ => 0.0,
        }
    };
    let [start, end] = span;
    let excess: f64 = (start..end).map(|at| (group_steps(at / GROUP) * f64::from(q[at])).powi(2)).sum();
    (scale * scale * excess / 24.0).min(8.0)
}

/// Decode, then attend, in `f64`, with queries as they meet each page.
fn expected(q: &[f32], pages: &[(&Page, Option<Turn<'_>>)], dims: AttentionDims) -> Vec<f64> {
    let width = dims.heads * dims.head_dim;
    let decoded: Vec<_> = pages.iter().map(|(page, _)| page.rows().map(|rows| rows.to_vec())).collect();
    let scale = f64::from(dims.scale);
    let mut out = vec![0.0; q.len()];
    for query in 0..dims.queries {
        for head in 0..dims.heads {
            let span = [head * dims.head_dim, (head + 1) * dims.head_dim];
            let mut weighted = Vec::new();
            for ((page, turn), [keys, values]) in pages.iter().zip(&decoded) {
                let exact = Page { codecs: [Codec::F32; 2], bytes: [vec![], vec![]], width };
                let turned = as_met(q, &exact, *turn, dims, query);
                let row = as_met(q, page, *turn, dims, query);
                for (key, (k, v)) in keys.chunks(width).zip(values.chunks(width)).enumerate() {
                    let dot = |a: &[f32], b: &[f32]| -> f64 {
                        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
                    };
                    let logit = dot(&row[span[0]..span[1]], &k[span[0]..span[1]]) * scale + 0.25;
                    weighted.push((logit - correction(page, &turned, key, span, scale), v));
                }
            }
            let max = weighted.iter().fold(f64::NEG_INFINITY, |max, (logit, _)| max.max(*logit));
            let total: f64 = weighted.iter().map(|(logit, _)| (logit - max).exp()).sum();
            for (logit, v) in weighted {
                let weight = (logit - max).exp() / total;
                for at in span[0]..span[1] {
                    out[query * width + at] += weight * f64::from(v[at]);
                }
            }
        }
    }
    out
}

/// Weights are rounded to 15 bits, which is all that may be lost: about 1e-4 of what a row of normal numbers leaves.
const BOUND: f64 = 2e-4;
/// At any shape: where a hundred keys average out, what is left is a tenth of what was added up, and its error is so much
/// larger a part of it.
const BOUND_AT_ANY_SHAPE: f64 = 8e-4;

const MIXED: [[Codec; 2]; 6] = [
    [Codec::Int8, Codec::Int8],
    [Codec::Int8, Codec::Int4],
    [Codec::F32, Codec::Bf16],
    [Codec::Int4, Codec::Int2],
    [Codec::Int2, Codec::Int8],
    [Codec::Bf16, Codec::Int4],
];

#[test]
fn it_is_decoding_and_attending_in_f64_for_any_codecs_and_heads_that_no_group_knows() {
    for (heads, head_dim, page_keys) in
        [(2, 32, 16), (2, 128, 97), (4, 24, 130), (1, 80, 5), (2, 13, 33), (3, 80, 20)]
    {
        let (width, dims) = (heads * head_dim, dims(41, heads, head_dim));
        let mut numbers = Numbers::new(width as u64);
        let q = normal(&mut numbers, dims.queries * width);
        let pages = MIXED.map(|codecs| Page::new(codecs, page_keys, width, &mut numbers));
        let (cos, sin) = ([0.8; 8], [0.6; 8]);
        let turn = Turn { cos: &cos, sin: &sin, pairs: 4, queries_per_row: 30 };
        let turns = [None, Some(turn), Some(turn), None, None, Some(turn)];
        let segments: Vec<_> = pages.iter().zip(turns).map(|(page, turn)| page.segment(turn)).collect();
        let got = attended(&q, &segments, dims);
        let pages: Vec<_> = pages.iter().zip(turns).collect();
        assert_near(&format!("{heads} heads of {head_dim}"), &got, &expected(&q, &pages, dims), BOUND);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn it_is_decoding_and_attending_in_f64_at_any_shape(
        queries in 1..40_usize, keys in 1..220_usize, heads in 1..4_usize, head_dim in 2..70_usize, codecs in 0..6_usize,
    ) {
        let (width, dims) = (heads * head_dim, dims(queries, heads, head_dim));
        let mut numbers = Numbers::new((keys * 31 + width) as u64);
        let q = normal(&mut numbers, queries * width);
        let page = Page::new(MIXED[codecs], keys, width, &mut numbers);
        let got = attended(&q, &[page.segment(None)], dims);
        assert_near("a page", &got, &expected(&q, &[(&page, None)], dims), BOUND_AT_ANY_SHAPE);
    }
}

/// Codes of queries cost what codes of keys do: together a hundredth of the output's norm at eight bits.
#[test]
fn what_eight_bits_lose_is_a_hundredth() {
    let dims = dims(60, 2, 128);
    let mut numbers = Numbers::new(12);
    let q = normal(&mut numbers, dims.queries * 256);
    let [k, v] = [0, 1].map(|_| normal(&mut numbers, 300 * 256));
    let bytes = [&k, &v].map(|x| encoded(Codec::Int8, x, 256));
    let page = Page { codecs: [Codec::Int8; 2], bytes, width: 256 };
    let exact = crate::reference::attention(&q, &k, &v, dims, |_, _, _| 0.0);
    assert_near("int8", &attended(&q, &[page.segment(None)], dims), &exact, 0.011);
}

#[test]
fn plain_codecs_and_values_of_two_bits_give_the_bits_of_decoding_first() {
    for codecs in [[Codec::F32, Codec::Bf16], [Codec::Bf16, Codec::Int2], [Codec::Bf16, Codec::F32]] {
        let dims = dims(50, 3, 40);
        let mut numbers = Numbers::new(21);
        let q = numbers.many(50 * 120);
        let page = Page::new(codecs, 130, 120, &mut numbers);
        let [keys, values] = page.rows().map(|rows| rows.to_vec());
        let decoded = KvSegment { keys: keys[..].into(), values: values[..].into(), ..page.segment(None) };
        assert_eq!(bits(&attended(&q, &[page.segment(None)], dims)), bits(&attended(&q, &[decoded], dims)));
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits_over_codes() {
    let dims = dims(210, 3, 40);
    let mut numbers = Numbers::new(31);
    let q = numbers.many(210 * 120);
    for codecs in MIXED {
        let page = Page::new(codecs, 150, 120, &mut numbers);
        assert_alike_on_any_threads("pages", q.len(), |out| attend(&q, &[page.segment(None)], dims, out));
    }
}

#[test]
fn a_query_has_the_same_bits_alone_and_among_others_over_codes() {
    let dims = dims(130, 2, 64);
    let mut numbers = Numbers::new(41);
    let q = numbers.many(130 * 128);
    let page = Page::new([Codec::Int8, Codec::Int8], 111, 128, &mut numbers);
    let all = attended(&q, &[page.segment(None)], dims);
    for query in [0, 15, 16, 95, 129] {
        let span = query * 128..(query + 1) * 128;
        let one = AttentionDims { queries: 1, ..dims };
        assert_eq!(bits(&attended(&q[span.clone()], &[page.segment(None)], one)), bits(&all[span]));
    }
}

#[test]
fn what_is_not_finite_stays_where_it_is() {
    let dims = dims(40, 2, 64);
    let mut numbers = Numbers::new(51);
    let mut q = numbers.many(40 * 128);
    let page = Page::new([Codec::Int8, Codec::Int8], 70, 128, &mut numbers);
    let before = attended(&q, &[page.segment(None)], dims);
    q[7 * 128 + 3] = f32::INFINITY;
    for (i, (before, after)) in before.iter().zip(attended(&q, &[page.segment(None)], dims)).enumerate() {
        let touched = i / 128 == 7 && i % 128 < 64;
        assert_eq!(after.is_nan(), touched, "number {i}");
        assert!(touched || before.to_bits() == after.to_bits(), "number {i}");
    }
    // A value that is lost takes its head's group with it, for every query.
    let mut values = numbers.many(70 * 128);
    values[5 * 128 + 70] = f32::NAN;
    let bytes = [page.bytes[0].clone(), encoded(Codec::Int8, &values, 128)];
    let lost = Page { codecs: page.codecs, bytes, width: 128 };
    let q = numbers.many(40 * 128);
    for (i, number) in attended(&q, &[lost.segment(None)], dims).iter().enumerate() {
        assert_eq!(number.is_nan(), i % 128 >= 64, "number {i}");
    }
}

#[test]
fn queries_of_zero_and_of_any_size_are_met() {
    let dims = dims(20, 1, 64);
    let mut numbers = Numbers::new(61);
    let page = Page::new([Codec::Int8, Codec::Int8], 100, 64, &mut numbers);
    for size in [0.0, 1e-42, 1e-20, 40.0] {
        let q: Vec<f32> = numbers.many(20 * 64).iter().map(|x| x * size).collect();
        let got = attended(&q, &[page.segment(None)], dims);
        let [keys, values] = page.rows().map(|rows| rows.to_vec());
        let exact = crate::reference::attention(&q, &keys, &values, dims, |_, _, _| 0.0);
        assert_near(&format!("queries of {size}"), &got, &exact, 0.05);
    }
}

/// 200 quantized keys and 100 exact ones, normal numbers: how much weight the quantized ones draw. In `f64` over 400 draws they
/// draw 0.080 too much at two bits and -0.006 when corrected, 0.0030 and -0.0006 at four bits.
#[test]
fn quantized_keys_draw_the_weight_of_exact_ones() {
    for (codec, uncorrected, off) in [(Codec::Int2, 0.06, 0.02), (Codec::Int4, 0.0025, 0.0015)] {
        let mut numbers = Numbers::new(7);
        let dims = AttentionDims { queries: 1, heads: 1, head_dim: 64, scale: 0.125 };
        let mut means = [0.0_f64; 3];
        for _ in 0..60 {
            let q: Vec<f32> = normal(&mut numbers, 64).iter().map(|x| 2.0 * x).collect();
            let (cached, own) = (normal(&mut numbers, 200 * 64), normal(&mut numbers, 100 * 64));
            let bytes = encoded(codec, &cached, 64);
            let rows = EncodedRows::new(codec, &bytes, 64).expect("whole rows");
            let (decoded, ones, zeros) = (rows.to_vec(), vec![1.0; 200 * 64], vec![0.0; 100 * 64]);
            for (mean, keys) in
                means.iter_mut().zip([Rows::from(&cached[..]), Rows::from(&decoded[..]), Rows::from(rows)])
            {
                let segment = |keys, values| KvSegment { keys, values, logit_bias: 0.0, turn: None };
                let segments = [segment(keys, ones[..].into()), segment(own[..].into(), zeros[..].into())];
                *mean += f64::from(attended(&q, &segments, dims)[0]) / 60.0;
            }
        }
        let [exact, plain, corrected] = means;
        assert!((0.62..0.72).contains(&exact), "{means:?}");
        assert!(plain - exact > uncorrected, "{codec}: {means:?}");
        assert!((corrected - exact).abs() < off, "{codec}: {means:?}");
    }
}
