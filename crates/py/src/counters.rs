//! The cache's counters as dictionaries, under the names that `generate --json` and the metrics use.

use evanesce_cache::{Counters, JobId, Kind, KindCounters, PerTier, Tier, TierCounters, Usage};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

type Dict<'py> = PyResult<Bound<'py, PyDict>>;

fn dict<'py>(py: Python<'py>, items: &[(&str, u64)]) -> Dict<'py> {
    let dict = PyDict::new(py);
    items.iter().try_for_each(|(name, value)| dict.set_item(*name, *value))?;
    Ok(dict)
}

fn by_tier<'py>(py: Python<'py>, bytes: &PerTier<u64>) -> Dict<'py> {
    dict(py, &Tier::ALL.map(|tier| (tier.as_str(), bytes[tier])))
}

/// What one owner holds, and the most it held.
pub(crate) fn usage<'py>(py: Python<'py>, usage: &Usage) -> Dict<'py> {
    let dict = PyDict::new(py);
    dict.set_item("bytes", by_tier(py, &usage.bytes)?)?;
    dict.set_item("peak_bytes", by_tier(py, &usage.peak_bytes)?)?;
    Ok(dict)
}

fn of_tier<'py>(py: Python<'py>, tier: &TierCounters) -> Dict<'py> {
    let traffic = tier.traffic;
    dict(
        py,
        &[
            ("budget_bytes", tier.budget_bytes),
            ("used_bytes", tier.used_bytes),
            ("peak_bytes", tier.peak_bytes),
            ("live_bytes", tier.live_bytes),
            ("writing_bytes", tier.writing_bytes),
            ("reserved_bytes", tier.reserved_bytes),
            ("moving_bytes", tier.moving_bytes),
            ("quiescing_bytes", tier.quiescing_bytes),
            ("quarantined_bytes", tier.quarantined_bytes),
            ("free_listed_bytes", tier.free_listed_bytes),
            ("demoted", traffic.demoted),
            ("demoted_bytes", traffic.demoted_bytes),
            ("promoted", traffic.promoted),
            ("promoted_bytes", traffic.promoted_bytes),
            ("write_faults", traffic.write_faults),
            ("read_faults", traffic.read_faults),
        ],
    )
}

fn of_kind<'py>(py: Python<'py>, kind: &KindCounters) -> Dict<'py> {
    let counts = dict(
        py,
        &[
            ("entries", kind.entries),
            ("peak_total_bytes", kind.peak_total_bytes),
            ("puts", kind.puts),
            ("hits", kind.hits),
            ("misses", kind.misses),
            ("expired", kind.expired),
            ("removed", kind.removed),
            ("evicted", kind.evicted),
            ("lost", kind.lost),
            ("demoted", kind.demoted),
            ("promoted", kind.promoted),
            ("arrived_before_use", kind.arrived_before_use),
            ("arrived_late", kind.arrived_late),
            ("returned_bytes", kind.returned_bytes),
            ("encoded_bytes", kind.encoded_bytes),
            ("raw_bytes", kind.raw_bytes),
        ],
    )?;
    counts.set_item("bytes", by_tier(py, &kind.bytes)?)?;
    counts.set_item("peak_bytes", by_tier(py, &kind.peak_bytes)?)?;
    Ok(counts)
}

/// Everything at one moment.
pub(crate) fn all<'py>(py: Python<'py>, counters: &Counters, jobs: &[(JobId, Usage)]) -> Dict<'py> {
    let (tiers, kinds, of_jobs) = (PyDict::new(py), PyDict::new(py), PyList::empty(py));
    for tier in Tier::ALL {
        tiers.set_item(tier.as_str(), of_tier(py, counters.tier(tier))?)?;
    }
    for kind in Kind::ALL {
        kinds.set_item(kind.as_str(), of_kind(py, counters.kind(kind))?)?;
    }
    for (_, held) in jobs {
        of_jobs.append(usage(py, held)?)?;
    }
    let all = PyDict::new(py);
    all.set_item("tiers", tiers)?;
    all.set_item("kinds", kinds)?;
    all.set_item("shared", usage(py, &counters.shared)?)?;
    all.set_item("jobs", of_jobs)?;
    Ok(all)
}
