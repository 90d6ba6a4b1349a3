//! `evanesce serve` as a user runs it, and as a power cut ends it.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

#[path = "../../server/tests/support/client.rs"]
#[expect(dead_code, reason = "the service's own tests use all of it")]
mod client;
mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use client::Client;
use serde_json::{Value, json};
use support::{evanesce, golden_checkpoint};

/// A service in a process of its own; dropped, it is killed.
struct Serving {
    child: Child,
    client: Client,
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Serving {
    fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(signal).arg(self.child.id().to_string()).status().unwrap();
        assert!(status.success());
    }
}

/// The program, run by a shell after some command of its own.
fn evanesce_after(shell: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{shell}; exec \"$0\" \"$@\"")).arg(evanesce().get_program());
    command
}

fn serve(data: &Path) -> Serving {
    serve_over(&golden_checkpoint(), data)
}

fn serve_over(model: &Path, data: &Path) -> Serving {
    serve_with(model, data, &[])
}

fn serve_with(model: &Path, data: &Path, more: &[&str]) -> Serving {
    serve_by(evanesce(), model, data, more)
}

/// A service that keeps jobs on disk after every third unit, whatever that costs.
fn serve_by(mut command: Command, model: &Path, data: &Path, more: &[&str]) -> Serving {
    let config = data.join("evanesce.toml");
    let text = "[snapshots]\nevery_units = 3\nshare_max = 1.0\n";
    std::fs::write(&config, text).unwrap();
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--threads", "2", "--device-memory", "1GiB", "--config"])
        .arg(config)
        .arg("--data")
        .arg(data);
    let mut child = command.arg("--model").arg(model).args(more).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(|line| line.unwrap());
    let address =
        lines.find_map(|line| line.strip_prefix("listening on http://").map(|at| at.parse().unwrap()));
    // The log must keep flowing, or the service would wait for its reader.
    std::thread::spawn(move || lines.for_each(drop));
    Serving { child, client: Client::new(address.unwrap()) }
}

fn request(seed: u64, steps: usize, priority: &str) -> Value {
    json!({"prompt": "a red ball", "size": "64x64", "num_frames": 41, "num_inference_steps": steps, "seed": seed,
        "priority": priority})
}

fn jobs() -> Vec<Value> {
    let classes = ["background", "standard", "interactive"];
    (0..6)
        .map(|seed| {
            request(
                seed,
                20 + 10 * usize::try_from(seed).unwrap(),
                classes[usize::try_from(seed % 3).unwrap()],
            )
        })
        .collect()
}

/// Kills the process at moments that events decide, starts it again each time, and compares with what nobody disturbed.
#[test]
fn kill_9_loses_no_job_doubles_none_and_changes_no_bit() {
    let expected = undisturbed(&golden_checkpoint());
    let dir = tempfile::tempdir().unwrap();
    let mut serving = serve(dir.path());
    let ids: Vec<_> = jobs().iter().map(|job| serving.client.create(job)).collect();
    let mut state = 99_u64;
    let mut n_under_way = 0;
    for _ in 0..8 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let n_events = usize::try_from(state >> 33).unwrap() % 12;
        // Listening begins before looking, so no end is missed.
        let events = serving.client.events("/v1/events").filter(|(name, _)| name == "video");
        let listed = serving.client.get("/v1/videos").json();
        let is_open = |video: &Value| video["status"] != "completed";
        let id = |video: &Value| video["id"].as_str().unwrap().to_owned();
        let mut open: BTreeSet<_> =
            listed["data"].as_array().unwrap().iter().filter(|v| is_open(v)).map(id).collect();
        n_under_way += usize::from(!open.is_empty());
        let mut events = events.take(n_events);
        while !open.is_empty() {
            let Some((_, video)) = events.next() else { break };
            if !is_open(&video) {
                open.remove(&id(&video));
            }
        }
        serving.child.kill().unwrap();
        serving.child.wait().unwrap();
        serving = serve(dir.path());
    }
    assert!(n_under_way >= 2, "the jobs were done before they could be disturbed");
    assert_as_expected(&serving.client, &ids, &expected);
    assert_eq!(all_listed(&serving.client), ids);
    // Nothing is left but six videos: no draft, no orphan.
    let names = |inner: &str| support::names_in(&dir.path().join(inner));
    assert_eq!((names("videos").len(), names("drafts").len()), (6, 0));
}

