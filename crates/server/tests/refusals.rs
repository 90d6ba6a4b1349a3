//! Everything that is refused gets one clear sentence and the right status, and changes nothing.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use evanesce_engine::{Budgets, JobSpec, Model, Request, RequestedLength};
use evanesce_server::Config;
use evanesce_server::config::{ClassConfig, ClassesConfig, KeyConfig, Limits, QueueConfig};
use evanesce_server::job::Class;
use serde_json::{Value, json};
use support::{AMPLE, Answer, checkpoint, config, long, small, start, start_with};

fn assert_refused(answer: &Answer, status: u16, code: &str, says: &str) {
    let shown = answer.text();
    assert_eq!(answer.status, status, "{shown}");
    let error = &answer.json()["error"];
    assert_eq!(error["code"], code, "{shown}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(says) && !message.contains('\n'), "expected {says:?} in {message:?}");
    assert!(error["type"].is_string() && error.as_object().unwrap().contains_key("param"), "{shown}");
    let bare = message.replace("/openapi.json", "");
    assert!(!bare.contains("/tmp") && !bare.contains("crates/"), "a path in {message:?}");
}

/// The golden request with one field changed; null takes it out.
fn with(name: &str, value: Value) -> Value {
    let mut request = small(1);
    request[name] = value;
    request
}

#[test]
fn bad_fields_are_named_with_what_would_be_right() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(config(dir.path()));
    let client = running.client();
    let rows = [
        ("prompt", Value::Null, "missing_parameter", "prompt is missing"),
        ("prompt", json!("  "), "invalid_value", "prompt is empty"),
        ("prompt", json!(7), "invalid_value", "prompt is text"),
        ("prompt", json!("x".repeat(100_000)), "invalid_value", "at most 10000"),
        ("prompt", json!("a\u{0}b"), "invalid_value", "control characters"),
        ("negative_prompt", json!("a\u{1b}[0m"), "invalid_value", "control characters"),
        ("model", json!("sora-2"), "model_not_found", "checkpoint"),
        ("size", json!("big"), "invalid_value", "832x480"),
        ("size", json!("33x32"), "invalid_value", "multiples of 16"),
        ("size", json!("0x32"), "invalid_value", ""),
        ("size", json!("99999x99999"), "invalid_value", "pixels"),
        ("size", json!("4096x16"), "invalid_value", "from 16 to 1024"),
        ("num_frames", json!(6), "invalid_value", "5"),
        ("num_frames", json!(0), "invalid_value", "frames"),
        ("num_frames", json!(-1), "invalid_value", "whole number from 1 on"),
        ("num_frames", json!("5"), "invalid_value", "whole number from 1 on"),
        ("num_frames", json!(99_999_999), "invalid_value", "frames"),
        ("seconds", json!("4"), "invalid_value", "give one of them"),
        ("fps", json!(0), "invalid_value", "between 1 and 240"),
        ("fps", json!(1e9), "invalid_value", "whole number from 1 to 240"),
        ("fps", json!(5_000_000_000_u64), "invalid_value", "whole number from 1 to 240"),
        ("seed", json!(-1), "invalid_value", "whole number from 0 to 18446744073709551615"),
        ("seed", json!(1.5), "invalid_value", "whole number"),
        ("num_inference_steps", json!(0), "invalid_value", "between 1 and 200"),
        ("num_inference_steps", json!(201), "invalid_value", "between 1 and 200"),
        ("guidance_scale", json!("high"), "invalid_value", "is a number"),
        ("guidance_scale_2", json!(-1), "invalid_value", "between 0 and 100"),
        ("boundary_ratio", json!(1.5), "invalid_value", "between 0 and 1"),
        ("flow_shift", json!(0), "invalid_value", "between 0.01"),
        ("priority", json!("urgent"), "invalid_value", "interactive, standard or background"),
        ("quality", json!("best"), "invalid_value", "exact, balanced or draft"),
        ("deadline_s", json!(-5), "invalid_value", "between 0"),
        ("num_steps", json!(5), "unknown_parameter", "nearest is num_frames"),
        ("sede", json!(5), "unknown_parameter", "nearest is seed"),
        ("n", json!(2), "unsupported_parameter", "one video"),
        ("input_reference", json!({"file_id": "f"}), "unsupported_parameter", "from text only"),
    ];
    for (name, value, code, says) in rows {
        let answer = client.post("/v1/videos", &with(name, value.clone()));
        assert_refused(&answer, 400, code, says);
        // Of two that exclude each other, the one that may go is named.
        if !says.contains("give one") {
            assert_eq!(answer.json()["error"]["param"], name, "{value}");
        }
    }
    let mut request = small(1);
    request.as_object_mut().unwrap().remove("num_frames");
    for seconds in [json!("long"), json!("-1"), json!("nan"), json!("1e99"), json!("")] {
        request["seconds"] = seconds;
        let answer = client.post("/v1/videos", &request);
        assert_refused(&answer, 400, "invalid_value", "seconds");
    }
    assert_eq!(client.get("/v1/videos").json()["data"], json!([]));
}

