//! The cache's words as Python says them: kinds, tiers, lifetimes, keys.

use evanesce_cache::{Key, Kind, Lifetime, PutSpec, Recover, Tier};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Kind, part, index and frame.
pub(crate) type KeyWords = (String, u32, u32, u32);

/// Tier; lifetime with its two numbers; recover; price of bringing 1 KiB back.
pub(crate) type SpecWords = (String, (String, u32, u32), String, u32);

pub(crate) fn kind(name: &str) -> PyResult<Kind> {
    one_of("kind", name, &Kind::ALL.map(|kind| (kind.as_str(), kind)))
}

pub(crate) fn tier(name: &str) -> PyResult<Tier> {
    one_of("tier", name, &Tier::ALL.map(|tier| (tier.as_str(), tier)))
}

pub(crate) fn key(words: &KeyWords) -> PyResult<Key> {
    let (name, part, index, frame) = words;
    Ok(Key::new(kind(name)?).part(*part).index(*index).frame(*frame))
}

/// All but the lengths, which the content has.
pub(crate) fn spec(words: &SpecWords) -> PyResult<PutSpec> {
    let (tier_name, (lifetime, first, second), recover, cost_per_kib) = words;
    let lifetimes = [
        ("steps", Lifetime::Steps(*first)),
        ("window", Lifetime::Window { sink: *first, recent: *second }),
        ("stage", Lifetime::Stage),
        ("job", Lifetime::Job),
        ("persistent", Lifetime::Persistent),
    ];
    let recovers =
        [("never", Recover::Never), ("recompute", Recover::Recompute), ("reload", Recover::Reload)];
    let spec = PutSpec::new(tier(tier_name)?, one_of("lifetime", lifetime, &lifetimes)?, 0);
    Ok(spec.recover(one_of("recover", recover, &recovers)?).cost_per_kib(*cost_per_kib))
}

pub(crate) fn one_of<T: Copy>(what: &str, name: &str, known: &[(&str, T)]) -> PyResult<T> {
    let found = known.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        PyValueError::new_err(format!("{what} {name:?} is not known; use one of {}", names.join(", ")))
    })
}
