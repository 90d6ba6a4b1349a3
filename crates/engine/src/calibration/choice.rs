//! The cheapest codecs that a budget allows.

use std::collections::BTreeMap;

use evanesce_wan::transformer::Codec;
use evanesce_wan::weights::Component;

use super::measurement::{Measurement, Place, Side};
use crate::page_codecs::KvOverrides;
use crate::self_kv::KvCodec;

/// What may be spent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bytes of one token's keys and values, over all layers of all experts: the least error under it.
    TokenBytes(usize),
    /// Relative error of attention, the root of its mean square over layers: the fewest bytes under it.
    Error(f64),
}

/// Codecs for every layer.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The codec of most layers.
    pub base: KvCodec,
    /// All layers, by expert.
    pub overrides: KvOverrides,
    /// Bytes of one token's keys and values, over all layers of all experts.
    pub token_bytes: usize,
    /// Relative error of attention that is expected: the root of its mean square over layers.
    pub error: f64,
    /// Whether the budget is met.
    pub fits: bool,
}

/// A side of a layer on its way up.
struct Ladder {
    place: Place,
    /// Codecs, their bytes of a token and the squares of their errors; the cheapest first, each better than those before.
    rungs: Vec<(Codec, usize, f64)>,
    at: usize,
}

impl Ladder {
    fn new(place: Place, errors: &BTreeMap<Codec, f64>, dim: usize) -> Self {
        let mut all: Vec<_> =
            errors.iter().map(|(codec, error)| (*codec, codec.row_bytes(dim), *error)).collect();
        all.sort_by(|a, b| a.1.cmp(&b.1).then(a.2.total_cmp(&b.2)));
        let mut rungs: Vec<(Codec, usize, f64)> = Vec::new();
        for rung in all {
            if rungs.last().is_none_or(|last| rung.2 < last.2) {
                rungs.push(rung);
            }
        }
        Self { place, rungs, at: 0 }
    }

    fn rung(&self) -> (Codec, usize, f64) {
        self.rungs[self.at]
    }

    /// The step up that buys the most error for a byte, of those for at most `bytes`.
    fn best_step(&self, bytes: usize) -> Option<(f64, usize)> {
        let (_, now, error) = self.rung();
        let steps = (self.at + 1..self.rungs.len()).filter_map(|to| {
            let (_, then, better) = self.rungs[to];
            let more = then - now;
            (more <= bytes).then(|| ((error - better) / more.max(1) as f64, to))
        });
        steps.max_by(|a, b| a.0.total_cmp(&b.0))
    }
}

impl Measurement {
    /// Chooses codecs for all layers that were measured, of experts whose keys have `dim` numbers. Nothing when no attention to
    /// pages was seen.
    #[must_use]
    pub fn choose(&self, dim: usize, budget: Budget) -> Option<Assignment> {
        let errors = self.errors();
        let mut ladders: Vec<_> =
            errors.iter().map(|(place, errors)| Ladder::new(*place, errors, dim)).collect();
        if ladders.is_empty() || ladders.iter().any(|ladder| ladder.rungs.is_empty()) {
            return None;
        }
        let layers = ladders.len() as f64 / Side::ALL.len() as f64;
        let bytes = |ladders: &[Ladder]| ladders.iter().map(|ladder| ladder.rung().1).sum::<usize>();
        let error =
            |ladders: &[Ladder]| (ladders.iter().map(|ladder| ladder.rung().2).sum::<f64>() / layers).sqrt();
        loop {
            let left = match budget {
                Budget::TokenBytes(most) => most.saturating_sub(bytes(&ladders)),
                Budget::Error(most) if error(&ladders) <= most => 0,
                Budget::Error(_) => usize::MAX,
            };
            let steps = ladders.iter().enumerate().filter_map(|(at, ladder)| {
                let (gain, to) = ladder.best_step(left)?;
                Some((gain, at, to))
            });
            // The first of equals, so that the choice does not depend on chance.
            let best = steps.reduce(|best, step| if step.0 > best.0 { step } else { best });
            let Some((_, at, to)) = best.filter(|_| left > 0) else { break };
            ladders[at].at = to;
        }
        let (token_bytes, error) = (bytes(&ladders), error(&ladders));
        let fits = match budget {
            Budget::TokenBytes(most) => token_bytes <= most,
            Budget::Error(most) => error <= most,
        };
        let (base, overrides) = codecs(&ladders);
        Some(Assignment { base, overrides, token_bytes, error, fits })
    }
}

fn codecs(ladders: &[Ladder]) -> (KvCodec, KvOverrides) {
    let mut layers: BTreeMap<Component, BTreeMap<usize, KvCodec>> = BTreeMap::new();
    for ladder in ladders {
        let (expert, layer, side) = ladder.place;
        let codec = layers.entry(expert).or_default().entry(layer).or_default();
        match side {
            Side::Keys => codec.keys = ladder.rung().0,
            Side::Values => codec.values = ladder.rung().0,
        }
    }
    let mut counts: Vec<(KvCodec, usize)> = Vec::new();
    for codec in layers.values().flat_map(BTreeMap::values) {
        match counts.iter_mut().find(|(known, _)| known == codec) {
            Some((_, count)) => *count += 1,
            None => counts.push((*codec, 1)),
        }
    }
    let base =
        counts.iter().max_by_key(|(_, count)| *count).map_or_else(KvCodec::default, |(codec, _)| *codec);
    let mut overrides = KvOverrides::default();
    for (expert, layers) in layers {
        overrides.set_layers(expert, layers.into_values().collect());
    }
    (base, overrides)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ladder(layer: usize, errors: [f64; 3]) -> Ladder {
        let codecs = [Codec::Int2, Codec::Int4, Codec::Int8].into_iter().zip(errors).collect();
        Ladder::new((Component::HighNoise, layer, Side::Keys), &codecs, 128)
    }

    #[test]
    fn a_rung_that_is_no_better_than_a_cheaper_one_is_left_out() {
        let ladder = ladder(0, [0.5, 0.6, 0.1]);
        assert_eq!(ladder.rungs.iter().map(|rung| rung.0).collect::<Vec<_>>(), [Codec::Int2, Codec::Int8]);
        // 40 and 136 bytes.
        assert_eq!(ladder.best_step(95), None);
        assert_eq!(ladder.best_step(96).map(|step| step.1), Some(1));
    }

    #[test]
    fn the_step_that_buys_most_may_pass_over_a_rung() {
        assert_eq!(ladder(0, [1.0, 0.99, 0.0]).best_step(usize::MAX).map(|step| step.1), Some(2));
        assert_eq!(ladder(0, [1.0, 0.01, 0.0]).best_step(usize::MAX).map(|step| step.1), Some(1));
    }
}
