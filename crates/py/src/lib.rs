//! The native part of the Python package `evanesce`: evanesce-cache behind the buffer protocol.
//!
//! It knows bytes, element types and codecs, and no tensors: `python/evanesce` turns arrays and tensors into buffers and back. Whatever
//! copies, encodes, moves or waits runs detached from the interpreter.

mod buffers;
mod cache;
mod counters;
mod errors;
mod job;
mod layout;
mod lease;
mod own;
mod pages;
mod words;

/// What `evanesce` is made of; use the package, not this.
#[pyo3::pymodule]
mod _native {
    #[pymodule_export]
    use super::buffers::View;
    #[pymodule_export]
    use super::cache::{Cache, ContentKey};
    #[pymodule_export]
    use super::errors::{CacheError, Ended, Exists, Lost, OutOfBudget};
    #[pymodule_export]
    use super::job::{Job, Stage};
    #[pymodule_export]
    use super::lease::Lease;
}
