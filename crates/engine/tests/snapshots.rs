//! A job that goes on from its snapshot makes the video that nobody disturbed, bit for bit; what cannot be gone on from is refused.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

#[path = "snapshots/forged.rs"]
mod forged;
mod support;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use evanesce_cache::{Kind, Tier};
use evanesce_engine::snapshot::{
    Captured, SnapshotDirectory, SnapshotError, SnapshotMode, SnapshotStore, Taken, inspect,
};
use evanesce_engine::video::EncoderPool;
use evanesce_engine::{
    Budgets, CancelToken, EngineError, JobRun, KvCodec, Model, Outputs, Position, Request, RequestedLength,
    Silent,
};
use support::rollout::{causal_checkpoint, golden_request};
use support::{AMPLE, Kept, golden, request, run};

/// A checkpoint, and a request that it serves.
struct Scene {
    causal: Option<tempfile::TempDir>,
    request: Request,
}

impl Scene {
    /// All at once, long enough for two segments of the video.
    fn whole() -> Self {
        Self { causal: None, request: Request { length: Some(RequestedLength::Frames(37)), ..request() } }
    }

    /// Four blocks.
    fn causal() -> Self {
        let request = support::request_from(&golden_request());
        Self { causal: Some(causal_checkpoint("window")), request }
    }

    fn open(&self, budgets: Budgets) -> Model {
        let directory =
            self.causal.as_ref().map_or_else(|| golden("checkpoint"), |dir| dir.path().to_path_buf());
        Model::open(&directory, budgets).unwrap()
    }

    fn file(&self) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.mp4");
        run(&self.open(AMPLE), self.request.clone(), Outputs::mp4(&path), &mut Silent).unwrap();
        std::fs::read(path).unwrap()
    }

    fn resume<'m>(
        &self,
        model: &'m Model,
        outputs: Outputs,
        store: &dyn SnapshotStore,
    ) -> Result<Option<JobRun<'m>>, EngineError> {
        JobRun::resume(model, self.request.clone(), outputs, CancelToken::new(), store)
    }

    fn admit<'m>(&self, model: &'m Model, outputs: Outputs) -> JobRun<'m> {
        JobRun::admit(model, self.request.clone(), outputs, CancelToken::new()).unwrap()
    }

    /// Runs the job to its end in a process of its own for every unit: a snapshot is taken, all is dropped, and another model
    /// goes on from it. How often it did.
    fn interrupted(&self, outputs: &dyn Fn() -> Outputs, dir: &Path, mode: SnapshotMode) -> usize {
        let store = SnapshotDirectory::new(dir);
        let mut n_resumed = 0;
        let mut model = self.open(AMPLE);
        let mut job = self.admit(&model, outputs());
        while job.advance(&mut Silent).unwrap().is_more() {
            let Some(taken) = job.snapshot(&store, mode).unwrap() else { continue };
            // A prompt that was read again is no unit to be interrupted at.
            if taken.written_bytes == 0 {
                continue;
            }
            let position = job.position();
            drop(job);
            drop(model);
            let contents = inspect(&store).unwrap().unwrap();
            assert_eq!(contents.held_bytes, taken.held_bytes);
            model = self.open(AMPLE);
            job = self.resume(&model, outputs(), &store).unwrap().unwrap();
            assert_eq!(job.position(), position);
            n_resumed += 1;
        }
        let id = job.id();
        job.finish().unwrap();
        assert_eq!(model.cache().owned_by(id).bytes[Tier::Device], 0);
        model.cache().verify().unwrap();
        n_resumed
    }
}

#[test]
fn a_job_interrupted_at_every_unit_makes_the_frames_and_the_file_of_an_undisturbed_one() {
    for (scene, at_least) in [(Scene::whole(), 8), (Scene::causal(), 20)] {
        let expected = scene.file();
        let kept = Kept::default();
        run(&scene.open(AMPLE), scene.request.clone(), kept.outputs(), &mut Silent).unwrap();
        let pictures = kept.take();
        for mode in [SnapshotMode::Full, SnapshotMode::Compact] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("out.mp4");
            let n = scene.interrupted(&|| Outputs::mp4(&path), &dir.path().join("snapshot"), mode);
            assert!(n >= at_least, "{n}");
            assert!(std::fs::read(&path).unwrap() == expected, "{mode:?}: the file differs");
            scene.interrupted(&|| kept.outputs(), &dir.path().join("other"), mode);
            assert!(kept.take() == pictures, "{mode:?}: the frames differ");
        }
    }
}

