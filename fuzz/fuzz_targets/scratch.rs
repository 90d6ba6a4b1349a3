//! Files for readers that want a path, in a directory of this process. It goes when the process ends by itself; after a crash it stays.

use std::path::PathBuf;

thread_local! {
    static DIRECTORY: tempfile::TempDir =
        tempfile::Builder::new().prefix("evanesce-fuzz-").tempdir().expect("temporary files can be made");
}

/// Where the file of this name is, or will be.
pub(crate) fn path(name: &str) -> PathBuf {
    DIRECTORY.with(|directory| directory.path().join(name))
}
