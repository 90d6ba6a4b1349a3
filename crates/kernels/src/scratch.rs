//! Memory that operations take and give back, so that a job allocates it once. It begins with a cache line: a vector register
//! that is loaded from two of them takes twice as long.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::{Pod, Zeroable};

/// Numbers of a cache line.
pub(crate) const LINE: usize = 16;

/// A cache line, where memory begins.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Line([f32; LINE]);

thread_local! {
    /// The memory of [`Scratch::run`] on this thread.
    static SCOPED: RefCell<Option<Scratch>> = const { RefCell::new(None) };
}

/// Idle memory. Whoever takes some gives it back by dropping it; what is taken next is what lies idle, where it is large
/// enough. Clones share the memory, which goes when the last of them does.
///
/// ```
/// use evanesce_kernels::Scratch;
///
/// let scratch = Scratch::default();
/// drop(scratch.take(1000));
/// assert_eq!(scratch.idle_numbers(), 1008); // whole cache lines
/// assert_eq!(scratch.take(10).len(), 10);
/// assert_eq!(scratch.idle_numbers(), 1008);
/// ```
#[derive(Clone, Default)]
pub struct Scratch {
    idle: Arc<Mutex<Vec<Vec<Line>>>>,
}

/// Some numbers of a [`Scratch`], whatever they were before.
pub struct Taken {
    lines: Vec<Line>,
    len: usize,
    home: Scratch,
}

impl Scratch {
    /// Runs `work`. Operations that it calls on this thread take the memory of their tasks from here; without this, each call
    /// allocates and frees its own.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        /// Puts back what was there, on a panic as well.
        struct Restore(Option<Scratch>);
        impl Drop for Restore {
            fn drop(&mut self) {
                SCOPED.replace(self.0.take());
            }
        }
        let _restore = Restore(SCOPED.replace(Some(self.clone())));
        work()
    }

    /// The memory for a call on this thread.
    pub(crate) fn current() -> Self {
        SCOPED.with_borrow(Clone::clone).unwrap_or_default()
    }

    /// `len` numbers. The least that is idle and large enough; else the largest that is idle makes way for what is.
    #[must_use]
    pub fn take(&self, len: usize) -> Taken {
        let lines = len.div_ceil(LINE);
        let mut idle = self.lock();
        let fits = |idle: &Vec<Line>| idle.len() >= lines;
        let least = (0..idle.len()).filter(|at| fits(&idle[*at])).min_by_key(|at| idle[*at].len());
        let largest = || (0..idle.len()).max_by_key(|at| idle[*at].len());
        let found = least.or_else(largest).map(|at| idle.swap_remove(at));
        drop(idle);
        let lines = found.filter(fits).unwrap_or_else(|| vec![Line::zeroed(); lines]);
        Taken { lines, len, home: self.clone() }
    }

    /// How many numbers lie idle.
    #[must_use]
    pub fn idle_numbers(&self) -> usize {
        self.lock().iter().map(|lines| LINE * lines.len()).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<Line>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for Taken {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Taken {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        self.home.lock().push(lines);
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scratch").field("idle_numbers", &self.idle_numbers()).finish()
    }
}

impl fmt::Debug for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Taken").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::Scratch;

    #[test]
    fn what_is_large_enough_is_taken_again_and_what_is_not_makes_way() {
        let scratch = Scratch::default();
        drop((scratch.take(16), scratch.take(32)));
        assert_eq!(scratch.idle_numbers(), 48);
        let least = scratch.take(7);
        assert_eq!((least.len(), scratch.idle_numbers()), (7, 32));
        assert!(least.as_ptr().addr().is_multiple_of(64));
        drop(scratch.take(48));
        assert_eq!(scratch.idle_numbers(), 48);
        drop(least);
        assert_eq!(scratch.idle_numbers(), 64);
    }

    #[test]
    fn a_scope_ends_where_it_ends() {
        let (outer, inner) = (Scratch::default(), Scratch::default());
        outer.run(|| {
            inner.run(|| drop(Scratch::current().take(32)));
            drop(Scratch::current().take(16));
            let caught = std::panic::catch_unwind(|| inner.run(|| panic!("on purpose")));
            assert!(caught.is_err());
            drop(Scratch::current().take(4));
        });
        drop(Scratch::current().take(99));
        assert_eq!((outer.idle_numbers(), inner.idle_numbers()), (16, 32));
    }
}