#[test]
fn a_size_that_the_model_can_make_and_no_video_can_have_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let running = support::start_over(support::shipped(), config(dir.path()), AMPLE).unwrap();
    for size in ["4096x16", "16x4096", "3856x16"] {
        let answer = running.client().post("/v1/videos", &with("size", json!(size)));
        assert_refused(&answer, 400, "invalid_value", "up to 3840x2160");
        assert_eq!(answer.json()["error"]["param"], "size");
    }
}

#[test]
fn bad_bodies_paths_and_methods_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { client_seconds_max: 0.5, body_bytes_max: 20_000, ..Limits::default() };
    let running = start(Config { limits, ..config(dir.path()) });
    let client = running.client();
    let json_type = ("content-type", "application/json");
    let post = |kind: (&str, &str), body: &[u8]| client.send("POST", "/v1/videos", &[kind], body);
    assert_refused(&post(json_type, b"{\"prompt\": "), 400, "invalid_body", "not JSON");
    assert_refused(&post(json_type, b"[1]"), 400, "invalid_body", "not an object");
    assert_refused(&post(json_type, b"\xff\xfe"), 400, "invalid_body", "not JSON");
    let doubled = b"{\"prompt\": \"x\", \"seed\": 1, \"seed\": 2}";
    assert_refused(&post(json_type, doubled), 400, "invalid_body", "\"seed\" twice");
    assert_refused(&post(json_type, "[".repeat(10_000).as_bytes()), 400, "invalid_body", "not JSON");
    assert_refused(
        &post(("content-type", "text/plain"), b"x"),
        415,
        "unsupported_media_type",
        "application/json",
    );
    let packed = |coding: &str, body: &[u8]| {
        client.send("POST", "/v1/videos", &[json_type, ("content-encoding", coding)], body)
    };
    for coding in ["gzip", "identity, br", "X-Gzip"] {
        assert_refused(&packed(coding, b"\x1f\x8b"), 415, "unsupported_media_type", "send it as it is");
    }
    assert_refused(&packed("Identity", b"[1]"), 400, "invalid_body", "not an object");
    assert_refused(&post(("content-type", "multipart/form-data"), b"x"), 400, "invalid_body", "form");
    let cut_off = b"--b\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\nx";
    assert_refused(
        &post(("content-type", "multipart/form-data; boundary=b"), cut_off),
        400,
        "invalid_body",
        "form",
    );
    let huge = json!({"prompt": "x".repeat(30_000)}).to_string();
    assert_refused(&post(json_type, huge.as_bytes()), 413, "body_too_large", "20000");
    for id in [
        "x",
        "..",
        "..%2f..%2fjobs.sqlite",
        "video_",
        "video_%00",
        "%ff%00",
        "VIDEO_00000000000000000000000000000000",
    ] {
        for path in ["", "/content", "/events"] {
            assert_refused(&client.get(&format!("/v1/videos/{id}{path}")), 404, "not_found", "");
        }
        assert_refused(&client.delete(&format!("/v1/videos/{id}")), 404, "not_found", "");
        let cancel = format!("/v1/videos/{id}/cancel");
        assert_refused(&client.send("POST", &cancel, &[], b""), 404, "not_found", "");
    }
    assert_refused(&client.get("/v1/nothing"), 404, "not_found", "openapi.json");
    assert_refused(&client.send("PUT", "/v1/videos", &[], b""), 405, "method_not_allowed", "openapi.json");
    let foreign = client.send("GET", "/v1/videos", &[("host", "example.org")], b"");
    assert_refused(&foreign, 403, "forbidden", "localhost");
    let page = [json_type, ("origin", "http://example.org")];
    assert_refused(&client.send("POST", "/v1/videos", &page, b"{}"), 403, "forbidden", "other sites");
    let shouted = client.send("GET", "/v1/videos", &[("host", "LOCALHOST")], b"");
    assert_eq!(shouted.status, 200, "{}", shouted.text());

    // A body that does not come, and headers that do not end.
    let slow = |text: &str| {
        let mut stream = TcpStream::connect(running.address).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // The service may break off before it has read all of it.
        drop(stream.read_to_end(&mut answer));
        String::from_utf8(answer).unwrap()
    };
    let head = "POST /v1/videos HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\nconnection: close\r\n\r\n{";
    assert!(slow(head).starts_with("HTTP/1.1 408"));
    // One that says itself that it is too long is not waited for, and nobody is told to send it.
    let head = "POST /v1/videos HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n";
    for more in ["", "expect: 100-continue\r\n"] {
        let answer = slow(&format!("{head}content-length: 20001\r\n{more}\r\n"));
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("body_too_large"), "{answer}");
    }
    // Of one that does not, it shows.
    let chunk = "x".repeat(20_001);
    let answer = slow(&format!("{head}transfer-encoding: chunked\r\n\r\n4e21\r\n{chunk}\r\n0\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("body_too_large"), "{answer}");
    let answer = slow("GET / HTTP/1.1\r\nhost: lo");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    let long_header = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(64 << 10));
    let answer = slow(&long_header);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    // Headers that are too many fit what is read at once, so nothing breaks the answer off.
    let many: String = (0..200).map(|at| format!("x-{at}: y\r\n")).collect();
    let answer = slow(&format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\n{many}\r\n"));
    assert!(answer.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{answer}");
    assert!(answer.contains("connection: close") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert_eq!(client.get("/healthz").status, 200);
}

#[test]
fn a_job_that_can_never_fit_is_told_what_would() {
    let dir = tempfile::tempdir().unwrap();
    let large =
        json!({"prompt": "a ball", "size": "128x128", "num_frames": 81, "num_inference_steps": 2, "seed": 1});
    // Enough for about half of it.
    let model = Model::open(&checkpoint(), AMPLE).unwrap();
    let half = Request {
        size: Some((128, 128)),
        length: Some(RequestedLength::Frames(41)),
        ..Request::new("a ball", 1)
    };
    let half = JobSpec::new(half, model.checkpoint()).unwrap();
    let budgets = Budgets { device_bytes: model.device_bytes_needed(&half).unwrap(), host_bytes: 0 };
    let running = start_with(config(dir.path()), budgets).unwrap();
    let client = running.client();
    let answer = client.post("/v1/videos", &large);
    assert_refused(&answer, 400, "does_not_fit", "at this size at most");
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    let frames: usize =
        message.split(" at most ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    // What is said to fit does fit, and the next length does not.
    let sized = |frames: usize| json!({"prompt": "a ball", "size": "128x128", "num_frames": frames, "num_inference_steps": 1, "seed": 1});
    assert!(frames >= 41);
    assert_refused(&client.post("/v1/videos", &sized(frames + 4)), 400, "does_not_fit", "at most");
    let id = client.create(&sized(frames));
    assert_eq!(client.wait(&id)["status"], "completed");
    let answer = client.post("/v1/videos", &json!({"prompt": "a ball", "size": "512x512", "num_frames": 1}));
    assert_refused(&answer, 400, "does_not_fit", "smaller size");
}

#[test]
fn a_job_that_needs_more_than_its_class_may_have_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let nothing = ClassConfig { device_limit: 0.0, ..ClassConfig::default() };
    let classes = ClassesConfig { background: nothing, ..ClassesConfig::default() };
    let running = start(Config { classes, ..config(dir.path()) });
    let client = running.client();
    let refused = client.post("/v1/videos", &with("priority", json!("background")));
    assert_refused(&refused, 400, "does_not_fit", "background jobs may have 0 together");
    assert_eq!(client.get("/v1/videos").json()["data"], json!([]));
    let id = client.create(&with("priority", json!("standard")));
    assert_eq!(client.wait(&id)["status"], "completed");
}

#[test]
fn parameters_that_are_not_known_are_named_and_headers_come_once() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(config(dir.path()));
    let client = running.client();
    let id = client.create(&small(1));
    let rows = [
        ("GET", "/v1/videos?limt=3".to_owned(), "limt", "nearest is limit"),
        ("GET", format!("/v1/videos/{id}/content?varian=thumbnail"), "varian", "nearest is variant"),
        ("POST", "/v1/videos?seed=3".to_owned(), "seed", "in the body"),
    ];
    let body = small(2).to_string();
    let json_type = ("content-type", "application/json");
    for (method, path, name, says) in rows {
        let answer = client.send(method, &path, &[json_type], body.as_bytes());
        assert_refused(&answer, 400, "unknown_parameter", says);
        assert_eq!(answer.json()["error"]["param"], name, "{path}");
    }
    let keys = [json_type, ("idempotency-key", "a"), ("idempotency-key", "b")];
    let answer = client.send("POST", "/v1/videos", &keys, body.as_bytes());
    assert_refused(&answer, 400, "invalid_body", "at most one");
    assert_eq!(client.get("/v1/videos").json()["data"].as_array().unwrap().len(), 1);
    client.wait(&id);
}

#[test]
fn of_a_job_that_failed_nothing_is_promised() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(config(dir.path()));
    let client = running.client();
    let id = client.create(&long(1));
    let cancelled = client.send("POST", &format!("/v1/videos/{id}/cancel"), &[], b"");
    assert_eq!(cancelled.json()["status"], "failed", "{}", cancelled.text());
    let content = client.get(&format!("/v1/videos/{id}/content"));
    assert_refused(&content, 409, "video_not_ready", "nothing to download: the video has failed");
}

#[test]
fn a_full_queue_answers_429_and_says_when_to_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let queue = QueueConfig { jobs_max: 2, ..QueueConfig::default() };
    let running = start(Config { queue, ..config(dir.path()) });
    let client = running.client();
    let ids = [client.create(&long(1)), client.create(&long(2))];
    let refused = client.post("/v1/videos", &small(3));
    assert_refused(&refused, 429, "queue_full", "2 jobs");
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
    client.delete(&format!("/v1/videos/{}", ids[0]));
    let id = client.create(&small(3));
    client.delete(&format!("/v1/videos/{}", ids[1]));
    assert_eq!(client.wait(&id)["status"], "completed");
}