#[test]
fn a_snapshot_that_is_written_while_the_job_goes_on_is_that_of_its_moment() {
    for scene in [Scene::whole(), Scene::causal()] {
        let model = scene.open(AMPLE);
        let kept = Kept::default();
        run(&model, scene.request.clone(), kept.outputs(), &mut Silent).unwrap();
        let pictures = kept.take();
        let pool = Arc::new(EncoderPool::start(1).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let store = SnapshotDirectory::new(dir.path().join("snapshot"));
        let mut job = scene.admit(&model, kept.pooled(&pool));
        let (mut n_captured, mut n_resumed, mut more) = (0, 0, true);
        while more {
            more = job.advance(&mut Silent).unwrap().is_more();
            let Captured::Copied(capture) = job.capture(SnapshotMode::Full).unwrap() else { continue };
            let position = job.position();
            assert!(matches!(job.capture(SnapshotMode::Full).unwrap(), Captured::Nothing), "one at a time");
            more = job.advance(&mut Silent).unwrap().is_more();
            assert!(job.captured(capture.write(&store)).unwrap().is_some());
            n_captured += 1;
            if more && n_captured % 3 == 0 {
                drop(job);
                job = scene.resume(&model, kept.pooled(&pool), &store).unwrap().unwrap();
                assert_eq!(job.position(), position);
                n_resumed += 1;
            }
        }
        assert!(n_resumed > 1, "{n_resumed} of {n_captured}");
        let id = job.id();
        job.finish().unwrap();
        assert!(kept.take() == pictures);
        assert_eq!(model.cache().owned_by(id).bytes.total(), 0);
        assert_eq!(model.counters().tier(Tier::Host).reserved_bytes, 0, "copies and pictures are gone");
        model.cache().verify().unwrap();
    }
}

#[test]
fn without_room_for_a_copy_a_snapshot_is_written_from_where_it_is() {
    let scene = Scene::whole();
    let model = scene.open(Budgets { host_bytes: 0, ..AMPLE });
    let dir = tempfile::tempdir().unwrap();
    let store = SnapshotDirectory::new(dir.path());
    let mut job = scene.admit(&model, Kept::default().outputs());
    while job.position().steps < 1 {
        assert!(job.advance(&mut Silent).unwrap().is_more());
    }
    assert!(matches!(job.capture(SnapshotMode::Full).unwrap(), Captured::NoRoom));
    let taken = job.snapshot(&store, SnapshotMode::Full).unwrap().unwrap();
    assert!(taken.written_bytes > 0 && job.saved_bytes() == taken.held_bytes);
    assert!(matches!(job.capture(SnapshotMode::Full).unwrap(), Captured::Known(_)));
}

#[test]
fn a_crash_between_two_snapshots_goes_back_to_the_last_and_changes_nothing() {
    for scene in [Scene::whole(), Scene::causal()] {
        let expected = scene.file();
        let model = scene.open(AMPLE);
        for crash_after in [3, 7, 11, 19] {
            let dir = tempfile::tempdir().unwrap();
            let (path, store) =
                (dir.path().join("out.mp4"), SnapshotDirectory::new(dir.path().join("snapshot")));
            let mut job = scene.admit(&model, Outputs::mp4(&path));
            for unit in 0..crash_after {
                if !job.advance(&mut Silent).unwrap().is_more() {
                    break;
                }
                // Every third unit, where that can be.
                if unit % 3 == 0 {
                    job.snapshot(&store, SnapshotMode::Full).unwrap();
                }
            }
            drop(job);
            let resumed = scene.resume(&model, Outputs::mp4(&path), &store).unwrap();
            let mut job = resumed.unwrap_or_else(|| scene.admit(&model, Outputs::mp4(&path)));
            while job.advance(&mut Silent).unwrap().is_more() {}
            job.finish().unwrap();
            assert!(std::fs::read(&path).unwrap() == expected, "crash after {crash_after} units");
        }
    }
}

/// Runs to the middle of the third block, with a snapshot after every unit; gives what each cost.
fn to_the_middle(scene: &Scene, model: &Model, store: &dyn SnapshotStore, mode: SnapshotMode) -> Vec<Taken> {
    let mut job = scene.admit(model, Kept::default().outputs());
    let mut taken = Vec::new();
    while job.position().block < 2 || job.position().steps < 2 {
        assert!(job.advance(&mut Silent).unwrap().is_more());
        taken.extend(job.snapshot(store, mode).unwrap());
    }
    taken
}

#[test]
fn a_snapshot_writes_what_is_new_and_keeps_no_part_that_nobody_needs() {
    let scene = Scene::causal();
    let dir = tempfile::tempdir().unwrap();
    let store = SnapshotDirectory::new(dir.path());
    let taken = to_the_middle(&scene, &scene.open(AMPLE), &store, SnapshotMode::Full);
    let last = taken.last().unwrap();
    // Only latents are new after a step, while pages, features and text are most of what is held.
    assert!(last.written_bytes * 4 < last.held_bytes, "{last:?}");
    let names: BTreeSet<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let on_disk: u64 = names.iter().map(|name| dir.path().join(name).metadata().unwrap().len()).sum();
    let manifest = dir.path().join("manifest").metadata().unwrap().len();
    assert!(on_disk - manifest <= last.held_bytes * 3 / 2, "{on_disk} bytes for {}", last.held_bytes);

    let other = SnapshotDirectory::new(dir.path().join("compact"));
    let compact = to_the_middle(&scene, &scene.open(AMPLE), &other, SnapshotMode::Compact);
    assert!(compact.last().unwrap().held_bytes < last.held_bytes);
    let kinds = inspect(&other).unwrap().unwrap().kinds;
    assert!(kinds.contains_key("self_kv") && kinds.contains_key("latent") && !kinds.contains_key("cross_kv"));
}

#[test]
fn what_is_damaged_or_torn_is_refused_whatever_it_is() {
    let scene = Scene::causal();
    let dir = tempfile::tempdir().unwrap();
    let store = SnapshotDirectory::new(dir.path());
    let model = scene.open(AMPLE);
    to_the_middle(&scene, &model, &store, SnapshotMode::Full);
    let refused = || {
        let outcome = scene.resume(&model, Kept::default().outputs(), &store);
        matches!(outcome, Err(EngineError::Snapshot(SnapshotError::Damaged(_))))
    };
    assert!(!refused());
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 5);
    for file in files {
        let whole = std::fs::read(&file).unwrap();
        // Some bytes of a part may belong to entries that are gone: nobody reads those.
        let flipped: Vec<u8> = whole.iter().map(|byte| byte ^ 0x10).collect();
        std::fs::write(&file, flipped).unwrap();
        assert!(refused(), "bits of {} were flipped", file.display());
        std::fs::write(&file, &whole[..1]).unwrap();
        assert!(refused(), "{} was torn", file.display());
        std::fs::remove_file(&file).unwrap();
        assert!(refused() || file.ends_with("manifest"), "{} was lost", file.display());
        std::fs::write(&file, &whole).unwrap();
    }
    assert!(!refused());
    // What a refused job held is back.
    assert_eq!(model.counters().kind(Kind::SelfKv).bytes.total(), 0);
    model.cache().verify().unwrap();
}

