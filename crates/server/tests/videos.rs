//! The service over HTTP on loopback: from asking to the video, and every way in between.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use evanesce_server::Config;
use evanesce_server::config::Limits;
use serde_json::{Value, json};
use support::{Answer, Client, Running, change_store, config, long, small, start};

fn service() -> (Running, Client, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let running = start(config(dir.path()));
    let client = running.client();
    (running, client, dir)
}

fn files_under(dir: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files_under(&path) } else { 1 }).sum()
}

#[test]
fn a_video_is_asked_for_watched_downloaded_listed_and_deleted() {
    let (_running, client, dir) = service();
    let created = client.post("/v1/videos", &small(7));
    assert_eq!(created.status, 200, "{}", created.text());
    assert!(created.header("openai-poll-after-ms").is_some());
    let video = created.json();
    let expected = json!({"object": "video", "model": "checkpoint", "completed_at": null, "prompt": "a red ball",
        "size": "32x32", "seconds": "0.31", "remixed_from_video_id": null, "error": null, "num_frames": 5, "seed": 7,
        "num_inference_steps": 2, "priority": "standard", "quality": "balanced", "degradations": [], "total_steps": 2});
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&video[name], value, "{name}");
    }
    let id = video["id"].as_str().unwrap();
    let done = client.wait(id);
    assert_eq!(
        (&done["status"], &done["progress"], &done["step"]),
        (&json!("completed"), &json!(100), &json!(2))
    );
    assert_eq!(done["memory"]["device"]["owned_bytes"], 0);
    assert!(done["memory"]["device"]["peak_bytes"].as_u64().unwrap() > 0);
    assert!(done["expires_at"].as_i64() > done["completed_at"].as_i64());
    assert_eq!(client.get(&format!("/v1/videos/{id}")).json(), done);

    let path = format!("/v1/videos/{id}/content");
    let content = client.get(&path);
    assert_eq!(content.header("content-type"), Some("video/mp4"));
    assert_eq!(&content.body[4..8], b"ftyp");
    for variant in ["thumbnail", "spritesheet"] {
        let picture = client.get(&format!("{path}?variant={variant}"));
        assert_eq!((picture.status, picture.header("content-type")), (200, Some("image/jpeg")));
        assert_eq!(
            (&picture.body[..2], &picture.body[picture.body.len() - 2..]),
            (&[0xff, 0xd8][..], &[0xff, 0xd9][..])
        );
    }
    assert_eq!(client.get(&format!("{path}?variant=poster")).status, 400);

    let list = client.get("/v1/videos").json();
    assert_eq!(
        (&list["object"], &list["data"], &list["has_more"]),
        (&json!("list"), &json!([done]), &json!(false))
    );
    let deleted = client.delete(&format!("/v1/videos/{id}")).json();
    assert_eq!(deleted, json!({"id": id, "object": "video.deleted", "deleted": true}));
    assert_eq!(client.get(&format!("/v1/videos/{id}")).status, 404);
    assert_eq!(client.get(&path).status, 404);
    assert_eq!(client.delete(&format!("/v1/videos/{id}")).status, 404);
    assert_eq!(files_under(&dir.path().join("videos")) + files_under(&dir.path().join("drafts")), 0);
}

#[test]
fn ranges_and_validators_give_parts_and_nothing_twice() {
    let (_running, client, _dir) = service();
    let id = client.create(&small(1));
    client.wait(&id);
    let path = format!("/v1/videos/{id}/content");
    let whole = client.video(&id);
    let part = |range: &str, more: &[(&str, &str)]| {
        client.send("GET", &path, &[&[("range", range)], more].concat(), b"")
    };
    let middle = part("bytes=10-19", &[]);
    assert_eq!((middle.status, &middle.body[..]), (206, &whole[10..20]));
    assert_eq!(middle.header("content-range"), Some(format!("bytes 10-19/{}", whole.len()).as_str()));
    assert_eq!(part("bytes=-5", &[]).body, whole[whole.len() - 5..]);
    let beyond = part("bytes=999999999-", &[]);
    assert_eq!(
        (beyond.status, beyond.header("content-range").unwrap()),
        (416, format!("bytes */{}", whole.len()).as_str())
    );
    let tag = middle.header("etag").unwrap();
    assert_eq!(part("bytes=0-0", &[("if-range", tag)]).status, 206);
    assert_eq!(part("bytes=0-0", &[("if-range", "\"other\"")]).body, whole);
    let known = client.send("GET", &path, &[("if-none-match", tag)], b"");
    assert_eq!((known.status, known.body.len()), (304, 0));
    let head = client.send("HEAD", &path, &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), Some(whole.len().to_string().as_str()));
}

