//! Running the tiles of one call, each with scratch of its own.

use std::sync::Mutex;

use rayon::prelude::*;

use crate::scratch::Scratch;

/// Whether a call is worth sharing out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    /// The calling thread does it all.
    Alone,
    /// The threads of the current pool take tasks as they come free.
    Pool,
}

impl Share {
    /// `Pool` from `threshold` on.
    pub(crate) fn from_work(work: usize, threshold: usize) -> Self {
        if work < threshold { Self::Alone } else { Self::Pool }
    }
}

/// Calls `task(scratch, i)` for each `i` below `count`, in any order. Scratch is of `scratch_len` numbers, whose values are
/// left from earlier tasks; as much is taken as can be in use at once, so that no call needs more than the one before it.
pub(crate) fn run(count: usize, share: Share, scratch_len: usize, task: impl Fn(&mut [f32], usize) + Sync) {
    let memory = Scratch::current();
    if share == Share::Alone || count <= 1 {
        let mut scratch = memory.take(scratch_len);
        (0..count).for_each(|i| task(&mut scratch, i));
        return;
    }
    let workers = count.min(rayon::current_num_threads());
    let idle: Mutex<Vec<_>> = Mutex::new((0..workers).map(|_| memory.take(scratch_len)).collect());
    let lock = || idle.lock().expect("no task panics while it holds the list of idle scratch");
    (0..count).into_par_iter().with_max_len(1).for_each(|i| {
        let found = lock().pop();
        let mut scratch = found.unwrap_or_else(|| memory.take(scratch_len));
        task(&mut scratch, i);
        lock().push(scratch);
    });
}

/// Calls `task(i, chunk)` for each whole chunk of `length` numbers of `slice`, in any order; the last may be shorter.
pub(crate) fn each(slice: &mut [f32], length: usize, share: Share, task: impl Fn(usize, &mut [f32]) + Sync) {
    match share {
        Share::Alone => slice.chunks_mut(length).enumerate().for_each(|(i, chunk)| task(i, chunk)),
        Share::Pool => slice.par_chunks_mut(length).enumerate().for_each(|(i, chunk)| task(i, chunk)),
    }
}

/// Numbers that one task of a pass over memory takes: 64 KiB.
pub(crate) const CHUNK: usize = 1 << 14;

/// Calls `task(at, chunk)` for chunks of `slice` of whole rows of `width` numbers, about [`CHUNK`] numbers each;
/// `at` is where the chunk begins.
pub(crate) fn rows(slice: &mut [f32], width: usize, task: impl Fn(usize, &mut [f32]) + Sync) {
    if slice.is_empty() {
        return;
    }
    let length = (CHUNK / width).max(1) * width;
    let share = Share::from_work(slice.len(), 2 * CHUNK);
    each(slice, length, share, |i, chunk| task(i * length, chunk));
}
