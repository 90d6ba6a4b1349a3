//! Law 2's counters as they are, all taken in one moment, so that they add up.

use std::collections::BTreeMap;

use evanesce_engine::{Counters, JobId, Kind, Tier, Usage};

use super::Text;
use crate::id::VideoId;
use crate::job::Class;

/// Whose a job of the cache is.
pub(crate) type Holders = BTreeMap<JobId, (VideoId, Class)>;

/// Everything that the cache counts. Sums over `account`, over `owner`, and over `kind` with the reserved account, are all what a tier uses.
pub(super) fn write(out: &mut Text, counters: &Counters, usages: &[(JobId, Usage)], holders: &Holders) {
    write_tiers(out, counters);
    write_owners(out, counters, usages, holders);
    write_kinds(out, counters);
    write_transfers(out, counters);
}

fn write_tiers(out: &mut Text, counters: &Counters) {
    out.head("evanesce_cache_budget_bytes", "gauge", "Bytes that a tier may hold.");
    out.each(Tier::ALL, |tier| {
        (format!("evanesce_cache_budget_bytes{{tier=\"{tier}\"}}"), counters.tier(tier).budget_bytes)
    });
    out.head("evanesce_cache_used_bytes", "gauge", "Bytes that a tier holds: the sum over its accounts.");
    out.each(Tier::ALL, |tier| {
        (format!("evanesce_cache_used_bytes{{tier=\"{tier}\"}}"), counters.tier(tier).used_bytes)
    });
    out.head("evanesce_cache_peak_bytes", "gauge", "The most bytes that a tier has held.");
    out.each(Tier::ALL, |tier| {
        (format!("evanesce_cache_peak_bytes{{tier=\"{tier}\"}}"), counters.tier(tier).peak_bytes)
    });
    out.head(
        "evanesce_cache_idle_bytes",
        "gauge",
        "Freed buffers that a tier keeps for reuse: not in use, within its budget with what is, and given back after a rest.",
    );
    out.each(Tier::ALL, |tier| {
        (format!("evanesce_cache_idle_bytes{{tier=\"{tier}\"}}"), counters.tier(tier).free_listed_bytes)
    });
    out.head("evanesce_cache_account_bytes", "gauge", "Bytes of a tier, by what they are there for.");
    for tier in Tier::ALL {
        let counted = counters.tier(tier);
        let accounts = [
            ("live", counted.live_bytes),
            ("writing", counted.writing_bytes),
            ("reserved", counted.reserved_bytes),
            ("moving", counted.moving_bytes),
            ("quiescing", counted.quiescing_bytes),
            ("quarantined", counted.quarantined_bytes),
        ];
        out.each(accounts, |(account, bytes)| {
            (format!("evanesce_cache_account_bytes{{tier=\"{tier}\",account=\"{account}\"}}"), bytes)
        });
    }
}

fn write_owners(out: &mut Text, counters: &Counters, usages: &[(JobId, Usage)], holders: &Holders) {
    let name = "evanesce_cache_owner_bytes";
    out.head(name, "gauge", "Bytes of a tier, by whose they are: a video's job, the shared pool, or a job that just starts or ends.");
    let mut by_class = BTreeMap::<(Class, &str), u64>::new();
    for class in Class::ALL {
        by_class.extend(Tier::ALL.map(|tier| ((class, tier.as_str()), 0)));
    }
    for tier in Tier::ALL {
        out.line(
            &format!("{name}{{owner=\"shared\",class=\"\",tier=\"{tier}\"}}"),
            counters.shared.bytes[tier],
        );
        let mut other_bytes = 0;
        for (job, usage) in usages {
            let bytes = usage.bytes[tier];
            let Some((id, class)) = holders.get(job) else {
                other_bytes += bytes;
                continue;
            };
            *by_class.entry((*class, tier.as_str())).or_default() += bytes;
            let class = class.as_str();
            out.line(&format!("{name}{{owner=\"{id}\",class=\"{class}\",tier=\"{tier}\"}}"), bytes);
        }
        out.line(&format!("{name}{{owner=\"other\",class=\"\",tier=\"{tier}\"}}"), other_bytes);
    }
    out.head("evanesce_cache_class_bytes", "gauge", "Bytes of a tier that jobs of a class own.");
    out.each(by_class, |((class, tier), bytes)| {
        (format!("evanesce_cache_class_bytes{{class=\"{}\",tier=\"{tier}\"}}", class.as_str()), bytes)
    });
}

