//! Pages that leave the device for host and disk and come back: the same video, every byte returned, no file left.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use evanesce_cache::{BlockFile, Kind, Tier};
use evanesce_engine::progress::Event;
use evanesce_engine::{
    Budgets, CancelToken, Disk, EngineError, Fault, JobRun, KvCodec, Model, Outcome, Request,
    RequestedLength, Silent,
};
use support::rollout::{causal_checkpoint_that_sees, golden_request};
use support::{Kept, interleaved, pictures, run};

const FRAMES: usize = 93;
const DISK_BYTES: u64 = 8 << 20;
/// Latent frames right before a block that it sees: enough for pages to outweigh what else admission keeps room for.
const RECENT: usize = 12;
/// 2 experts, 2 branches, 2 layers; sink 2; keys and values of 6 tokens of 32 numbers in f32.
const KV_BYTES: u64 = 2 * 2 * 2 * (2 + RECENT as u64) * PAGE_BYTES;
const PAGE_BYTES: u64 = 2 * 6 * 32 * 4;

fn request() -> Request {
    Request {
        kv_codec: KvCodec::from_name("f32"),
        length: Some(RequestedLength::Frames(FRAMES)),
        ..support::request_from(&golden_request())
    }
}

/// What admission asks of the device when the tiers below have these budgets.
fn least_device_bytes(checkpoint: &Path, host_bytes: u64, disk: Option<Disk>) -> u64 {
    let budgets = Budgets { device_bytes: 1, host_bytes };
    let model = match disk {
        Some(disk) => Model::open_with_disk(checkpoint, budgets, disk).unwrap(),
        None => Model::open(checkpoint, budgets).unwrap(),
    };
    match JobRun::admit(&model, request(), Kept::default().outputs(), CancelToken::new()) {
        Err(EngineError::Budget { needed_bytes, .. }) => needed_bytes as u64,
        other => panic!("one byte is not enough: {:?}", other.map(drop)),
    }
}

fn finished(model: &Model) -> (Vec<f32>, Outcome) {
    let kept = Kept::default();
    let mut check = |_: Event<'_>| model.cache().verify().unwrap();
    let outcome = run(model, request(), kept.outputs(), &mut check).unwrap();
    (kept.take(), outcome)
}

/// A device with room for everything but pages, and for a quarter of those.
fn quarter(checkpoint: &Path) -> u64 {
    least_device_bytes(checkpoint, 0, None) - KV_BYTES / 4 * 3
}

