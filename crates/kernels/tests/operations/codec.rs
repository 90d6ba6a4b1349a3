//! Codecs of pages, and attention that reads them where they lie.

use evanesce_kernels::{AttentionDims, Codec, EncodedRows, GROUP, Isa, KvSegment, Turn, attend, encode};
use proptest::prelude::*;

use crate::support::{Numbers, assert_alike_on_any_threads, bits, on_every_isa, poisoned};

const GRIDS: [Codec; 2] = [Codec::Int8, Codec::Int4];

fn encoded(codec: Codec, x: &[f32], width: usize) -> Vec<u8> {
    let by = |isa: Isa| {
        let mut out = vec![0xA5; x.len() / width * codec.row_bytes(width)];
        isa.run(|| encode(codec, x, width, &mut out));
        out
    };
    let scalar = by(Isa::SCALAR);
    Isa::present().into_iter().for_each(|isa| assert!(by(isa) == scalar, "{isa} encodes otherwise"));
    scalar
}

fn round_trip(codec: Codec, x: &[f32], width: usize) -> Vec<f32> {
    let bytes = encoded(codec, x, width);
    let rows = EncodedRows::new(codec, &bytes, width).expect("whole rows");
    on_every_isa("decoding", || rows.to_vec())
}

/// Nearly normal numbers: sums of twelve uniform ones.
fn normal(numbers: &mut Numbers, count: usize) -> Vec<f32> {
    (0..count).map(|_| numbers.many(12).iter().sum::<f32>() / 2.0).collect()
}

fn relative_error(got: &[f32], expected: &[f32]) -> f64 {
    let square = |pairs: &mut dyn Iterator<Item = f64>| pairs.map(|x| x * x).sum::<f64>();
    let error = square(&mut got.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (error / square(&mut expected.iter().map(|b| f64::from(*b)))).sqrt()
}

#[test]
fn bytes_of_a_row_are_those_of_the_codes_and_their_grids() {
    assert_eq!(Codec::ALL.map(|codec| codec.row_bytes(5120)), [20_480, 10_240, 5120 + 320, 2560 + 320]);
    assert_eq!(Codec::ALL.map(|codec| codec.row_bytes(65)), [260, 130, 65 + 8, 33 + 8]);
    let bf16 = Codec::Bf16.row_bytes(5120) as f64;
    let ratios = GRIDS.map(|codec| bf16 / codec.row_bytes(5120) as f64);
    assert!(ratios[0] >= 1.88 && ratios[1] >= 3.5, "{ratios:?}");
}

/// What a uniform grid over 64 normal numbers leaves: 0.0052 and 0.088 of their norm.
#[test]
fn normal_numbers_lose_what_a_uniform_grid_loses() {
    let x = normal(&mut Numbers::new(3), 64 * 640);
    for (codec, expected) in GRIDS.into_iter().zip([0.0052, 0.088]) {
        let error = relative_error(&round_trip(codec, &x, 640), &x);
        assert!((0.9 * expected..1.15 * expected).contains(&error), "{codec}: {error}");
    }
}

/// A channel whose mean is eight times its spread: a zero point clamped to the codes would lose 0.58 at four bits.
#[test]
fn a_mean_far_from_zero_costs_nothing() {
    let x: Vec<f32> = normal(&mut Numbers::new(4), 64 * 64).iter().map(|x| x + 8.0).collect();
    let error = relative_error(&round_trip(Codec::Int4, &x, 64), &x);
    assert!(error < 0.013, "{error}");
}

#[test]
fn plain_codecs_are_exact_or_round_once() {
    let x = Numbers::new(5).many(3 * 70);
    assert_eq!(bits(&round_trip(Codec::F32, &x, 70)), bits(&x));
    let rounded: Vec<f32> = x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
    assert_eq!(bits(&round_trip(Codec::Bf16, &x, 70)), bits(&rounded));
}

#[test]
fn extremes_stay_what_they_are() {
    for codec in GRIDS {
        assert_eq!(round_trip(codec, &[0.0; 130], 130), [0.0; 130], "{codec}");
        assert_eq!(round_trip(codec, &[1.5; 64], 64), [1.5; 64], "{codec}");
        assert_eq!(round_trip(codec, &[-3.0; 64], 64), [-3.0; 64], "{codec}");
        for huge in [3e38_f32, 1e-36] {
            let x: Vec<f32> = (0..64_u8).map(|i| if i % 2 == 0 { huge } else { -huge }).collect();
            let got = round_trip(codec, &x, 64);
            assert!(got.iter().all(|x| x.is_finite()), "{codec} {huge}: {got:?}");
            assert!(relative_error(&got, &x) < 0.15, "{codec} {huge}: {got:?}");
        }
        let least = [f32::from_bits(1), -1e-40, 1e-39, 0.0];
        let got = round_trip(codec, &least, 4);
        assert!(got.iter().zip(least).all(|(got, x)| (got - x).abs() < 1e-39), "{codec}: {got:?}");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![0.25; 128];
            x[70] = bad;
            let got = round_trip(codec, &x, 128);
            assert!(got[..GROUP].iter().all(|x| *x == 0.25), "{codec} {bad}: other groups are untouched");
            assert!(got[GROUP..].iter().all(|x| x.is_nan()), "{codec} {bad}: never a wrong number");
        }
    }
}