#[test]
fn tenants_see_their_own_videos_and_nothing_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let key = |tenant: &str, class| KeyConfig::new(tenant, tenant, class);
    let keys = vec![key("alice", Class::Interactive), key("bob", Class::Standard)];
    let running = start_with(Config { keys, ..config(dir.path()) }, AMPLE).unwrap();
    let nobody = running.client();
    for path in ["/v1/videos", "/v1/models", "/v1/events", "/metrics"] {
        assert_refused(&nobody.get(path), 401, "invalid_api_key", "needs a key");
        assert_refused(&nobody.with_key("mallory").get(path), 401, "invalid_api_key", "not known");
    }
    assert_eq!((nobody.get("/").status, nobody.get("/healthz").status), (200, 200));
    let lower_case = [("authorization", "bearer alice")];
    assert_eq!(nobody.send("GET", "/v1/videos", &lower_case, b"").status, 200);
    let (alice, bob) = (nobody.with_key("alice"), nobody.with_key("bob"));
    let mut bobs_events = bob.events("/v1/events");
    let id = alice.create(&small(1));
    assert_eq!(alice.wait(&id)["status"], "completed");
    for path in [String::new(), "/content".to_owned(), "/events".to_owned()] {
        assert_refused(&bob.get(&format!("/v1/videos/{id}{path}")), 404, "not_found", "no such video");
    }
    assert_refused(
        &bob.send("POST", &format!("/v1/videos/{id}/cancel"), &[], b""),
        404,
        "not_found",
        "no such video",
    );
    assert_refused(&bob.delete(&format!("/v1/videos/{id}")), 404, "not_found", "no such video");
    assert_refused(&bob.get(&format!("/v1/videos?after={id}")), 404, "not_found", "no such video");
    assert_eq!(bob.get("/v1/videos").json()["data"], json!([]));
    assert_refused(
        &bob.post("/v1/videos", &with("priority", json!("interactive"))),
        400,
        "invalid_value",
        "standard",
    );
    let own = bob.create(&small(2));
    let seen = bobs_events.find(|(name, _)| name == "video").unwrap().1;
    assert_eq!(seen["id"], json!(own));
    assert_eq!(alice.video(&id).get(4..8), Some(&b"ftyp"[..]));
    bob.wait(&own);
}

