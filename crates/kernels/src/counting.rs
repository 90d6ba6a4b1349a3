//! An allocator that counts, for tests of what is allocated. It lives here because handing memory out is unsafe code.
#![expect(unsafe_code, reason = "an allocator is unsafe by its signature")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, with everything that passes through it counted, of all threads.
///
/// ```
/// use evanesce_kernels::CountingAllocator;
///
/// #[global_allocator]
/// static ALLOCATOR: CountingAllocator = CountingAllocator::new(1 << 16);
///
/// let (large, largest_bytes) = ALLOCATOR.large_in(|| drop(std::hint::black_box(vec![1_u8; 1 << 20])));
/// assert_eq!((large, largest_bytes), (1, 1 << 20));
/// ```
#[derive(Debug)]
pub struct CountingAllocator {
    above_bytes: usize,
    now_bytes: AtomicUsize,
    peak_bytes: AtomicUsize,
    large: AtomicUsize,
    largest_bytes: AtomicUsize,
}

impl CountingAllocator {
    /// Allocations above `above_bytes` count as large.
    #[must_use]
    pub const fn new(above_bytes: usize) -> Self {
        let [now_bytes, peak_bytes, large, largest_bytes] = [const { AtomicUsize::new(0) }; 4];
        Self { above_bytes, now_bytes, peak_bytes, large, largest_bytes }
    }

    /// Bytes that were held at most while `work` ran, beyond what was there before.
    pub fn peak_bytes_of(&self, work: impl FnOnce()) -> usize {
        let before = self.now_bytes.load(Ordering::Relaxed);
        self.peak_bytes.store(before, Ordering::Relaxed);
        work();
        self.peak_bytes.load(Ordering::Relaxed) - before
    }

    /// How many large allocations were made while `work` ran, and the bytes of the largest.
    pub fn large_in(&self, work: impl FnOnce()) -> (usize, usize) {
        self.large.store(0, Ordering::Relaxed);
        self.largest_bytes.store(0, Ordering::Relaxed);
        work();
        (self.large.load(Ordering::Relaxed), self.largest_bytes.load(Ordering::Relaxed))
    }

    fn count(&self, bytes: usize) {
        let now = self.now_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak_bytes.fetch_max(now, Ordering::Relaxed);
        if bytes > self.above_bytes {
            self.large.fetch_add(1, Ordering::Relaxed);
            self.largest_bytes.fetch_max(bytes, Ordering::Relaxed);
        }
    }
}

// SAFETY: everything is handed on to the system's allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size());
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size());
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.count(size);
        self.now_bytes.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is the same.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.now_bytes.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}