proptest! {
    #[test]
    fn every_number_is_off_by_half_a_step_at_most(
        width in 1_usize..200, rows in 1_usize..4, scale in -20_i32..20, offset in -4.0_f32..4.0, seed in any::<u64>(),
    ) {
        let scale = 2_f32.powi(scale);
        let x: Vec<f32> = Numbers::new(seed).many(rows * width).iter().map(|x| (x + offset) * scale).collect();
        for (codec, top) in GRIDS.into_iter().zip([255.0, 15.0]) {
            let got = round_trip(codec, &x, width);
            for (row, got) in x.chunks(width).zip(got.chunks(width)) {
                for (group, got) in row.chunks(GROUP).zip(got.chunks(GROUP)) {
                    let least = group.iter().copied().fold(f32::INFINITY, f32::min);
                    let greatest = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    // The grid's ends are bfloat16, rounded outwards.
                    let range = (greatest - least) * 1.01 + least.abs() * 0.008;
                    let bound = range / top * 0.51 + greatest.abs().max(least.abs()) * 1e-6;
                    for (x, got) in group.iter().zip(got) {
                        prop_assert!((x - got).abs() <= bound, "{codec}: {x} became {got}, bound {bound}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bytes_whatever_its_neighbours(width in 1_usize..150, rows in 1_usize..6, seed in any::<u64>()) {
        let x = Numbers::new(seed).many(rows * width);
        for codec in Codec::ALL {
            let alone: Vec<u8> = x.chunks(width).flat_map(|row| encoded(codec, row, width)).collect();
            prop_assert_eq!(encoded(codec, &x, width), alone);
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let x = Numbers::new(8).many(500 * 96);
    for codec in Codec::ALL {
        assert_alike_on_any_threads(codec.as_str(), x.len(), |out| {
            out.copy_from_slice(&round_trip(codec, &x, 96));
        });
    }
}

#[test]
fn attention_over_encoded_pages_is_attention_over_what_they_decode_to() {
    for (heads, head_dim, page_keys) in [(2, 32, 16), (3, 128, 97), (5, 24, 200), (1, 80, 5), (2, 13, 33)] {
        let width = heads * head_dim;
        let dims = AttentionDims { queries: 41, heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt() };
        let mut numbers = Numbers::new(width as u64);
        let q = numbers.many(dims.queries * width);
        let pages = [(Codec::Int8, Codec::Int4), (Codec::F32, Codec::Bf16), (Codec::Int4, Codec::Int8)]
            .map(|codecs| (codecs, numbers.many(page_keys * width), numbers.many(page_keys * width)));
        let (cos, sin) = ([0.8; 4], [0.6; 4]);
        let turn = Turn { cos: &cos, sin: &sin, pairs: 4, queries_per_row: 41 };
        let turns = [None, Some(turn), Some(turn)];
        let stored = pages
            .each_ref()
            .map(|((k_codec, v_codec), k, v)| (encoded(*k_codec, k, width), encoded(*v_codec, v, width)));
        let run = |segments: &[KvSegment<'_>]| {
            on_every_isa("attention over pages", || {
                let mut out = poisoned(q.len());
                attend(&q, segments, dims, &mut out);
                out
            })
        };
        let rows = |codec, bytes| EncodedRows::new(codec, bytes, width).expect("whole rows");
        let in_place: Vec<_> = pages
            .iter()
            .zip(&stored)
            .zip(turns)
            .map(|(((codecs, _, _), (k, v)), turn)| KvSegment {
                keys: rows(codecs.0, k).into(),
                values: rows(codecs.1, v).into(),
                logit_bias: 0.25,
                turn,
            })
            .collect();
        let plain: Vec<_> = in_place
            .iter()
            .zip(&pages)
            .zip(&stored)
            .map(|((_, (codecs, _, _)), (k, v))| (rows(codecs.0, k).to_vec(), rows(codecs.1, v).to_vec()))
            .collect();
        let decoded: Vec<_> = in_place
            .iter()
            .zip(&plain)
            .map(|(segment, (k, v))| KvSegment { keys: k[..].into(), values: v[..].into(), ..*segment })
            .collect();
        assert_eq!(bits(&run(&in_place)), bits(&run(&decoded)), "{heads} heads of {head_dim}");
        assert!(run(&in_place).iter().all(|x| x.is_finite()), "{heads} heads of {head_dim}");
    }
}

#[test]
fn rows_of_another_width_are_refused() {
    let bytes = encoded(Codec::Int8, &[0.5; 128], 64);
    assert!(EncodedRows::new(Codec::Int8, &bytes[1..], 64).is_none());
    assert!(EncodedRows::new(Codec::Int8, &bytes, 0).is_none());
    let rows = EncodedRows::new(Codec::Int8, &bytes, 64).expect("whole rows");
    let dims = AttentionDims { queries: 1, heads: 2, head_dim: 16, scale: 1.0 };
    let segment = KvSegment { keys: rows.into(), values: rows.into(), logit_bias: 0.0, turn: None };
    let result = std::panic::catch_unwind(|| attend(&[0.0; 32], &[segment], dims, &mut [0.0; 32]));
    let message = *result.expect_err("a panic").downcast::<String>().expect("a message");
    assert!(message.contains("keys must be whole rows"), "{message}");
}
