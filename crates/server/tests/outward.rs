//! What the service tells others: webhooks, and browsers of other sites.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, sync_channel};

use evanesce_server::Config;
use evanesce_server::config::{KeyConfig, TraceConfig, WebhookConfig};
use evanesce_server::job::Class;
use evanesce_server::webhooks::Secret;
use serde_json::{Value, json};
use support::{Client, change_store, config, long, small, start};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// How often the service is asked whether something has come about: for a minute or so.
const ASKED_MAX: usize = 100_000;

/// What arrived at somebody's server.
struct Message {
    path: String,
    headers: Vec<(String, String)>,
    body: String,
}

impl Message {
    fn header(&self, name: &str) -> &str {
        &self.headers.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}")).1
    }
}

fn read_message(stream: &mut impl BufRead) -> Message {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let path = lines[0].split(' ').nth(1).unwrap().to_owned();
    let pairs = lines[1..].iter().filter_map(|line| line.split_once(": "));
    let headers: Vec<_> = pairs.map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned())).collect();
    let mut message = Message { path, headers, body: String::new() };
    let length: u64 = message.header("content-length").parse().unwrap();
    stream.by_ref().take(length).read_to_string(&mut message.body).unwrap();
    message
}

/// Somebody's server: gives each request the next of `statuses`, the last again and again.
fn receiver(statuses: &'static [u16]) -> (String, Receiver<Message>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/done?for=me", listener.local_addr().unwrap());
    let (told, messages) = sync_channel(16);
    std::thread::spawn(move || {
        for (at, stream) in listener.incoming().enumerate() {
            let mut stream = BufReader::new(stream.unwrap());
            let message = read_message(&mut stream);
            let status = statuses[at.min(statuses.len() - 1)];
            let answer =
                format!("HTTP/1.1 {status} X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n");
            stream.get_mut().write_all(answer.as_bytes()).unwrap();
            if told.send(message).is_err() {
                return;
            }
        }
    });
    (url, messages)
}

fn with_webhooks(data: &std::path::Path) -> Config {
    let webhooks = WebhookConfig {
        secret: Some(SECRET.to_owned()),
        private_addresses: true,
        ..WebhookConfig::default()
    };
    Config { webhooks, ..config(data) }
}

fn asking(mut request: Value, url: &str) -> Value {
    request["webhook"] = json!(url);
    request
}

/// Asks until the job's webhook has this status.
fn until(client: &Client, id: &str, status: &str) -> Value {
    for _ in 0..ASKED_MAX {
        let webhook = client.get(&format!("/v1/videos/{id}")).json()["webhook"].clone();
        if webhook["status"] == status {
            return webhook;
        }
        std::thread::yield_now();
    }
    panic!("the webhook of {id} was never {status}");
}

#[test]
fn a_webhook_is_signed_and_says_how_the_job_ended() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(with_webhooks(dir.path()));
    let client = running.client();
    let (url, messages) = receiver(&[200]);
    let id = client.create(&asking(small(1), &url));
    assert_eq!(client.wait(&id)["webhook"]["url"], json!(url));
    let message = messages.recv().unwrap();
    assert_eq!(message.path, "/done?for=me");
    let event: Value = serde_json::from_str(&message.body).unwrap();
    assert_eq!((&event["type"], &event["object"]), (&json!("video.completed"), &json!("event")));
    assert_eq!((&event["data"]["id"], &event["id"]), (&json!(id), &json!(message.header("webhook-id"))));
    assert_eq!(message.header("content-type"), "application/json");
    let (name, moment) = (message.header("webhook-id"), message.header("webhook-timestamp").parse().unwrap());
    let signature = Secret::parse(SECRET).unwrap().sign(name, moment, &message.body);
    assert_eq!(message.header("webhook-signature"), signature);
    let webhook = until(&client, &id, "delivered");
    assert_eq!((&webhook["attempts"], &webhook["last_attempt"]), (&json!(1), &json!("answered 200")));
    assert!(webhook["delivered_at"].is_i64() && webhook["next_attempt_at"].is_null());

    let slow = client.create(&asking(long(2), &url));
    client.send("POST", &format!("/v1/videos/{slow}/cancel"), &[], b"");
    let event: Value = serde_json::from_str(&messages.recv().unwrap().body).unwrap();
    assert_eq!((&event["type"], &event["data"]["id"]), (&json!("video.failed"), &json!(slow)));
    assert_eq!(event["data"]["error"]["code"], "cancelled");
    let metrics = client.get("/metrics").text();
    assert!(metrics.contains("evanesce_webhook_attempts_total{outcome=\"delivered\"}"), "{metrics}");
}

