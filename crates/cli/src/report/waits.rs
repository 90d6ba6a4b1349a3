//! How long a job waited, and for what.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use evanesce_engine::{Wait, WaitWatcher};

/// Seconds that the thread which runs the job spent waiting.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    spent: Mutex<Spent>,
}

#[derive(Debug, Default)]
struct Spent {
    since: Option<Instant>,
    weights: Duration,
    pages: Duration,
    weights_waits: u64,
    pages_waits: u64,
}

impl Waits {
    /// How often, and how many seconds in all.
    pub(crate) fn of(&self, what: Wait) -> (u64, f64) {
        let spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        match what {
            Wait::Weights => (spent.weights_waits, spent.weights.as_secs_f64()),
            Wait::Pages => (spent.pages_waits, spent.pages.as_secs_f64()),
        }
    }
}

impl WaitWatcher for Waits {
    #[expect(clippy::disallowed_methods, reason = "the command line may look at the clock")]
    fn on_wait(&self, what: Wait, begins: bool) {
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        if begins {
            spent.since = Some(Instant::now());
            return;
        }
        let Some(since) = spent.since.take() else { return };
        let took = since.elapsed();
        match what {
            Wait::Weights => {
                (spent.weights, spent.weights_waits) = (spent.weights + took, spent.weights_waits + 1)
            }
            Wait::Pages => (spent.pages, spent.pages_waits) = (spent.pages + took, spent.pages_waits + 1),
        }
    }
}
