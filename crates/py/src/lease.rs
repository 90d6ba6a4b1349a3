//! A lease as Python holds it.

use evanesce_cache::Lease as Held;
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;

use crate::buffers::{Sink, View};
use crate::errors::CacheError;
use crate::layout::{Part, parse};
use crate::own::Open;
use crate::pages::decode_rows;

/// Keeps an entry alive and in place until it is released or collected, and every view of it has gone.
#[pyclass(frozen, module = "evanesce")]
pub(crate) struct Lease {
    held: Open<Held>,
    parts: Vec<(usize, Part)>,
    is_tuple: bool,
    tier: &'static str,
    entry_bytes: usize,
}

impl Lease {
    pub(crate) fn new(held: Held) -> PyResult<Self> {
        let Some((parts, is_tuple)) = parse(held.bytes()) else {
            return Err(CacheError::new_err(format!("{} was not put by this package", held.key())));
        };
        let (tier, entry_bytes) = (held.tier().as_str(), held.bytes().len());
        Ok(Self { held: Open::new("lease", held), parts, is_tuple, tier, entry_bytes })
    }

    fn held(&self) -> PyResult<Held> {
        self.held.look(Held::clone)
    }

    fn part(&self, at: usize) -> PyResult<&(usize, Part)> {
        let count = self.parts.len();
        self.parts.get(at).ok_or_else(|| PyIndexError::new_err(format!("array {at} of an entry of {count}")))
    }
}

#[pymethods]
impl Lease {
    /// Element type, shape and codec of each array.
    #[getter]
    fn parts(&self) -> Vec<(&'static str, Vec<usize>, &'static str)> {
        let words = |(_, part): &(usize, Part)| (part.dtype().name, part.shape.clone(), part.codec_name());
        self.parts.iter().map(words).collect()
    }

    /// Whether a tuple was put.
    #[getter]
    fn is_tuple(&self) -> bool {
        self.is_tuple
    }

    /// Where the bytes are.
    #[getter]
    fn tier(&self) -> &'static str {
        self.tier
    }

    /// Bytes of the entry.
    #[getter]
    fn nbytes(&self) -> usize {
        self.entry_bytes
    }

    /// Whether this lease was given up.
    #[getter]
    fn released(&self) -> bool {
        self.held.is_closed()
    }

    /// The bytes of an array as they are stored.
    fn view(&self, at: usize) -> PyResult<View> {
        let (start, part) = self.part(at)?;
        Ok(View::new(self.held()?, *start, part.stored_bytes))
    }

    /// Decodes an array into a buffer of its element type.
    fn decode(&self, py: Python<'_>, at: usize, into: &Bound<'_, PyAny>) -> PyResult<()> {
        let (start, part) = self.part(at)?;
        let (held, sink) = (self.held()?, Sink::new(into, part.raw_bytes)?);
        let stored = held.bytes().get(*start..start + part.stored_bytes);
        let stored = stored.ok_or_else(|| PyValueError::new_err("the entry has no such bytes"))?;
        py.detach(|| decode_rows(part, stored, &sink));
        Ok(())
    }

    /// Gives the entry up; views that were taken keep it.
    fn release(&self, py: Python<'_>) {
        let held = self.held.close();
        py.detach(|| drop(held));
    }
}