#[test]
fn the_same_seed_gives_the_same_video_alone_and_among_others() {
    let (_running, client, _dir) = service();
    let alone = client.create(&small(3));
    client.wait(&alone);
    let mut among = small(3);
    among["priority"] = json!("background");
    let crowd: Vec<_> = (10..13).map(|seed| client.create(&small(seed))).collect();
    let among = client.create(&among);
    for id in crowd.iter().chain([&among]) {
        assert_eq!(client.wait(id)["status"], "completed");
    }
    assert_eq!(client.video(&alone), client.video(&among));
    assert_ne!(client.video(&alone), client.video(&crowd[0]));
}

/// Reads events until one says that the job has begun to denoise.
fn until_denoising(client: &Client, id: &str) {
    let mut events = client.events(&format!("/v1/videos/{id}/events"));
    assert!(events.any(|(_, video)| video["phase"] == "denoise"), "{id} never denoised");
}

#[test]
fn a_cancelled_job_stops_where_it_is_and_leaves_nothing() {
    let (_running, client, dir) = service();
    let id = client.create(&long(1));
    until_denoising(&client, &id);
    let path = format!("/v1/videos/{id}");
    assert_eq!(client.get(&format!("{path}/content")).status, 409);
    let cancelled = client.send("POST", &format!("{path}/cancel"), &[], b"");
    assert_eq!((cancelled.status, &cancelled.json()["error"]["code"]), (200, &json!("cancelled")));
    assert_eq!(cancelled.json()["status"], "failed");
    // The next job has the machine to itself, and when it is done nothing of the other is left.
    let next = client.create(&small(1));
    assert_eq!(client.wait(&next)["status"], "completed");
    assert_eq!(files_under(&dir.path().join("drafts")), 0);
    assert_eq!(files_under(&dir.path().join("videos")), 3);
    // Again is no mistake; a finished video has nothing to cancel; nobody is nobody.
    assert_eq!(client.send("POST", &format!("{path}/cancel"), &[], b"").status, 200);
    assert_eq!(client.send("POST", &format!("/v1/videos/{next}/cancel"), &[], b"").status, 409);
    assert_eq!(client.send("POST", "/v1/videos/video_0/cancel", &[], b"").status, 404);
    let memory = first_memory(&client);
    for kind in ["latent", "cross_kv", "vae_feature"] {
        assert_eq!(memory["kinds"]["device"][kind], Value::Null, "{kind}");
    }
}

fn first_memory(client: &Client) -> Value {
    client.events("/v1/events").find(|(name, _)| name == "memory").unwrap().1
}

#[test]
fn a_job_that_is_deleted_under_way_is_gone_with_its_files() {
    let (_running, client, dir) = service();
    let id = client.create(&long(1));
    until_denoising(&client, &id);
    let mut events = client.events(&format!("/v1/videos/{id}/events"));
    assert_eq!(client.delete(&format!("/v1/videos/{id}")).status, 200);
    assert!(events.any(|(name, _)| name == "video.deleted"));
    assert!(events.next().is_none());
    let next = client.create(&small(1));
    client.wait(&next);
    assert_eq!(files_under(&dir.path().join("drafts")), 0);
    assert_eq!(client.get("/v1/videos").json()["data"].as_array().unwrap().len(), 1);
}

