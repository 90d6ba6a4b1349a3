//! Queries on their way into the products: turned for a segment, as numbers or as codes.

use super::Turn;
use super::jensen::noise;
use super::scratch::{Scratch, Sizes};
use super::spans::{Span, spans, words_max};
use crate::isa::{Isa, by_isa};
use crate::micro::NR;
use crate::panel;
use crate::rope::turn_head;

/// The largest code of a query.
const TOP: f32 = 127.0;
/// Adding this rounds to the nearest integer, whose bits then lie at the bottom.
const ROUND: f32 = 12_582_912.0;

/// What a segment needs of the queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Forms {
    /// Numbers, for keys that are numbers.
    pub(super) numbers: bool,
    /// Codes, for keys that are codes.
    pub(super) codes: bool,
    /// Squares, for keys whose noise counts.
    pub(super) noise: bool,
}

impl Forms {
    pub(super) fn covers(self, wanted: Self) -> bool {
        self.with(wanted) == self
    }

    pub(super) fn with(self, other: Self) -> Self {
        Self {
            numbers: self.numbers || other.numbers,
            codes: self.codes || other.codes,
            noise: self.noise || other.noise,
        }
    }
}

/// The queries of one task.
#[derive(Clone, Copy)]
pub(super) struct Queries<'a> {
    pub(super) isa: Isa,
    /// `[queries, width]` of the whole call.
    pub(super) q: &'a [f32],
    pub(super) width: usize,
    /// The first number of the head in a row.
    pub(super) start: usize,
    /// The first query of the task, and how many it has.
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) sizes: Sizes,
    /// Factor on every logit.
    pub(super) scale: f32,
}

impl Queries<'_> {
    /// Loads the forms that are wanted, turned. Lanes without a query are zero.
    pub(super) fn load(&self, turn: Option<Turn<'_>>, forms: Forms, scratch: &mut Scratch<'_>) {
        let head_dim = self.sizes.head_dim;
        for at in 0..self.sizes.panels {
            let count = NR.min(self.count.saturating_sub(at * NR));
            for (i, row) in scratch.rows.chunks_exact_mut(head_dim).enumerate() {
                if i >= count {
                    row.fill(0.0);
                    continue;
                }
                let query = self.first + at * NR + i;
                row.copy_from_slice(&self.q[query * self.width + self.start..][..head_dim]);
                if let Some(turn) = turn {
                    let (cos, sin) = turn.angles(query);
                    turn_head(self.isa, row, cos, sin);
                }
            }
            if forms.numbers {
                let panel = &mut scratch.queries[at * head_dim * NR..][..head_dim * NR];
                let rows = &*scratch.rows;
                panel::from_rows(self.isa, NR, head_dim, |i| &rows[i * head_dim..][..head_dim], panel);
            }
            for lane in 0..NR {
                if forms.codes {
                    self.encode(at, lane, scratch);
                }
                if forms.noise {
                    self.measure(at, lane, scratch);
                }
            }
        }
    }

    fn spans(&self) -> impl Iterator<Item = Span> {
        spans(self.start, self.sizes.head_dim)
    }

    /// Codes of one query: signed bytes in units of a 127th of its largest number.
    fn encode(&self, at: usize, lane: usize, scratch: &mut Scratch<'_>) {
        let head_dim = self.sizes.head_dim;
        let row = &scratch.rows[lane * head_dim..][..head_dim];
        let mut step = 0.0;
        step_of(self.isa, row, &mut step);
        scratch.query_steps[at * NR + lane] = step;
        let words: &mut [u32] = bytemuck::cast_slice_mut(scratch.words);
        let to: &mut [u32] = bytemuck::cast_slice_mut(scratch.query_words);
        let to = &mut to[at * words_max(head_dim) * NR..];
        for span in self.spans() {
            let words = &mut words[..span.words()];
            words.fill(0);
            let codes: &mut [u8] = bytemuck::cast_slice_mut(words);
            let mut sum = 0.0;
            let part = &row[span.offset..][..span.len];
            codes_of(self.isa, part, step, &mut codes[..span.len], &mut sum);
            scratch.query_sums[(span.at * self.sizes.panels + at) * NR + lane] = sum;
            for (i, word) in words.iter().enumerate() {
                to[(span.word + i) * NR + lane] = *word;
            }
        }
    }

    fn measure(&self, at: usize, lane: usize, scratch: &mut Scratch<'_>) {
        let head_dim = self.sizes.head_dim;
        let row = &scratch.rows[lane * head_dim..][..head_dim];
        for span in self.spans() {
            let squares = sum_of_squares(&row[span.offset..][..span.len]);
            scratch.query_noise[(span.at * self.sizes.panels + at) * NR + lane] = noise(self.scale, squares);
        }
    }
}

fn sum_of_squares(numbers: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; NR];
    for chunk in numbers.chunks(NR) {
        lanes.iter_mut().zip(chunk).for_each(|(sum, x)| *sum = x.mul_add(*x, *sum));
    }
    lanes.iter().sum()
}

by_isa! {
    /// The step of a query's codes: never zero, and NaN if a number is not finite.
    fn step_of(row: &[f32], step: &mut f32) = step_of_inner
}

#[inline(always)]
fn step_of_inner(row: &[f32], step: &mut f32) {
    let (mut largest, mut poison) = ([0.0_f32; NR], [0.0_f32; NR]);
    for chunk in row.chunks(NR) {
        for (i, x) in chunk.iter().enumerate() {
            largest[i] = if x.abs() > largest[i] { x.abs() } else { largest[i] };
            poison[i] += x * 0.0;
        }
    }
    let largest = largest.into_iter().fold(0.0_f32, |a, b| if b > a { b } else { a });
    *step = f32::max(largest / TOP, f32::MIN_POSITIVE) + poison.iter().sum::<f32>();
}

by_isa! {
    /// Codes of some numbers, one after the other, and their sum.
    fn codes_of(numbers: &[f32], step: f32, codes: &mut [u8], sum: &mut f32) = codes_of_inner
}

#[inline(always)]
fn codes_of_inner(numbers: &[f32], step: f32, codes: &mut [u8], sum: &mut f32) {
    let mut total = 0_i32;
    for (code, x) in codes.iter_mut().zip(numbers) {
        let bits = (x / step + ROUND).to_bits();
        *code = (bits & 0xFF) as u8;
        total = total.wrapping_add(bits.wrapping_sub(ROUND.to_bits()).cast_signed());
    }
    #[expect(clippy::cast_precision_loss, reason = "at most 64 codes of 127")]
    {
        *sum = total as f32;
    }
}