#[test]
fn a_webhook_that_is_not_taken_is_tried_again_also_by_the_next_service() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(with_webhooks(dir.path()));
    // A redirect counts as not taken: it leads to where nobody looked.
    let (url, messages) = receiver(&[302, 500, 200]);
    let id = running.client().create(&asking(small(1), &url));
    running.client().wait(&id);
    let first = messages.recv().unwrap();
    let webhook = until(&running.client(), &id, "pending");
    assert!(webhook["delivered_at"].is_null());
    running.stop();
    let again = start(with_webhooks(dir.path()));
    let second = messages.recv().unwrap();
    assert_eq!(second.header("webhook-id"), first.header("webhook-id"));
    let shown = again.client().get(&format!("/v1/videos/{id}")).json();
    assert_eq!(shown["webhook"]["status"], "pending", "{shown}");
}

#[test]
fn webhooks_that_nobody_takes_are_given_up_and_the_job_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = with_webhooks(dir.path());
    config.webhooks.attempts_max = 1;
    let running = start(config);
    let client = running.client();
    let (url, messages) = receiver(&[500]);
    let id = client.create(&asking(small(1), &url));
    client.wait(&id);
    messages.recv().unwrap();
    let webhook = until(&client, &id, "given_up");
    assert_eq!((&webhook["attempts"], &webhook["last_attempt"]), (&json!(1), &json!("answered 500")));
}

#[test]
fn a_webhook_is_not_sent_again_while_the_store_cannot_take_what_came_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(with_webhooks(dir.path()));
    let client = running.client();
    let (url, messages) = receiver(&[200]);
    // With each job that ends, everything is sent that is due.
    let told = |seed| {
        let id = client.create(&asking(small(seed), &url));
        client.wait(&id);
        let event: Value = serde_json::from_str(&messages.recv().unwrap().body).unwrap();
        assert_eq!(event["data"]["id"], json!(id), "job {seed}");
        id
    };
    change_store(
        dir.path(),
        "CREATE TRIGGER no_room BEFORE UPDATE OF webhook_attempts ON jobs
         BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END",
    );
    let mut ids: Vec<_> = (1..=3).map(told).collect();
    for id in &ids {
        let webhook = client.get(&format!("/v1/videos/{id}")).json()["webhook"].clone();
        assert_eq!(webhook["attempts"], json!(0), "{webhook}");
    }
    change_store(dir.path(), "DROP TRIGGER no_room");
    ids.push(told(4));
    for id in &ids {
        let webhook = until(&client, id, "delivered");
        assert_eq!((&webhook["attempts"], &webhook["last_attempt"]), (&json!(1), &json!("answered 200")));
    }
    assert!(messages.try_recv().is_err(), "one message for each job");
}

#[test]
fn webhooks_to_private_addresses_and_without_a_secret_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = with_webhooks(dir.path());
    config.webhooks.private_addresses = false;
    config.keys = vec![
        KeyConfig {
            webhook_secret: Some(SECRET.to_owned()),
            ..KeyConfig::new("alice", "alice", Class::Interactive)
        },
        KeyConfig::new("bob", "bob", Class::Interactive),
    ];
    let running = start(config);
    let (alice, bob) = (running.client().with_key("alice"), running.client().with_key("bob"));
    let refused = |client: &Client, url: Value, says: &str| {
        let mut request = small(1);
        request["webhook"] = url;
        let answer = client.post("/v1/videos", &request);
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, &error["param"]), (400, &json!("webhook")), "{error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    };
    refused(&alice, json!("http://127.0.0.1:9/x"), "public internet");
    refused(&alice, json!("http://[::1]:9/x"), "public internet");
    for host in ["localhost", "127.1", "2130706433", "0x7f.1"] {
        refused(&alice, json!(format!("http://{host}:9/x")), "public internet");
    }
    for port in ["0", "99999"] {
        refused(&alice, json!(format!("http://example.org:{port}/")), "between 1 and 65535");
    }
    refused(&alice, json!("file:///etc/passwd"), "a URL such as");
    refused(&alice, json!(7), "is text");
    refused(&bob, json!("http://example.org/"), "no webhook_secret");
}