#[test]
fn an_interactive_job_passes_a_long_one_that_then_goes_on_where_it_was() {
    let (_running, client, _dir) = service();
    let mut slow = long(2);
    slow["priority"] = json!("background");
    let slow = client.create(&slow);
    until_denoising(&client, &slow);
    let mut quick = small(2);
    quick["priority"] = json!("interactive");
    let quick = client.create(&quick);
    assert_eq!(client.wait(&quick)["status"], "completed");
    let passed = client.get(&format!("/v1/videos/{slow}")).json();
    assert_eq!(passed["status"], "in_progress");
    assert!(passed["step"].as_u64().unwrap() < 200);
    let mut before = 0;
    for (_, video) in client.events(&format!("/v1/videos/{slow}/events")).take(4) {
        assert!(video["step"].as_u64().unwrap() >= before, "{video}");
        before = video["step"].as_u64().unwrap();
    }
    client.delete(&format!("/v1/videos/{slow}"));
}

/// A video of many latent frames and one step: most of its time goes into frames.
fn growing(seed: u64) -> Value {
    json!({"prompt": "a red ball", "size": "128x128", "num_frames": 253, "num_inference_steps": 1, "seed": seed})
}

/// The names of the boxes of an MP4, in order.
fn boxes(mp4: &[u8]) -> Vec<String> {
    let (mut names, mut at) = (Vec::new(), 0);
    while at + 8 <= mp4.len() {
        let length = u32::from_be_bytes(mp4[at..at + 4].try_into().unwrap()) as usize;
        names.push(String::from_utf8_lossy(&mp4[at + 4..at + 8]).into_owned());
        at += length;
    }
    assert_eq!(at, mp4.len(), "a box is cut off after {names:?}");
    names
}

#[test]
fn a_video_is_there_while_it_is_made_whole_and_in_parts() {
    let (_running, client, dir) = service();
    let id = client.create(&growing(1));
    let path = format!("/v1/videos/{id}/content");
    let part = |range: &str| client.send("GET", &path, &[("range", range)], b"");
    let mut events = client.events(&format!("/v1/videos/{id}/events"));
    assert!(events.any(|(_, video)| video["phase"] == "decode"));
    let beginning = std::iter::repeat_with(|| part("bytes=4-7")).find(|answer| answer.status != 409).unwrap();
    assert_eq!((beginning.status, &beginning.body[..]), (206, &b"ftyp"[..]));
    assert_eq!(beginning.header("content-range"), Some("bytes 4-7/*"));
    assert_eq!(client.get(&format!("{path}?variant=thumbnail")).status, 409);
    let beyond = part("bytes=99999999-");
    assert_eq!((beyond.status, &beyond.json()["error"]["code"]), (416, &json!("invalid_range")));
    // From here on it is followed to its end; it was not over when that began.
    assert_eq!(client.get(&format!("/v1/videos/{id}")).json()["status"], "in_progress");
    let followed = client.get(&path);
    assert_eq!((followed.status, followed.header("content-type")), (200, Some("video/mp4")));
    let fragments = boxes(&followed.unchunked());
    assert_eq!(&fragments[..4], ["ftyp", "moov", "moof", "mdat"]);
    // 253 frames in fragments of half a second: 8 frames each, and what is left.
    assert_eq!(fragments.iter().filter(|name| *name == "moof").count(), 32);
    assert_eq!(client.wait(&id)["status"], "completed");
    let finished = client.video(&id);
    assert!(!boxes(&finished).contains(&"moof".to_owned()));
    assert_ne!(client.get(&path).header("etag"), followed.header("etag"));
    assert_eq!(files_under(&dir.path().join("videos")), 3);
    assert_eq!(files_under(&dir.path().join("drafts")), 0);
}

