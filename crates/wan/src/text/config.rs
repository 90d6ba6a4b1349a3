//! Sizes of a UMT5 encoder.

use std::ops::RangeInclusive;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Result, WanError};

/// What `text_encoder/config.json` says about the encoder (transformers' `UMT5Config`).
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Umt5Config {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream, and of the embedding that comes out.
    pub d_model: usize,
    /// Width of one head.
    pub d_kv: usize,
    /// Width of the feed-forward layer.
    pub d_ff: usize,
    /// Layers.
    pub num_layers: usize,
    /// Heads of a layer; together they may be wider or narrower than `d_model`.
    pub num_heads: usize,
    /// Rows of a layer's table of position biases, half of them for each direction.
    #[serde(default = "buckets")]
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all positions share the last bucket.
    #[serde(default = "max_distance")]
    pub relative_attention_max_distance: usize,
    /// Added to the mean square in the norms.
    #[serde(default = "epsilon")]
    pub layer_norm_epsilon: f64,
    /// Must be `gated-gelu`.
    #[serde(default = "gated_gelu")]
    pub feed_forward_proj: String,
}

fn buckets() -> usize {
    32
}

fn max_distance() -> usize {
    128
}

fn epsilon() -> f64 {
    1e-6
}

fn gated_gelu() -> String {
    "gated-gelu".to_owned()
}

impl Umt5Config {
    /// The encoder that Wan2.2-T2V-A14B uses: that of UMT5-XXL. The official layout has no configuration for it.
    #[must_use]
    pub fn xxl() -> Self {
        Self {
            vocab_size: 256_384,
            d_model: 4096,
            d_kv: 64,
            d_ff: 10_240,
            num_layers: 24,
            num_heads: 64,
            relative_attention_num_buckets: buckets(),
            relative_attention_max_distance: max_distance(),
            layer_norm_epsilon: epsilon(),
            feed_forward_proj: gated_gelu(),
        }
    }

    /// Reads a `config.json`; `path` names it in errors.
    ///
    /// # Errors
    /// [`WanError::Checkpoint`] when it is no JSON, lacks a size, or has one that no encoder can have.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self> {
        let config: Self =
            serde_json::from_slice(json).map_err(|error| WanError::checkpoint(path, error.to_string()))?;
        config.check().map_err(|message| WanError::checkpoint(path, message))?;
        Ok(config)
    }

    /// All heads together.
    #[must_use]
    pub fn inner_dim(&self) -> usize {
        self.num_heads * self.d_kv
    }

    /// Weight groups: the embedding table, each layer, the final norm.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.num_layers + 2
    }

    fn check(&self) -> std::result::Result<(), String> {
        let sizes: [(&str, usize, RangeInclusive<usize>); 8] = [
            ("vocab_size", self.vocab_size, 1..=16_777_216),
            ("d_model", self.d_model, 1..=65_536),
            ("d_kv", self.d_kv, 1..=4096),
            ("d_ff", self.d_ff, 1..=262_144),
            ("num_layers", self.num_layers, 1..=512),
            ("num_heads", self.num_heads, 1..=1024),
            ("relative_attention_num_buckets", self.relative_attention_num_buckets, 4..=4096),
            ("relative_attention_max_distance", self.relative_attention_max_distance, 2..=65_536),
        ];
        for (name, got, allowed) in sizes {
            if !allowed.contains(&got) {
                return Err(format!("{name} is {got}, expected {} to {}", allowed.start(), allowed.end()));
            }
        }
        let buckets = self.relative_attention_num_buckets;
        if !buckets.is_multiple_of(2) || self.relative_attention_max_distance <= buckets / 4 {
            return Err(format!(
                "relative_attention_num_buckets is {buckets} with relative_attention_max_distance {}, expected an even \
                 number and a distance above its quarter",
                self.relative_attention_max_distance
            ));
        }
        if !(self.layer_norm_epsilon > 0.0 && self.layer_norm_epsilon < 1.0) {
            return Err(format!("layer_norm_epsilon is {}, expected 0 to 1", self.layer_norm_epsilon));
        }
        if self.feed_forward_proj != gated_gelu() {
            return Err(format!(
                "feed_forward_proj is {:?}, expected \"gated-gelu\"",
                self.feed_forward_proj
            ));
        }
        Ok(())
    }
}
