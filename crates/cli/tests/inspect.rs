//! `evanesce inspect` over a checkpoint, snapshots, and what is neither.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use evanesce_engine::snapshot::{SnapshotDirectory, SnapshotMode};
use evanesce_engine::{Budgets, CancelToken, JobRun, Model, Outputs, Request, RequestedLength, Silent};
use serde_json::Value;
use support::{evanesce, golden_checkpoint};

#[test]
fn it_says_what_is_there_and_refuses_what_is_damaged_or_neither() {
    let inspected = |path: &std::path::Path, flags: &[&str]| {
        let output = evanesce().arg("inspect").arg(path).args(flags).output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.code(), out, err)
    };
    let (code, out, _) = inspected(&golden_checkpoint(), &[]);
    assert!(code == Some(0) && out.lines().any(|line| line.starts_with("low_noise")), "{out}");
    // What it stores in f32 takes about half of that where it is held in bf16; the VAE and the text encoder never are.
    let (_, out, _) = inspected(&golden_checkpoint(), &["--json"]);
    let json: Value = serde_json::from_str(&out).unwrap();
    for part in json["checkpoint"].as_array().unwrap() {
        let [bytes, held] = ["bytes", "bf16_bytes"].map(|name| part[name].as_u64().unwrap());
        let is_expert = part["name"].as_str().unwrap().ends_with("_noise");
        assert!(if is_expert { held < bytes && bytes <= 2 * held } else { held == bytes }, "{part}");
    }

    let dir = tempfile::tempdir().unwrap();
    let model = Model::open(&golden_checkpoint(), Budgets { device_bytes: 1 << 30, host_bytes: 0 }).unwrap();
    let request = Request {
        size: Some((32, 32)),
        length: Some(RequestedLength::Frames(5)),
        steps: Some(3),
        ..Request::new("a red ball", 1)
    };
    let outputs = Outputs::mp4(dir.path().join("out.mp4"));
    let mut job = JobRun::admit(&model, request, outputs, CancelToken::new()).unwrap();
    let store = SnapshotDirectory::new(dir.path().join("snapshots/job"));
    while job.position().steps < 2 {
        assert!(job.advance(&mut Silent).unwrap().is_more());
    }
    let taken = job.snapshot(&store, SnapshotMode::Full).unwrap().unwrap();
    drop(job);
    let (code, out, err) = inspected(&dir.path().join("snapshots"), &["--json"]);
    assert_eq!(code, Some(0), "{err}");
    let json: Value = serde_json::from_str(&out).unwrap();
    let snapshot = &json["snapshots"][0];
    assert_eq!((&snapshot["name"], snapshot["held_bytes"].as_u64()), (&"job".into(), Some(taken.held_bytes)));
    assert!(snapshot["kinds"]["latent"]["entries"].as_u64() >= Some(3));
    assert_eq!(snapshot["next"], "denoising step 3 of block 1");
    assert!(inspected(store.path(), &[]).1.contains("every checksum matches"));

    support::copy_tree(store.path(), &dir.path().join("snapshots/whole"));
    let part = std::fs::read_dir(store.path()).unwrap().map(|entry| entry.unwrap().path());
    let part = part.into_iter().find(|path| !path.ends_with("manifest")).unwrap();
    std::fs::write(&part, b"").unwrap();
    let (code, _, err) = inspected(store.path(), &[]);
    assert!(
        code == Some(2) && err.contains("damaged") && err.trim_end().lines().count() == 1,
        "{code:?} {err}"
    );
    // All are looked at and told, and the exit code says that not all is well.
    let (code, out, err) = inspected(&dir.path().join("snapshots"), &["--json"]);
    let json: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{code:?} {out} {err}"));
    let verified = |at: usize| (&json["snapshots"][at]["name"], &json["snapshots"][at]["verified"]);
    assert_eq!(
        (code, verified(0), verified(1)),
        (Some(2), (&"job".into(), &false.into()), (&"whole".into(), &true.into()))
    );
    assert!(
        err.contains("snapshot job") && inspected(&dir.path().join("snapshots"), &[]).1.contains("job: ")
    );
    // Directories of the cache.
    let shelf = dir.path().join("embeddings");
    let model = model.keep_embeddings(&shelf, 1 << 20).unwrap();
    let again = Request {
        size: Some((32, 32)),
        length: Some(RequestedLength::Frames(5)),
        ..Request::new("a blue cube", 1)
    };
    let mut job =
        JobRun::admit(&model, again, Outputs::mp4(dir.path().join("2.mp4")), CancelToken::new()).unwrap();
    assert!(job.advance(&mut Silent).unwrap().is_more());
    drop(job);
    let (code, out, err) = inspected(&shelf, &["--json"]);
    let json: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{code:?} {out} {err}"));
    assert!(json["embeddings"]["whole"].as_u64() >= Some(1) && json["embeddings"]["damaged"] == 0, "{json}");
    let one = std::fs::read_dir(&shelf).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&one).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&one, bytes).unwrap();
    let (code, out, err) = inspected(&shelf, &["--json"]);
    let json: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{code:?} {out} {err}"));
    assert_eq!((code, &json["embeddings"]["damaged"]), (Some(2), &1.into()), "{err}");
    let tier = dir.path().join("tier");
    std::fs::create_dir(&tier).unwrap();
    let disk = evanesce_engine::Disk::open(&tier, 1 << 20).unwrap();
    let (code, out, _) = inspected(&tier, &[]);
    assert!(code == Some(0) && out.starts_with("disk tier: 1 file of 1048576 bytes, 0 records"), "{out}");
    drop(disk);
    assert_eq!(inspected(&dir.path().join("nowhere"), &[]).0, Some(2));
    assert_eq!(inspected(dir.path(), &[]).0, Some(2));
}

#[test]
fn what_a_service_has_is_known_where_there_is_nothing_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let inspected = |name: &str, flags: &[&str]| {
        let output = evanesce().arg("inspect").arg(dir.path().join(name)).args(flags).output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.code(), out, err)
    };
    let json = |name: &str| -> Value {
        let (code, out, err) = inspected(name, &["--json"]);
        assert_eq!(code, Some(0), "{err}");
        serde_json::from_str(&out).unwrap()
    };
    for name in ["snapshots", "embeddings", "other"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    assert_eq!(json("snapshots"), serde_json::json!({"snapshots": []}));
    assert!(inspected("snapshots", &[]).1.starts_with("no snapshots"));
    assert_eq!(json("embeddings")["embeddings"]["whole"], 0);
    let (code, _, err) = inspected("other", &[]);
    assert!(code == Some(2) && err.contains("the directory is empty, expected a Wan2.2 checkpoint"), "{err}");
    // A job whose first snapshot is being written.
    std::fs::write(dir.path().join("jobs.sqlite"), "").unwrap();
    std::fs::create_dir(dir.path().join("snapshots/video_1")).unwrap();
    assert_eq!(json("snapshots"), serde_json::json!({"snapshots": []}));
    let (code, _, err) = inspected("", &[]);
    assert!(code == Some(2) && err.contains("data directory of a service; inspect the directory"), "{err}");
}