#[test]
fn a_video_that_is_followed_breaks_off_when_its_job_is_cancelled() {
    let (_running, client, _dir) = service();
    let id = client.create(&growing(2));
    let path = format!("/v1/videos/{id}");
    assert!(client.events(&format!("{path}/events")).any(|(_, video)| video["phase"] == "decode"));
    let opened = std::iter::repeat_with(|| client.stream(&format!("{path}/content")))
        .find(|(status, _)| *status != 409);
    let (status, mut stream) = opened.unwrap();
    assert_eq!(status, 200);
    client.send("POST", &format!("{path}/cancel"), &[], b"");
    let mut followed = Vec::new();
    drop(std::io::Read::read_to_end(&mut stream, &mut followed));
    // Something, but without the end that an answer in chunks has.
    assert!(followed.len() > 100 && !followed.ends_with(b"0\r\n\r\n"));
}

#[test]
fn a_restart_makes_the_video_that_an_undisturbed_run_makes() {
    let (running, client, dir) = service();
    let request = long(5);
    let undisturbed = client.create(&request);
    client.wait(&undisturbed);
    let expected = client.video(&undisturbed);
    let disturbed = client.create(&request);
    let waits = client.create(&small(6));
    let mut events = client.events(&format!("/v1/videos/{disturbed}/events"));
    let stopped_at = events.find_map(|(_, video)| video["step"].as_u64().filter(|step| *step >= 20)).unwrap();
    running.stop();
    assert!(dir.path().join("snapshots").join(&disturbed).exists());

    let again = start(config(dir.path()));
    let client = again.client();
    // It goes on where it was.
    let events = client.events(&format!("/v1/videos/{disturbed}/events"));
    let first = events.map(|(_, video)| video).find(|video| video["phase"] != "queued").unwrap();
    assert!(first["step"].as_u64().unwrap() >= stopped_at || first["phase"] == "ended", "{first}");
    assert_eq!(client.wait(&disturbed)["status"], "completed");
    assert_eq!(client.video(&disturbed), expected);
    assert_eq!(client.wait(&waits)["status"], "completed");
    assert_eq!(client.get("/v1/videos").json()["data"].as_array().unwrap().len(), 3);
    assert_eq!(files_under(&dir.path().join("snapshots")) + files_under(&dir.path().join("drafts")), 0);
}

#[test]
fn a_damaged_snapshot_costs_time_and_nothing_else() {
    let (running, client, dir) = service();
    let undisturbed = client.create(&long(5));
    client.wait(&undisturbed);
    let expected = client.video(&undisturbed);
    let disturbed = client.create(&long(5));
    let mut events = client.events(&format!("/v1/videos/{disturbed}/events"));
    assert!(events.any(|(_, video)| video["step"].as_u64() >= Some(20)));
    running.stop();
    let snapshot = dir.path().join("snapshots").join(&disturbed);
    for part in std::fs::read_dir(&snapshot).unwrap() {
        let part = part.unwrap().path();
        let torn = std::fs::read(&part).unwrap();
        std::fs::write(&part, &torn[..torn.len() / 2]).unwrap();
    }
    let again = start(config(dir.path()));
    assert_eq!(again.client().wait(&disturbed)["status"], "completed");
    assert!(again.client().video(&disturbed) == expected);
}

#[test]
fn what_has_expired_is_gone_with_its_files_and_so_are_leftovers() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(Config { retention_hours: 0.0, ..config(dir.path()) });
    let id = running.client().create(&small(1));
    assert_eq!(running.client().wait(&id)["status"], "completed");
    running.stop();
    assert_eq!(files_under(&dir.path().join("videos")), 3);
    // What a process leaves that dies between publishing a video and saying so, or while it makes one.
    let leftovers = ["videos", "snapshots"].map(|name| format!("{name}/video_{}", "0".repeat(32)));
    let leftovers = leftovers.into_iter().chain(["drafts/video_x.1".to_owned()]);
    for leftover in leftovers.map(|name| dir.path().join(name)) {
        std::fs::create_dir_all(&leftover).unwrap();
        std::fs::write(leftover.join("video.mp4"), b"half").unwrap();
    }
    let again = start(config(dir.path()));
    assert_eq!(again.client().get(&format!("/v1/videos/{id}")).status, 404);
    assert_eq!(["videos", "drafts", "snapshots"].map(|name| files_under(&dir.path().join(name))), [0; 3]);
}

