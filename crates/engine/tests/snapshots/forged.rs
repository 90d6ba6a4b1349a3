//! Snapshots whose digests are right and that no job has made: they are refused as damaged, whatever they say.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use evanesce_engine::snapshot::{SnapshotDirectory, SnapshotError, SnapshotMode, inspect};
use evanesce_engine::{EngineError, Kind, Model};
use serde_json::{Value, json};

use super::support::{AMPLE, Kept};
use super::{Scene, to_the_middle};

/// A snapshot between two steps of the third of four blocks, and the job's model.
struct Forge {
    scene: Scene,
    model: Model,
    dir: tempfile::TempDir,
    whole: Value,
}

impl Forge {
    fn open() -> Self {
        let scene = Scene::causal();
        let (model, dir) = (scene.open(AMPLE), tempfile::tempdir().unwrap());
        let store = SnapshotDirectory::new(dir.path().join("snapshot"));
        to_the_middle(&scene, &model, &store, SnapshotMode::Full);
        let manifest = store.path().join("manifest");
        let manifest = std::fs::read_to_string(manifest).unwrap();
        let (_digest, json) = manifest.split_once('\n').unwrap();
        let forge = Self { whole: serde_json::from_str(json).unwrap(), scene, model, dir };
        assert!(!forge.is_refused(&forge.whole), "else the rest is for nothing");
        forge
    }

    fn store(&self) -> SnapshotDirectory {
        SnapshotDirectory::new(self.dir.path().join("snapshot"))
    }

    fn part(&self, name: &str) -> PathBuf {
        self.store().path().join(name)
    }

    fn publish(&self, manifest: &Value) {
        let json = manifest.to_string();
        let digest = blake3::hash(json.as_bytes()).to_hex();
        std::fs::write(self.part("manifest"), format!("{digest}\n{json}")).unwrap();
    }

    /// Whether no job goes on from a manifest, and none of it stays.
    fn is_refused(&self, manifest: &Value) -> bool {
        self.publish(manifest);
        let resumed = self.scene.resume(&self.model, Kept::default().outputs(), &self.store());
        let is_refused = is_damaged(&resumed.map(drop));
        for kind in [Kind::CrossKv, Kind::SelfKv, Kind::Latent, Kind::VaeFeature] {
            assert_eq!(self.model.counters().kind(kind).bytes.total(), 0);
        }
        is_refused
    }

    /// Whether whoever looks at a manifest is told so.
    fn looks_damaged(&self, manifest: &Value) -> bool {
        self.publish(manifest);
        matches!(inspect(&self.store()), Err(SnapshotError::Damaged(_)))
    }

    /// The manifest with another value at some place.
    fn with(&self, place: &str, value: impl Into<Value>) -> Value {
        let mut manifest = self.whole.clone();
        *manifest.pointer_mut(place).unwrap() = value.into();
        manifest
    }

    fn facts(&self) -> String {
        self.whole["video"]["facts"]["part"].as_str().unwrap().to_owned()
    }
}

fn is_damaged(outcome: &Result<(), EngineError>) -> bool {
    matches!(outcome, Err(EngineError::Snapshot(SnapshotError::Damaged(_))))
}

fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

#[test]
fn lengths_that_no_part_has_are_refused_and_take_no_memory() {
    let forge = Forge::open();
    for extent in ["/video/facts", "/video/stream/0", "/entries/0/bytes"] {
        for len_bytes in [1u64 << 63, 1 << 36] {
            let manifest = forge.with(&format!("{extent}/len_bytes"), len_bytes);
            assert!(forge.is_refused(&manifest) && forge.looks_damaged(&manifest), "{extent}: {len_bytes}");
        }
        for offset in [u64::MAX, 1 << 40] {
            let manifest = forge.with(&format!("{extent}/offset"), offset);
            assert!(forge.is_refused(&manifest) && forge.looks_damaged(&manifest), "{extent} at {offset}");
        }
    }
}

