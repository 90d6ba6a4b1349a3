//! Checkpoint directories.

pub(crate) mod fields;