/// The golden checkpoint, made causal.
fn causal_checkpoint() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    support::copy_tree(&golden_checkpoint(), dir.path());
    let path = dir.path().join("model_index.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let causal = json!({"block_frames": 3, "sink_frames": 2, "recent_frames": 4, "positions": "window"});
    index["evanesce"] = json!({ "causal": causal });
    std::fs::write(path, index.to_string()).unwrap();
    dir
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Lets a random time pass: power is not cut at events.
#[expect(clippy::disallowed_methods, reason = "the moment is to be any, not that of an event")]
fn some_moment_within(ms: u64, dice: &mut Dice) {
    std::thread::sleep(std::time::Duration::from_millis(dice.roll(ms)));
}

/// Cuts a file of some snapshot short, or turns a bit in it: what a disk may do to the last write before the power went. Mostly the
/// file that was written last, now and then any.
fn tear_a_snapshot(data: &Path, dice: &mut Dice) -> bool {
    let jobs: Vec<_> = std::fs::read_dir(data.join("snapshots")).into_iter().flatten().flatten().collect();
    let parts = jobs.iter().flat_map(|job| std::fs::read_dir(job.path()).into_iter().flatten().flatten());
    let mut parts: Vec<_> =
        parts.map(|part| (part.metadata().unwrap().modified().unwrap(), part.path())).collect();
    parts.sort();
    let Some((_, last)) = parts.last() else { return false };
    let any = &parts[usize::try_from(dice.roll(parts.len() as u64)).unwrap()].1;
    let part = if dice.roll(3) == 0 { any } else { last };
    let mut bytes = std::fs::read(part).unwrap();
    let at = usize::try_from(dice.roll(bytes.len().max(1) as u64)).unwrap();
    if dice.roll(2) == 0 || bytes.is_empty() {
        bytes.truncate(at);
    } else {
        bytes[at] ^= 1;
    }
    std::fs::write(part, bytes).unwrap();
    true
}

/// Leaves half a frame behind the job store's log, as a write does that was under way and of which nobody was told that it had been
/// done. What was told is on disk, and no disk that loses that can be helped.
fn tear_the_log(data: &Path, dice: &mut Dice) -> bool {
    const HEAD_BYTES: usize = 32;
    const FRAME_BYTES: usize = 24 + 4096;
    let path = data.join("jobs.sqlite-wal");
    let mut log = std::fs::read(&path).unwrap_or_default();
    if log.len() < HEAD_BYTES + FRAME_BYTES {
        return false;
    }
    // It begins as the last one does, and ends anywhere.
    let last = log[log.len() - FRAME_BYTES..].to_vec();
    let torn_bytes = 1 + usize::try_from(dice.roll(FRAME_BYTES as u64)).unwrap();
    let at = log.len() + usize::try_from(dice.roll(torn_bytes as u64)).unwrap();
    log.extend(&last[..torn_bytes]);
    log[at] ^= 0x55;
    std::fs::write(&path, log).unwrap();
    true
}

/// What is in the data directory when nothing is under way: the store, and three files for each video.
fn assert_no_orphan(data: &Path, ids: &[String]) {
    let mut videos = ids.to_vec();
    videos.sort();
    assert_eq!(support::names_in(&data.join("videos")), videos);
    for id in ids {
        let names = support::names_in(&data.join("videos").join(id));
        assert_eq!(names, ["spritesheet.jpg", "thumbnail.jpg", "video.mp4"]);
    }
    for emptied in ["drafts", "snapshots"] {
        let there = data.join(emptied);
        assert!(!there.exists() || support::names_in(&there).is_empty(), "{emptied}");
    }
}

/// What happened in a campaign.
#[derive(Debug, Default)]
struct Happened {
    kills: usize,
    under_way: usize,
    snapshots_torn: usize,
    logs_torn: usize,
    disk_full: usize,
}

/// Videos of [`jobs`] that nobody disturbs.
fn undisturbed(model: &Path) -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let serving = serve_over(model, dir.path());
    let made = |job: &Value| {
        let id = serving.client.create(job);
        assert_eq!(serving.client.wait(&id)["status"], "completed");
        serving.client.video(&id)
    };
    jobs().iter().map(made).collect()
}