fn files(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn pages_in_host_or_on_disk_give_the_same_video_as_pages_in_the_device() {
    let checkpoint = causal_checkpoint_that_sees("window", RECENT);
    let checkpoint = checkpoint.path();
    let all = least_device_bytes(checkpoint, 0, None);
    let (expected, in_device) =
        finished(&Model::open(checkpoint, Budgets { device_bytes: all, host_bytes: 0 }).unwrap());
    assert!(in_device.memory.tiers[1..].iter().all(|tier| tier.peak_bytes == 0));

    let device_bytes = quarter(checkpoint);
    let in_host = Model::open(checkpoint, Budgets { device_bytes, host_bytes: 2 * KV_BYTES }).unwrap();
    let (pictures, outcome) = finished(&in_host);
    assert_eq!(pictures, expected, "a quarter of the pages in the device");
    let [device, host, _] = &outcome.memory.tiers[..] else { panic!("three tiers") };
    assert!(device.peak_bytes <= device_bytes && host.peak_bytes > KV_BYTES / 4, "{host:?}");
    assert!(host.traffic.demoted > 100 && host.traffic.promoted > 100, "{host:?}");

    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::open(directory.path(), DISK_BYTES).unwrap();
    let budgets = Budgets { device_bytes, host_bytes: 8 * PAGE_BYTES };
    let on_disk = Model::open_with_disk(checkpoint, budgets, disk).unwrap();
    let (pictures, outcome) = finished(&on_disk);
    assert_eq!(pictures, expected, "most of the pages on disk");
    let [_, host, disk] = &outcome.memory.tiers[..] else { panic!("three tiers") };
    assert!(host.peak_bytes <= 8 * PAGE_BYTES && disk.peak_bytes > KV_BYTES / 2, "{disk:?}");
    assert!(disk.traffic.demoted > 20 && disk.traffic.promoted > 20, "{disk:?}");
    let pages = outcome.memory.kinds.iter().find(|kind| kind.kind == "self_kv").unwrap();
    assert_eq!((pages.misses, pages.lost), (0, 0));
    assert!(outcome.memory.tiers.iter().all(|tier| tier.owned_at_end_bytes == 0));
    drop(on_disk);
    assert_eq!(files(directory.path()), 0);
}

#[test]
fn what_fits_nowhere_is_refused_in_one_sentence_and_the_least_that_fits_runs() {
    let checkpoint = causal_checkpoint_that_sees("window", RECENT);
    let checkpoint = checkpoint.path();
    let all = least_device_bytes(checkpoint, 0, None);
    // Without room for two groups of a block the host takes no pages.
    assert_eq!(least_device_bytes(checkpoint, 6 * PAGE_BYTES - 1, None), all);
    assert_eq!(least_device_bytes(checkpoint, 16 * PAGE_BYTES, None), all - 10 * PAGE_BYTES);
    // What is read, what arrives and three pages of a new block stay, whatever there is below.
    let staged = 2 * (2 + RECENT as u64) * PAGE_BYTES + 3 * PAGE_BYTES;
    let least = all - (KV_BYTES + 3 * PAGE_BYTES) + staged;
    assert_eq!(least_device_bytes(checkpoint, 1 << 20, None), least);
    let directory = tempfile::tempdir().unwrap();
    let disk = || Disk::open(directory.path(), DISK_BYTES).unwrap();
    let ample = pictures(&Model::open(checkpoint, support::AMPLE).unwrap(), request());
    // The disk needs no host above it: not to pass anything on, nor to read it from.
    for host_bytes in [6 * PAGE_BYTES, PAGE_BYTES, 0] {
        assert_eq!(least_device_bytes(checkpoint, host_bytes, Some(disk())), least, "{host_bytes}");
        let tight = Budgets { device_bytes: least, host_bytes };
        let tight = Model::open_with_disk(checkpoint, tight, disk()).unwrap();
        let (pictures, outcome) = finished(&tight);
        assert_eq!(pictures, ample, "beside a host of {host_bytes} bytes");
        let [_, host, disk] = &outcome.memory.tiers[..] else { panic!("three tiers") };
        assert!(host.peak_bytes <= host_bytes && disk.traffic.promoted > 0, "{host:?}, {disk:?}");
    }
    let budgets = Budgets { device_bytes: least, host_bytes: 6 * PAGE_BYTES };
    let short = Model::open(checkpoint, budgets).unwrap();
    let admitted = JobRun::admit(&short, request(), Kept::default().outputs(), CancelToken::new());
    let Err(error) = admitted else { panic!("without the disk the pages fit nowhere") };
    assert_eq!(error.fault(), Fault::Input);
    assert!(error.to_string().contains("device memory of") && !error.to_string().contains('\n'), "{error}");
}

/// All that the job holds is sent below the device before the first commit of every block, and finds room there again at once. All
/// that is read then comes home; before its read only what was asked for.
#[test]
fn what_has_left_the_device_is_asked_for_before_it_is_read_whatever_its_kind() {
    let checkpoint = causal_checkpoint_that_sees("window", RECENT);
    let model = Model::open(checkpoint.path(), support::AMPLE).unwrap();
    let expected = pictures(&model, request());
    let kept = Kept::default();
    let mut job = JobRun::admit(&model, request(), kept.outputs(), CancelToken::new()).unwrap();
    let (mut sent_in, mut more) = (None, true);
    while more {
        let position = job.position();
        if position.steps == job.spec().steps() && sent_in != Some(position.block) {
            sent_in = Some(position.block);
            model.cache().set_budget(Tier::Device, 0);
            model.cache().set_budget(Tier::Device, support::AMPLE.device_bytes);
        }
        more = job.advance(&mut Silent).unwrap().is_more();
    }
    job.finish().unwrap();
    assert!(kept.take() == expected);
    let counters = model.counters();
    for kind in [Kind::CrossKv, Kind::SelfKv, Kind::VaeFeature] {
        let counted = counters.kind(kind);
        assert!(counted.promoted > 0 && counted.arrived_before_use > 0, "{kind}: {counted:?}");
    }
}

#[test]
fn two_jobs_whose_pages_move_equal_each_alone_and_give_everything_back() {
    let checkpoint = causal_checkpoint_that_sees("window", RECENT);
    let other = || Request { seed: 5, prompt: "a blue ball".to_owned(), ..request() };
    let ample = || Model::open(checkpoint.path(), support::AMPLE).unwrap();
    let alone = [pictures(&ample(), request()), pictures(&ample(), other())];
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::open(directory.path(), DISK_BYTES).unwrap();
    // Both jobs' own needs without their pages, and a quarter of the pages of one.
    let device_bytes = 2 * least_device_bytes(checkpoint.path(), 0, None) - KV_BYTES / 4 * 7;
    let budgets = Budgets { device_bytes, host_bytes: 64 << 10 };
    let model = Model::open_with_disk(checkpoint.path(), budgets, disk).unwrap();
    let (pictures, ids) = interleaved(&model, [request(), other()]);
    assert_eq!(pictures, alone);
    for id in ids {
        assert_eq!(model.cache().owned_by(id).bytes.total(), 0);
    }
    model.cache().verify().unwrap();
}

/// Fails every call from the n-th on, or flips a bit of what the n-th reads.
#[derive(Debug)]
struct FailsFrom {
    file: Box<dyn BlockFile>,
    calls: Arc<AtomicU64>,
    first: u64,
    flips: bool,
}

impl BlockFile for FailsFrom {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        if call >= self.first && !self.flips {
            return Err(io::ErrorKind::Other.into());
        }
        let read = self.file.read_at(bytes, offset)?;
        if call >= self.first {
            bytes[70] ^= 1;
        }
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        if call >= self.first && !self.flips {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_at(bytes, offset)
    }
}

#[test]
fn a_disk_that_fails_anywhere_ends_in_a_clear_error_or_the_same_video_and_returns_every_byte() {
    let checkpoint = causal_checkpoint_that_sees("window", RECENT);
    let expected = pictures(&Model::open(checkpoint.path(), support::AMPLE).unwrap(), request());
    let budgets = Budgets { device_bytes: quarter(checkpoint.path()), host_bytes: 8 * PAGE_BYTES };
    let open = |directory: &Path, calls: &Arc<AtomicU64>, first, flips| {
        let calls = Arc::clone(calls);
        let disk = Disk::open(directory, DISK_BYTES).unwrap();
        let disk = disk.decorated(|file| Box::new(FailsFrom { file, calls, first, flips }));
        Model::open_with_disk(checkpoint.path(), budgets, disk).unwrap()
    };
    let undisturbed = Arc::new(AtomicU64::new(0));
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(pictures(&open(directory.path(), &undisturbed, u64::MAX, false), request()), expected);
    let n_calls = undisturbed.load(Ordering::Relaxed);
    assert!(n_calls > 100, "the disk is hardly used: {n_calls} calls");
    let mut failed = 0;
    for (first, flips) in (0..12).flat_map(|at| [(at * n_calls / 16, false), (at * n_calls / 16, true)]) {
        let directory = tempfile::tempdir().unwrap();
        let model = open(directory.path(), &Arc::new(AtomicU64::new(0)), first, flips);
        let kept = Kept::default();
        match run(&model, request(), kept.outputs(), &mut Silent) {
            Ok(_) => assert_eq!(kept.take(), expected, "failing from call {first}"),
            Err(error) => {
                failed += 1;
                let text = error.to_string();
                let told = ["cannot be read", "not what was written", "a write to it failed", "is lost"];
                assert!(told.iter().any(|part| text.contains(part)), "{text}");
            }
        }
        model.cache().verify().unwrap();
        let counters = model.counters();
        for tier in Tier::ALL {
            assert_eq!(
                counters.tier(tier).used_bytes,
                counters.shared.bytes[tier],
                "{tier} after call {first}"
            );
        }
        drop(model);
        assert_eq!(files(directory.path()), 0);
    }
    assert!(failed >= 10, "only {failed} runs met a fault");
}

#[test]
fn a_job_cancelled_or_panicking_anywhere_returns_every_byte_of_every_tier_and_leaves_no_file() {
    let checkpoint = causal_checkpoint_that_sees("window", RECENT);
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::open(directory.path(), DISK_BYTES).unwrap();
    let budgets = Budgets { device_bytes: quarter(checkpoint.path()), host_bytes: 8 * PAGE_BYTES };
    let model = Model::open_with_disk(checkpoint.path(), budgets, disk).unwrap();
    let mut n_events = 0_usize;
    run(&model, request(), Kept::default().outputs(), &mut |_: Event<'_>| n_events += 1).unwrap();
    for round in 0..40 {
        let stop_at = round * n_events / 40;
        let mut job =
            JobRun::admit(&model, request(), Kept::default().outputs(), CancelToken::new()).unwrap();
        let id = job.id();
        let panics = round % 2 == 1;
        let seen = Cell::new(0);
        let ended = catch_unwind(AssertUnwindSafe(move || {
            let mut observer = |_: Event<'_>| {
                assert!(!panics || seen.get() < stop_at, "stopped by the test");
                seen.set(seen.get() + 1);
            };
            while (panics || seen.get() < stop_at) && job.advance(&mut observer).unwrap().is_more() {}
            drop(job);
        }));
        assert_eq!(ended.is_err(), panics);
        assert_eq!(model.cache().owned_by(id).bytes.total(), 0, "stopped at event {stop_at}");
        model.cache().verify().unwrap();
        assert_eq!(model.counters().kind(Kind::SelfKv).bytes.total(), 0);
    }
    drop(model);
    assert_eq!(files(directory.path()), 0);
}
