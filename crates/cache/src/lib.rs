#![doc = include_str!("../README.md")]

mod arena;
mod buffer;
mod cache;
mod counters;
mod disk;
mod draft;
mod entries;
mod error;
mod fetch;
#[cfg(test)]
mod interleavings;
mod job;
mod job_state;
mod key;
mod lease;
mod moves;
mod owned;
mod place;
pub mod policy;
mod reservation;
mod room;
mod schedule;
mod slots;
mod spec;
mod store;
mod tier;
mod verify;
mod writer;

pub use buffer::entry_bytes;
pub use cache::Cache;
pub use counters::{Counters, Expired, KindCounters, Overdue, TierCounters, TierTraffic, Usage};
pub use disk::{BlockFile, Disk, DiskError, DiskFault, DiskRemains};
pub use error::{CommitError, CommitRefusal, GetError, Held, Inconsistency, OutOfBudget, PutError};
pub use fetch::Fetcher;
pub use job::{Job, Stage};
pub use key::{ContentKey, EntryKey, JobId, Key, Kind, Owner};
pub use lease::{Flight, Lease};
pub use owned::Owned;
pub use reservation::{Reservation, ReservationShort};
pub use schedule::{Tick, Uses};
pub use spec::{Displace, Fill, Lifetime, PutSpec, Recover};
pub use tier::{Budgets, PerTier, Tier};
pub use writer::{GroupWriter, Writer};
