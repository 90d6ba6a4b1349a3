//! The service as a whole: what is opened, in which order, and how it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use evanesce_engine::video::EncoderPool;
use evanesce_engine::{Budgets, Disk, EngineError, Model, Tier};
use tokio::net::TcpListener;
use tokio::sync::mpsc::Sender;
use tokio::sync::{oneshot, watch};

use crate::api::access::{Access, LOCAL};
use crate::api::pollers::Pollers;
use crate::api::{App, router};
use crate::board::Board;
use crate::clock::UnixMs;
use crate::config::{Config, ConfigError, Pages};
use crate::http;
use crate::id::random_hex;
use crate::job::Job;
use crate::journal::{note, set_format};
use crate::metrics::Metrics;
use crate::schedule::{DiskShares, Quota, Quotas, Room, Rules, Share};
use crate::signals::{Stops, outlive_file_limits};
use crate::store::{Abandoned, JobStore, QueueLimits, SqliteStore, StoreError};
use crate::traces;
use crate::videos::{VideoDirectory, VideoStore};
use crate::webhooks::{self, Courier, Secret};
use crate::worker::{self, Keeper, Means, Report, Terms};

/// A claim that is not renewed for this long is another worker's to take.
const LEASE: Duration = Duration::from_secs(60);
/// How often what has expired is removed.
const SWEEP: Duration = Duration::from_secs(60);
/// Jobs that one transaction removes, at most.
const SWEEP_JOBS: u32 = 100;

/// Why the service did not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The checkpoint.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The job store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another service uses the data directory.
    #[error("{0} is used by another service; stop it, or choose another directory with --data")]
    InUse(std::path::PathBuf),
    /// The system.
    #[error("{what}: {source}")]
    Io {
        /// What failed.
        what: String,
        /// Why. Raw, or it would be the error's source too, and said twice.
        r#source: io::Error,
    },
    /// The engine's thread has ended by itself.
    #[error("the engine's thread has ended; its last words are in the log")]
    EngineEnded,
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> ServeError {
    let what = what.into();
    move |source| ServeError::Io { what, source }
}

/// What holds what jobs and weights are made of: two tiers in memory, and a disk under them where there is to be one.
#[derive(Debug)]
pub struct Memory {
    /// Of the tiers in memory.
    pub budgets: Budgets,
    /// Takes pages that find no room there. Its file goes when the service has ended.
    pub disk: Option<Disk>,
}

impl From<Budgets> for Memory {
    fn from(budgets: Budgets) -> Self {
        Self { budgets, disk: None }
    }
}

