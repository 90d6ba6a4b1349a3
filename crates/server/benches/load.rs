//! What clients cost: generation alone and with many of them polling and listening, the time of their status reads, and the time of a
//! page of a list of 10^5 finished jobs. Loopback only; a few minutes in all.
//!
//! ```text
//! cargo bench -p evanesce-server --bench load -- [polling clients = 1000] [listeners = 200] [rounds = 3]
//! ```
#![expect(clippy::unwrap_used, reason = "a bench that cannot be set up has failed")]
#![expect(clippy::print_stdout, reason = "its results")]
#![expect(clippy::disallowed_methods, reason = "benches measure time")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use evanesce_engine::Budgets;
use evanesce_server::{Config, Service};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

const BUDGETS: Budgets = Budgets { device_bytes: 2 << 30, host_bytes: 1 << 30 };
const LISTED_JOBS: u32 = 100_000;

/// One connection that asks again and again.
struct Connection(BufReader<TcpStream>);

impl Connection {
    async fn open(address: SocketAddr) -> Self {
        Self(BufReader::new(TcpStream::connect(address).await.unwrap()))
    }

    async fn ask(&mut self, method: &str, path: &str, body: &str) {
        let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{kind}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.write_all(head.as_bytes()).await.unwrap();
    }

    /// The length of the body, and how long to wait before asking again.
    async fn head(&mut self) -> (usize, Option<Duration>) {
        let (mut length, mut pause, mut line) = (0, None, String::new());
        loop {
            line.clear();
            self.0.read_line(&mut line).await.unwrap();
            let Some((name, value)) = line.trim().split_once(": ") else {
                if line.trim().is_empty() {
                    return (length, pause);
                }
                continue;
            };
            match name {
                "content-length" => length = value.parse().unwrap(),
                "openai-poll-after-ms" => pause = value.parse().ok().map(Duration::from_millis),
                _ => {}
            }
        }
    }

    async fn fetch(&mut self, method: &str, path: &str, body: &str) -> (Value, Option<Duration>) {
        self.ask(method, path, body).await;
        let (length, pause) = self.head().await;
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).await.unwrap();
        (serde_json::from_slice(&bytes).unwrap(), pause)
    }
}

/// A service on a runtime of two threads, as `evanesce serve` has it.
fn serve(data: &Path) -> SocketAddr {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/shapes");
    let config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        data: data.to_path_buf(),
        limits: evanesce_server::config::Limits { connections_max: 4096, ..Default::default() },
        ..Config::default()
    };
    let (told, address) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(2).enable_all().build().unwrap().block_on(async {
            let service = Service::start(config, &model, BUDGETS).await.unwrap();
            told.send(service.address()).unwrap();
            service.run().await.unwrap();
        });
    });
    address.recv().unwrap()
}

/// Makes a video and says how long that took, as its own listener saw it.
async fn make(address: SocketAddr, seed: usize) -> (String, Duration) {
    let order = format!(
        r#"{{"prompt": "a red ball moving to the left on a black background", "size": "64x64", "num_frames": 81, "num_inference_steps": 200, "seed": {seed}, "priority": "interactive"}}"#
    );
    let started = Instant::now();
    let mut connection = Connection::open(address).await;
    let (video, _) = connection.fetch("POST", "/v1/videos", &order).await;
    let id = video["id"].as_str().unwrap_or_else(|| panic!("{video}")).to_owned();
    connection.ask("GET", &format!("/v1/videos/{id}/events"), "").await;
    connection.head().await;
    let mut line = String::new();
    while connection.0.read_line(&mut line).await.unwrap() > 0 {
        if line.contains("\"status\":\"completed\"") {
            break;
        }
        line.clear();
    }
    (id, started.elapsed())
}

/// Asks for a job's state as the official client does, with the pause that the service asks for.
async fn poll(address: SocketAddr, path: String, reads: Arc<Mutex<Vec<Duration>>>, over: Arc<AtomicBool>) {
    let mut connection = Connection::open(address).await;
    while !over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let (_, pause) = connection.fetch("GET", &path, "").await;
        reads.lock().unwrap().push(asked.elapsed());
        tokio::time::sleep(pause.unwrap_or(Duration::from_secs(1))).await;
    }
}

async fn listen(address: SocketAddr, over: Arc<AtomicBool>) {
    let mut connection = Connection::open(address).await;
    connection.ask("GET", "/v1/events", "").await;
    connection.head().await;
    let mut bytes = vec![0; 64 << 10];
    while !over.load(Ordering::Relaxed) {
        let read = tokio::time::timeout(Duration::from_millis(500), connection.0.read(&mut bytes)).await;
        if matches!(read, Ok(Ok(0) | Err(_))) {
            return;
        }
    }
}

