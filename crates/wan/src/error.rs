//! Why a model could not be loaded or run.

use std::path::PathBuf;

/// Every way this crate fails. Messages are one sentence: what, where, what would be right. Reasons are in them, so no error has a
/// [source](std::error::Error::source), which would say the same again; `r#source` is how `thiserror` is told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WanError {
    /// The checkpoint on disk is missing something, or holds something it should not.
    #[error("{path}: {message}")]
    Checkpoint {
        /// The file or directory at fault.
        path: PathBuf,
        /// What is wrong with it and what would be right.
        message: String,
    },
    /// A request the model cannot serve: a size, a length, a prompt, a schedule.
    #[error("{0}")]
    Request(String),
    /// A tensor that a caller handed in has the wrong shape or content.
    #[error("{what}: got {got}, expected {expected}")]
    Mismatch {
        /// Which value.
        what: String,
        /// What it was.
        got: String,
        /// What it should have been.
        expected: String,
    },
    /// Whoever holds weights or pages could not supply them.
    #[error("cannot hold {what}: {message}")]
    Store {
        /// Which group, page or slot.
        what: String,
        /// The holder's reason.
        message: String,
        /// The holder's own error.
        r#source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The tensor library refused an operation; a bug here rather than bad input.
    #[error("tensor operation failed: {0}")]
    Tensor(candle_core::Error),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        r#source: std::io::Error,
    },
}

/// This crate's result.
pub type Result<T> = std::result::Result<T, WanError>;

impl From<candle_core::Error> for WanError {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error)
    }
}

impl WanError {
    /// A checkpoint fault at `path`.
    pub fn checkpoint(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.into(), message: message.into() }
    }

    /// A value with the wrong shape or content.
    #[expect(clippy::needless_pass_by_value, reason = "callers pass literals, numbers and fresh strings")]
    pub fn mismatch(what: impl Into<String>, got: impl ToString, expected: impl ToString) -> Self {
        Self::Mismatch { what: what.into(), got: got.to_string(), expected: expected.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn a_reason_is_said_once() {
        let io = || std::io::Error::other("it is gone");
        let errors = [
            WanError::Io { path: "model".into(), source: io() },
            WanError::Store {
                what: "a page".into(),
                message: "it is gone".into(),
                source: Some(io().into()),
            },
            candle_core::Error::Msg("it is gone".into()).into(),
        ];
        for error in errors {
            assert!(error.to_string().ends_with(": it is gone") && error.source().is_none(), "{error:?}");
        }
    }
}