/// Takes all space that there is.
fn fill(disk: &Path) -> std::path::PathBuf {
    let ballast = disk.join("ballast");
    let to = format!("of={}", ballast.display());
    let filled = Command::new("dd").args(["if=/dev/zero", "bs=64k", &to]).output().unwrap();
    assert!(!filled.status.success(), "the disk is not full");
    ballast
}

/// Kills at random moments until it was done so often, tearing what was written last now and then, and with `is_small_disk` also while
/// there is no space left. No job is lost or doubled, no video differs, nothing is left behind.
fn kill_campaign(
    model: &Path,
    data: &Path,
    is_small_disk: bool,
    n_kills: usize,
    dice: &mut Dice,
) -> Happened {
    let expected = undisturbed(model);
    let mut serving = serve_over(model, data);
    let (mut ids, mut all): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let mut happened = Happened::default();
    while happened.kills < n_kills {
        if ids.is_empty() {
            ids = jobs().iter().map(|job| serving.client.create(job)).collect();
            all.extend(ids.clone());
        }
        some_moment_within(400, dice);
        let is_open =
            |id: &String| serving.client.get(&format!("/v1/videos/{id}")).json()["status"] != "completed";
        let any_open = ids.iter().any(is_open);
        happened.under_way += usize::from(any_open);
        let ballast = (is_small_disk && any_open && dice.roll(2) == 0).then(|| {
            happened.disk_full += 1;
            let ballast = fill(data);
            some_moment_within(300, dice);
            ballast
        });
        serving.child.kill().unwrap();
        serving.child.wait().unwrap();
        happened.kills += 1;
        ballast.into_iter().for_each(|ballast| std::fs::remove_file(ballast).unwrap());
        if dice.roll(4) == 0 {
            happened.snapshots_torn += usize::from(tear_a_snapshot(data, dice));
        }
        if dice.roll(4) == 0 {
            happened.logs_torn += usize::from(tear_the_log(data, dice));
        }
        serving = serve_over(model, data);
        if !any_open {
            assert_as_expected(&serving.client, &ids, &expected);
            ids.clear();
        }
    }
    assert_as_expected(&serving.client, &ids, &expected);
    assert_eq!(all_listed(&serving.client), all, "none is lost and none is doubled");
    drop(serving);
    assert_no_orphan(data, &all);
    happened
}

fn assert_as_expected(client: &Client, ids: &[String], expected: &[Vec<u8>]) {
    for (id, expected) in ids.iter().zip(expected) {
        let ended = client.wait(id);
        assert_eq!(ended["status"], "completed", "{ended}");
        assert!(client.video(id) == *expected, "{id} differs from its undisturbed run");
    }
}

/// All videos, oldest first, page by page.
fn all_listed(client: &Client) -> Vec<String> {
    let mut listed = Vec::new();
    loop {
        let after = listed.last().map_or(String::new(), |id| format!("&after={id}"));
        let page = client.get(&format!("/v1/videos?order=asc&limit=100{after}")).json();
        let names =
            page["data"].as_array().unwrap().iter().map(|video| video["id"].as_str().unwrap().to_owned());
        listed.extend(names);
        if page["has_more"] == false {
            return listed;
        }
    }
}

#[test]
#[ignore = "two hundred kills take minutes"]
fn two_hundred_kills_at_random_moments_lose_nothing_and_change_no_bit() {
    let causal = causal_checkpoint();
    let mut dice = Dice(2026);
    for (what, model) in [("at once", golden_checkpoint()), ("block by block", causal.path().to_path_buf())] {
        let dir = tempfile::tempdir().unwrap();
        let happened = kill_campaign(&model, dir.path(), false, 100, &mut dice);
        println!("{what}: {happened:?}");
        assert!(happened.under_way >= 50);
    }
}