/// CPU seconds so far of threads that serve clients (connections, the job store) and of those that make videos. On a machine that others
/// use, too, these say what wall clocks cannot.
fn cpu_seconds() -> [f64; 2] {
    let mut seconds = [0.0, 0.0];
    for thread in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        // The name stands in brackets; user and system time, in hundredths of a second, are fields 14 and 15.
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let Some((name, rest)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(") ")) else {
            continue;
        };
        let ticks: f64 = rest.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
        let serves = name.starts_with("tokio-rt") || name.starts_with("sqlx");
        // The clients' own thread counts for neither.
        if name != "crowd" {
            seconds[usize::from(!serves)] += ticks / 100.0;
        }
    }
    seconds
}

/// The time that `percent` of them do not pass.
fn quantile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

/// Clients on a thread of their own, until they are told that it is over.
fn crowd(
    address: SocketAddr,
    clients: usize,
    listeners: usize,
    path: String,
) -> (Arc<AtomicBool>, std::thread::JoinHandle<Vec<Duration>>) {
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&over);
    let thread = std::thread::Builder::new().name("crowd".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let reads = Arc::default();
            let mut tasks = tokio::task::JoinSet::new();
            for at in 0..clients {
                let client = poll(address, path.clone(), Arc::clone(&reads), Arc::clone(&told));
                // They come over a second, not in one moment.
                let comes = Duration::from_secs(1).mul_f64(at as f64 / clients as f64);
                tasks.spawn(async move {
                    tokio::time::sleep(comes).await;
                    client.await;
                });
            }
            for _ in 0..listeners {
                tasks.spawn(listen(address, Arc::clone(&told)));
            }
            while tasks.join_next().await.is_some() {}
            std::mem::take(&mut *reads.lock().unwrap())
        })
    });
    (over, thread.unwrap())
}

fn clients(n_clients: usize, n_listeners: usize, rounds: usize) {
    let dir = tempfile::tempdir().unwrap();
    let address = serve(dir.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(make(address, 0));
    let (mut ratios, mut shares, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        // What they poll for is a background job: it is there in both runs, and gets its turn now and then in both.
        let waiting = r#"{"prompt": "a red ball", "size": "64x64", "num_frames": 81, "num_inference_steps": 200, "priority": "background"}"#;
        let (waits, _) = runtime
            .block_on(async { Connection::open(address).await.fetch("POST", "/v1/videos", waiting).await });
        let path = format!("/v1/videos/{}", waits["id"].as_str().unwrap());
        let (_, alone) = runtime.block_on(make(address, round));
        let (over, thread) = crowd(address, n_clients, n_listeners, path.clone());
        std::thread::sleep(Duration::from_secs(2));
        let before = cpu_seconds();
        let (_, among) = runtime.block_on(make(address, round));
        let [serving, making] = std::array::from_fn(|at| cpu_seconds()[at] - before[at]);
        over.store(true, Ordering::Relaxed);
        reads.extend(thread.join().unwrap());
        runtime.block_on(async { Connection::open(address).await.fetch("DELETE", &path, "").await });
        println!(
            "round {round}: alone {alone:.2?}, among clients {among:.2?}; {serving:.2} s of CPU for clients, {making:.2} s for videos"
        );
        shares.push(serving / making);
        ratios.push(among.as_secs_f64() / alone.as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    reads.sort();
    println!(
        "{n_clients} polling clients, {n_listeners} listeners: generation takes {:.3} times as long (median of {rounds}: {ratios:.3?})",
        ratios[rounds / 2]
    );
    println!(
        "{} status reads: median {:.2?}, p99 {:.2?}, most {:.2?}",
        reads.len(),
        quantile(&reads, 50),
        quantile(&reads, 99),
        quantile(&reads, 100)
    );
}

/// Fills the store with finished jobs, as copies of one that was made, and goes through the list page by page.
fn listing() {
    let dir = tempfile::tempdir().unwrap();
    let address = serve(dir.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        make(address, 1).await;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.path().join("jobs.sqlite"));
        let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
        let copied = "tenant, request, status, created_ms, started_ms, ended_ms, expires_ms, epoch, starts, memory";
        let sql = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {LISTED_JOBS})
             INSERT INTO jobs (id, {copied}) SELECT printf('video_%032x', i), {copied} FROM jobs, n WHERE status = 'completed'"
        );
        sqlx::raw_sql(&sql).execute(&pool).await.unwrap();
        pool.close().await;
        let mut connection = Connection::open(address).await;
        let (mut times, mut after, mut n_jobs) = (Vec::new(), String::new(), 0);
        loop {
            let asked = Instant::now();
            let (page, _) = connection.fetch("GET", &format!("/v1/videos?limit=100{after}"), "").await;
            times.push(asked.elapsed());
            n_jobs += page["data"].as_array().unwrap().len();
            if page["has_more"] == false {
                break;
            }
            after = format!("&after={}", page["last_id"].as_str().unwrap());
        }
        times.sort();
        println!("{n_jobs} finished jobs in {} pages of 100: median {:.2?}, p99 {:.2?}, most {:.2?}", times.len(), quantile(&times, 50), quantile(&times, 99), quantile(&times, 100));
    });
}

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let number = |at: usize, otherwise| numbers.get(at).copied().unwrap_or(otherwise);
    listing();
    clients(number(0, 1000), number(1, 200), number(2, 3));
}
