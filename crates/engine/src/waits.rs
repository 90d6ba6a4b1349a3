//! What arithmetic waits for, told to somebody with a clock.

use std::fmt;
use std::sync::Arc;

/// What was not in the device when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A group of weights: it is read from the checkpoint.
    Weights,
    /// Pages of keys and values: they come from the host or the disk.
    Pages,
}

/// Somebody who is told when the thread that runs a job begins to wait, and when it goes on.
pub trait WaitWatcher: Send + Sync + fmt::Debug {
    /// Takes note; begins and ends come in pairs, one wait at a time in each thread.
    fn on_wait(&self, what: Wait, begins: bool);
}

/// Whoever watches, if anybody.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waits(pub(crate) Option<Arc<dyn WaitWatcher>>);

impl Waits {
    /// Runs `work`, as a wait if it `is_one`.
    pub(crate) fn around<T>(&self, what: Wait, is_one: bool, work: impl FnOnce() -> T) -> T {
        let Some(watcher) = self.0.as_ref().filter(|_| is_one) else { return work() };
        watcher.on_wait(what, true);
        let done = work();
        watcher.on_wait(what, false);
        done
    }
}
