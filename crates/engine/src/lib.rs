//! Jobs into videos: admission, pipeline, encoder.
//!
//! Modules in the order in which a job passes them: [`request`] (what was asked becomes a [`JobSpec`]), `admission`
//! (what cannot fit is refused), [`run`] (one unit at a time: `text`, `denoise`, `decode`), [`video`] (frames into a file),
//! [`report`] (what was held and given back); [`snapshot`] (a job on disk, to go on after a crash); [`fidelity`] compares two results. `residency` decides nothing: it brings weights where the cache has room.
//!
//! No clock and no randomness: the same request over the same checkpoint gives the same bits.

mod adapt;
mod admission;
mod ahead;
mod blocks;
mod blueprint;
mod bytes;
pub mod calibration;
mod cancel;
mod contents;
mod cross_kv;
mod decode;
mod denoise;
mod error;
mod features;
pub mod fidelity;
mod itinerary;
mod keys;
mod model;
mod output;
pub mod page_codecs;
mod park;
pub mod plan;
pub mod progress;
pub mod report;
pub mod request;
mod residency;
pub mod run;
mod self_kv;
mod shelf;
pub mod snapshot;
mod start;
mod tensors;
mod text;
pub mod video;
mod waits;

pub use admission::Needs;
pub use cancel::CancelToken;
pub use contents::{ModelContents, PartContents};
pub use error::{EngineError, Fault, Result};
pub use evanesce_cache::{
    Budgets, Counters, Disk, DiskRemains, JobId, Kind, KindCounters, Tier, TierTraffic, Usage,
};
pub use evanesce_wan::checkpoint::{Context, ContextSample, Description, HeldWeights, Positions, Rollout};
pub use evanesce_wan::kernels;
pub use evanesce_wan::schedule::Solver;
pub use evanesce_wan::transformer::{Codec, LoneBlock};
pub use evanesce_wan::weights::Component;
pub use model::Model;
pub use output::{Outputs, VideoTarget};
pub use page_codecs::KvOverrides;
pub use progress::Silent;
pub use request::{JobSpec, Request, RequestedLength};
pub use run::{JobRun, Outcome, Position, Progress};
pub use self_kv::KvCodec;
pub use shelf::Embeddings;
pub use waits::{Wait, WaitWatcher};

use evanesce_wan::WanError;

/// Sets how many threads do arithmetic, for the whole process and once; `None` leaves one per processor.
///
/// # Errors
/// When the pool exists already.
pub fn use_threads(n_threads: Option<usize>) -> Result<()> {
    let Some(n_threads) = n_threads else { return Ok(()) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads);
    pool.build_global()
        .map_err(|error| EngineError::Request(format!("threads cannot be set to {n_threads}: {error}")))
}

/// Chooses the instruction set of all arithmetic by name, for the whole process and once; `None` leaves the best there is.
///
/// # Errors
/// When this machine has no such set, with those that it has; when another one is in use already.
pub fn use_isa(name: Option<&str>) -> Result<()> {
    let Some(name) = name else { return Ok(()) };
    let isa = name.parse::<kernels::Isa>().map_err(|error| EngineError::Request(error.to_string()))?;
    isa.install().map_err(|error| EngineError::Request(error.to_string()))
}

/// A refusal of the cache, as the model's code sees it.
pub(crate) fn store_error(
    what: &dyn std::fmt::Display,
    error: impl std::error::Error + Send + Sync + 'static,
) -> WanError {
    WanError::Store { what: what.to_string(), message: error.to_string(), source: Some(Box::new(error)) }
}
