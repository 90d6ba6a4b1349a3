//! Jobs into videos: admission, pipeline, encoder.

pub mod video;
