//! Aligned bytes.

use std::collections::TryReserveError;

use bytemuck::{Pod, Zeroable};

/// The unit of allocation: one cache line, which is also the widest vector register.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Line([u8; 64]);

const LINE_BYTES: u64 = 64;

/// The bytes that holding `len_bytes` costs: whole lines. Saturates, and no budget holds what saturates.
pub(crate) fn charged_bytes(len_bytes: u64) -> u64 {
    len_bytes.div_ceil(LINE_BYTES).saturating_mul(LINE_BYTES)
}

/// The bytes that an entry of `len_bytes` costs: one line at least, so that an owner of entries always owns bytes.
pub fn entry_bytes(len_bytes: usize) -> u64 {
    charged_bytes(len_bytes as u64).max(LINE_BYTES)
}

/// Whole lines of memory, 64-byte aligned; or, in a cache that only counts, how many there would be.
#[derive(Default)]
pub(crate) struct Buffer {
    lines: Box<[Line]>,
    counted_lines: u64,
}

impl Buffer {
    /// Zeroed room for `len_bytes`, at least one line.
    pub(crate) fn zeroed(len_bytes: usize) -> Result<Self, TryReserveError> {
        let count = len_bytes.div_ceil(size_of::<Line>()).max(1);
        let mut lines = Vec::new();
        lines.try_reserve_exact(count)?;
        lines.resize(count, Line::zeroed());
        Ok(Self { lines: lines.into_boxed_slice(), counted_lines: count as u64 })
    }

    /// What would be [`Self::zeroed`], without the bytes.
    pub(crate) fn counted(len_bytes: usize) -> Self {
        Self { lines: Box::default(), counted_lines: entry_bytes(len_bytes) / LINE_BYTES }
    }

    /// Copies all of `source` into `destination` where it has the size, else into new memory.
    pub(crate) fn copy(source: &Self, destination: Option<Self>) -> Result<Self, TryReserveError> {
        if let Some(mut buffer) = destination.filter(|buffer| buffer.lines.len() == source.lines.len()) {
            buffer.lines.copy_from_slice(&source.lines);
            return Ok(buffer);
        }
        let mut lines = Vec::new();
        lines.try_reserve_exact(source.lines.len())?;
        lines.extend_from_slice(&source.lines);
        Ok(Self { lines: lines.into_boxed_slice(), counted_lines: source.counted_lines })
    }

    pub(crate) fn charged_bytes(&self) -> u64 {
        self.counted_lines * LINE_BYTES
    }

    /// The first `len_bytes` bytes; none where they are only counted.
    pub(crate) fn first(&self, len_bytes: usize) -> &[u8] {
        let bytes = self.bytes();
        &bytes[..len_bytes.min(bytes.len())]
    }

    /// As [`Self::first`], to be written.
    pub(crate) fn first_mut(&mut self, len_bytes: usize) -> &mut [u8] {
        let bytes = self.bytes_mut();
        let len_bytes = len_bytes.min(bytes.len());
        &mut bytes[..len_bytes]
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.lines)
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}