#[test]
fn a_webhook_that_may_not_go_where_it_leads_is_not_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(with_webhooks(dir.path()));
    let (url, messages) = receiver(&[500]);
    let id = running.client().create(&asking(small(1), &url));
    running.client().wait(&id);
    messages.recv().unwrap();
    until_attempted(&running.client(), &id);
    running.stop();
    change_store(dir.path(), "UPDATE jobs SET webhook_due_ms = 0");
    let mut config = with_webhooks(dir.path());
    config.webhooks.private_addresses = false;
    let running = start(config);
    let webhook = until(&running.client(), &id, "given_up");
    assert_eq!(webhook["attempts"], json!(2));
    assert!(webhook["last_attempt"].as_str().unwrap().contains("public internet"), "{webhook}");
    assert!(messages.try_recv().is_err());
}

#[test]
fn a_receiver_that_does_not_answer_holds_up_nobody_else_and_has_half_of_the_places() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(with_webhooks(dir.path()));
    let client = running.client();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (url, messages) = receiver(&[200]);
    // Another name of the same machine, so that the two are different hosts.
    let silent_url = format!("http://localhost:{}/done", silent.local_addr().unwrap().port());
    let ended = |seed: u64, url: &str| {
        let id = client.create(&asking(small(seed), url));
        client.wait(&id);
        id
    };
    let held_up: Vec<_> = (1..=6).map(|seed| ended(seed, &silent_url)).collect();
    let _taken: Vec<_> = (0..4).map(|_| silent.accept().unwrap()).collect();
    for seed in 7..=9 {
        let id = ended(seed, &url);
        let event: Value = serde_json::from_str(&messages.recv().unwrap().body).unwrap();
        assert_eq!(event["data"]["id"], json!(id));
    }
    // The two that found no place wait, unless the others were given up meanwhile.
    silent.set_nonblocking(true).unwrap();
    let attempts =
        |id: &String| client.get(&format!("/v1/videos/{id}")).json()["webhook"]["attempts"].clone();
    let is_waited_for = held_up.iter().all(|id| attempts(id) == json!(0));
    assert!(!is_waited_for || silent.accept().is_err());
    running.stop();
}

fn until_attempted(client: &Client, id: &str) -> Value {
    for _ in 0..ASKED_MAX {
        let webhook = client.get(&format!("/v1/videos/{id}")).json()["webhook"].clone();
        if webhook["attempts"] == 1 {
            return webhook;
        }
        std::thread::yield_now();
    }
    panic!("the webhook of {id} was never tried");
}