#[test]
fn parts_are_plain_files_of_the_snapshot_and_nothing_else_is_opened() {
    let forge = Forge::open();
    let facts = forge.facts();
    let elsewhere = forge.dir.path().join("elsewhere");
    std::fs::copy(forge.part(&facts), &elsewhere).unwrap();
    let absolute = elsewhere.to_str().unwrap();
    let dotted = format!("./{facts}");
    for name in ["../elsewhere", absolute, dotted.as_str(), "", ".", ".."] {
        let manifest = forge.with("/video/facts/part", name);
        assert!(forge.is_refused(&manifest) && forge.looks_damaged(&manifest), "{name:?}");
    }
    let is_refused = || forge.is_refused(&forge.whole) && forge.looks_damaged(&forge.whole);
    // The last refusals have removed it, since nothing named it.
    let put_in_place = |put: &dyn Fn(&Path)| {
        let part = forge.part(&facts);
        drop(std::fs::remove_file(&part));
        put(&part);
    };
    put_in_place(&|part| symlink(&elsewhere, part).unwrap());
    assert!(is_refused(), "a link");
    // Whoever opened it would wait for ever.
    put_in_place(&|part| assert!(Command::new("mkfifo").arg(part).status().unwrap().success()));
    assert!(is_refused(), "a pipe");
    put_in_place(&|part| assert!(std::fs::copy(&elsewhere, part).unwrap() > 0));
    assert!(!forge.is_refused(&forge.whole));
}

#[test]
fn a_unit_that_the_job_does_not_have_is_refused() {
    let forge = Forge::open();
    for phase in [
        json!({ "Noise": { "block": u64::MAX } }),
        json!({ "Noise": { "block": 4 } }),
        json!({ "Step": { "block": u64::MAX, "at": 0 } }),
        json!({ "Step": { "block": 2, "at": u64::MAX } }),
        json!({ "Commit": { "block": u64::MAX, "at": 0 } }),
        json!({ "Commit": { "block": 2, "at": 2 } }),
        // Nobody would see what the last block leaves.
        json!({ "Commit": { "block": 3, "at": 0 } }),
        json!({ "LatentFrame": { "at": u64::MAX } }),
        json!({ "Prompt": { "at": 0 } }),
        json!("Done"),
    ] {
        assert!(forge.is_refused(&forge.with("/phase", phase.clone())), "{phase}");
    }
}

#[test]
fn what_could_not_give_way_in_this_job_is_refused() {
    let forge = Forge::open();
    let own = number(&forge.whole["adapt"]["recent_frames"]);
    for field in ["recent_frames", "recent_next", "wanted_recent_frames"] {
        for frames in [usize::MAX, own + 1] {
            let manifest = forge.with(&format!("/adapt/{field}"), frames);
            assert!(forge.is_refused(&manifest), "{field}: {frames}");
        }
    }
    for codecs in [
        json!([]),
        json!([[0, "int8"]]),
        json!([[1, "bf16"]]),
        json!([[0, "bf16"], [2, "int8"], [1, "int4"]]),
        json!([[0, "bf16"], [4, "int8"]]),
    ] {
        assert!(forge.is_refused(&forge.with("/adapt/codecs", codecs.clone())), "{codecs}");
    }
}

#[test]
fn entries_of_other_shapes_than_the_job_s_are_refused() {
    let forge = Forge::open();
    let mut kinds = Vec::new();
    for (at, entry) in forge.whole["entries"].as_array().unwrap().iter().enumerate() {
        let kind = entry["kind"].as_str().unwrap();
        if kinds.contains(&kind) {
            continue;
        }
        kinds.push(kind);
        let extent = &entry["bytes"];
        let (begin, len_bytes) = (number(&extent["offset"]), number(&extent["len_bytes"]));
        let part = std::fs::read(forge.part(extent["part"].as_str().unwrap())).unwrap();
        let shorter = len_bytes - 4;
        let mut manifest = forge.with(&format!("/entries/{at}/bytes/len_bytes"), shorter);
        let digest = blake3::hash(&part[begin..begin + shorter]).to_hex().to_string();
        manifest["entries"][at]["bytes"]["blake3"] = digest.into();
        assert!(forge.is_refused(&manifest), "{kind} of {shorter} bytes");
        for (field, value) in [
            ("kind", json!("weights")),
            ("kind", json!("nothing")),
            ("part", json!(u32::MAX)),
            ("index", json!(u32::MAX)),
            ("life", json!({ "Steps": 0 })),
        ] {
            let manifest = forge.with(&format!("/entries/{at}/{field}"), value.clone());
            assert!(forge.is_refused(&manifest), "{kind} with {field} {value}");
        }
        let mut twice = forge.whole.clone();
        twice["entries"].as_array_mut().unwrap().push(entry.clone());
        assert!(forge.is_refused(&twice), "{kind} twice");
    }
    kinds.sort_unstable();
    assert_eq!(kinds, ["cross_kv", "latent", "self_kv", "vae_feature"]);
    assert!(!forge.is_refused(&forge.whole));
}