#[test]
fn other_settings_and_other_weights_are_refused() {
    let scene = Scene::causal();
    let dir = tempfile::tempdir().unwrap();
    let store = SnapshotDirectory::new(dir.path());
    let model = scene.open(AMPLE);
    to_the_middle(&scene, &model, &store, SnapshotMode::Full);
    let foreign = |scene: &Scene, model: &Model| {
        let outcome = scene.resume(model, Kept::default().outputs(), &store);
        matches!(outcome, Err(EngineError::Snapshot(SnapshotError::Foreign(_))))
    };
    let other = Scene { request: Request { seed: 1, ..scene.request.clone() }, causal: None };
    assert!(foreign(&other, &model));
    let codec = KvCodec::from_name("int8");
    let other = Scene { request: Request { kv_codec: codec, ..scene.request.clone() }, causal: None };
    assert!(foreign(&other, &model));

    let changed = Scene::causal();
    let weights =
        changed.causal.as_ref().unwrap().path().join("transformer/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(weights, bytes).unwrap();
    assert!(foreign(&scene, &changed.open(AMPLE)));
    assert!(!foreign(&scene, &model));
}

/// A disk that is full after some bytes.
struct FullDisk<'a> {
    inner: &'a SnapshotDirectory,
    left_bytes: Cell<u64>,
}

