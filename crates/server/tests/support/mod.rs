//! A service over the engine's golden checkpoint, and a client that knows just enough HTTP.
#![allow(dead_code, unused_imports, clippy::allow_attributes, reason = "every test file uses a part")]

pub(crate) mod client;
pub(crate) mod scenes;
#[path = "../../../engine/tests/support/tree.rs"]
mod tree;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use evanesce_engine::Budgets;
use evanesce_server::service::Stopper;
use evanesce_server::{BudgetSetter, Config, Memory, ServeError, Service};
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;

pub(crate) use client::{Answer, Client};

pub(crate) fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/goldens/pipeline/checkpoint")
}

pub(crate) const AMPLE: Budgets = Budgets { device_bytes: 1 << 30, host_bytes: 1 << 30 };

/// The checkpoint that ships, with defaults that are quick.
pub(crate) fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/shapes")
}

/// The same checkpoint, made causal: blocks of 3 latent frames. The directory must outlive the service.
pub(crate) fn causal_checkpoint() -> tempfile::TempDir {
    causal_checkpoint_that_sees(4)
}

/// As [`causal_checkpoint`], with so many latent frames right before a block that it sees.
pub(crate) fn causal_checkpoint_that_sees(recent_frames: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tree::copy_tree(&checkpoint(), dir.path());
    let path = dir.path().join("model_index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let causal = serde_json::json!(
        {"block_frames": 3, "sink_frames": 2, "recent_frames": recent_frames, "positions": "window"}
    );
    index["evanesce"] = serde_json::json!({ "causal": causal });
    std::fs::write(path, index.to_string()).unwrap();
    dir
}

/// A service that runs on a thread of its own until it is dropped or stopped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    stopper: Stopper,
    budgets: BudgetSetter,
    runtime: tokio::runtime::Handle,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

/// A configuration for a free port and `data`.
pub(crate) fn config(data: &Path) -> Config {
    Config { listen: "127.0.0.1:0".parse().unwrap(), data: data.to_path_buf(), ..Config::default() }
}

pub(crate) fn start(config: Config) -> Running {
    start_with(config, AMPLE).unwrap()
}

pub(crate) fn start_with(config: Config, budgets: Budgets) -> Result<Running, String> {
    start_over(checkpoint(), config, budgets)
}

/// A service over another checkpoint than the engine's golden one.
pub(crate) fn start_over(
    checkpoint: PathBuf,
    config: Config,
    memory: impl Into<Memory> + Send + 'static,
) -> Result<Running, String> {
    let (told, address) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            match Service::start(config, &checkpoint, memory).await {
                Ok(service) => {
                    let runtime = tokio::runtime::Handle::current();
                    told.send(Ok((service.address(), service.stopper(), service.budgets(), runtime)))
                        .unwrap();
                    service.run().await
                }
                Err(error) => {
                    told.send(Err(error.to_string())).unwrap();
                    Err(error)
                }
            }
        })
    });
    let (address, stopper, budgets, runtime) = address.recv().unwrap()?;
    Ok(Running { address, stopper, budgets, runtime, thread: Some(thread) })
}

impl Running {
    pub(crate) fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// Changes what its tiers may hold.
    pub(crate) fn set_budgets(&self, budgets: Budgets) {
        self.runtime.block_on(self.budgets.set(budgets));
    }

    /// Stops the service and waits until it has.
    pub(crate) fn stop(mut self) {
        self.stopper.stop();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Changes the database of a service behind its back.
pub(crate) fn change_store(data: &Path, sql: &str) {
    let options = SqliteConnectOptions::new().filename(data.join("jobs.sqlite"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let pool = SqlitePool::connect_with(options).await.unwrap();
        sqlx::raw_sql(sql).execute(&pool).await.unwrap();
        pool.close().await;
    });
}

/// A request that the golden checkpoint serves quickly.
pub(crate) fn small(seed: u64) -> serde_json::Value {
    serde_json::json!({"prompt": "a red ball", "size": "32x32", "num_frames": 5, "num_inference_steps": 2, "seed": seed})
}

/// One that takes long enough to be interrupted: hundreds of units.
pub(crate) fn long(seed: u64) -> serde_json::Value {
    serde_json::json!({"prompt": "a red ball", "size": "64x64", "num_frames": 41, "num_inference_steps": 200, "seed": seed})
}
