//! The service: jobs that survive the process, a schedule that keeps people from waiting for machines, and videos over HTTP.
//!
//! A job passes, in order: `api` (what was asked becomes an order, checked and complete), [`store`] (written before the client is
//! answered), `worker` (the engine's thread: [`schedule`] chooses whose unit comes next), [`videos`] (all files of a video appear at
//! once), and back through [`board`], which tells whoever listens. [`service`] opens all of it, in that order, and closes it.

mod api;
pub mod board;
pub mod clock;
pub mod config;
pub mod encoder;
mod http;
pub mod id;
pub mod job;
mod journal;
mod machine;
mod metrics;
mod nearest;
mod pictures;
pub mod pressure;
pub mod schedule;
pub mod service;
mod signals;
pub mod store;
mod traces;
pub mod videos;
pub mod webhooks;
pub mod wire;
mod worker;

pub use api::openapi_json;
pub use config::Config;
pub use machine::control_groups;
pub use service::{BudgetSetter, Memory, ServeError, Service, serve_until_signalled};

/// The digest of an API key, as the configuration keeps it.
#[must_use]
pub fn key_digest(key: &str) -> String {
    blake3::hash(key.as_bytes()).to_string()
}