struct Filling<'a> {
    to: &'a mut dyn Write,
    left_bytes: &'a Cell<u64>,
}

impl Write for Filling<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(usize::try_from(self.left_bytes.get()).unwrap());
        if taken == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.left_bytes.set(self.left_bytes.get() - taken as u64);
        self.to.write(&bytes[..taken])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl SnapshotStore for FullDisk<'_> {
    fn put_part(&self, name: &str, fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        self.inner.put_part(name, &mut |to| fill(&mut Filling { to, left_bytes: &self.left_bytes }))
    }

    fn part_bytes(&self, name: &str) -> io::Result<u64> {
        self.inner.part_bytes(name)
    }

    fn read_part(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.inner.read_part(name, offset, into)
    }

    fn publish(&self, manifest: &[u8]) -> io::Result<()> {
        let left_bytes = self.left_bytes.get();
        if left_bytes < manifest.len() as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.left_bytes.set(left_bytes - manifest.len() as u64);
        self.inner.publish(manifest)
    }

    fn manifest(&self) -> io::Result<Option<Vec<u8>>> {
        self.inner.manifest()
    }

    fn retain(&self, names: &BTreeSet<String>) -> io::Result<()> {
        self.inner.retain(names)
    }
}

#[test]
fn a_full_disk_costs_a_snapshot_and_neither_the_job_nor_the_snapshot_before() {
    let scene = Scene::causal();
    let expected = scene.file();
    let model = scene.open(AMPLE);
    for capacity_bytes in [0, 10_000, 100_000, 300_000] {
        let dir = tempfile::tempdir().unwrap();
        let (path, inner) = (dir.path().join("out.mp4"), SnapshotDirectory::new(dir.path().join("snapshot")));
        let full = FullDisk { inner: &inner, left_bytes: Cell::new(capacity_bytes) };
        let mut job = scene.admit(&model, Outputs::mp4(&path));
        let (mut refused, mut last) = (0, None);
        while job.advance(&mut Silent).unwrap().is_more() {
            match job.snapshot(&full, SnapshotMode::Full) {
                Ok(Some(taken)) => last = Some(taken.held_bytes),
                Ok(None) => {}
                Err(EngineError::Snapshot(SnapshotError::Io { .. })) => refused += 1,
                Err(other) => panic!("{other}"),
            }
            // What stands is whole, and nothing of what failed stays.
            let contents = inspect(&inner).unwrap();
            assert_eq!(contents.as_ref().map(|contents| contents.held_bytes), last);
        }
        assert!(refused > 0, "{capacity_bytes} bytes were enough");
        job.finish().unwrap();
        assert!(std::fs::read(&path).unwrap() == expected);
        if last.is_some() {
            let mut job = scene.resume(&model, Outputs::mp4(&path), &inner).unwrap().unwrap();
            while job.advance(&mut Silent).unwrap().is_more() {}
            job.finish().unwrap();
            assert!(std::fs::read(&path).unwrap() == expected);
        }
    }
}

/// A disk that puts a manifest in place, and then cannot make sure that it stays there.
struct Unsynced<'a>(&'a SnapshotDirectory);

impl SnapshotStore for Unsynced<'_> {
    fn put_part(&self, name: &str, fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        self.0.put_part(name, fill)
    }

    fn part_bytes(&self, name: &str) -> io::Result<u64> {
        self.0.part_bytes(name)
    }

    fn read_part(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_part(name, offset, into)
    }

    fn publish(&self, manifest: &[u8]) -> io::Result<()> {
        self.0.publish(manifest)?;
        Err(io::Error::other("the directory cannot be synced"))
    }

    fn manifest(&self) -> io::Result<Option<Vec<u8>>> {
        self.0.manifest()
    }

    fn retain(&self, names: &BTreeSet<String>) -> io::Result<()> {
        self.0.retain(names)
    }
}

/// Whether a store refuses the snapshot that a job would take here.
fn is_refused(job: &mut JobRun<'_>, store: &dyn SnapshotStore) -> bool {
    let outcome = job.snapshot(store, SnapshotMode::Full);
    matches!(outcome, Err(EngineError::Snapshot(SnapshotError::Io { .. })))
}

