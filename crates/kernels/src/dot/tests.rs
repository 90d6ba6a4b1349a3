use super::{Columns, Finish, Isa, NR, Tile, Words, dot};

fn bytes(count: usize, seed: usize) -> Vec<u8> {
    (0..count).map(|i| u8::try_from((i * 97 + seed) * 31 % 257 % 256).unwrap()).collect()
}

fn words(count: usize, seed: usize) -> Vec<u32> {
    let bytes = bytes(4 * count, seed);
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

fn lanes(count: usize, step: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * step % 101) as f32 - 50.0) * 1.37e-2).collect()
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let (bytes, words) = (bytes(4000, 5), words(5 * 40 * NR, 11));
    let (row_numbers, lane_numbers) = (lanes(40, 37), lanes(5 * NR, 53));
    for rows in 1..=19 {
        for count in 1..=5 {
            for (steps, from) in [(1, 0), (16, 3), (37, 0)] {
                let left = Words { bytes: &bytes, first: 3, rows, row_stride: 170, step_stride: 4, steps };
                let right = Columns { words: &words, stride: 40 * NR, from, count };
                let grid = |keep| Finish::Grid {
                    steps: &row_numbers,
                    minima: &row_numbers[1..],
                    column_sums: &lane_numbers,
                    keep,
                };
                let weighted = Finish::Weighted { decays: &lane_numbers, gains: &lane_numbers };
                for finish in [grid(false), grid(true), weighted] {
                    {
                        let run = |isa| {
                            let mut values = vec![0.5; count * 20 * NR];
                            let mut out = Tile { values: &mut values, panel_stride: 20 * NR };
                            dot(isa, &left, &right, finish, &mut out);
                            values.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
                        };
                        let expected = run(Isa::SCALAR);
                        let guarded = expected
                            .chunks(20 * NR)
                            .all(|panel| panel[rows * NR..].iter().all(|v| *v == 0.5_f32.to_bits()));
                        assert!(guarded, "{rows} rows, {count} panels spill");
                        for isa in Isa::present() {
                            assert!(run(isa) == expected, "{rows} rows, {count} panels: {isa}");
                        }
                    }
                }
            }
        }
    }
}

/// The largest codes, whose sums of pairs do not fit 16 bits, and halves at their ends.
#[test]
fn the_largest_numbers_are_added_exactly() {
    for isa in Isa::present() {
        let (ones, zeros) = ([1.0; NR], [0.0; NR]);
        let bytes = Finish::Grid { steps: &ones, minima: &ones, column_sums: &zeros, keep: false };
        let halves = Finish::Weighted { decays: &ones, gains: &ones };
        for (finish, row, column, each) in [
            (bytes, 0xFFFF_FFFF_u32, 0x7F7F_7F7F_u32, 4 * 255 * 127),
            (bytes, 0xFFFF_FFFF, 0x8080_8080, -4 * 255 * 128),
            (halves, 0x00FF_00FF, 0x7FFF_7FFF, 2 * 255 * 32767),
        ] {
            let (row, column) = (row.to_le_bytes().repeat(48), vec![column; 48 * NR]);
            let left = Words { bytes: &row, first: 0, rows: 1, row_stride: 0, step_stride: 4, steps: 48 };
            let right = Columns { words: &column, stride: 0, from: 0, count: 1 };
            let mut values = [0.0; NR];
            dot(isa, &left, &right, finish, &mut Tile { values: &mut values, panel_stride: NR });
            assert_eq!(values, [(48 * each) as f32; NR], "{isa} {finish:?}");
        }
    }
}

#[test]
#[should_panic(expected = "passes its slice")]
fn a_row_that_passes_its_slice_is_refused() {
    let left = Words { bytes: &[0; 15], first: 0, rows: 2, row_stride: 8, step_stride: 4, steps: 2 };
    let right = Columns { words: &[0; 2 * NR], stride: 0, from: 0, count: 1 };
    let ones = [1.0; NR];
    let finish = Finish::Weighted { decays: &ones, gains: &ones };
    let mut values = [0.0; 2 * NR];
    let mut out = Tile { values: &mut values, panel_stride: 2 * NR };
    dot(Isa::SCALAR, &left, &right, finish, &mut out);
}