#[test]
fn whom_a_path_refuses_is_described_with_it() {
    let description: Value = serde_json::from_str(&evanesce_server::openapi_json()).unwrap();
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let local = start(config(dirs[0].path()));
    let key = KeyConfig { requests_per_minute: Some(1), ..KeyConfig::new("often", "often", Class::Standard) };
    let keyed = start(Config { keys: vec![key], ..config(dirs[1].path()) });
    let (nobody, often, local) = (keyed.client(), keyed.client().with_key("often"), local.client());
    assert_eq!(often.get("/v1/models").status, 200, "the only request of this minute");
    let mut n_guarded = 0;
    for (path, operations) in description["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let method = method.to_uppercase();
            let path = path.replace("{id}", "video_00000000000000000000000000000000");
            let answers = [
                nobody.send(&method, &path, &[], b""),
                often.send(&method, &path, &[], b""),
                local.send(&method, &path, &[("host", "example.org")], b""),
            ];
            let statuses = answers.map(|answer| answer.status);
            n_guarded += usize::from(statuses == [401, 429, 403]);
            for status in statuses {
                let described = operation["responses"].get(status.to_string());
                assert!(described.is_some(), "{method} {path} may answer {status}");
            }
        }
    }
    assert_eq!(n_guarded, 10);
}