/// A service that runs until it is told to stop.
pub struct Service {
    address: SocketAddr,
    app: Arc<App>,
    listener: TcpListener,
    stop: watch::Sender<bool>,
    engine_ended: oneshot::Receiver<()>,
    store: SqliteStore,
    // Held until everything else has ended.
    _lock: File,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Stops a service.
#[derive(Clone, Debug)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    /// Asks it to stop: answers under way are given, jobs under way go back to the queue.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

/// Changes what the tiers of a running service may hold.
#[derive(Clone, Debug)]
pub struct BudgetSetter(Sender<Report>);

impl BudgetSetter {
    /// Sets both budgets from the next unit on. Jobs that no longer fit wait, parked, until they do; those whose quality allows it
    /// give something up; none fails.
    pub async fn set(&self, budgets: Budgets) {
        // A service that has stopped needs no budgets.
        drop(self.0.send(Report::Budgets(budgets)).await);
    }
}

impl Service {
    /// Opens everything and listens. Jobs that were under way when the last service ended wait again.
    ///
    /// # Errors
    /// What is wrong with the configuration, the checkpoint, the data directory or the address, in one sentence.
    pub async fn start(
        config: Config,
        model_dir: &Path,
        memory: impl Into<Memory>,
    ) -> Result<Self, ServeError> {
        config.check()?;
        set_format(config.log_format);
        let directory = config.data.display().to_string();
        std::fs::create_dir_all(&config.data).map_err(io_error(format!("cannot make {directory}")))?;
        let lock = lock(&config.data)?;
        let (listener, address) = listen(config.listen).await?;
        let model = Arc::new(open_model(&config, model_dir, memory.into()).await?);
        let pages = Pages::open(&config.pages, &model)?;
        let store = SqliteStore::open(&config.data.join("jobs.sqlite")).await?;
        let encoder = config.encoder.encoder();
        encoder.check().map_err(ConfigError)?;
        let videos: Arc<dyn VideoStore> = Arc::new(
            VideoDirectory::open(&config.data, encoder.clone())
                .map_err(io_error(format!("cannot use {directory}")))?,
        );
        let board = Arc::<Board>::default();
        let metrics = Arc::new(Metrics::new(traces::start(config.traces.endpoint.as_ref())));
        let terms = terms(&config, &model, model_dir)?;
        let shared: Arc<dyn JobStore> = Arc::new(store.clone());
        // Whoever held claims is gone: the directory is locked.
        let requeued = shared.requeue(Abandoned::All, config.queue.starts_max, terms.moments()).await?;
        metrics.requeued(requeued.queued.len());
        for job in &requeued.queued {
            note(&job.id, "waits again after the service ended while it was made");
        }
        let waiting = what_waits(&*shared, &*videos, &terms).await?;
        // All that can be wrong is known before the engine claims a job.
        let (access, courier) = (Access::new(&config.keys, &config.cors_origins)?, courier(&config)?);
        let means = Means {
            model: Arc::clone(&model),
            store: Arc::clone(&shared),
            videos: Arc::clone(&videos),
            board: Arc::clone(&board),
            metrics: Arc::clone(&metrics),
            pool: Arc::new(
                EncoderPool::start(config.encoder.threads).map_err(io_error("cannot start encoders"))?,
            ),
        };
        let (reports, engine_ended) = worker::start(means, terms.clone(), waiting)
            .map_err(io_error("cannot start the engine's thread"))?;
        let (stop, stopping) = watch::channel(false);
        let app = App {
            store: shared,
            videos,
            model,
            model_name: terms.model_name.clone(),
            board,
            metrics,
            access,
            courier,
            limits: config.limits,
            pages,
            encoder,
            queue_limits: QueueLimits {
                total: config.queue.jobs_max,
                per_tenant: config.queue.jobs_per_tenant_max,
            },
            terms,
            reports,
            stopping,
            started: UnixMs::now(),
            pollers: Pollers::new(),
        };
        Ok(Self { address, app: Arc::new(app), listener, stop, engine_ended, store, _lock: lock })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A handle that stops it.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    /// A handle that changes its budgets.
    #[must_use]
    pub fn budgets(&self) -> BudgetSetter {
        BudgetSetter(self.app.reports.clone())
    }

    /// Serves until somebody stops it.
    ///
    /// # Errors
    /// When the engine's thread ends by itself.
    pub async fn run(self) -> Result<(), ServeError> {
        let Self { app, listener, stop, mut engine_ended, store, .. } = self;
        let upkeep = tokio::spawn(upkeep(Arc::clone(&app)));
        let (courier, board, metrics) =
            (app.courier.clone(), Arc::clone(&app.board), Arc::clone(&app.metrics));
        let deliveries = tokio::spawn(webhooks::deliver(courier, Arc::clone(&app.store), board, metrics));
        let (limits, stopping) = (app.limits, app.stopping.clone());
        let mut serving = tokio::spawn(http::serve(listener, router(Arc::clone(&app)), limits, stopping));
        let outcome = tokio::select! {
            _ended = &mut serving => Ok(()),
            _gone = &mut engine_ended => Err(ServeError::EngineEnded),
        };
        if outcome.is_ok() {
            // The engine gives back what is under way after the unit that it is doing.
            drop(app.reports.send(Report::Shutdown).await);
            drop(engine_ended.await);
        } else {
            stop.send_replace(true);
            drop(serving.await);
        }
        upkeep.abort();
        // A delivery that is broken off here is due when the service starts again.
        deliveries.abort();
        store.close().await;
        outcome
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let listener =
        TcpListener::bind(address).await.map_err(io_error(format!("cannot listen on {address}")))?;
    let address = listener.local_addr().map_err(io_error("the address is gone"))?;
    Ok((listener, address))
}

/// Opens the checkpoint, with embeddings that outlive the process.
async fn open_model(config: &Config, model_dir: &Path, memory: Memory) -> Result<Model, ServeError> {
    let directory = config.data.display().to_string();
    let (model_path, held) = (model_dir.to_path_buf(), config.weights);
    let Memory { budgets, disk } = memory;
    let opened = tokio::task::spawn_blocking(move || Model::open_holding(&model_path, held, budgets, disk));
    let model = opened.await.map_err(|e| io_error("the model")(io::Error::other(e)))??;
    let limit_bytes = config.snapshots.embeddings_bytes_max;
    let model = model.keep_embeddings(&config.data.join("embeddings"), limit_bytes);
    model.map_err(io_error(format!("cannot use {directory}")))
}

/// One service at a time uses a data directory; the lock goes with the process, however it ends.
fn lock(data: &Path) -> Result<File, ServeError> {
    let path = data.join("lock");
    let file = File::create(&path).map_err(io_error(format!("cannot use {}", data.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(ServeError::InUse(data.to_path_buf())),
        Err(std::fs::TryLockError::Error(error)) => Err(io_error("cannot lock the data directory")(error)),
    }
}

fn courier(config: &Config) -> Result<Courier, ServeError> {
    let secret = match &config.webhooks.secret {
        Some(text) => Secret::parse(text).map_err(ConfigError)?,
        None => Secret::kept(&config.data).map_err(io_error("cannot keep a secret for webhooks"))?,
    };
    Ok(Courier::new(config, (LOCAL, secret))?)
}

/// Of each tenant with a limit, the largest that one of its keys gives.
fn shares(config: &Config) -> BTreeMap<String, Share> {
    let mut shares = BTreeMap::<String, Share>::new();
    for (tenant, key) in config.keys.iter().enumerate() {
        if let Some(under_way_max) = key.under_way_max {
            let share = shares.entry(key.tenant.clone()).or_insert(Share { tenant, under_way_max });
            share.under_way_max = share.under_way_max.max(under_way_max);
        }
    }
    shares
}

fn terms(config: &Config, model: &Model, model_dir: &Path) -> Result<Terms, ServeError> {
    let drawn = random_hex::<8>().map_err(|e| io_error("no randomness")(io::Error::other(e)))?;
    let resolved = std::fs::canonicalize(model_dir).unwrap_or_else(|_| model_dir.to_path_buf());
    let name =
        resolved.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
    Ok(Terms {
        rules: Rules {
            room: Room {
                device_bytes: model.counters().tier(Tier::Device).budget_bytes,
                host_bytes: model.counters().tier(Tier::Host).budget_bytes,
            },
            quotas: config.classes.all().map(|class| Quotas {
                device: Quota { guarantee: class.device_guarantee, limit: class.device_limit },
                host: Quota { guarantee: class.host_guarantee, limit: class.host_limit },
            }),
            under_way_max: config.queue.under_way_max,
            ageing_units: config.queue.ageing_units,
        },
        disk: DiskShares {
            bytes: config.snapshots.disk_bytes_max.unwrap_or(u64::MAX),
            quotas: config
                .classes
                .all()
                .map(|class| Quota { guarantee: class.disk_guarantee, limit: class.disk_limit }),
        },
        worker: format!("engine-{drawn}"),
        lease: LEASE,
        retention: Duration::from_secs_f64(config.retention_hours * 3600.0),
        model_name: name,
        keeper: Keeper::new(&config.data, config.snapshots)
            .map_err(io_error("cannot start the thread that writes snapshots"))?,
        pressure: config.pressure,
        shares: shares(config),
    })
}

/// Removes videos whose job is not there or not completed: leftovers of a service that ended between two writes.
/// The jobs that wait, once everything is removed that belongs to no job: what expired while no service ran among it, before
/// anybody can ask for it.
async fn what_waits(
    store: &dyn JobStore,
    videos: &dyn VideoStore,
    terms: &Terms,
) -> Result<Vec<Job>, ServeError> {
    while store.expire(UnixMs::now(), SWEEP_JOBS).await?.len() == SWEEP_JOBS as usize {}
    remove_orphans(store, videos).await?;
    let waiting = store.queued().await?;
    let active: BTreeSet<_> = waiting.iter().map(|job| job.id.to_string()).collect();
    let retained = terms.keeper.retain(|id| active.contains(id));
    retained.map_err(io_error("cannot remove a leftover snapshot"))?;
    Ok(waiting)
}

async fn remove_orphans(store: &dyn JobStore, videos: &dyn VideoStore) -> Result<(), ServeError> {
    for id in videos.ids().map_err(io_error("cannot list the videos"))? {
        if !store.has_video(&id).await? {
            videos.remove(&id).map_err(io_error("cannot remove a leftover video"))?;
        }
    }
    Ok(())
}

/// Renews claims, and removes what has expired.
async fn upkeep(app: Arc<App>) {
    let mut renewals = tokio::time::interval(LEASE / 4);
    let mut sweeps = tokio::time::interval(SWEEP);
    loop {
        let failed = tokio::select! {
            _ = renewals.tick() => app.store.renew(&app.terms.lease()).await.err(),
            _ = sweeps.tick() => sweep(&app).await.err(),
        };
        if let Some(error) = failed {
            note("upkeep", format_args!("failed, will be tried again: {error}"));
        }
    }
}

async fn sweep(app: &App) -> Result<(), StoreError> {
    loop {
        let expired = app.store.expire(UnixMs::now(), SWEEP_JOBS).await?;
        for job in &expired {
            app.remove_files(job.id.clone()).await;
            drop(app.reports.send(Report::Deleted(Box::new(job.clone()))).await);
        }
        if expired.len() < SWEEP_JOBS as usize {
            return Ok(());
        }
    }
}

/// Runs a service until the process is asked to stop, by interrupt, termination or hangup. `on_start` is told where it listens.
///
/// # Errors
/// As [`Service::start`] and [`Service::run`].
pub fn serve_until_signalled(
    config: Config,
    model_dir: &Path,
    memory: impl Into<Memory>,
    on_start: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // Few threads: the processors are for the engine.
    let runtime = runtime.worker_threads(2).enable_all().build().map_err(io_error("cannot start"))?;
    runtime.block_on(async {
        outlive_file_limits();
        let service = Service::start(config, model_dir, memory).await?;
        let (stopper, stops) = (service.stopper(), Stops::listen());
        tokio::spawn(async move {
            stops.arrive().await;
            note("service", "stops after the step under way");
            stopper.stop();
        });
        on_start(service.address());
        service.run().await
    })
}