fn write_kinds(out: &mut Text, counters: &Counters) {
    out.head("evanesce_cache_kind_bytes", "gauge", "Bytes of a kind in a tier.");
    for kind in Kind::ALL {
        let bytes = counters.kind(kind).bytes;
        let kind = kind.as_str();
        out.each(Tier::ALL, |tier| {
            (format!("evanesce_cache_kind_bytes{{kind=\"{kind}\",tier=\"{tier}\"}}"), bytes[tier])
        });
    }
    let per_kind = |name: &str, value: &dyn Fn(Kind) -> u64, out: &mut Text| {
        out.each(Kind::ALL, |kind| (format!("{name}{{kind=\"{}\"}}", kind.as_str()), value(kind)));
    };
    out.head("evanesce_cache_entries", "gauge", "Visible entries of a kind.");
    per_kind("evanesce_cache_entries", &|kind| counters.kind(kind).entries, out);
    out.head("evanesce_cache_events_total", "counter", "What happened to entries of a kind.");
    for kind in Kind::ALL {
        let counted = counters.kind(kind);
        let events = [
            ("put", counted.puts),
            ("hit", counted.hits),
            ("miss", counted.misses),
            ("expired", counted.expired),
            ("removed", counted.removed),
            ("pruned", counted.pruned),
            ("evicted", counted.evicted),
            ("lost", counted.lost),
            ("demoted", counted.demoted),
            ("promoted", counted.promoted),
            // Reads of what had left its home: it was back in time, or the read waited.
            ("arrived_in_time", counted.arrived_before_use),
            ("arrived_late", counted.arrived_late),
        ];
        let kind = kind.as_str();
        out.each(events, |(event, count)| {
            (format!("evanesce_cache_events_total{{kind=\"{kind}\",event=\"{event}\"}}"), count)
        });
    }
    out.head("evanesce_cache_raw_bytes_total", "counter", "Bytes that were put, before encoding.");
    per_kind("evanesce_cache_raw_bytes_total", &|kind| counters.kind(kind).raw_bytes, out);
    out.head("evanesce_cache_encoded_bytes_total", "counter", "Bytes that were put, as they are stored.");
    per_kind("evanesce_cache_encoded_bytes_total", &|kind| counters.kind(kind).encoded_bytes, out);
    write_ratios(out, counters);
}

/// Ratios of nothing to nothing are left out.
fn write_ratios(out: &mut Text, counters: &Counters) {
    let ratio = |of: u64, all: u64| (all > 0).then(|| of as f64 / all as f64);
    out.head(
        "evanesce_cache_prune_ratio",
        "gauge",
        "Of the entries that left, the part that fell out of its window.",
    );
    for kind in Kind::ALL {
        let counted = counters.kind(kind);
        let left = counted.pruned + counted.evicted + counted.expired + counted.removed + counted.lost;
        if let Some(part) = ratio(counted.pruned, left) {
            out.line(&format!("evanesce_cache_prune_ratio{{kind=\"{}\"}}", kind.as_str()), part);
        }
    }
    out.head("evanesce_cache_encode_ratio", "gauge", "Stored bytes for each byte before encoding.");
    for kind in Kind::ALL {
        let counted = counters.kind(kind);
        if let Some(part) = ratio(counted.encoded_bytes, counted.raw_bytes) {
            out.line(&format!("evanesce_cache_encode_ratio{{kind=\"{}\"}}", kind.as_str()), part);
        }
    }
}

fn write_transfers(out: &mut Text, counters: &Counters) {
    let moves = |counted: evanesce_engine::TierTraffic| {
        [("in", counted.demoted, counted.demoted_bytes), ("out", counted.promoted, counted.promoted_bytes)]
    };
    out.head(
        "evanesce_cache_transfers_total",
        "counter",
        "Entries that came into a tier from above, and that left it upwards.",
    );
    for tier in Tier::ALL {
        out.each(moves(counters.tier(tier).traffic), |(way, entries, _)| {
            (format!("evanesce_cache_transfers_total{{tier=\"{tier}\",direction=\"{way}\"}}"), entries)
        });
    }
    out.head("evanesce_cache_transfer_bytes_total", "counter", "Their bytes.");
    for tier in Tier::ALL {
        out.each(moves(counters.tier(tier).traffic), |(way, _, bytes)| {
            (format!("evanesce_cache_transfer_bytes_total{{tier=\"{tier}\",direction=\"{way}\"}}"), bytes)
        });
    }
    out.head("evanesce_cache_transfer_faults_total", "counter", "Transfers that failed.");
    for tier in Tier::ALL {
        let traffic = counters.tier(tier).traffic;
        out.each([("write", traffic.write_faults), ("read", traffic.read_faults)], |(what, count)| {
            (format!("evanesce_cache_transfer_faults_total{{tier=\"{tier}\",operation=\"{what}\"}}"), count)
        });
    }
}