/// A file system of its own in memory; gone when dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(path: &Path, size: &str) -> Self {
        std::fs::create_dir_all(path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(path)
            .status();
        assert!(
            mounted.is_ok_and(|status| status.success()),
            "this test needs to be allowed to mount a tmpfs"
        );
        Self(path.to_path_buf())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[test]
#[ignore = "mounts a file system, which takes rights, and takes minutes"]
fn a_full_disk_and_kills_on_it_lose_nothing() {
    let causal = causal_checkpoint();
    let mut dice = Dice(5);
    for (what, model) in [("at once", golden_checkpoint()), ("block by block", causal.path().to_path_buf())] {
        let dir = tempfile::tempdir().unwrap();
        // Room for all videos that a quick machine makes meanwhile: full it is only while the ballast is there.
        let mounted = Mounted::new(&dir.path().join("data"), "96m");
        let happened = kill_campaign(&model, &mounted.0, true, 100, &mut dice);
        println!("{what}, on a disk that fills up: {happened:?}");
        assert!(happened.disk_full >= 10);
    }
}

#[test]
#[ignore = "mounts a file system, which takes rights"]
fn a_job_that_waits_for_space_is_made_however_often_the_service_is_killed_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Mounted::new(&dir.path().join("data"), "64m,nr_inodes=64");
    let data = &mounted.0;
    let mut serving = serve(data);
    // No file can be made, but the job store, whose files are there, can go on writing.
    let ballast: Vec<_> = (0..64).map(|n| data.join(format!("ballast-{n}"))).collect();
    let n_made = ballast.iter().take_while(|path| std::fs::write(path, "").is_ok()).count();
    assert!(n_made < ballast.len(), "the disk is not full");
    let id = serving.client.create(&request(1, 2, "standard"));
    // More starts than a job gets whose starts have no end.
    for _ in 0..25 {
        let waits = || {
            let line = "evanesce_job_moves_total{how=\"put_off\"} ";
            let metrics = serving.client.get("/metrics").text();
            metrics.lines().find_map(|found| found.strip_prefix(line)).is_some_and(|n| n != "0")
        };
        let seen = || serving.client.get(&format!("/v1/videos/{id}")).json();
        while !waits() {
            let seen = seen();
            assert_ne!(seen["status"], "failed", "{seen}");
            some_moment_within(20, &mut Dice(1));
        }
        let waiting = seen();
        assert_eq!(
            (&waiting["status"], &waiting["queue_position"]),
            (&json!("queued"), &json!(1)),
            "{waiting}"
        );
        serving.child.kill().unwrap();
        serving.child.wait().unwrap();
        serving = serve(data);
    }
    ballast.iter().take(n_made).for_each(|path| std::fs::remove_file(path).unwrap());
    assert_eq!(serving.client.wait(&id)["status"], "completed");
}

#[test]
fn kills_at_random_moments_lose_nothing_block_by_block() {
    let causal = causal_checkpoint();
    let dir = tempfile::tempdir().unwrap();
    kill_campaign(causal.path(), dir.path(), false, 4, &mut Dice(7));
}

/// Sends a signal in the middle of a job.
fn end_in_good_order(signal: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut serving = serve(dir.path());
    let id = serving.client.create(&request(1, 200, "standard"));
    let mut events = serving.client.events(&format!("/v1/videos/{id}/events"));
    assert!(events.any(|(_, video)| video["phase"] == "denoise"));
    serving.signal(signal);
    assert_eq!(serving.child.wait().unwrap().code(), Some(0), "{signal}");
    assert_eq!(support::names_in(&dir.path().join("drafts")), [""; 0]);
    let again = serve(dir.path());
    assert_eq!(again.client.wait(&id)["status"], "completed");
}

#[test]
fn termination_ends_the_service_in_good_order_and_the_job_goes_on_later() {
    end_in_good_order("-TERM");
}

#[test]
#[cfg(target_os = "linux")]
fn a_hangup_ends_the_service_in_good_order_and_the_job_goes_on_later() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    if u64::from_str_radix(ignored, 16).unwrap() & 1 == 1 {
        eprintln!("hangups are ignored here and by every program that is started here, so none is sent");
        return;
    }
    end_in_good_order("-HUP");
}

#[test]
fn a_service_that_was_started_to_ignore_hangups_lives_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut serving = serve_by(evanesce_after("trap '' HUP"), &golden_checkpoint(), dir.path(), &[]);
    serving.signal("-HUP");
    let id = serving.client.create(&request(1, 2, "standard"));
    assert_eq!(serving.client.wait(&id)["status"], "completed");
    serving.signal("-TERM");
    assert_eq!(serving.child.wait().unwrap().code(), Some(0));
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_that_may_not_grow_is_an_error_and_ends_nothing_on_the_spot() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = evanesce_after("ulimit -f 0");
    command.args(["serve", "--listen", "127.0.0.1:0", "--device-memory", "1GiB", "--data"]).arg(dir.path());
    let output = command.arg("--model").arg(golden_checkpoint()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.trim_end().lines().next_back().unwrap().starts_with("error: "), "{stderr}");
}

