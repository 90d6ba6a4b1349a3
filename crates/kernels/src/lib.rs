//! Arithmetic on slices for Wan: linear layers, attention, convolutions, norms.
//!
//! Activations are `f32`, row-major and channels-last; weights are [`Values`] and are read as they lie in the
//! checkpoint. Sums are accumulated in `f32` or better. No result depends on the number of threads: work is cut
//! into tiles of fixed size and every output number is one chain of operations whose order depends on the
//! shape of its own row alone.
//!
//! Every function panics, naming the slice, when a length does not fit the dimensions given.

mod activation;
mod attention;
mod codec;
mod conv2d;
mod conv3d;
mod convolve;
mod counting;
mod dot;
mod isa;
mod linear;
mod math;
mod micro;
mod norm;
mod packed;
mod pairs;
mod panel;
pub mod peak;
mod residual;
mod rope;
mod scratch;
mod shared;
mod tasks;
mod values;

pub use activation::{Activation, activate, clamp, gated_gelu};
pub use attention::{AttentionDims, KvSegment, Turn, attend, attend_biased};
pub use codec::{Codec, EncodedRows, GROUP, Rows, encode};
pub use conv2d::{Conv2dMode, conv2d};
pub use conv3d::{Conv3d, conv3d_causal};
pub use counting::CountingAllocator;
pub use isa::{AbsentIsa, Isa, IsaInUse};
pub use linear::{Epilogue, LinearDims, PANEL_BYTES, Weight, linear, linear_then, turned_bytes};
pub use norm::{channel_norm, layer_norm_affine, layer_norm_modulate, rms_norm};
pub use packed::{PackedWeights, pack_weights};
pub use pairs::split_pairs;
pub use peak::threads;
pub use residual::{add, gate_add};
pub use rope::rotate;
pub use scratch::{Scratch, Taken};
pub use values::{Dtype, Values};
