//! Why a video could not be written or read.

use std::io;
use std::path::{Path, PathBuf};

/// Every way the video writer and reader fail. Messages are one sentence: what, where, what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VideoError {
    /// A size, frame rate or quality that H.264 in MP4 cannot carry here.
    #[error("{0}")]
    Settings(String),
    /// The output path cannot become a video file.
    #[error("cannot write a video to {path}: {reason}")]
    Output {
        /// The path as the caller gave it.
        path: PathBuf,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// A frame whose length is not height x width x 3.
    #[error("frame {frame} holds {got} numbers, expected {expected} (height x width x 3)")]
    Frame {
        /// Index of the frame, from 0.
        frame: usize,
        /// Numbers handed in.
        got: usize,
        /// Numbers that the settings ask for.
        expected: usize,
    },
    /// The H.264 encoder refused its settings or a frame.
    #[error("the H.264 encoder failed at frame {frame}: {reason}")]
    Encoder {
        /// Index of the frame, from 0.
        frame: usize,
        /// The encoder's own words.
        reason: String,
    },
    /// The MP4 boxes cannot describe this video.
    #[error("the MP4 index cannot be written: {0}")]
    Container(String),
    /// A video without frames was finished.
    #[error("a video needs at least one frame, none was pushed")]
    Empty,
    /// An earlier push failed, so the file would lack a frame.
    #[error("the video lacks frame {frame}, which could not be written; start it again")]
    Incomplete {
        /// Index of the frame that failed, from 0.
        frame: usize,
    },
    /// A saved state of a video whose quality is another one.
    #[error("what was saved is of another quality")]
    OtherQuality,
    /// A saved state that this result cannot be gone on from.
    #[error("the video cannot be gone on with: {0}")]
    State(&'static str),
    /// A video that was to be read is none, or none of this kind.
    #[error("{path} cannot be read as an MP4 video with H.264: {reason}")]
    Input {
        /// The path as the caller gave it.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file system refused to hold the video.
    #[error("{}", io_sentence(.path, .source))]
    Io {
        /// The path as the caller gave it.
        path: PathBuf,
        /// The operating system's reason. Raw, or it would be the error's source too, and said twice.
        r#source: io::Error,
    },
}

/// This module's result.
pub type Result<T> = std::result::Result<T, VideoError>;

impl VideoError {
    pub(super) fn output(path: &Path, reason: impl Into<String>) -> Self {
        Self::Output { path: path.to_path_buf(), reason: reason.into() }
    }

    pub(super) fn input(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Input { path: path.to_path_buf(), reason: reason.to_string() }
    }

    pub(super) fn encoder(frame: usize, reason: impl Into<String>) -> Self {
        Self::Encoder { frame, reason: reason.into() }
    }

    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }
}

fn io_sentence(path: &Path, source: &io::Error) -> String {
    let path = path.display();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            format!("no space left for {path}: free some or choose another output directory")
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            format!("the directory of {path} is not writable: choose another output directory")
        }
        _ => format!("cannot write {path}: {}", system_reason(source)),
    }
}

/// What the system said, without the name that the file has while it is written, which `tempfile` adds.
fn system_reason(source: &io::Error) -> String {
    let said = source.to_string();
    said.split_once(" at path ").map_or(said.as_str(), |(reason, _)| reason).to_owned()
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    fn sentence(kind: io::ErrorKind) -> String {
        VideoError::io(Path::new("dir/out.mp4"), kind.into()).to_string()
    }

    #[test]
    fn a_full_disk_and_a_read_only_directory_are_named_as_such() {
        assert!(sentence(io::ErrorKind::StorageFull).starts_with("no space left for dir/out.mp4"));
        assert!(sentence(io::ErrorKind::QuotaExceeded).starts_with("no space left for dir/out.mp4"));
        assert!(sentence(io::ErrorKind::ReadOnlyFilesystem).contains("dir/out.mp4 is not writable"));
        assert!(sentence(io::ErrorKind::PermissionDenied).contains("dir/out.mp4 is not writable"));
        assert!(sentence(io::ErrorKind::Interrupted).starts_with("cannot write dir/out.mp4"));
    }

    #[test]
    fn a_reason_is_said_once_and_without_the_name_of_a_file_that_nobody_sees() {
        let source = io::Error::other("too many open files at path \"dir/.evanesce-1.mp4.part\"");
        let error = VideoError::io(Path::new("dir/out.mp4"), source);
        assert_eq!(error.to_string(), "cannot write dir/out.mp4: too many open files");
        assert!(error.source().is_none());
    }
}
