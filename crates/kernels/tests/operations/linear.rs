use evanesce_kernels::{
    Activation, Dtype, Epilogue, Isa, LinearDims, PANEL_BYTES, PackedWeights, Scratch, Values, Weight,
    activate, gate_add, linear, linear_then, pack_weights, turned_bytes,
};
use proptest::prelude::*;

use crate::reference;
use crate::support::{
    Numbers, as_bf16, as_f16, assert_alike_on_any_threads, assert_near, bits, on_every_isa, poisoned,
};

/// By every instruction set, and with the weights packed where they can be.
fn run(x: &[f32], weight: Values<'_>, bias: Option<&[f32]>, dims: LinearDims) -> Vec<f32> {
    let what = format!("{dims:?} {:?}", weight.dtype());
    let by = |weight: Weight<'_>| {
        on_every_isa(&what, || {
            let mut out = poisoned(dims.rows * dims.outputs);
            linear(x, weight, bias.map(Values::from), dims, &mut out);
            out
        })
    };
    let out = by(weight.into());
    if PackedWeights::fits(weight.dtype(), dims.outputs, dims.inputs) {
        let packed = Packed::new(weight, dims);
        assert!(same(&by(packed.weight()), &out), "{what}: packed weights give other bits");
    }
    out
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
}

/// Packed weights and the memory they lie in.
struct Packed {
    dtype: Dtype,
    words: Vec<u32>,
    dims: LinearDims,
}

impl Packed {
    /// Packs by every instruction set and demands the same bytes.
    fn new(weight: Values<'_>, dims: LinearDims) -> Self {
        let dtype = weight.dtype();
        let numbers = weight.to_vec();
        let bytes = match dtype {
            Dtype::F32 => bytemuck::cast_slice(&numbers).to_vec(),
            Dtype::BF16 | Dtype::F16 => as_bf16(&numbers).0,
        };
        let pack = |isa: Isa| {
            let quads = bytes.as_chunks::<4>().0.iter();
            let mut words: Vec<u32> = quads.map(|quad| u32::from_ne_bytes(*quad)).collect();
            isa.run(|| pack_weights(dtype, bytemuck::cast_slice_mut(&mut words), dims.outputs, dims.inputs));
            words
        };
        let words = pack(Isa::SCALAR);
        for isa in Isa::present() {
            assert!(pack(isa) == words, "{isa} packs {dims:?} in its own way");
        }
        Self { dtype, words, dims }
    }

    fn weight(&self) -> Weight<'_> {
        let bytes = bytemuck::cast_slice(&self.words);
        let LinearDims { inputs, outputs, .. } = self.dims;
        PackedWeights::new(self.dtype, bytes, outputs, inputs).expect("packed bytes").into()
    }
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
fn it_agrees_with_its_definition_at_the_edges_of_every_tile_of_packed_weights() {
    for rows in [1, 2, 3, 8, 9, 49, 193] {
        for outputs in [16, 48, 112, 128, 144, 208] {
            check(rows, 38, outputs);
        }
    }
    for inputs in [1, 2, 254, 256, 258, 515] {
        check(5, inputs, 32);
    }
}

/// Bits, not nearness: an epilogue is the operation that it stands for.
#[test]
fn an_epilogue_gives_the_bits_of_the_separate_operation() {
    for (rows, inputs, outputs) in [(1, 70, 160), (5, 64, 48), (61, 300, 131), (200, 34, 224)] {
        let mut numbers = Numbers::new(rows as u64);
        let (x, weight) = (numbers.many(rows * inputs), numbers.many(inputs * outputs));
        let (bias, gate) = (numbers.many(outputs), numbers.many(outputs));
        let before = numbers.many(rows * outputs);
        let dims = LinearDims { rows, inputs, outputs };
        let values = Values::from(&weight[..]);
        let packed = PackedWeights::fits(Dtype::F32, outputs, inputs).then(|| Packed::new(values, dims));
        let plain = run(&x, values, Some(&bias), dims);
        let fused = |weight: Weight<'_>, epilogue: Epilogue<'_>| {
            on_every_isa("an epilogue", || {
                let mut out = before.clone();
                linear_then(&x, weight, Some(Values::from(&bias[..])), dims, epilogue, &mut out);
                out
            })
        };
        for weight in [Some(Weight::Rows(values)), packed.as_ref().map(Packed::weight)].into_iter().flatten()
        {
            for act in [Activation::None, Activation::Silu, Activation::GeluTanh] {
                let mut expected = plain.clone();
                activate(&mut expected, act);
                assert_eq!(
                    bits(&fused(weight, Epilogue::Activate(act))),
                    bits(&expected),
                    "{dims:?} {act:?}"
                );
            }
            let mut expected = before.clone();
            gate_add(&mut expected, &plain, &gate);
            let gated = fused(weight, Epilogue::AddTo { gate: Some(&gate) });
            assert_eq!(bits(&gated), bits(&expected), "{dims:?}");
            let sum: Vec<f32> = before.iter().zip(&plain).map(|(a, b)| a + b).collect();
            assert_eq!(bits(&fused(weight, Epilogue::AddTo { gate: None })), bits(&sum), "{dims:?}");
        }
    }
}

#[test]
fn bytes_that_are_no_packed_matrix_are_refused() {
    let bytes = [0_u8; 16 * 6 * 4];
    assert!(PackedWeights::new(Dtype::BF16, &bytes[..16 * 6 * 2], 16, 6).is_some());
    assert!(PackedWeights::new(Dtype::BF16, &bytes[..16 * 6 * 2], 16, 7).is_none());
    assert!(PackedWeights::new(Dtype::BF16, &bytes[..16 * 3 * 2], 16, 3).is_none(), "half a pair");
    assert!(PackedWeights::new(Dtype::F32, &bytes, 24, 4).is_none(), "half a panel");
    assert!(PackedWeights::new(Dtype::F16, &bytes[..16 * 6 * 2], 16, 6).is_none());
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
    // Ten of 13 panels, then three; twelve, then one; and one after the other, with the bits of packed ones.
    check(49, 13_001, 200);
    check(49, 10_001, 200);
    let mut numbers = Numbers::new(9);
    let dims = LinearDims { rows: 49, inputs: 65_538, outputs: 32 };
    let (x, weight) = (numbers.many(49 * 65_538), numbers.many(65_538 * 32));
    run(&x, Values::from(&weight[..]), None, dims);
}

/// Beside one tile of sums for the only worker.
#[test]
fn weights_in_rows_take_the_scratch_that_is_said() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread can be started");
    for (inputs, outputs) in [(300, 277), (10_001, 200), (13_001, 200), (65_538, 32), (140_000, 17)] {
        let dims = LinearDims { rows: 49, inputs, outputs };
        let (x, weight) = (vec![0.5_f32; 49 * inputs], vec![0.25_f32; inputs * outputs]);
        let mut out = poisoned(49 * outputs);
        let scratch = Scratch::default();
        pool.install(|| {
            scratch.run(|| linear(&x, Values::from(&weight[..]), None, dims, &mut out));
        });
        let turned = turned_bytes(outputs, inputs);
        let all = 4 * scratch.idle_numbers();
        assert!((turned..=turned + 4 * 192 * 12 * 16).contains(&all), "{dims:?}: {all} bytes, said {turned}");
        assert!(turned <= PANEL_BYTES.max(4 * 16 * inputs), "{dims:?}: {turned} bytes");
    }
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
