use evanesce_kernels::{Dtype, LinearDims, Values, linear};
use proptest::prelude::*;

use crate::reference;
use crate::support::{Numbers, as_bf16, as_f16, assert_alike_on_any_threads, assert_near, bits, poisoned};

fn run(x: &[f32], weight: Values<'_>, bias: Option<&[f32]>, dims: LinearDims) -> Vec<f32> {
    let mut out = poisoned(dims.rows * dims.outputs);
    linear(x, weight, bias.map(Values::from), dims, &mut out);
    out
}

fn check(rows: usize, inputs: usize, outputs: usize) {
    let mut numbers = Numbers::new((rows * 7919 + inputs * 31 + outputs) as u64);
    let (x, weight, bias) =
        (numbers.many(rows * inputs), numbers.many(inputs * outputs), numbers.many(outputs));
    let dims = LinearDims { rows, inputs, outputs };
    let what = format!("{dims:?}");
    let expected = reference::linear(&x, &weight, Some(&bias), inputs, outputs);
    assert_near(&what, &run(&x, Values::from(&weight[..]), Some(&bias), dims), &expected, 1e-6);
    for (dtype, (bytes, rounded)) in [(Dtype::BF16, as_bf16(&weight)), (Dtype::F16, as_f16(&weight))] {
        let expected = reference::linear(&x, &rounded, None, inputs, outputs);
        let result = run(&x, Values::new(dtype, &bytes).expect("whole numbers"), None, dims);
        assert_near(&format!("{what} {dtype:?}"), &result, &expected, 1e-6);
    }
}

#[test]
fn it_agrees_with_its_definition_at_the_edges_of_every_tile() {
    for rows in [1, 5, 6, 7, 47, 48, 49, 97] {
        for outputs in [1, 15, 16, 17, 33, 127, 128, 129] {
            check(rows, 37, outputs);
        }
    }
    for inputs in [1, 2, 31, 32, 33, 255, 256, 257, 521, 1025] {
        check(7, inputs, 19);
        check(50, inputs, 131);
    }
}

#[test]
fn weights_that_do_not_fit_the_panels_at_once_are_taken_in_turns() {
    check(3, 13_001, 300);
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let mut numbers = Numbers::new(3);
    let dims = LinearDims { rows: 151, inputs: 300, outputs: 277 };
    let (x, weight) = (numbers.many(151 * 300), numbers.many(300 * 277));
    assert_alike_on_any_threads("linear", 151 * 277, |out| {
        linear(&x, Values::from(&weight[..]), None, dims, out);
    });
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others() {
    let mut numbers = Numbers::new(4);
    let (inputs, outputs) = (700, 200);
    let (x, weight, bias) =
        (numbers.many(103 * inputs), numbers.many(inputs * outputs), numbers.many(outputs));
    let all = run(&x, Values::from(&weight[..]), Some(&bias), LinearDims { rows: 103, inputs, outputs });
    for row in [0, 5, 47, 48, 101, 102] {
        let one = &x[row * inputs..(row + 1) * inputs];
        let alone = run(one, Values::from(&weight[..]), Some(&bias), LinearDims { rows: 1, inputs, outputs });
        assert_eq!(bits(&alone), bits(&all[row * outputs..(row + 1) * outputs]), "row {row}");
    }
}

#[test]
fn the_dtype_of_weights_that_it_can_hold_does_not_change_bits() {
    let mut numbers = Numbers::new(5);
    let dims = LinearDims { rows: 9, inputs: 77, outputs: 35 };
    let x = numbers.many(9 * 77);
    // Eighths up to 16 are exact in all three types.
    let weight: Vec<f32> = numbers.many(77 * 35).iter().map(|v| (v * 64.0).round() / 8.0).collect();
    let plain = bits(&run(&x, Values::from(&weight[..]), None, dims));
    assert_eq!(bits(&run(&x, Values::new(Dtype::BF16, &as_bf16(&weight).0).unwrap(), None, dims)), plain);
    assert_eq!(bits(&run(&x, Values::new(Dtype::F16, &as_f16(&weight).0).unwrap(), None, dims)), plain);
}

#[test]
fn weights_need_no_alignment() {
    let mut numbers = Numbers::new(6);
    let dims = LinearDims { rows: 4, inputs: 50, outputs: 20 };
    let (x, weight) = (numbers.many(200), numbers.many(1000));
    let mut bytes = vec![0];
    bytes.extend(weight.iter().flat_map(|v| v.to_le_bytes()));
    let shifted = run(&x, Values::new(Dtype::F32, &bytes[1..]).unwrap(), None, dims);
    assert_eq!(bits(&shifted), bits(&run(&x, Values::from(&weight[..]), None, dims)));
}

#[test]
fn one_row_that_is_not_a_number_leaves_the_others_alone() {
    let mut numbers = Numbers::new(7);
    let dims = LinearDims { rows: 60, inputs: 40, outputs: 50 };
    let (mut x, weight) = (numbers.many(60 * 40), numbers.many(40 * 50));
    let before = run(&x, Values::from(&weight[..]), None, dims);
    x[13 * 40 + 5] = f32::NAN;
    x[50 * 40 + 39] = f32::INFINITY;
    let after = run(&x, Values::from(&weight[..]), None, dims);
    for (row, (before, after)) in before.chunks(50).zip(after.chunks(50)).enumerate() {
        match row {
            13 => assert!(after.iter().all(|v| v.is_nan())),
            50 => assert!(after.iter().all(|v| v.is_infinite())),
            _ => assert_eq!(bits(before), bits(after), "row {row}"),
        }
    }
}

#[test]
fn outliers_and_denormals_keep_their_precision() {
    let mut numbers = Numbers::new(8);
    let dims = LinearDims { rows: 11, inputs: 300, outputs: 21 };
    let weight = numbers.many(300 * 21);
    for magnitude in [1e-30, 1e-40, 1e15, 1e30] {
        let mut x = numbers.many(11 * 300);
        x.iter_mut().enumerate().for_each(|(i, v)| *v *= if i % 97 == 0 { 1000.0 } else { 1.0 } * magnitude);
        let expected = reference::linear(&x, &weight, None, 300, 21);
        // A denormal has fewer bits to be right in.
        let bound = if magnitude < 1e-38 { 1e-4 } else { 2e-6 };
        assert_near("outliers", &run(&x, Values::from(&weight[..]), None, dims), &expected, bound);
    }
}

#[test]
fn without_inputs_it_is_the_bias() {
    let out =
        run(&[], Values::from(&[][..]), Some(&[1.0, 2.0]), LinearDims { rows: 2, inputs: 0, outputs: 2 });
    assert_eq!(out, [1.0, 2.0, 1.0, 2.0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn it_agrees_with_its_definition_at_any_shape(rows in 1..110_usize, inputs in 1..600_usize, outputs in 1..300_usize) {
        check(rows, inputs, outputs);
    }
}
