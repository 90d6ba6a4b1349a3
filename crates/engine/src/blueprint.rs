//! A model without its weights: what admission and planning reckon with.

use std::collections::BTreeMap;

use evanesce_cache::ContentKey;
use evanesce_wan::checkpoint::{Context, Description, Rollout};
use evanesce_wan::transformer::Transformer;
use evanesce_wan::vae::Decoder;
use evanesce_wan::weights::{Component, GroupId};

use crate::keys;

/// Shapes of all parts, bytes of all groups of weights, and what these are called.
#[derive(Debug)]
pub(crate) struct Blueprint {
    pub(crate) description: Description,
    pub(crate) decoder: Decoder,
    high: Transformer,
    low: Option<Transformer>,
    fingerprints: BTreeMap<Component, [u8; 32]>,
}

impl Blueprint {
    /// Of what is described, if it has a transformer at all. `fingerprints` say what its weights are by content; one that
    /// is missing is taken for zeros.
    pub(crate) fn new(description: Description, fingerprints: BTreeMap<Component, [u8; 32]>) -> Option<Self> {
        let expert = |component| {
            let config = description.transformer(component)?;
            Some(Transformer::new(component, config.clone()))
        };
        let (high, low) = (expert(Component::HighNoise)?, expert(Component::LowNoise));
        let decoder = Decoder::new(description.vae().clone());
        Some(Self { description, decoder, high, low, fingerprints })
    }

    /// The expert for a component; a checkpoint with one transformer uses it for everything.
    pub(crate) fn expert(&self, component: Component) -> &Transformer {
        match (component, &self.low) {
            (Component::LowNoise, Some(low)) => low,
            _ => &self.high,
        }
    }

    /// The component that really serves `component`.
    pub(crate) fn serving(&self, component: Component) -> Component {
        if component == Component::LowNoise && self.low.is_none() { Component::HighNoise } else { component }
    }

    /// Both experts, or the only one twice.
    pub(crate) fn experts(&self) -> [Component; 2] {
        [Component::HighNoise, Component::LowNoise].map(|component| self.serving(component))
    }

    /// Whose keys and values of earlier frames `expert` sees.
    pub(crate) fn context_of(&self, rollout: Rollout, expert: Component) -> Component {
        match rollout.context {
            Context::PerExpert => expert,
            Context::Shared => self.serving(Component::LowNoise),
        }
    }

    /// Bytes of each group of a component, in forward order.
    pub(crate) fn group_bytes(&self, component: Component) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.description.groups(component).iter().map(|group| group.len_bytes)
    }

    /// What the component's weights are, by content.
    pub(crate) fn fingerprint(&self, component: Component) -> [u8; 32] {
        self.fingerprints.get(&component).copied().unwrap_or_default()
    }

    /// The name of a group of weights among shared entries.
    pub(crate) fn weights_key(&self, id: GroupId) -> ContentKey {
        keys::weights(&self.fingerprint(id.component), id)
    }
}
