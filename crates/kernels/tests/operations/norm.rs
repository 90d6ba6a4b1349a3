use evanesce_kernels::{Activation, Values, channel_norm, layer_norm_affine, layer_norm_modulate, rms_norm};

use crate::reference;
use crate::support::{Numbers, as_bf16, assert_alike_on_any_threads, assert_near, on_every_isa, poisoned};

const WIDTHS: [usize; 12] = [1, 2, 3, 15, 16, 17, 31, 96, 192, 384, 1536, 5120];
const EPS: f32 = 1e-6;

/// Rows that a careless sum gets wrong: plain, far from zero, with outliers, tiny, huge.
fn rows(width: usize) -> Vec<f32> {
    let mut numbers = Numbers::new(width as u64);
    let mut x = Vec::new();
    for (offset, factor) in [(0.0, 1.0), (1000.0, 1.0), (0.0, 1e-12), (0.0, 1e12), (-3.0, 1e-3)] {
        x.extend(numbers.many(width).iter().map(|v| v * factor + offset));
    }
    let outlier = x.len() / 10;
    x[outlier] *= 3e4;
    x
}

fn per_row(x: &[f32], width: usize, f: impl Fn(&[f32]) -> Vec<f64>) -> Vec<Vec<f64>> {
    x.chunks(width).map(f).collect()
}

fn affine(rows: Vec<Vec<f64>>, factor: &[f32], shift: &[f32]) -> Vec<Vec<f64>> {
    let scaled = |row: Vec<f64>| {
        row.iter().zip(factor).zip(shift).map(|((v, f), s)| v * f64::from(*f) + f64::from(*s)).collect()
    };
    rows.into_iter().map(scaled).collect()
}

fn assert_rows(what: &str, width: usize, out: &[f32], expected: &[Vec<f64>]) {
    for (i, (row, expected)) in out.chunks(width).zip(expected).enumerate() {
        assert_near(&format!("{what} of {width}, row {i}"), row, expected, 3e-7);
    }
}

fn by_every_isa(count: usize, norm: impl Fn(&mut [f32])) -> Vec<f32> {
    on_every_isa(&format!("a norm of {count} numbers"), || {
        let mut out = poisoned(count);
        norm(&mut out);
        out
    })
}

#[test]
fn layer_norms_agree_with_their_definition() {
    for width in WIDTHS {
        let x = rows(width);
        let (scale, shift) = (Numbers::new(1).many(width), Numbers::new(2).many(width));
        let normal = per_row(&x, width, |row| reference::layer_norm(row, f64::from(EPS)));
        let out = by_every_isa(x.len(), |out| layer_norm_modulate(&x, &scale, &shift, EPS, out));
        let factor: Vec<f32> = scale.iter().map(|v| v + 1.0).collect();
        assert_rows("layer_norm_modulate", width, &out, &affine(normal.clone(), &factor, &shift));
        let ((weight, weight_values), (bias, bias_values)) = (as_bf16(&scale), as_bf16(&shift));
        let half = |bytes| Values::new(evanesce_kernels::Dtype::BF16, bytes).unwrap();
        let out = by_every_isa(x.len(), |out| layer_norm_affine(&x, half(&weight), half(&bias), EPS, out));
        assert_rows("layer_norm_affine", width, &out, &affine(normal, &weight_values, &bias_values));
    }
}

#[test]
fn rms_and_channel_norms_agree_with_their_definition() {
    for width in WIDTHS {
        let x = rows(width);
        let (weight, zero) = (Numbers::new(3).many(width), vec![0.0; width]);
        let values = Values::from(&weight[..]);
        let out = by_every_isa(x.len(), |out| rms_norm(&x, values, EPS, out));
        let expected =
            affine(per_row(&x, width, |row| reference::rms_norm(row, f64::from(EPS))), &weight, &zero);
        assert_rows("rms_norm", width, &out, &expected);
        for act in [Activation::None, Activation::Silu, Activation::GeluTanh] {
            let out = by_every_isa(x.len(), |out| channel_norm(&x, values, act, out));
            let mut expected = affine(per_row(&x, width, reference::channel_norm), &weight, &zero);
            expected.iter_mut().flatten().for_each(|v| *v = reference::activation(*v, act));
            assert_rows(&format!("channel_norm {act:?}"), width, &out, &expected);
        }
    }
}

#[test]
fn rows_of_zeros_stay_finite() {
    let (x, weight) = (vec![0.0; 20], vec![1.5; 10]);
    let mut out = poisoned(20);
    channel_norm(&x, Values::from(&weight[..]), Activation::None, &mut out);
    assert_eq!(out, x);
    rms_norm(&x, Values::from(&weight[..]), EPS, &mut out);
    assert_eq!(out, x);
    layer_norm_modulate(&x, &weight, &weight, EPS, &mut out);
    assert_eq!(out, [1.5; 20]);
}

#[test]
fn a_number_that_is_none_spoils_its_own_row_only() {
    let mut x = Numbers::new(4).many(60);
    x[25] = f32::NAN;
    let weight = vec![1.0; 20];
    let values = Values::from(&weight[..]);
    let mut outs = [poisoned(60), poisoned(60), poisoned(60)];
    layer_norm_modulate(&x, &weight, &weight, EPS, &mut outs[0]);
    rms_norm(&x, values, EPS, &mut outs[1]);
    channel_norm(&x, values, Activation::Silu, &mut outs[2]);
    for out in outs {
        out.iter().enumerate().for_each(|(i, v)| assert_eq!(v.is_nan(), i / 20 == 1, "number {i}"));
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let x = Numbers::new(5).many(700 * 192);
    let weight = Numbers::new(6).many(192);
    let values = Values::from(&weight[..]);
    let count = x.len();
    assert_alike_on_any_threads("layer_norm", count, |out| {
        layer_norm_modulate(&x, &weight, &weight, EPS, out)
    });
    assert_alike_on_any_threads("rms_norm", count, |out| rms_norm(&x, values, EPS, out));
    assert_alike_on_any_threads("channel_norm", count, |out| channel_norm(&x, values, Activation::Silu, out));
}
