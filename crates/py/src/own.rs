//! What a Python object holds of the cache: for one process, until it is closed.

use std::mem;
use std::process;
use std::sync::{PoisonError, RwLock};

use pyo3::prelude::*;

use crate::errors::{Ended, ended};

/// A value of the process that made it. A child that was forked has a copy of it, with locks that threads held which it has not
/// got, and with its parent's file: there it is never dropped.
pub(crate) struct Own<T> {
    value: Option<T>,
    process_id: u32,
}

impl<T> Own<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: Some(value), process_id: process::id() }
    }

    fn is_here(&self) -> bool {
        self.process_id == process::id()
    }

    /// For what does not change and takes no lock.
    pub(crate) fn in_any_process(&self) -> &T {
        self.value.as_ref().expect("it is taken with the whole")
    }

    fn here(&self) -> PyResult<&T> {
        if self.is_here() {
            return Ok(self.in_any_process());
        }
        let owner = self.process_id;
        Err(Ended::new_err(format!("the cache belongs to process {owner}; make one in this process")))
    }

    /// Nothing in another process.
    fn into_inner(mut self) -> Option<T> {
        if self.is_here() { self.value.take() } else { None }
    }
}

impl<T> Drop for Own<T> {
    fn drop(&mut self) {
        if !self.is_here() {
            mem::forget(self.value.take());
        }
    }
}

/// A value until somebody closes it. Its own lock is held for moments, and never while the interpreter is let go.
pub(crate) struct Open<T> {
    what: &'static str,
    value: RwLock<Option<Own<T>>>,
}

impl<T> Open<T> {
    /// `what` is its name in errors.
    pub(crate) fn new(what: &'static str, value: T) -> Self {
        Self { what, value: RwLock::new(Some(Own::new(value))) }
    }

    /// What `look` takes from it.
    ///
    /// # Errors
    /// If it is closed, or another process's.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&T) -> R) -> PyResult<R> {
        let value = self.value.read().unwrap_or_else(PoisonError::into_inner);
        value.as_ref().ok_or_else(|| ended(self.what))?.here().map(look)
    }

    /// Closes it, and gives what it held; nothing if it is closed already, or another process's.
    pub(crate) fn close(&self) -> Option<T> {
        let value = self.value.write().unwrap_or_else(PoisonError::into_inner).take();
        value.and_then(Own::into_inner)
    }

    /// Whether it is closed, which what another process holds is to this one.
    pub(crate) fn is_closed(&self) -> bool {
        let value = self.value.read().unwrap_or_else(PoisonError::into_inner);
        !value.as_ref().is_some_and(Own::is_here)
    }
}

/// Drops what may wait, or give much memory back, with the interpreter let go.
pub(crate) fn drop_detached<T: Send>(value: Option<T>) {
    if value.is_some() {
        // Where the interpreter is shutting down, the value goes with the closure.
        Python::try_attach(|py| py.detach(|| drop(value)));
    }
}
