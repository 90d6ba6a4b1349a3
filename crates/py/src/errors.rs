//! Errors of the cache as exceptions, with the same sentences.

use evanesce_cache::{CommitRefusal, GetError, OutOfBudget as Short, PutError};
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyMemoryError, PyValueError};
use pyo3::prelude::*;

create_exception!(evanesce, CacheError, PyException, "Whatever a cache refuses.");
create_exception!(
    evanesce,
    OutOfBudget,
    CacheError,
    "A tier cannot make the room. `tier`, `needed_bytes`, `used_bytes`, `budget_bytes` and `fits_bytes`, the most that would fit \
     now, are numbers of this moment; nothing was evicted in vain."
);
create_exception!(evanesce, Exists, CacheError, "The key is taken.");
create_exception!(evanesce, Lost, CacheError, "The entry was on disk and did not come back as it was.");
create_exception!(evanesce, Ended, CacheError, "What was asked has been closed, or its owner has.");

/// Why a put came to nothing.
pub(crate) enum Refusal {
    Put(PutError),
    Commit(CommitRefusal),
}

impl Refusal {
    pub(crate) fn into_error(self, py: Python<'_>) -> PyErr {
        match self {
            Self::Put(error) => put(py, &error),
            Self::Commit(refusal) => commit(&refusal),
        }
    }
}

fn put(py: Python<'_>, error: &PutError) -> PyErr {
    let message = error.to_string();
    match error {
        PutError::OutOfBudget(short) => out_of_budget(py, short, message),
        PutError::Exists { .. } => Exists::new_err(message),
        PutError::OwnerEnded { .. } => Ended::new_err(message),
        PutError::NoMemory { .. } => PyMemoryError::new_err(message),
        PutError::NoStage
        | PutError::NotInMemory { .. }
        | PutError::NoSteps
        | PutError::PersistentNeedsSharedPool
        | PutError::SharedIsPersistent => PyValueError::new_err(message),
        _ => CacheError::new_err(message),
    }
}

fn commit(refusal: &CommitRefusal) -> PyErr {
    let message = refusal.to_string();
    match refusal {
        CommitRefusal::Exists { .. } => Exists::new_err(message),
        _ => Ended::new_err(message),
    }
}

/// A read that found its entry and cannot give it.
pub(crate) fn get(py: Python<'_>, error: &GetError) -> PyErr {
    match error {
        GetError::NoRoom { short, .. } => out_of_budget(py, short, error.to_string()),
        _ => Lost::new_err(error.to_string()),
    }
}

pub(crate) fn out_of_budget(py: Python<'_>, short: &Short, message: String) -> PyErr {
    let held = short.held;
    let stays = [
        held.leased_bytes,
        held.irreplaceable_bytes,
        held.reserved_bytes,
        held.writing_bytes,
        held.quiescing_bytes,
    ];
    let fits_bytes = stays.iter().fold(short.budget_bytes, |left, bytes| left.saturating_sub(*bytes));
    let error = OutOfBudget::new_err(message);
    let value = error.value(py);
    let told = value
        .setattr("tier", short.tier.as_str())
        .and_then(|()| value.setattr("needed_bytes", short.needed_bytes))
        .and_then(|()| value.setattr("used_bytes", short.used_bytes))
        .and_then(|()| value.setattr("budget_bytes", short.budget_bytes))
        .and_then(|()| value.setattr("fits_bytes", fits_bytes));
    told.map_or_else(|error| error, |()| error)
}

pub(crate) fn ended(what: &str) -> PyErr {
    Ended::new_err(format!("the {what} is closed; open another one"))
}