#[test]
fn a_manifest_that_is_in_place_although_publishing_it_failed_can_be_gone_on_from() {
    let scene = Scene::causal();
    let expected = scene.file();
    let model = scene.open(AMPLE);
    let dir = tempfile::tempdir().unwrap();
    let (path, inner) = (dir.path().join("out.mp4"), SnapshotDirectory::new(dir.path().join("snapshot")));
    // In a copy, because whoever goes on removes what the manifest does not name, and the job is not done with it.
    let resumed_at = |name: &str| {
        let copy = dir.path().join(name);
        support::tree::copy_tree(inner.path(), &copy);
        let outputs = Outputs::mp4(copy.with_extension("mp4"));
        scene.resume(&model, outputs, &SnapshotDirectory::new(copy)).unwrap().unwrap().position()
    };
    let mut job = scene.admit(&model, Outputs::mp4(&path));
    while job.position().steps < 1 {
        assert!(job.advance(&mut Silent).unwrap().is_more());
    }
    job.snapshot(&inner, SnapshotMode::Full).unwrap().unwrap();
    assert!(job.advance(&mut Silent).unwrap().is_more());
    assert!(is_refused(&mut job, &Unsynced(&inner)));
    assert_eq!(resumed_at("unsynced"), job.position());
    // The next try gets as far as to begin a part, and that is none of those that are there.
    assert!(is_refused(&mut job, &FullDisk { inner: &inner, left_bytes: Cell::new(1) }));
    assert_eq!(resumed_at("torn"), job.position());
    assert!(job.advance(&mut Silent).unwrap().is_more());
    job.snapshot(&inner, SnapshotMode::Full).unwrap().unwrap();
    assert_eq!(resumed_at("whole"), job.position());
    drop(job);
    let mut job = scene.resume(&model, Outputs::mp4(&path), &inner).unwrap().unwrap();
    while job.advance(&mut Silent).unwrap().is_more() {}
    job.finish().unwrap();
    assert!(std::fs::read(&path).unwrap() == expected);
}

/// A disk so slow that, before it takes a part, another thread has dropped whatever may leave the device.
struct Slow<'a> {
    inner: &'a SnapshotDirectory,
    model: &'a Model,
}

impl SnapshotStore for Slow<'_> {
    fn put_part(&self, name: &str, fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        self.model.cache().set_budget(Tier::Device, 0);
        self.model.cache().set_budget(Tier::Device, AMPLE.device_bytes);
        self.inner.put_part(name, fill)
    }

    fn part_bytes(&self, name: &str) -> io::Result<u64> {
        self.inner.part_bytes(name)
    }

    fn read_part(&self, name: &str, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.inner.read_part(name, offset, into)
    }

    fn publish(&self, manifest: &[u8]) -> io::Result<()> {
        self.inner.publish(manifest)
    }

    fn manifest(&self) -> io::Result<Option<Vec<u8>>> {
        self.inner.manifest()
    }

    fn retain(&self, names: &BTreeSet<String>) -> io::Result<()> {
        self.inner.retain(names)
    }
}

#[test]
fn what_is_dropped_while_a_snapshot_is_written_is_left_out_and_computed_again() {
    let scene = Scene::causal();
    // Nothing below the device: what can be computed again is dropped.
    let model = scene.open(Budgets { host_bytes: 0, ..AMPLE });
    let kept = Kept::default();
    run(&model, scene.request.clone(), kept.outputs(), &mut Silent).unwrap();
    let expected = kept.take();
    let dir = tempfile::tempdir().unwrap();
    let inner = SnapshotDirectory::new(dir.path());
    let mut job = scene.admit(&model, kept.outputs());
    while job.position().block < 1 || job.position().steps < 1 {
        assert!(job.advance(&mut Silent).unwrap().is_more());
    }
    let text_bytes = || model.counters().kind(Kind::CrossKv).bytes.total();
    assert!(text_bytes() > 0);
    let taken = job.snapshot(&Slow { inner: &inner, model: &model }, SnapshotMode::Full).unwrap();
    assert!(taken.is_some() && text_bytes() == 0, "{} bytes of text stayed", text_bytes());
    let kinds = inspect(&inner).unwrap().unwrap().kinds;
    assert!(kinds.contains_key("self_kv") && kinds.contains_key("latent") && !kinds.contains_key("cross_kv"));
    let position = job.position();
    while job.advance(&mut Silent).unwrap().is_more() {}
    job.finish().unwrap();
    assert!(kept.take() == expected);
    let mut job = scene.resume(&model, kept.outputs(), &inner).unwrap().unwrap();
    assert_eq!(job.position(), position);
    while job.advance(&mut Silent).unwrap().is_more() {}
    job.finish().unwrap();
    assert!(kept.take() == expected);
}

