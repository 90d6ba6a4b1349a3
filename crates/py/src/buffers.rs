//! Memory of Python objects and of entries, through the buffer protocol: the only file of this crate with unsafe code.
#![expect(unsafe_code, reason = "Python hands out and takes memory by address")]

use std::ffi::c_int;
use std::ptr;

use evanesce_cache::Lease;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::own::Own;

/// Bytes of a Python object that are copied from. Another thread that writes them meanwhile is the caller's mistake, as everywhere in
/// Python; it can spoil the numbers and nothing else, since they are only ever copied.
pub(crate) struct Source(PyBuffer<u8>);

impl Source {
    pub(crate) fn new(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        contiguous(object).map(Self)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len_bytes()
    }

    /// Copies bytes `at..at + out.len()`.
    pub(crate) fn read(&self, at: usize, out: &mut [u8]) {
        assert!(at.checked_add(out.len()).is_some_and(|end| end <= self.len()), "a read within the buffer");
        if !out.is_empty() {
            // SAFETY: the buffer is held, contiguous and has these bytes; `out` is memory of this process that nobody else has.
            unsafe { ptr::copy(self.0.buf_ptr().cast::<u8>().add(at), out.as_mut_ptr(), out.len()) }
        }
    }
}

/// Bytes of a Python object that are copied to.
pub(crate) struct Sink(PyBuffer<u8>);

impl Sink {
    pub(crate) fn new(object: &Bound<'_, PyAny>, len_bytes: usize) -> PyResult<Self> {
        let buffer = contiguous(object)?;
        if buffer.readonly() {
            return Err(PyValueError::new_err("the buffer is read-only; give one that can be written"));
        }
        let given_bytes = buffer.len_bytes();
        if given_bytes != len_bytes {
            let message = format!("the buffer has {given_bytes} bytes; give one of {len_bytes}");
            return Err(PyValueError::new_err(message));
        }
        Ok(Self(buffer))
    }

    /// Writes `bytes` from `at` on.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        let len_bytes = self.0.len_bytes();
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= len_bytes), "a write within the buffer");
        if !bytes.is_empty() {
            // SAFETY: the buffer is held, contiguous, can be written and has these bytes.
            unsafe { ptr::copy(bytes.as_ptr(), self.0.buf_ptr().cast::<u8>().add(at), bytes.len()) }
        }
    }
}

fn contiguous(object: &Bound<'_, PyAny>) -> PyResult<PyBuffer<u8>> {
    let buffer = PyBuffer::get(object)?;
    if buffer.is_c_contiguous() {
        Ok(buffer)
    } else {
        Err(PyValueError::new_err("the buffer has gaps; give contiguous bytes"))
    }
}

/// Bytes of an entry where they lie, read-only, through the buffer protocol. It leases the entry for as long as it, or any view of
/// it, lives (law 3); a forked child has a copy of the bytes.
#[pyclass(frozen, module = "evanesce")]
pub(crate) struct View {
    lease: Own<Lease>,
    start: usize,
    len_bytes: usize,
}

impl View {
    pub(crate) fn new(lease: Lease, start: usize, len_bytes: usize) -> Self {
        Self { lease: Own::new(lease), start, len_bytes }
    }

    fn bytes(&self) -> &[u8] {
        &self.lease.in_any_process().bytes()[self.start..][..self.len_bytes]
    }
}

#[pymethods]
impl View {
    fn __len__(&self) -> usize {
        self.len_bytes
    }

    /// # Safety
    /// Python calls it, with a `view` that may be filled.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let bytes = slf.get().bytes();
        let len_bytes = bytes.len().cast_signed();
        // SAFETY: `view` is Python's. The bytes stay in place and unchanged while the lease is held, which `slf` does, and the view
        // takes a reference to `slf`. It is read-only, so that the constant memory is not written through it.
        let failed = unsafe {
            let memory = bytes.as_ptr().cast_mut().cast();
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), memory, len_bytes, 1, flags)
        };
        if failed == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}
