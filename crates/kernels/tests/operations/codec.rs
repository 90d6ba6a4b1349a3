//! Codecs of pages, and attention that reads them where they lie.

use evanesce_kernels::{AttentionDims, Codec, EncodedRows, GROUP, Isa, KvSegment, attend, encode};
use proptest::prelude::*;

use crate::support::{Numbers, assert_alike_on_any_threads, bits, on_every_isa};

const GRIDS: [Codec; 2] = [Codec::Int8, Codec::Int4];
const CODES: [Codec; 3] = [Codec::Int8, Codec::Int4, Codec::Int2];

/// The bytes that every instruction set gives.
pub(crate) fn encoded(codec: Codec, x: &[f32], width: usize) -> Vec<u8> {
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
pub(crate) fn normal(numbers: &mut Numbers, count: usize) -> Vec<f32> {
    (0..count).map(|_| numbers.many(12).iter().sum::<f32>() / 2.0).collect()
}

fn relative_error(got: &[f32], expected: &[f32]) -> f64 {
    let square = |pairs: &mut dyn Iterator<Item = f64>| pairs.map(|x| x * x).sum::<f64>();
    let error = square(&mut got.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (error / square(&mut expected.iter().map(|b| f64::from(*b)))).sqrt()
}

#[test]
fn bytes_of_a_row_are_those_of_the_codes_and_their_grids() {
    assert_eq!(
        Codec::ALL.map(|codec| codec.row_bytes(5120)),
        [20_480, 10_240, 5120 + 320, 2560 + 320, 1280 + 240 + 2]
    );
    assert_eq!(Codec::ALL.map(|codec| codec.row_bytes(65)), [260, 130, 65 + 8, 33 + 8, 17 + 6 + 2]);
    // Of Wan2.2-T2V-A14B, of its small sibling, and of a small model of our own.
    for width in [5120, 1536, 128] {
        let bf16 = Codec::Bf16.row_bytes(width) as f64;
        let ratios = CODES.map(|codec| bf16 / codec.row_bytes(width) as f64);
        assert!(ratios[0] >= 1.88 && ratios[1] >= 3.5 && ratios[2] >= 6.4, "{width}: {ratios:?}");
    }
}

/// What a uniform grid over 64 normal numbers leaves: 0.0052, 0.088 and 0.444 of their norm; steps of two bits are small
/// floats, rounded up.
#[test]
fn normal_numbers_lose_what_a_uniform_grid_loses() {
    let x = normal(&mut Numbers::new(3), 64 * 640);
    for (codec, expected) in CODES.into_iter().zip([0.0052, 0.088, 0.444]) {
        let error = relative_error(&round_trip(codec, &x, 640), &x);
        assert!((0.9 * expected..1.15 * expected).contains(&error), "{codec}: {error}");
    }
}

/// One number in 64 that is fifty times the others: a grid of four steps over the numbers as they are leaves nothing of the
/// rest.
#[test]
fn a_number_that_stands_out_does_not_cost_its_group_at_two_bits() {
    let mut x = normal(&mut Numbers::new(6), 64 * 64);
    x.iter_mut().step_by(64).for_each(|x| *x = 50.0);
    let got = round_trip(Codec::Int2, &x, 64);
    let others = |x: &[f32]| x.chunks(64).flat_map(|group| group[1..].to_vec()).collect::<Vec<_>>();
    // Turned, the group is nearly two values, which two bits tell apart: less than plain normal numbers lose.
    let error = relative_error(&others(&got), &others(&x));
    assert!(error < 1.6, "{error}");
    assert!(relative_error(&got, &x) < 0.2);
}

/// A channel whose mean is eight times its spread: a zero point clamped to the codes would lose 0.58 at four bits.
#[test]
fn a_mean_far_from_zero_costs_nothing() {
    let x: Vec<f32> = normal(&mut Numbers::new(4), 64 * 64).iter().map(|x| x + 8.0).collect();
    for (codec, bound) in [(Codec::Int8, 0.003), (Codec::Int4, 0.013), (Codec::Int2, 0.07)] {
        let error = relative_error(&round_trip(codec, &x, 64), &x);
        assert!(error < bound, "{codec}: {error}");
    }
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
    for codec in CODES {
        assert_eq!(round_trip(codec, &[0.0; 130], 130), [0.0; 130], "{codec}");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![0.25; 128];
            x[70] = bad;
            let got = round_trip(codec, &x, 128);
            assert!(got[..GROUP].iter().all(|x| (x - 0.25).abs() < 0.02), "{codec} {bad}: other groups stay");
            assert!(got[GROUP..].iter().all(|x| x.is_nan()), "{codec} {bad}: never a wrong number");
        }
    }
    for codec in GRIDS {
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
    }
    // Turned numbers are sums of 64.
    for huge in [3e37_f32, 1e-30] {
        let x: Vec<f32> = (0..64_u8).map(|i| if i % 3 == 0 { huge } else { -huge }).collect();
        assert!(relative_error(&round_trip(Codec::Int2, &x, 64), &x) < 0.7, "{huge}");
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

proptest! {
    /// Turned and turned back, a group is off by no more than its turned numbers are, together.
    #[test]
    fn a_group_of_two_bits_is_off_by_half_its_steps(
        width in 1_usize..200, scale in -20_i32..20, offset in -4.0_f32..4.0, seed in any::<u64>(),
    ) {
        let scale = 2_f32.powi(scale);
        let x: Vec<f32> = Numbers::new(seed).many(width).iter().map(|x| (x + offset) * scale).collect();
        let got = round_trip(Codec::Int2, &x, width);
        for (group, got) in x.chunks(GROUP).zip(got.chunks(GROUP)) {
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let error = norm(&mut group.iter().zip(got).map(|(a, b)| a - b));
            // A turned number is at most the group's norm, so the range is at most twice that, and an eighth for rounding
            // outwards at either end; small floats have a smallest step.
            let largest = norm(&mut x.iter().copied());
            let step = 2.0 * norm(&mut group.iter().copied()) * 1.25 / 3.0 + largest * 1e-4;
            prop_assert!(error <= 0.51 * step * (group.len() as f64).sqrt(), "{error} of steps of {step}");
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
