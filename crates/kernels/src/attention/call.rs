//! One call: tiles of queries as tasks, tiles of keys and values one after the other.
#![expect(unsafe_code, reason = "tasks write tiles of one output matrix")]

use std::f32::consts::LOG2_E;
use std::ops::Range;

use super::codes::{Coded, weigh};
use super::jensen::correct;
use super::queries::{Forms, Queries};
use super::scratch::{PANELS, Scratch, Sizes, TILE_KEYS};
use super::soften::{Base, fade, scale_and_add, soften};
use super::spans::{spans, words_max};
use super::{AttentionDims, KvSegment};
use crate::codec::Rows;
use crate::dot::{Columns, Finish, Tile, dot};
use crate::isa::Isa;
use crate::micro::{KC, Keep, Left, NR, Out, Panels, Right, multiply};
use crate::panel;
use crate::shared::Shared;
use crate::tasks::{self, Share};

/// Queries of a tile where there are many: each key and value that is read serves more of them.
const TILE_QUERIES: usize = 192;
/// The same where keys are codes, whose rows lie far apart, each in a page of memory of its own: finding them again costs more
/// than what is kept of so many queries, 400 KiB at a head of 128, takes in the second cache.
const CODED_TILE_QUERIES: usize = 576;
/// Queries of a tile otherwise: more tasks.
const SMALL_TILE_QUERIES: usize = 96;
/// Tasks below which the largest tiles are not taken.
const ENOUGH_TASKS: usize = 32;
/// Multiply-adds below which threads cost more than they bring.
const ALONE: usize = 1 << 18;

pub(super) struct Call<'a> {
    isa: Isa,
    q: &'a [f32],
    segments: &'a [KvSegment<'a>],
    /// `[heads, queries, keys]`.
    bias: Option<&'a [f32]>,
    keys: usize,
    dims: AttentionDims,
    /// Every number of a head.
    columns: Vec<usize>,
    out: Shared<'a>,
}

/// The tile of one task.
#[derive(Clone, Copy)]
struct Place {
    head: usize,
    query: usize,
    queries: usize,
    sizes: Sizes,
}

/// The keys and values that pass.
#[derive(Clone, Copy)]
struct Passing<'a> {
    segment: &'a KvSegment<'a>,
    /// Their first row in the segment, and how many there are.
    first: usize,
    count: usize,
    /// The first row among all segments.
    before: usize,
}

/// Queries of a tile: enough to repay what is read for them, few enough for all threads to end together; in equal parts, of
/// whole groups of panels.
fn tile_queries(queries: usize, heads: usize, coded: bool) -> usize {
    let most = match queries {
        _ if coded && queries.div_ceil(CODED_TILE_QUERIES) * heads >= ENOUGH_TASKS => CODED_TILE_QUERIES,
        _ if queries >= 4 * TILE_QUERIES => TILE_QUERIES,
        _ => SMALL_TILE_QUERIES,
    };
    let tile = queries.div_ceil(queries.div_ceil(most)).next_multiple_of(PANELS * NR);
    tile.min(queries.next_multiple_of(NR))
}

