//! The service's log: one line for each event, on standard error, with the moment and what it is about.

use std::fmt::Display;
use std::io::Write;

use crate::clock::UnixMs;

/// Writes one line. A log that cannot be written stops nothing.
pub(crate) fn note(about: impl Display, message: impl Display) {
    let message = message.to_string().replace(['\n', '\r'], " ");
    let now = UnixMs::now().0;
    drop(writeln!(std::io::stderr().lock(), "{}.{:03} {about}: {message}", now / 1000, now % 1000));
}
