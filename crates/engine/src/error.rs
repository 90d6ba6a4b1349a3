//! Why a job was refused or failed.

use std::path::PathBuf;

use evanesce_wan::WanError;

use crate::snapshot::SnapshotError;
use crate::video::VideoError;

/// Every way a job ends without its video. Messages are one sentence: what, where, what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The request cannot be served as it stands.
    #[error("{0}")]
    Request(String),
    /// The budgets are too small for one step of this job.
    #[error(
        "{tier} memory of {budget_bytes} bytes is too small for one step of this job: it needs {needed_bytes} bytes; raise the budget, or ask for a smaller size or fewer frames"
    )]
    Budget {
        /// The tier.
        tier: &'static str,
        /// Its budget.
        budget_bytes: usize,
        /// The least that would do.
        needed_bytes: usize,
    },
    /// The model could not be loaded or run.
    #[error(transparent)]
    Model(#[from] WanError),
    /// The video could not be written.
    #[error(transparent)]
    Video(#[from] VideoError),
    /// The cache refused something that admission had promised.
    #[error("cache: {0}")]
    Cache(String),
    /// An input or output file other than the video.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A snapshot could not be taken, or gone on from.
    #[error(transparent)]
    Snapshot(SnapshotError),
    /// Somebody asked the job to stop.
    #[error("cancelled")]
    Cancelled,
}

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request, a file it names, or a budget: somebody can mend it and try again.
    Input,
    /// A request to stop.
    Cancelled,
    /// Something here.
    Internal,
}

impl EngineError {
    /// A fault of a file that the request names.
    pub fn file(path: impl Into<PathBuf>, message: impl std::fmt::Display) -> Self {
        Self::File { path: path.into(), message: message.to_string() }
    }

    /// A refusal of the cache that admission should have foreseen.
    pub(crate) fn cache(error: impl std::fmt::Display) -> Self {
        Self::Cache(error.to_string())
    }

    /// Whose fault this is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Request(_) | Self::Budget { .. } | Self::File { .. } => Fault::Input,
            // A place where the video cannot be, one that is full among them.
            Self::Video(
                VideoError::Settings(_)
                | VideoError::OtherQuality
                | VideoError::Output { .. }
                | VideoError::Input { .. }
                | VideoError::Io { .. },
            ) => Fault::Input,
            Self::Model(WanError::Checkpoint { .. } | WanError::Request(_) | WanError::Io { .. }) => {
                Fault::Input
            }
            Self::Model(_) | Self::Video(_) | Self::Cache(_) | Self::Snapshot(_) => Fault::Internal,
            Self::Cancelled => Fault::Cancelled,
        }
    }
}

/// This crate's result.
pub type Result<T> = std::result::Result<T, EngineError>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_can_mend_is_theirs_and_a_failing_encoder_is_ours() {
        let fault = |error: VideoError| EngineError::from(error).fault();
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        assert_eq!(fault(VideoError::Io { path: "out.mp4".into(), source: full }), Fault::Input);
        assert_eq!(fault(VideoError::Settings(String::new())), Fault::Input);
        assert_eq!(fault(VideoError::OtherQuality), Fault::Input);
        assert_eq!(fault(VideoError::Encoder { frame: 3, reason: String::new() }), Fault::Internal);
        assert_eq!(fault(VideoError::State("its encoder panicked")), Fault::Internal);
        assert_eq!(EngineError::Cancelled.fault(), Fault::Cancelled);
    }
}
