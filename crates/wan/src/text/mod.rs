//! From a prompt to its embedding: cleaning, tokens, the UMT5 encoder.
//!
//! ```text
//! prompt ── clean_prompt ──→ text ── Tokenizer ──→ ids [n] ── TextEncoder ──→ embedding [n, d_model]
//! ```
//!
//! Padding is nobody's business here: the reference pads to [`TOKENS_MAX`] and masks the padding inside the encoder, which
//! gives the same rows for the real tokens as running on those alone.

mod bias;
mod charsmap;
mod clean;
mod config;
mod encoder;
mod entities;
mod names;
mod tokenizer;

pub use clean::{PROMPT_CHARS_MAX, clean_prompt};
pub use config::Umt5Config;
pub use encoder::TextEncoder;
pub(crate) use names::LINEAR_LAYERS;
pub use names::{ALIASES, expected_tensors, group_of, official_name};
pub use tokenizer::{TOKENIZER_BYTES_MAX, TOKENS_MAX, Tokenizer};
