//! Jobs into videos: admission, pipeline, encoder.