#[test]
fn a_collector_is_told_where_the_time_of_a_job_went() {
    let dir = tempfile::tempdir().unwrap();
    let (url, messages) = receiver(&[200]);
    let endpoint = Some(url.replace("/done?for=me", ""));
    let running = start(Config { traces: TraceConfig { endpoint }, ..config(dir.path()) });
    let id = running.client().create(&small(1));
    running.client().wait(&id);
    let message = messages.recv().unwrap();
    assert_eq!(message.path, "/v1/traces");
    let trace: Value = serde_json::from_str(&message.body).unwrap();
    let spans = trace["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap();
    let names: Vec<_> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(&names[..2], ["video", "queued"]);
    for stage in ["text", "denoise", "decode"] {
        assert!(names.contains(&stage), "{names:?}");
    }
    let nanos = |span: &Value, name: &str| span[name].as_str().unwrap().parse::<u64>().unwrap();
    for span in spans {
        assert_eq!(span["traceId"].as_str().unwrap(), &id["video_".len()..]);
        assert!(nanos(span, "startTimeUnixNano") <= nanos(span, "endTimeUnixNano"), "{span}");
        let parent = if span["name"] == "video" { json!("") } else { spans[0]["spanId"].clone() };
        assert_eq!(span["parentSpanId"], parent);
    }
}

#[test]
fn pages_of_other_sites_are_let_in_only_when_they_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let cors_origins = vec!["https://friend.example".to_owned()];
    let running = start(Config { cors_origins, ..config(dir.path()) });
    let client = running.client();
    let friend = ("origin", "https://friend.example");
    let asked = client.send("GET", "/v1/videos", &[friend], b"");
    assert_eq!((asked.status, asked.header("access-control-allow-origin")), (200, Some(friend.1)));
    let beforehand = [friend, ("access-control-request-method", "DELETE")];
    let preflight = client.send("OPTIONS", "/v1/videos/x", &beforehand, b"");
    assert_eq!(
        (preflight.status, preflight.header("access-control-allow-methods")),
        (204, Some("GET, POST, DELETE"))
    );
    let stranger = ("origin", "https://stranger.example");
    let asked = client.send("GET", "/v1/videos", &[stranger], b"");
    assert_eq!((asked.status, asked.header("access-control-allow-origin")), (403, None));
    let beforehand = [stranger, ("access-control-request-method", "DELETE")];
    let preflight = client.send("OPTIONS", "/v1/videos", &beforehand, b"");
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (405, None));
}

/// Somebody's server behind TLS, with a certificate of the tests' own authority for `localhost`.
#[cfg(feature = "https")]
fn tls_receiver() -> (u16, Receiver<Message>) {
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned, crypto::ring};
    let certificates =
        CertificateDer::pem_file_iter(tls_file("server.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(tls_file("server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(std::sync::Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .unwrap();
    let config = std::sync::Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (told, messages) = sync_channel(16);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(std::sync::Arc::clone(&config)).unwrap();
            let mut stream = StreamOwned::new(connection, stream.unwrap());
            // Somebody who does not believe the certificate breaks off.
            if stream.conn.complete_io(&mut stream.sock).is_err() {
                continue;
            }
            let mut stream = BufReader::new(stream);
            let message = read_message(&mut stream);
            stream.get_mut().write_all(b"HTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n").unwrap();
            stream.get_mut().flush().unwrap();
            if told.send(message).is_err() {
                return;
            }
        }
    });
    (port, messages)
}

#[cfg(feature = "https")]
fn tls_file(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/tls").join(name)
}

#[test]
#[cfg(feature = "https")]
fn a_webhook_goes_through_tls_to_whom_it_is_for_and_to_nobody_else() {
    let (port, messages) = tls_receiver();
    let said = |certificates: Option<&str>, host: &str| {
        let dir = tempfile::tempdir().unwrap();
        let mut config = with_webhooks(dir.path());
        config.webhooks.certificates = certificates.map(tls_file);
        config.webhooks.attempts_max = 1;
        let running = start(config);
        let id = running.client().create(&asking(small(1), &format!("https://{host}:{port}/done")));
        running.client().wait(&id);
        let is_delivered = certificates.is_some() && host == "localhost";
        let webhook = until(&running.client(), &id, if is_delivered { "delivered" } else { "given_up" });
        webhook["last_attempt"].as_str().unwrap().to_owned()
    };
    assert_eq!(said(Some("authority.pem"), "localhost"), "answered 200");
    let message = messages.recv().unwrap();
    let (name, moment) = (message.header("webhook-id"), message.header("webhook-timestamp").parse().unwrap());
    let signature = Secret::parse(SECRET).unwrap().sign(name, moment, &message.body);
    assert_eq!(message.header("webhook-signature"), signature);
    // An authority that nobody said to believe, and a name that the certificate is not for.
    assert!(said(None, "localhost").contains("TLS failed"));
    assert!(said(Some("authority.pem"), "127.0.0.1").contains("TLS failed"));
    assert!(messages.try_recv().is_err(), "nothing was sent to whom was not believed");
}
