//! Jobs and their stages.

use std::sync::Arc;

use evanesce_cache::{
    Cache, EntryKey, Expired, Fill, GetError, Job as Inner, Lease as Held, Stage as InnerStage, Tick, Usage,
    Uses,
};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::cache::ContentKey;
use crate::counters;
use crate::errors::{self, Refusal, out_of_budget};
use crate::lease::Lease;
use crate::own::{Open, drop_detached};
use crate::pages::{ArrayWords, Content};
use crate::words::{self, KeyWords, SpecWords};

/// One job's part of the cache; see `evanesce.Job`.
#[pyclass(frozen, module = "evanesce")]
pub(crate) struct Job {
    /// Calls under way on other threads share the job, so that it ends when the last of them returns. Its cache goes with it, so
    /// that one which is closed keeps no file alive.
    inner: Open<(Arc<Inner>, Cache)>,
}

impl Job {
    pub(crate) fn new(cache: Cache) -> Self {
        Self { inner: Open::new("job", (Arc::new(cache.open_job()), cache)) }
    }

    /// The job, to be dropped with the interpreter let go: it may be the last share of it.
    fn inner(&self) -> PyResult<Arc<Inner>> {
        self.inner.look(|(inner, _)| Arc::clone(inner))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        drop_detached(self.inner.close());
    }
}

#[pymethods]
impl Job {
    fn put(
        &self,
        py: Python<'_>,
        key: KeyWords,
        spec: SpecWords,
        arrays: ArrayWords<'_>,
        together: bool,
    ) -> PyResult<Lease> {
        let (inner, key, mut spec) = (self.inner()?, words::key(&key)?, words::spec(&spec)?);
        let content = Content::new(arrays, together)?;
        spec.len_bytes = content.entry_bytes();
        let spec = spec.raw_bytes(content.raw_bytes()).fill(Fill::Any);
        let content = &content;
        let held = py.detach(move || {
            inner.put_with(key, spec).map_err(Refusal::Put).and_then(|writer| content.commit(writer))
        });
        Lease::new(held.map_err(|refusal| refusal.into_error(py))?)
    }

    fn get(&self, py: Python<'_>, key: KeyWords) -> PyResult<Option<Lease>> {
        let (inner, key) = (self.inner()?, words::key(&key)?);
        found(py, py.detach(move || inner.try_get(&key)))
    }

    fn take(&self, py: Python<'_>, key: KeyWords) -> PyResult<Option<Lease>> {
        let (inner, key) = (self.inner()?, words::key(&key)?);
        found(py, py.detach(move || inner.try_take(&key)))
    }

    fn shared_get(&self, py: Python<'_>, key: &ContentKey) -> PyResult<Option<Lease>> {
        let inner = self.inner()?;
        found(py, py.detach(move || inner.try_shared_get(&key.0)))
    }

    fn contains(&self, key: KeyWords) -> PyResult<bool> {
        Ok(self.inner()?.contains(&words::key(&key)?))
    }

    fn tier_of(&self, key: KeyWords) -> PyResult<Option<&'static str>> {
        Ok(self.inner()?.tier_of(&words::key(&key)?).map(evanesce_cache::Tier::as_str))
    }

    fn demote(&self, py: Python<'_>, key: KeyWords) -> PyResult<Option<&'static str>> {
        let (inner, key) = (self.inner()?, words::key(&key)?);
        let tier = py.detach(move || inner.demote(&key));
        let tier = tier.map_err(|short| out_of_budget(py, &short, short.to_string()))?;
        Ok(tier.map(evanesce_cache::Tier::as_str))
    }

    fn remove(&self, py: Python<'_>, key: KeyWords) -> PyResult<bool> {
        let (inner, key) = (self.inner()?, words::key(&key)?);
        Ok(py.detach(move || inner.remove(&key)))
    }

    fn prune_old<'py>(&self, py: Python<'py>, member: KeyWords, keep: u32) -> PyResult<Bound<'py, PyDict>> {
        let (inner, member) = (self.inner()?, words::key(&member)?);
        ended_entries(py, py.detach(move || inner.prune_old(&member, keep)))
    }

    fn step<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let inner = self.inner()?;
        ended_entries(py, py.detach(move || inner.step()))
    }

    fn stage(&self) -> PyResult<Stage> {
        Ok(Stage { inner: Open::new("stage", self.inner()?.stage("stage")) })
    }

    fn announce(&self, key: KeyWords, first: u64, every: u64, count: u64) -> PyResult<()> {
        self.inner()?.announce(words::key(&key)?, Uses::every(every, Tick(first), count));
        Ok(())
    }

    fn announce_shared(&self, key: &ContentKey, first: u64, every: u64, count: u64) -> PyResult<()> {
        self.inner()?.announce(EntryKey::Shared(key.0), Uses::every(every, Tick(first), count));
        Ok(())
    }

    fn tick(&self, now: u64) -> PyResult<()> {
        self.inner()?.tick(Tick(now));
        Ok(())
    }

    fn usage<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        counters::usage(py, &self.inner()?.usage())
    }

    /// Ends the job. What it still holds: bytes under leases and views that outlive it.
    fn close<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let closed = self.inner.close();
        let left = py.detach(|| {
            closed.map_or_else(Usage::default, |(inner, cache)| {
                let id = inner.id();
                drop(inner);
                cache.owned_by(id)
            })
        });
        counters::usage(py, &left)
    }

    #[getter]
    fn closed(&self) -> bool {
        self.inner.is_closed()
    }
}

/// Nothing where there is no such entry.
pub(crate) fn found(py: Python<'_>, got: Result<Held, GetError>) -> PyResult<Option<Lease>> {
    match got {
        Ok(held) => Lease::new(held).map(Some),
        Err(GetError::Absent { .. }) => Ok(None),
        Err(error) => Err(errors::get(py, &error)),
    }
}

fn ended_entries(py: Python<'_>, expired: Expired) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("entries", expired.entries)?;
    dict.set_item("returned_bytes", expired.returned_bytes)?;
    dict.set_item("quiescing_bytes", expired.quiescing_bytes)?;
    Ok(dict)
}

/// A stretch of a job.
#[pyclass(frozen, module = "evanesce")]
pub(crate) struct Stage {
    inner: Open<InnerStage>,
}

#[pymethods]
impl Stage {
    fn close<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stage = self.inner.close();
        ended_entries(py, py.detach(|| stage.map_or_else(Expired::default, InnerStage::finish)))
    }
}
