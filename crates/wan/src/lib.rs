//! Wan2.2: checkpoints, text encoder, transformer, VAE, schedulers.

pub mod checkpoint;
pub mod error;
pub mod noise;
pub mod schedule;
pub mod text;
pub mod transformer;
pub mod vae;
pub mod weights;

pub use error::{Result, WanError};
pub use evanesce_kernels as kernels;