fn send_with_key(client: &Client, body: &Value, key: &str) -> Answer {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    client.send("POST", "/v1/videos", &headers, body.to_string().as_bytes())
}

#[test]
fn idempotency_keys_give_one_job_however_often_they_come() {
    let (_running, client, _dir) = service();
    let send = |body: &Value, key: &str| send_with_key(&client, body, key);
    let first = send(&small(1), "k1").json();
    let again = send(&small(1), "k1");
    assert_eq!((again.status, &again.json()["id"]), (200, &first["id"]));
    let other = send(&small(2), "k1");
    assert_eq!((other.status, &other.json()["error"]["code"]), (422, &json!("idempotency_key_reused")));
    assert_ne!(send(&small(1), "k2").json()["id"], first["id"]);
    assert_eq!(send(&small(1), &"k".repeat(256)).status, 400);
    assert_eq!(client.get("/v1/videos").json()["data"].as_array().unwrap().len(), 2);
}

#[test]
fn a_key_gives_its_job_also_from_a_service_that_would_refuse_the_request_by_now() {
    let (running, client, dir) = service();
    let first = send_with_key(&client, &small(1), "k").json();
    let id = first["id"].as_str().unwrap();
    // The client never gets that answer, and the service comes back with a lower limit.
    running.stop();
    let limits = Limits { steps_max: 1, ..Limits::default() };
    let again = start(Config { limits, ..config(dir.path()) });
    let client = again.client();
    let repeated = send_with_key(&client, &small(1), "k");
    assert_eq!((repeated.status, &repeated.json()["id"]), (200, &json!(id)), "{}", repeated.text());
    let other = send_with_key(&client, &small(2), "k");
    assert_eq!((other.status, &other.json()["error"]["code"]), (422, &json!("idempotency_key_reused")));
    // A new request is refused, with a new key or without one.
    for refused in [client.post("/v1/videos", &small(1)), send_with_key(&client, &small(1), "k2")] {
        assert_eq!(
            (refused.status, &refused.json()["error"]["param"]),
            (400, &json!("num_inference_steps")),
            "{}",
            refused.text()
        );
    }
    assert_eq!(client.wait(id)["status"], "completed");
    assert_eq!(client.get("/v1/videos").json()["data"].as_array().unwrap().len(), 1);
}

