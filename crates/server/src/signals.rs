//! Signals of the system: which of them ask a service to stop, and one that must not end it.

#[cfg(unix)]
use std::future::poll_fn;
#[cfg(unix)]
use std::task::Poll;

#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Raised by a write beyond the limit of a file's size, on Linux.
#[cfg(target_os = "linux")]
const SIGXFSZ: i32 = 25;

/// Has writes beyond the limit of a file's size (`ulimit -f`) fail, as they do on a full disk, instead of ending the process. To be
/// called within a runtime.
#[cfg(target_os = "linux")]
pub(crate) fn outlive_file_limits() {
    // The handler stays when its listener goes. Where there can be none, the signal does as before.
    drop(signal(SignalKind::from_raw(SIGXFSZ)));
}

/// Nothing: the signal's number is not known here.
#[cfg(not(target_os = "linux"))]
pub(crate) fn outlive_file_limits() {}

/// Signals that ask for a stop: interrupt, termination, and hangup unless whoever started the process had it ignore that.
#[cfg(unix)]
pub(crate) struct Stops(Vec<Signal>);

#[cfg(unix)]
impl Stops {
    /// Listens from now on; to be called within a runtime. What cannot be listened to does as before.
    pub(crate) fn listen() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let hangup = hears_hangups(&status).then(SignalKind::hangup);
        let kinds = [SignalKind::interrupt(), SignalKind::terminate()].into_iter().chain(hangup);
        Self(kinds.filter_map(|kind| signal(kind).ok()).collect())
    }

    /// Returns when the first of them has come.
    pub(crate) async fn arrive(mut self) {
        poll_fn(|context| {
            let has_come = self.0.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
            if has_come { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// Whether hangups are known not to be ignored, from what Linux says of a process (proc(5)). `nohup` has a program ignore them, and
/// listening would undo that.
#[cfg(unix)]
fn hears_hangups(status: &str) -> bool {
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // Bit 0 is signal 1, which is the hangup.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 0)
}

/// Interrupts, which ask for a stop.
#[cfg(not(unix))]
pub(crate) struct Stops;

#[cfg(not(unix))]
impl Stops {
    /// Listens once somebody waits.
    pub(crate) fn listen() -> Self {
        Self
    }

    /// Returns when one has come.
    pub(crate) async fn arrive(self) {
        drop(tokio::signal::ctrl_c().await);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn hangups_are_listened_to_only_where_they_are_known_not_to_be_ignored() {
        let status = |mask: &str| format!("Name:\tevanesce\nSigBlk:\t0000000000000000\nSigIgn:\t{mask}\n");
        for (mask, hears) in [
            ("0000000000000000", true),
            // A pipe that nobody reads.
            ("0000000000001000", true),
            ("0000000000001001", false),
            ("ffffffffffffffff", false),
            ("", false),
        ] {
            assert_eq!(hears_hangups(&status(mask)), hears, "{mask:?}");
        }
        assert!(!hears_hangups(""));
    }
}