impl<'a> Call<'a> {
    pub(super) fn run(
        q: &'a [f32],
        segments: &'a [KvSegment<'a>],
        bias: Option<&'a [f32]>,
        dims: AttentionDims,
        out: &'a mut [f32],
    ) {
        if out.is_empty() {
            return;
        }
        let AttentionDims { queries, heads, head_dim, .. } = dims;
        let keys = segments.iter().filter_map(|segment| segment.keys.count(heads * head_dim)).sum();
        let coded = segments.iter().any(|segment| segment.keys.integer().is_some());
        let tile = tile_queries(queries, heads, coded);
        let (isa, columns, out) = (Isa::current(), (0..head_dim).collect(), Shared::new(out));
        let call = Self { isa, q, segments, bias, keys, dims, columns, out };
        let tiles = queries.div_ceil(tile);
        let share = Share::from_work(q.len().saturating_mul(keys), ALONE);
        let sizes = Sizes { panels: tile / NR, head_dim };
        tasks::run(tiles * heads, share, Scratch::len(sizes), |scratch, at| {
            let query = at % tiles * tile;
            let queries = tile.min(queries - query);
            let sizes = Sizes { panels: queries.div_ceil(NR), head_dim };
            call.tile(Place { head: at / tiles, query, queries, sizes }, &mut Scratch::split(scratch, sizes));
        });
    }

    fn width(&self) -> usize {
        self.dims.heads * self.dims.head_dim
    }

    fn tile(&self, place: Place, scratch: &mut Scratch<'_>) {
        scratch.begin();
        // The forms in which the queries lie there as they are.
        let mut straight = Forms::default();
        let mut before = 0;
        for segment in self.segments {
            let keys = segment.keys.count(self.width()).unwrap_or(0);
            let codes = segment.keys.integer().is_some();
            let wanted = Forms { numbers: !codes, codes, noise: segment.keys.coarse().is_some() };
            if segment.turn.is_some() || !straight.covers(wanted) {
                self.queries(place).load(segment.turn, wanted, scratch);
                straight = if segment.turn.is_some() { Forms::default() } else { straight.with(wanted) };
            }
            for first in (0..keys).step_by(TILE_KEYS) {
                let count = TILE_KEYS.min(keys - first);
                self.pass(place, Passing { segment, first, count, before: before + first }, scratch);
            }
            before += keys;
        }
        self.store(place, scratch);
    }

    fn queries(&self, place: Place) -> Queries<'_> {
        Queries {
            isa: self.isa,
            q: self.q,
            width: self.width(),
            start: place.head * self.dims.head_dim,
            first: place.query,
            count: place.queries,
            sizes: place.sizes,
            scale: self.dims.scale,
        }
    }

    fn coded<'s>(&self, place: Place, tile: Passing<'_>, rows: &'s Rows<'_>) -> Option<Coded<'s>> {
        let Passing { first, count, .. } = tile;
        let head_dim = self.dims.head_dim;
        let coded =
            |rows| Coded { isa: self.isa, rows, start: place.head * head_dim, head_dim, first, count };
        rows.integer().map(coded)
    }

    /// A tile of keys and values meets all queries, some panels after the other.
    fn pass(&self, place: Place, tile: Passing<'_>, scratch: &mut Scratch<'_>) {
        let segment = tile.segment;
        let keys = self.coded(place, tile, &segment.keys);
        match &keys {
            Some(keys) => keys.load_keys(scratch),
            None => self.load(place, tile, &segment.keys, scratch.keys),
        }
        if let (None, Some(coarse)) = (&keys, segment.keys.coarse()) {
            for span in spans(place.head * self.dims.head_dim, self.dims.head_dim) {
                let steps = &mut scratch.key_steps[span.at * TILE_KEYS..][..tile.count];
                for (i, step) in steps.iter_mut().enumerate() {
                    *step = coarse.grid(tile.first + i, span.group).step;
                }
            }
        }
        let values = self.coded(place, tile, &segment.values);
        match &values {
            Some(values) => values.load_values(scratch),
            None => self.load(place, tile, &segment.values, scratch.values),
        }
        for at in (0..place.sizes.panels).step_by(PANELS) {
            let panels = at..place.sizes.panels.min(at + PANELS);
            match &keys {
                Some(keys) => self.coded_logits(keys, place, panels.clone(), scratch),
                None => self.logits(tile.count, panels.clone(), scratch),
            }
            let base = if values.is_some() { Base::Tile } else { Base::Running };
            panels.clone().for_each(|panel| self.soften(place, tile, base, (panel, panel - at), scratch));
            match &values {
                Some(values) => self.coded_sums(values, place, panels, scratch),
                None => self.sums(tile.count, place, panels, scratch),
            }
        }
    }

    /// Numbers of a tile, `[count, head_dim]`.
    fn load(&self, place: Place, tile: Passing<'_>, rows: &Rows<'_>, to: &mut [f32]) {
        let head_dim = self.dims.head_dim;
        for (i, to) in to.chunks_exact_mut(head_dim).take(tile.count).enumerate() {
            rows.read(self.isa, self.width(), tile.first + i, place.head * head_dim, to);
        }
    }

    fn logits(&self, count: usize, panels: Range<usize>, scratch: &mut Scratch<'_>) {
        let head_dim = self.dims.head_dim;
        let starts: [usize; TILE_KEYS] = std::array::from_fn(|i| i * head_dim);
        for depth in (0..head_dim).step_by(KC) {
            let left = Left {
                values: scratch.keys,
                starts: &starts[..count],
                spans: &[depth],
                span_len: KC.min(head_dim - depth),
                stride: 1,
            };
            let keep = if depth == 0 { Keep::Nothing } else { Keep::Sum };
            let numbers = Panels::F32(&scratch.queries[panels.start * head_dim * NR..]);
            let right = Right { panels: numbers, depth: head_dim, from: depth, count: panels.len() };
            multiply(self.isa, &left, &right, &mut Out::panels(scratch.logits, TILE_KEYS * NR, keep));
        }
    }

    fn coded_logits(&self, keys: &Coded<'_>, place: Place, panels: Range<usize>, scratch: &mut Scratch<'_>) {
        let stride = words_max(self.dims.head_dim) * NR;
        for span in keys.spans() {
            let right = Columns {
                words: &bytemuck::cast_slice(scratch.query_words)[panels.start * stride..],
                stride,
                from: span.word,
                count: panels.len(),
            };
            let at = span.at * TILE_KEYS;
            let finish = Finish::Grid {
                steps: &scratch.key_steps[at..],
                minima: &scratch.key_minima[at..],
                column_sums: &scratch.query_sums[(span.at * place.sizes.panels + panels.start) * NR..],
                keep: span.at > 0,
            };
            let mut out = Tile { values: &mut *scratch.logits, panel_stride: TILE_KEYS * NR };
            let left = keys.key_words(span, scratch.keys);
            dot(self.isa, &left, &right, finish, &mut out);
        }
    }

    /// Logits of a panel into weights; `panel` is its number among all, and among those whose logits are there.
    fn soften(
        &self,
        place: Place,
        tile: Passing<'_>,
        base: Base,
        (panel, slot): (usize, usize),
        scratch: &mut Scratch<'_>,
    ) {
        let head_dim = self.dims.head_dim;
        let segment = tile.segment;
        let logits = &mut scratch.logits[slot * TILE_KEYS * NR..][..tile.count * NR];
        let lanes = panel * NR;
        let unit = self.dims.scale * LOG2_E;
        let mut scale = [unit; NR];
        if segment.keys.integer().is_some() {
            scale
                .iter_mut()
                .zip(&scratch.query_steps[lanes..])
                .for_each(|(scale, step)| *scale = step * unit);
        }
        let mut bias = segment.logit_bias * LOG2_E;
        if segment.keys.coarse().is_some() {
            let spans = spans(place.head * head_dim, head_dim).count();
            let steps = &scratch.key_steps[..spans * TILE_KEYS];
            let stride = place.sizes.panels * NR;
            correct(self.isa, logits, &scale, steps, &scratch.query_noise[lanes..], stride);
            scale = [1.0; NR];
        }
        if let Some(all) = self.bias {
            let first = place.head * self.dims.queries + place.query + lanes;
            let row = |i: usize| &all[(first + i) * self.keys + tile.before..][..tile.count];
            let rows = NR.min(place.queries - lanes);
            panel::from_rows(self.isa, rows, tile.count, row, scratch.bias);
            scale_and_add(self.isa, logits, self.dims.scale, &scratch.bias[..tile.count * NR]);
            (scale, bias) = ([LOG2_E; NR], 0.0);
        }
        let state = [&mut *scratch.max, &mut *scratch.total, &mut *scratch.decay, &mut *scratch.gain];
        let state = state.map(|numbers| &mut numbers.as_chunks_mut::<NR>().0[panel]);
        soften(self.isa, logits, &scale, bias, base, state);
    }

    fn sums(&self, count: usize, place: Place, panels: Range<usize>, scratch: &mut Scratch<'_>) {
        let head_dim = self.dims.head_dim;
        let lengths = [head_dim * NR, NR];
        for panel in panels.clone() {
            let decay = &scratch.decay.as_chunks::<NR>().0[panel];
            if decay.iter().all(|decay| *decay == 1.0) {
                continue;
            }
            fade(self.isa, &mut scratch.sums[panel * lengths[0]..][..lengths[0]], decay);
            for bases in scratch.bases.chunks_exact_mut(place.sizes.panels * NR) {
                fade(self.isa, &mut bases[panel * NR..][..NR], decay);
            }
        }
        let left = Left {
            values: scratch.values,
            starts: &self.columns,
            spans: &[0],
            span_len: count,
            stride: head_dim,
        };
        let weights = Panels::F32(scratch.logits);
        let right = Right { panels: weights, depth: TILE_KEYS, from: 0, count: panels.len() };
        let sums = &mut scratch.sums[panels.start * lengths[0]..];
        multiply(self.isa, &left, &right, &mut Out::panels(sums, lengths[0], Keep::Sum));
    }

    fn coded_sums(&self, values: &Coded<'_>, place: Place, panels: Range<usize>, scratch: &mut Scratch<'_>) {
        let head_dim = self.dims.head_dim;
        for span in values.spans() {
            let grids = span.at * TILE_KEYS..span.at * TILE_KEYS + values.count;
            for (slot, panel) in panels.clone().enumerate() {
                let lanes = panel * NR;
                let base = (span.at * place.sizes.panels + panel) * NR;
                let [base, decay, gain] =
                    [(&mut *scratch.bases, base), (&mut *scratch.decay, lanes), (&mut *scratch.gain, lanes)]
                        .map(|(numbers, at)| &mut numbers[at..].as_chunks_mut::<NR>().0[0]);
                let unit = scratch.value_units[span.at];
                let gains = &mut scratch.gains[slot * NR..][..NR];
                gains.iter_mut().zip(&*gain).for_each(|(to, gain)| *to = gain * unit);
                let weights = &scratch.logits[slot * TILE_KEYS * NR..][..values.count * NR];
                let pairs = &mut scratch.weights[slot * TILE_KEYS / 2 * NR..][..TILE_KEYS / 2 * NR];
                let (ratios, minima) =
                    (&scratch.value_ratios[grids.clone()], &scratch.value_minima[grids.clone()]);
                weigh(
                    self.isa,
                    weights,
                    ratios,
                    minima,
                    bytemuck::cast_slice_mut(pairs),
                    [base, decay, gain],
                );
            }
            let right = Columns {
                words: bytemuck::cast_slice(scratch.weights),
                stride: TILE_KEYS / 2 * NR,
                from: 0,
                count: panels.len(),
            };
            let finish =
                Finish::Weighted { decays: &scratch.decay[panels.start * NR..], gains: scratch.gains };
            let sums = &mut scratch.sums[(panels.start * head_dim + span.offset) * NR..];
            let mut out = Tile { values: sums, panel_stride: head_dim * NR };
            let left = values.value_words(span, scratch.values);
            dot(self.isa, &left, &right, finish, &mut out);
        }
    }

    fn store(&self, place: Place, scratch: &Scratch<'_>) {
        let head_dim = self.dims.head_dim;
        for lane in 0..place.queries {
            let at = (place.query + lane) * self.width() + place.head * head_dim;
            // SAFETY: each (query, head) of the output belongs to one task.
            let out = unsafe { self.out.range(at, head_dim) };
            let sums = &scratch.sums[lane / NR * head_dim * NR + lane % NR..];
            for span in spans(place.head * head_dim, head_dim) {
                let base = scratch.bases[span.at * place.sizes.panels * NR + lane];
                for i in span.offset..span.offset + span.len {
                    out[i] = (sums[i * NR] + base) / scratch.total[lane];
                }
            }
        }
    }
}
