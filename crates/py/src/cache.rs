//! The cache and its shared pool.

use std::path::PathBuf;

use evanesce_cache::{Budgets, Cache as Inner, ContentKey as InnerKey, Disk, Fill};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::counters;
use crate::errors::{CacheError, Refusal};
use crate::job::{Job, found};
use crate::lease::Lease;
use crate::own::{Open, drop_detached};
use crate::pages::{ArrayWords, Content};
use crate::words::{self, SpecWords};

/// The name of a shared entry: its kind, and a hash of everything that its bytes depend on.
#[pyclass(frozen, eq, module = "evanesce")]
#[derive(PartialEq, Eq)]
pub(crate) struct ContentKey(pub(crate) InnerKey);

#[pymethods]
impl ContentKey {
    /// The key of what follows from `parts`, by BLAKE3, each with its length.
    #[new]
    fn new(kind: &str, parts: Vec<Vec<u8>>) -> PyResult<Self> {
        let parts: Vec<_> = parts.iter().map(Vec::as_slice).collect();
        Ok(Self(InnerKey::of(words::kind(kind)?, &parts)))
    }

    /// What the entry holds.
    #[getter]
    fn kind(&self) -> &'static str {
        self.0.kind().as_str()
    }

    fn __hash__(&self) -> u64 {
        self.0.hash().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    fn __repr__(&self) -> String {
        format!("ContentKey({})", self.0)
    }
}

/// A cache under budgets; see `evanesce.Cache`.
#[pyclass(frozen, module = "evanesce")]
pub(crate) struct Cache {
    inner: Open<Inner>,
}

impl Cache {
    /// A handle to be dropped with the interpreter let go: it may be the last.
    fn inner(&self) -> PyResult<Inner> {
        self.inner.look(Inner::clone)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        drop_detached(self.inner.close());
    }
}

#[pymethods]
impl Cache {
    #[new]
    fn new(
        py: Python<'_>,
        device_bytes: u64,
        host_bytes: u64,
        disk: Option<(PathBuf, u64)>,
    ) -> PyResult<Self> {
        let budgets = Budgets { device_bytes, host_bytes };
        let disk = disk.map(|(directory, bytes)| py.detach(|| Disk::open(&directory, bytes))).transpose();
        let inner = match disk.map_err(|error| PyOSError::new_err(error.to_string()))? {
            Some(disk) => Inner::with_disk(budgets, disk),
            None => Inner::new(budgets),
        };
        Ok(Self { inner: Open::new("cache", inner) })
    }

    fn open_job(&self) -> PyResult<Job> {
        Ok(Job::new(self.inner()?))
    }

    fn put(
        &self,
        py: Python<'_>,
        key: &ContentKey,
        spec: SpecWords,
        arrays: ArrayWords<'_>,
        together: bool,
    ) -> PyResult<Lease> {
        let (inner, mut spec, content) =
            (self.inner()?, words::spec(&spec)?, Content::new(arrays, together)?);
        spec.len_bytes = content.entry_bytes();
        let spec = spec.raw_bytes(content.raw_bytes()).fill(Fill::Any);
        let (key, content) = (key.0, &content);
        let held = py.detach(move || {
            inner.shared_put_with(key, spec).map_err(Refusal::Put).and_then(|writer| content.commit(writer))
        });
        Lease::new(held.map_err(|refusal| refusal.into_error(py))?)
    }

    fn get(&self, py: Python<'_>, key: &ContentKey) -> PyResult<Option<Lease>> {
        let inner = self.inner()?;
        found(py, py.detach(move || inner.try_shared_get(&key.0)))
    }

    fn contains(&self, key: &ContentKey) -> PyResult<bool> {
        Ok(self.inner()?.shared_contains(&key.0))
    }

    fn tier_of(&self, key: &ContentKey) -> PyResult<Option<&'static str>> {
        Ok(self.inner()?.shared_tier_of(&key.0).map(evanesce_cache::Tier::as_str))
    }

    fn remove(&self, py: Python<'_>, key: &ContentKey) -> PyResult<bool> {
        let inner = self.inner()?;
        Ok(py.detach(move || inner.shared_remove(&key.0)))
    }

    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (counters, jobs) = self.inner()?.ledger();
        counters::all(py, &counters, &jobs)
    }

    fn set_budget(&self, py: Python<'_>, tier: &str, bytes: u64) -> PyResult<u64> {
        let (inner, tier) = (self.inner()?, words::tier(tier)?);
        if tier == evanesce_cache::Tier::Disk {
            return Err(PyValueError::new_err("the disk's budget is its file's size; set device or host"));
        }
        Ok(py.detach(move || inner.set_budget(tier, bytes)))
    }

    fn trim(&self, py: Python<'_>) -> PyResult<u64> {
        let inner = self.inner()?;
        Ok(py.detach(move || inner.trim()))
    }

    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        let inner = self.inner()?;
        py.detach(move || inner.verify()).map_err(|error| CacheError::new_err(error.to_string()))
    }

    fn close(&self, py: Python<'_>) {
        let inner = self.inner.close();
        py.detach(|| drop(inner));
    }
}