#[test]
fn embeddings_outlive_the_process_and_are_computed_once() {
    let scene = Scene::whole();
    let dir = tempfile::tempdir().unwrap();
    let open = || scene.open(AMPLE).keep_embeddings(dir.path(), 1 << 20).unwrap();
    let made = |model: &Model| {
        let kept = Kept::default();
        run(model, scene.request.clone(), kept.outputs(), &mut Silent).unwrap();
        kept.take()
    };
    let first = open();
    let expected = made(&first);
    let again = open();
    assert!(made(&again) == expected);
    // The text encoder's weights were not even read.
    let reads = |model: &Model| model.counters().kind(Kind::Weights).puts;
    assert!(reads(&again) < reads(&first));
}

#[test]
fn an_embedding_of_another_prompt_or_of_a_wrong_length_is_made_anew() {
    let scene = Scene::whole();
    let dir = tempfile::tempdir().unwrap();
    // The same words, so that one embedding is as long as the other.
    let asked = Request { prompt: "red ball".to_owned(), negative: Some("ball red".to_owned()), ..request() };
    let made = || {
        let model = scene.open(AMPLE).keep_embeddings(dir.path(), 1 << 20).unwrap();
        let kept = Kept::default();
        run(&model, asked.clone(), kept.outputs(), &mut Silent).unwrap();
        kept.take()
    };
    let expected = made();
    let mut files: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let [one, other] = &files[..] else { panic!("two prompts: {files:?}") };
    let [whole_one, whole] = [one, other].map(|file| std::fs::read(file).unwrap());
    assert!(whole_one.len() == whole.len() && whole_one != whole);
    // A digest that is right does not make the length right.
    let forge = |n_bytes: usize| {
        let key = blake3::Hash::from_hex(other.file_stem().unwrap().to_str().unwrap()).unwrap();
        let bytes: Vec<u8> = whole[32..].iter().copied().cycle().take(n_bytes).collect();
        let digest = blake3::Hasher::new().update(key.as_bytes()).update(&bytes).finalize();
        std::fs::write(other, [&digest.as_bytes()[..], &bytes[..]].concat()).unwrap();
    };
    let len_bytes = whole.len() - 32;
    let spoil: [(&str, &dyn Fn()); 5] = [
        ("another prompt's", &|| assert!(std::fs::copy(one, other).unwrap() > 0)),
        ("no whole number of values", &|| forge(len_bytes - 3)),
        ("too long", &|| forge(2 * len_bytes)),
        ("empty", &|| std::fs::write(other, "").unwrap()),
        ("a pipe", &|| {
            std::fs::remove_file(other).unwrap();
            assert!(std::process::Command::new("mkfifo").arg(other).status().unwrap().success());
        }),
    ];
    for (what, spoil) in spoil {
        spoil();
        assert!(made() == expected, "{what}");
        assert!(std::fs::read(other).unwrap() == whole, "{what}");
    }
    forge(len_bytes);
    assert!(std::fs::read(other).unwrap() == whole, "else the rest is for nothing");
}

#[test]
fn a_parked_job_leaves_the_device_and_goes_on_as_if_nothing_had_happened() {
    for scene in [Scene::whole(), Scene::causal()] {
        let expected = scene.file();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.mp4");
        let model = scene.open(AMPLE);
        let mut job = scene.admit(&model, Outputs::mp4(&path));
        loop {
            assert_eq!(job.park(), 0);
            // Prompts are read again before anything else.
            let position = job.position();
            while job.position() == position {
                if !job.advance(&mut Silent).unwrap().is_more() {
                    break;
                }
            }
            model.cache().verify().unwrap();
            if job.position().latent_frames == job.spec().latent_frames() {
                break;
            }
        }
        while job.advance(&mut Silent).unwrap().is_more() {}
        job.finish().unwrap();
        assert!(std::fs::read(&path).unwrap() == expected);
    }
}

