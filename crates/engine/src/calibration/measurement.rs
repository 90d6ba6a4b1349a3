//! What codecs cost, attention by attention.

use std::cell::RefCell;
use std::collections::BTreeMap;

use evanesce_wan::kernels::{KvSegment, attend};
use evanesce_wan::transformer::{Attended, Codec, EncodedRows, Rows, encode};
use evanesce_wan::weights::Component;

/// Half of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Its keys.
    Keys,
    /// Its values.
    Values,
}

impl Side {
    /// Both, keys first.
    pub const ALL: [Self; 2] = [Self::Keys, Self::Values];

    /// Its name in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Values => "values",
        }
    }
}

/// Pages that share a codec: those of one expert and layer, their keys or their values.
pub(super) type Place = (Component, usize, Side);

/// Sums of squares over all numbers of all outputs.
#[derive(Clone, Copy, Debug, Default)]
struct Squares {
    error: f64,
    exact: f64,
}

/// Errors of attention, for every place and codec.
#[derive(Debug)]
pub struct Measurement {
    codecs: Vec<Codec>,
    squares: RefCell<BTreeMap<Place, BTreeMap<Codec, Squares>>>,
}

impl Measurement {
    pub(crate) fn new(codecs: &[Codec]) -> Self {
        Self { codecs: codecs.to_vec(), squares: RefCell::default() }
    }

    /// Does one attention again with each codec for the keys, and for the values, of all pages.
    pub(crate) fn take(&self, expert: Component, layer: usize, seen: &Attended<'_>) {
        if seen.pages == 0 {
            return;
        }
        let width = seen.dims.heads * seen.dims.head_dim;
        let exact = seen.out.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let mut out = vec![0.0; seen.out.len()];
        for side in Side::ALL {
            let numbers: Vec<Vec<f32>> =
                seen.segments[..seen.pages].iter().map(|segment| numbers_of(half(segment, side))).collect();
            for codec in &self.codecs {
                let bytes: Vec<Vec<u8>> = numbers.iter().map(|page| encoded(*codec, page, width)).collect();
                let mut segments = seen.segments.to_vec();
                for (segment, bytes) in segments.iter_mut().zip(&bytes) {
                    let rows =
                        EncodedRows::new(*codec, bytes, width).expect("whole rows were encoded").into();
                    match side {
                        Side::Keys => segment.keys = rows,
                        Side::Values => segment.values = rows,
                    }
                }
                attend(seen.queries, &segments, seen.dims, &mut out);
                let error = out
                    .iter()
                    .zip(seen.out)
                    .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
                    .sum::<f64>();
                let mut all = self.squares.borrow_mut();
                let squares = all.entry((expert, layer, side)).or_default().entry(*codec).or_default();
                squares.error += error;
                squares.exact += exact;
            }
        }
    }

    /// The square of the relative error of a layer's attention, for every place and codec.
    pub(super) fn errors(&self) -> BTreeMap<Place, BTreeMap<Codec, f64>> {
        let relative = |squares: &Squares| squares.error / squares.exact.max(f64::MIN_POSITIVE);
        let of_place = |(place, codecs): (&Place, &BTreeMap<Codec, Squares>)| {
            (*place, codecs.iter().map(|(codec, squares)| (*codec, relative(squares))).collect())
        };
        self.squares.borrow().iter().map(of_place).collect()
    }

    /// The relative error of the attention of one layer with one side of its pages in a codec, if it was measured.
    #[must_use]
    pub fn error(&self, expert: Component, layer: usize, side: Side, codec: Codec) -> Option<f64> {
        self.errors().get(&(expert, layer, side))?.get(&codec).map(|square| square.sqrt())
    }
}

fn half<'a>(segment: &KvSegment<'a>, side: Side) -> Rows<'a> {
    match side {
        Side::Keys => segment.keys,
        Side::Values => segment.values,
    }
}

fn numbers_of(rows: Rows<'_>) -> Vec<f32> {
    match rows {
        Rows::Plain(numbers) => numbers.to_vec(),
        Rows::Encoded(rows) => rows.to_vec(),
    }
}

fn encoded(codec: Codec, numbers: &[f32], width: usize) -> Vec<u8> {
    let mut bytes = vec![0; numbers.len() / width * codec.row_bytes(width)];
    encode(codec, numbers, width, &mut bytes);
    bytes
}