#[test]
fn a_service_that_cannot_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(config(dir.path()));
    let refused = |config: Config| start_with(config, AMPLE).err().unwrap();
    assert!(refused(config(dir.path())).contains("used by another service"));
    let other = tempfile::tempdir().unwrap();
    assert!(refused(Config { listen: running.address, ..config(other.path()) }).contains("cannot listen on"));
    assert!(
        refused(Config { listen: "0.0.0.0:0".parse().unwrap(), ..config(other.path()) })
            .contains("needs keys")
    );
    std::fs::write(other.path().join("jobs.sqlite"), b"this is no database, whatever its name says").unwrap();
    assert!(refused(config(other.path())).contains("job store"));
}

#[test]
fn a_prompt_of_a_megabyte_is_refused_whether_or_not_the_body_may_be_that_long() {
    let megabyte = with("prompt", json!("x".repeat(1 << 20)));
    let dir = tempfile::tempdir().unwrap();
    let running = start(config(dir.path()));
    assert_refused(&running.client().post("/v1/videos", &megabyte), 413, "body_too_large", "1048576");
    running.stop();
    let limits = Limits { body_bytes_max: 4 << 20, ..Limits::default() };
    let running = start(Config { limits, ..config(dir.path()) });
    assert_refused(
        &running.client().post("/v1/videos", &megabyte),
        400,
        "invalid_value",
        "1048576 characters",
    );
}

#[test]
fn keys_expire_and_have_limits_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let key = |tenant: &str| KeyConfig::new(tenant, tenant, Class::Interactive);
    let keys = vec![
        KeyConfig { expires: Some("2020-01-31".parse().unwrap()), ..key("past") },
        KeyConfig { expires: Some("9999-12-31T23:59:59Z".parse().unwrap()), ..key("future") },
        KeyConfig { requests_per_minute: Some(3), ..key("seldom") },
        KeyConfig { jobs_max: Some(1), ..key("one") },
    ];
    let running = start(Config { keys, ..config(dir.path()) });
    let client = |tenant: &str| running.client().with_key(tenant);
    let expired = client("past").get("/v1/videos");
    assert_refused(&expired, 401, "expired_api_key", "valid until 2020-01-31T00:00:00.000Z");
    assert_eq!(client("future").get("/v1/videos").status, 200);
    for _ in 0..3 {
        assert_eq!(client("seldom").get("/v1/videos").status, 200);
    }
    let refused = client("seldom").get("/v1/videos");
    assert_refused(&refused, 429, "rate_limited", "3 times a minute");
    assert!((1..=20).contains(&refused.header("retry-after").unwrap().parse::<u64>().unwrap()));
    let first = client("one").create(&long(1));
    assert_refused(&client("one").post("/v1/videos", &small(2)), 429, "queue_full", "1 jobs of yours");
    // Others have as many as everybody.
    let others = [client("future").create(&small(3)), client("future").create(&small(4))];
    client("one").delete(&format!("/v1/videos/{first}"));
    others.iter().for_each(|id| drop(client("future").wait(id)));
}
