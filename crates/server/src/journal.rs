//! The service's log: one line for each event, on standard error, with the moment and what it is about; as text for people, or as
//! JSON for programs.

use std::fmt::Display;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::clock::UnixMs;
use crate::config::LogFormat;
use crate::id::VideoId;

/// Standard error is the process's, and so is the way it is written: set once, before the first line.
static IS_JSON: AtomicBool = AtomicBool::new(false);

/// Chooses how lines are written from now on.
pub(crate) fn set_format(format: LogFormat) {
    IS_JSON.store(format == LogFormat::Json, Ordering::Relaxed);
}

/// Writes one line. A log that cannot be written stops nothing.
pub(crate) fn note(about: impl Display, message: impl Display) {
    let line = line(&about.to_string(), &message.to_string(), UnixMs::now(), IS_JSON.load(Ordering::Relaxed));
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

fn line(about: &str, message: &str, now: UnixMs, is_json: bool) -> String {
    if is_json {
        // A line that is about a job says which under a name of its own, so that all of a job's lines are found by it.
        let job = VideoId::parse(about).map(|id| id.to_string());
        return json!({"time": now.rfc3339(), "about": about, "job": job, "message": message}).to_string();
    }
    format!("{}.{:03} {about}: {}", now.0 / 1000, now.0 % 1000, message.replace(['\n', '\r'], " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_in_both_formats_and_json_names_the_job() {
        let id = VideoId::draw().unwrap().to_string();
        let message = "failed: \"a\"\nb";
        assert_eq!(line("x", message, UnixMs(12_345), false), "12.345 x: failed: \"a\" b");
        let of_job: serde_json::Value = serde_json::from_str(&line(&id, message, UnixMs(0), true)).unwrap();
        assert_eq!((&of_job["job"], &of_job["message"]), (&json!(id), &json!(message)));
        assert_eq!(of_job["time"], "1970-01-01T00:00:00.000Z");
        let other = line("service", message, UnixMs(0), true);
        assert!(!other.contains('\n') && other.contains("\"job\":null"), "{other}");
    }
}