#[test]
fn a_disk_tier_is_one_file_that_ends_with_the_service_and_what_a_kill_leaves_goes_at_the_next_start() {
    let (data, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk = format!("{}:1MiB", cache.path().display());
    let start = || serve_with(&golden_checkpoint(), data.path(), &["--disk-cache", &disk]);
    let mut killed = start();
    let names = support::names_in(cache.path());
    assert_eq!(names.len(), 1);
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    assert_eq!(support::names_in(cache.path()), names);
    let mut serving = start();
    let left = support::names_in(cache.path());
    assert!(left.len() == 1 && left != names, "{left:?}");
    let status = Command::new("kill").arg("-TERM").arg(serving.child.id().to_string()).status().unwrap();
    assert!(status.success());
    assert_eq!(serving.child.wait().unwrap().code(), Some(0));
    assert_eq!(support::names_in(cache.path()), [""; 0]);
}

#[test]
fn the_printed_configuration_starts_a_service_and_mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let printed = evanesce().args(["serve", "--print-config"]).output().unwrap();
    assert!(printed.status.success());
    let file = dir.path().join("evanesce.toml");
    let refused = |text: &str, flags: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let mut command = evanesce();
        let output = command
            .current_dir(dir.path())
            .args(["serve", "--config"])
            .arg(&file)
            .args(flags)
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), stderr.trim_end().lines().count()), (Some(2), 1), "{stderr}");
        stderr
    };
    let text = String::from_utf8(printed.stdout).unwrap();
    assert!(refused(&text, &["--model", "nowhere"]).contains("nowhere"));
    assert!(refused(&text.replace("jobs_max", "job_max"), &[]).contains("queue.jobs_max"));
    let by_flag = refused(&text, &["--listen", "0.0.0.0:8080"]);
    assert!(by_flag.starts_with("error: --listen: 0.0.0.0:8080 ") && by_flag.contains("needs keys"));
    let wrong = refused("retention_hours = -1.0\n", &["--listen", "127.0.0.1:0"]);
    assert!(wrong.contains("evanesce.toml: retention_hours is -1"), "{wrong}");
    // What a flag says otherwise does not count.
    let open = text.replace("127.0.0.1:8080", "0.0.0.0:8080");
    assert!(refused(&open, &["--listen", "127.0.0.1:0", "--model", "nowhere"]).contains("nowhere"));
    assert!(refused(&open, &[]).contains("evanesce.toml: 0.0.0.0:8080 can be reached by others"));
    assert!(refused(&text, &["--device-memory", "lots"]).contains("--device-memory"));
    let lots = "host_memory = \"lots\"\n";
    assert!(refused(lots, &[]).contains("evanesce.toml: host_memory is \"lots\"; write a size as 8GiB"));
    assert!(refused(lots, &["--host-memory", "1GiB", "--model", "nowhere"]).contains("nowhere"));
    assert!(refused(&text, &["--disk-cache", "lots"]).contains("such as /fast/ssd:64GiB"));
    assert!(
        refused(&text, &["--disk-cache", "nowhere:1MiB"]).contains("--disk-cache cannot be used: nowhere")
    );
    // A path of the file is one from the file on.
    let named = text.replace("# disk_cache = \"/fast/ssd:64GiB\"", "disk_cache = \"missing:1MiB\"");
    let beside = dir.path().join("missing");
    assert!(
        refused(&named, &[])
            .contains(&format!("evanesce.toml: disk_cache cannot be used: {}", beside.display()))
    );
    // So are codecs, and what is wrong with them is said before anything is opened.
    let codec = |name: &str| refused(&format!("[pages]\ncodec = \"{name}\"\n"), &["--model", "nowhere"]);
    assert!(codec("int3").contains("evanesce.toml: [pages]: \"int3\" is no codec"));
    let beside = dir.path().join("codecs.json");
    assert!(codec("codecs.json").contains(&format!("evanesce.toml: [pages]: {}: ", beside.display())));
    std::fs::write(&beside, "{}").unwrap();
    assert!(codec("codecs.json").contains("lacks \"base\""));
    let key = evanesce().args(["serve", "--new-key", "alice"]).output().unwrap();
    let section = String::from_utf8(key.stdout).unwrap();
    assert!(refused(&section, &["--listen", "0.0.0.0:0", "--model", "nowhere"]).contains("nowhere"));
}
