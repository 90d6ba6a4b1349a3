//! Several extents on their way at once: while one is copied and summed, others are with the device.

use std::sync::{Mutex, PoisonError};

/// Calls `work` once for each task, on up to `lanes` threads, the caller's among them. The first error, by the tasks'
/// order; after an error no further task is begun. Returns when nothing is under way any more, whatever happened (law 3).
pub(super) fn each<T: Send, E: Send>(
    lanes: usize,
    tasks: Vec<T>,
    work: impl Fn(T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let lanes = tasks.len().min(lanes);
    let queue = Mutex::new((tasks.into_iter().enumerate(), None::<(usize, E)>));
    let lane = || {
        loop {
            let next = {
                let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                if queue.1.is_some() { None } else { queue.0.next() }
            };
            let Some((at, task)) = next else { return };
            if let Err(error) = work(task) {
                let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                if queue.1.as_ref().is_none_or(|(earlier, _)| at < *earlier) {
                    queue.1 = Some((at, error));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..lanes)
            .filter_map(|_| {
                std::thread::Builder::new().name("disk".to_owned()).spawn_scoped(scope, lane).ok()
            })
            .collect();
        lane();
        for other in others {
            if let Err(panic) = other.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    let (_, failed) = queue.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.map_or(Ok(()), |(_, error)| Err(error))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn every_task_is_done_once_and_the_first_error_is_told() {
        let done = AtomicU64::new(0);
        let add = |at: u32| {
            done.fetch_or(1 << at, Ordering::Relaxed);
            Ok::<_, u32>(())
        };
        each(4, (0..40).collect(), add).unwrap();
        assert_eq!(done.load(Ordering::Relaxed), (1 << 40) - 1);
        let none: Vec<u32> = Vec::new();
        assert_eq!(each(4, none, add), Ok(()));
        assert_eq!(each(4, (0..40).collect(), |at: u32| if at >= 7 { Err(at) } else { Ok(()) }), Err(7));
    }

    #[test]
    fn a_panic_in_a_lane_is_the_callers() {
        let caught = std::panic::catch_unwind(|| {
            each(4, (0..40).collect(), |at: u32| if at == 30 { panic!("injected") } else { Ok::<_, ()>(()) })
        });
        assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"injected"));
    }
}