#[test]
fn only_pages_of_the_expert_that_rests_are_cold() {
    for (context, rest) in [("per_expert", true), ("shared", false)] {
        let scene = Scene::causal();
        let path = scene.causal.as_ref().unwrap().path().join("model_index.json");
        let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        index["evanesce"]["causal"]["context"] = context.into();
        std::fs::write(path, index.to_string()).unwrap();
        let model = scene.open(AMPLE);
        let mut job = scene.admit(&model, Kept::default().outputs());
        // Before the second block's noise, the high-noise expert is about to read the first one's pages.
        while job.position().block == 0 {
            assert!(job.advance(&mut Silent).unwrap().is_more());
        }
        let pages = |tier| model.counters().kind(Kind::SelfKv).bytes[tier];
        let all_bytes = pages(Tier::Device);
        assert_eq!(job.demote_cold() > 0, rest, "{context}");
        assert_eq!(pages(Tier::Device), if rest { all_bytes / 2 } else { all_bytes }, "{context}");
    }
}

fn advance_until(job: &mut JobRun<'_>, is_there: impl Fn(Position) -> bool) {
    while !is_there(job.position()) {
        assert!(job.advance(&mut Silent).unwrap().is_more());
    }
}

#[test]
fn a_window_that_shrinks_gives_up_at_once_what_no_block_will_see_and_a_snapshot_goes_on_from_there() {
    let scene = Scene::causal();
    let model = scene.open(AMPLE);
    let pages = || {
        let pages = *model.counters().kind(Kind::SelfKv);
        (pages.entries, pages.bytes.total())
    };
    let (kept, dir) = (Kept::default(), tempfile::tempdir().unwrap());
    let finished = |mut job: JobRun<'_>| {
        while job.advance(&mut Silent).unwrap().is_more() {}
        job.finish().unwrap();
        kept.take()
    };
    // Asked for while the second block is decoded: in 8 series of pages, 2 are the sink and 3 were to be seen.
    let store = SnapshotDirectory::new(dir.path());
    let mut job = scene.admit(&model, kept.outputs());
    advance_until(&mut job, |at| at.latent_frames == 4);
    let (all, all_bytes) = pages();
    let returned_bytes = job.see_recent_frames(1);
    let (left, left_bytes) = pages();
    assert_eq!((all, left), (8 * (2 + 3), 8 * (2 + 1)));
    assert_eq!(returned_bytes, all_bytes - left_bytes);
    assert!(job.snapshot(&store, SnapshotMode::Full).unwrap().is_some());
    drop(job);
    let job = scene.resume(&model, kept.outputs(), &store).unwrap().unwrap();
    assert_eq!(pages(), (left, left_bytes));
    let between = finished(job);
    // Asked for while it is made: it sees what it began with, and its own commits leave the new window.
    let mut job = scene.admit(&model, kept.outputs());
    advance_until(&mut job, |at| at.block == 1 && at.steps == 2);
    let before = pages();
    assert_eq!((job.see_recent_frames(1), pages()), (0, before));
    advance_until(&mut job, |at| at.latent_frames == 4);
    assert_eq!(pages(), (left, left_bytes));
    assert!(finished(job) == between, "another video");
    assert!(finished(scene.admit(&model, kept.outputs())) != between, "the window was not smaller");
}

#[test]
fn smaller_pages_and_windows_take_effect_with_the_next_block_and_are_undone() {
    let scene = Scene::causal();
    let model = scene.open(AMPLE);
    let pages = || model.counters().kind(Kind::SelfKv).bytes.total();
    let mut most = Vec::new();
    for changes in [false, true] {
        let mut job = scene.admit(&model, Kept::default().outputs());
        let (mut most_bytes, dir) = (0, tempfile::tempdir().unwrap());
        if changes {
            job.store_pages_as(KvCodec::from_name("int4").unwrap());
            job.see_recent_frames(1);
        }
        let mut more = true;
        while more {
            more = job.advance(&mut Silent).unwrap().is_more();
            most_bytes = most_bytes.max(pages());
            if job.position().block == 2 {
                job.store_pages_as(KvCodec::default());
                job.see_recent_frames(usize::MAX);
            }
            // What has changed is part of a snapshot.
            let store = SnapshotDirectory::new(dir.path());
            let taken =
                if changes && more { job.snapshot(&store, SnapshotMode::Full).unwrap() } else { None };
            if taken.is_some_and(|taken| taken.written_bytes > 0) {
                drop(job);
                job = scene.resume(&model, Kept::default().outputs(), &store).unwrap().unwrap();
            }
        }
        job.finish().unwrap();
        most.push(most_bytes);
    }
    assert!(most[1] < most[0], "{most:?}");
    assert_eq!(pages(), 0);
}
