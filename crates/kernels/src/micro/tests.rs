use super::{Isa, KC, Keep, Left, MR, NR, Out, Panels, Right, multiply};

fn numbers(count: usize, step: usize, scale: f32) -> Vec<f32> {
    (0..count).map(|i| ((i * step % 101) as f32 - 50.0) * scale).collect()
}

/// The product by every set that is there, with a guard behind every row.
fn assert_one_result(what: &str, left: &Left<'_>, right: &Right<'_>) {
    let (rows, width) = (left.starts.len(), right.count * NR);
    let stride = width + 3;
    for keep in [Keep::Nothing, Keep::Sum] {
        let run = |isa| {
            let mut values = vec![0.5; rows * stride];
            multiply(isa, left, right, &mut Out::rows(&mut values, stride, keep));
            values.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let expected = run(Isa::SCALAR);
        let guarded = expected.chunks(stride).all(|row| row[width..].iter().all(|v| *v == 0.5_f32.to_bits()));
        assert!(guarded, "{what} spills");
        for isa in Isa::present() {
            assert!(run(isa) == expected, "{what}: {isa} gives other bits than scalar");
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let values = numbers(4000, 37, 1.37e-2);
    let panels = numbers(9 * 64 * NR, 53, 3.1e-3);
    for rows in 1..=MR + 1 {
        let starts: Vec<usize> = (0..rows).map(|r| r * 191 % 1000).collect();
        let left = Left { values: &values, starts: &starts, spans: &[0, 700, 31], span_len: 21, stride: 3 };
        for count in 1..=9 {
            let right = Right { panels: Panels::F32(&panels), depth: 64, from: 1, count };
            assert_one_result(&format!("{rows} rows, {count} panels"), &left, &right);
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits_with_pairs_of_bfloat16() {
    let values = numbers(4000, 37, 1.37e-2);
    let panels: Vec<u8> = numbers(9 * 66 * NR, 53, 3.1e-3)
        .iter()
        .flat_map(|v| half::bf16::from_f32(*v).to_le_bytes())
        .collect();
    for rows in 1..=MR + 1 {
        let starts: Vec<usize> = (0..rows).map(|r| r * 191 % 1000).collect();
        for (count, span_len, from) in (1..=9).flat_map(|n| [(n, 64, 2), (n, 63, 0), (n, 1, 64)]) {
            let left = Left { values: &values, starts: &starts, spans: &[5], span_len, stride: 1 };
            let right = Right { panels: Panels::Bf16(&panels), depth: 66, from, count };
            assert_one_result(&format!("{rows} rows, {count} panels, {span_len} from {from}"), &left, &right);
        }
    }
}

#[test]
fn a_chain_begins_at_zero_and_goes_in_order() {
    let values = numbers(KC, 37, 1.37e-2);
    let panel = numbers(KC * NR, 53, 3.1e-3);
    let left = Left { values: &values, starts: &[0], spans: &[0], span_len: KC, stride: 1 };
    let right = Right { panels: Panels::F32(&panel), depth: KC, from: 0, count: 1 };
    let expected: Vec<f32> = (0..NR)
        .map(|column| {
            values.iter().enumerate().fold(0.0, |sum, (i, v)| v.mul_add(panel[i * NR + column], sum))
        })
        .collect();
    for isa in Isa::present() {
        let mut out = vec![f32::NAN; NR];
        multiply(isa, &left, &right, &mut Out::rows(&mut out, NR, Keep::Nothing));
        assert_eq!(out, expected, "{isa}");
    }
}

#[test]
#[should_panic(expected = "whole pairs")]
fn pairs_are_not_begun_in_their_middle() {
    let left = Left { values: &[1.0; 4], starts: &[0], spans: &[0], span_len: 2, stride: 1 };
    let right = Right { panels: Panels::Bf16(&[0; 8 * NR]), depth: 4, from: 1, count: 1 };
    let mut out = [0.0; NR];
    multiply(Isa::SCALAR, &left, &right, &mut Out::rows(&mut out, NR, Keep::Nothing));
}
