//! What watches the service names nothing that the service does not have, and what it counts adds up.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use support::{Client, config, long, small, start};

fn deployed(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(file);
    std::fs::read_to_string(path).unwrap()
}

/// The metrics of a scrape, by the name that their type was given.
fn names(metrics: &str) -> BTreeSet<String> {
    let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

/// The metrics of ours that a text names, without what histograms put behind their names.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("evanesce_"));
    let bare = |word: &str| {
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
        histogram.unwrap_or(word).to_owned()
    };
    ours.map(bare).collect()
}

/// Values of one metric by their labels, in the order in which they are written.
fn values(metrics: &str, name: &str) -> Vec<(BTreeMap<String, String>, u64)> {
    let lines = metrics.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
    lines
        .map(|line| {
            let (labels, value) = line.split_once("} ").unwrap();
            let pairs = labels.split(',').map(|pair| pair.split_once('=').unwrap());
            let labels =
                pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect();
            (labels, value.parse().unwrap())
        })
        .collect()
}

/// The sum over everything of one tier.
fn of_tier(metrics: &str, name: &str, tier: &str) -> u64 {
    values(metrics, name).iter().filter(|(labels, _)| labels["tier"] == tier).map(|(_, bytes)| bytes).sum()
}

#[test]
fn alerts_and_dashboard_name_metrics_that_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(config(dir.path()));
    let client = running.client();
    let id = client.create(&small(1));
    client.wait(&id);
    let there = names(&client.get("/metrics").text());
    let dashboard: serde_json::Value = serde_json::from_str(&deployed("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries: Vec<_> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    assert!(queries.len() > 20 && queries.iter().all(|query| !named(query).is_empty()), "{queries:?}");
    for text in [queries.join("\n"), deployed("alerts.yml"), deployed("alerts_test.yml")] {
        let missing: Vec<_> = named(&text).difference(&there).cloned().collect();
        assert!(missing.is_empty(), "{missing:?} are not among {there:?}");
    }
    // Whoever adds a metric shows it.
    let shown = named(&queries.join("\n"));
    let hidden: Vec<_> = there.difference(&shown).filter(|name| *name != "evanesce_build_info").collect();
    assert!(hidden.is_empty(), "metrics without a panel: {hidden:?}");
}

#[test]
fn every_alert_is_fired_and_cleared_by_its_test() {
    let alerts = deployed("alerts.yml");
    let tests = deployed("alerts_test.yml");
    let names: Vec<_> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() > 10);
    for name in names {
        let of_alert =
            tests.split(&format!("- name: {name}\n")).nth(1).unwrap_or_else(|| panic!("{name} has no test"));
        let of_alert = of_alert.split("  - name: ").next().unwrap();
        assert!(of_alert.contains("exp_labels") && of_alert.contains("exp_alerts: []"), "{name}: {of_alert}");
    }
}

/// Under load, everything that a scrape says of a tier adds up to what the tier has in use: law 2 as seen from outside.
#[test]
fn metrics_scraped_during_load_add_up_to_what_the_cache_counts() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(config(dir.path()));
    let client = running.client();
    let ids: Vec<_> = ["interactive", "standard", "background"]
        .into_iter()
        .zip(1..)
        .map(|(class, seed)| {
            let mut request = long(seed);
            request["priority"] = class.into();
            client.create(&request)
        })
        .collect();
    let mut owners = BTreeSet::new();
    for _ in 0..300 {
        let metrics = client.get("/metrics").text();
        for tier in ["device", "host", "disk"] {
            let used = of_tier(&metrics, "evanesce_cache_used_bytes", tier);
            assert!(used <= of_tier(&metrics, "evanesce_cache_budget_bytes", tier), "{tier}");
            assert_eq!(of_tier(&metrics, "evanesce_cache_account_bytes", tier), used, "by account, {tier}");
            assert_eq!(of_tier(&metrics, "evanesce_cache_owner_bytes", tier), used, "by owner, {tier}");
            let reserved: u64 = values(&metrics, "evanesce_cache_account_bytes")
                .iter()
                .filter(|(labels, _)| labels["tier"] == tier && labels["account"] == "reserved")
                .map(|(_, bytes)| bytes)
                .sum();
            assert_eq!(
                of_tier(&metrics, "evanesce_cache_kind_bytes", tier) + reserved,
                used,
                "by kind, {tier}"
            );
        }
        let held = values(&metrics, "evanesce_cache_owner_bytes").into_iter().filter(|(_, bytes)| *bytes > 0);
        owners.extend(held.map(|(labels, _)| labels["owner"].clone()));
    }
    assert!(ids.iter().any(|id| owners.contains(id)), "no job was ever seen to own anything: {owners:?}");
    ids.iter().for_each(|id| drop(client.delete(&format!("/v1/videos/{id}"))));
    at_rest(&client);
}

/// When all jobs are gone, what is left is the shared pool's.
fn at_rest(client: &Client) {
    client.wait(&client.create(&small(9)));
    let metrics = client.get("/metrics").text();
    let shared = values(&metrics, "evanesce_cache_owner_bytes");
    let shared: u64 =
        shared.iter().filter(|(labels, _)| labels["owner"] == "shared").map(|(_, bytes)| bytes).sum();
    let used: u64 = values(&metrics, "evanesce_cache_used_bytes").iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(shared, used, "{metrics}");
}
