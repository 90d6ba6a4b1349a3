//! One output slice, written by many tasks in places that do not overlap.
#![expect(
    unsafe_code,
    reason = "tiles of a row-major matrix are not contiguous, so slices cannot be split safely"
)]

use std::marker::PhantomData;

/// A mutable slice that tasks write side by side.
#[derive(Debug)]
pub(crate) struct Shared<'a> {
    start: *mut f32,
    length: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer is only dereferenced through `write`, whose callers keep their ranges apart.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), length: slice.len(), borrow: PhantomData }
    }

    /// The numbers `at..at + count`.
    ///
    /// # Safety
    /// No two ranges alive at one time overlap.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn range(&self, at: usize, count: usize) -> &mut [f32] {
        assert!(at <= self.length && count <= self.length - at, "a tile passes the output");
        // SAFETY: inside the borrowed slice by the assertion; unshared by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), count) }
    }
}
