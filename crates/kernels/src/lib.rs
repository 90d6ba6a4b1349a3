//! Arithmetic on slices for Wan: linear layers, attention, convolutions, norms.

mod values;

pub use values::{Dtype, Values};