#[test]
fn forms_say_the_same_as_json() {
    let (_running, client, _dir) = service();
    let form = |fields: &[(&str, &str)]| {
        let parts = fields.iter().map(|(name, value)| {
            format!("--xyz\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        });
        let body = parts.chain(["--xyz--\r\n".to_owned()]).collect::<String>();
        client.send(
            "POST",
            "/v1/videos",
            &[("content-type", "multipart/form-data; boundary=xyz")],
            body.as_bytes(),
        )
    };
    let made = form(&[
        ("prompt", "a red ball"),
        ("size", "32x32"),
        ("num_frames", "5"),
        ("num_inference_steps", "2"),
        ("seed", "9"),
        // A form can write it as text only.
        ("priority", "null"),
    ]);
    assert_eq!(made.status, 200, "{}", made.text());
    let by_json = client.create(&small(9));
    let by_form = made.json()["id"].as_str().unwrap().to_owned();
    client.wait(&by_json);
    client.wait(&by_form);
    assert_eq!(client.video(&by_form), client.video(&by_json));
    assert_eq!(form(&[("prompt", "x"), ("seed", "many")]).json()["error"]["param"], "seed");
    assert_eq!(form(&[("prompt", "x"), ("prompt", "y")]).status, 400);
    assert_eq!(
        form(&[("prompt", "x"), ("input_reference", "...")]).json()["error"]["code"],
        "unsupported_parameter"
    );
}

#[test]
fn lists_come_in_pages_in_both_orders() {
    let (_running, client, _dir) = service();
    let ids: Vec<_> = (0..5).map(|seed| client.create(&small(seed))).collect();
    let page = client.get("/v1/videos?limit=2&order=asc").json();
    assert_eq!(
        (&page["first_id"], &page["last_id"], &page["has_more"]),
        (&json!(ids[0]), &json!(ids[1]), &json!(true))
    );
    let next = client.get(&format!("/v1/videos?limit=100&order=asc&after={}", ids[1])).json();
    assert_eq!((next["data"].as_array().unwrap().len(), &next["has_more"]), (3, &json!(false)));
    assert_eq!(client.get("/v1/videos?limit=1").json()["first_id"], json!(ids[4]));
    for (query, status) in
        [("limit=101", 400), ("limit=-1", 400), ("order=up", 400), ("page=2", 400), ("after=x", 404)]
    {
        assert_eq!(client.get(&format!("/v1/videos?{query}")).status, status, "{query}");
    }
    for id in ids {
        client.wait(&id);
    }
}

#[test]
fn models_health_metrics_page_and_description_are_there() {
    let (running, client, _dir) = service();
    assert_eq!(client.get("/v1/models").json()["data"][0]["id"], "checkpoint");
    assert_eq!((client.get("/healthz").status, client.get("/healthz/live").status), (200, 200));
    let id = client.create(&small(1));
    client.wait(&id);
    let metrics = client.get("/metrics").text();
    for line in [
        "evanesce_jobs_ended_total{class=\"standard\",how=\"completed\"} 1",
        "evanesce_jobs{class=\"standard\",status=\"queued\"} 0",
        "evanesce_job_seconds_count{class=\"standard\"} 1",
        "evanesce_cache_kind_bytes{kind=\"latent\",tier=\"device\"} 0",
        "evanesce_unit_seconds_count{stage=\"denoise\"} 2",
        "evanesce_unit_seconds_count{stage=\"decode\"} 2",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in:\n{metrics}");
    }
    let page = client.get("/");
    assert!(page.text().contains("<title>evanesce</title>"));
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
    for file in ["/page.js", "/style.css", "/icon.svg"] {
        assert_eq!(client.get(file).status, 200, "{file}");
    }
    assert_eq!(client.get("/openapi.json").text(), evanesce_server::openapi_json());
    running.stop();
}

#[test]
fn the_description_is_the_golden_one() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/openapi.json");
    let made = evanesce_server::openapi_json() + "\n";
    let description: Value = serde_json::from_str(&made).unwrap();
    for name in made.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(description["components"]["schemas"][name].is_object(), "there is no schema {name}");
    }
    if std::env::var_os("EVANESCE_WRITE_GOLDENS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    let differs = golden.lines().zip(made.lines()).find(|(golden, made)| golden != made);
    assert!(golden == made, "the description is another one, from {differs:?} on");
}

#[test]
fn a_job_goes_on_while_the_store_cannot_take_that_another_one_begins() {
    let (_running, client, dir) = service();
    let mut slow = long(1);
    slow["num_inference_steps"] = json!(40);
    slow["priority"] = json!("background");
    let slow = client.create(&slow);
    let status = |id: &str| client.get(&format!("/v1/videos/{id}")).json()["status"].clone();
    while status(&slow) == "queued" {
        std::thread::yield_now();
    }
    change_store(
        dir.path(),
        "CREATE TRIGGER no_room BEFORE UPDATE OF status ON jobs WHEN NEW.status = 'in_progress'
         BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END",
    );
    let mut other = small(2);
    other["priority"] = json!("interactive");
    let other = client.create(&other);
    assert_eq!(client.wait(&slow)["status"], "completed");
    assert_eq!(status(&other), "queued");
    change_store(dir.path(), "DROP TRIGGER no_room");
    assert_eq!(client.wait(&other)["status"], "completed");
}
