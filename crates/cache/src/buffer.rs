//! Aligned bytes.

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

/// Whole lines of memory, 64-byte aligned.
#[derive(Default)]
pub(crate) struct Buffer {
    lines: Box<[Line]>,
}

impl Buffer {
    /// Zeroed room for `len_bytes`.
    pub(crate) fn zeroed(len_bytes: usize) -> Self {
        let lines = vec![Line::zeroed(); len_bytes.div_ceil(size_of::<Line>())];
        Self { lines: lines.into_boxed_slice() }
    }

    pub(crate) fn charged_bytes(&self) -> u64 {
        self.lines.len() as u64 * LINE_BYTES
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.lines)
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }
}
