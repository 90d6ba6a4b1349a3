//! The VAE against diffusers (`xtask/goldens/vae.py`), and the laws of its streams.

#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that fails")]

mod config;
#[path = "../support/draw.rs"]
mod draw;
mod names;
mod parity;
mod setup;
mod slots;
mod streams;
