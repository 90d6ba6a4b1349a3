//! The numbers that fix a transformer's shape, from diffusers' or the official `config.json`.

use std::path::Path;

use serde_json::json;

use crate::checkpoint::fields::Fields;
use crate::checkpoint::rollout::CausalFields;
use crate::error::Result;
use crate::text::TOKENS_MAX;

/// Upper end of every width: four times Wan2.2's largest, so that no product below can overflow.
const WIDTH_MAX: usize = 65_536;

/// Shape of one expert. Wan2.2-T2V-A14B: 40 heads of 128, 40 layers, ffn 13,824.
#[derive(Clone, Debug, PartialEq)]
pub struct TransformerConfig {
    /// Attention heads.
    pub heads: usize,
    /// Dimensions of a head; even.
    pub head_dim: usize,
    /// Latent channels, in and out.
    pub channels: usize,
    /// Width of a text embedding.
    pub text_dim: usize,
    /// Width of the timestep sinusoid; even.
    pub freq_dim: usize,
    /// Hidden width of the feed-forward part.
    pub ffn_dim: usize,
    /// Blocks.
    pub layers: usize,
    /// Whether cross-attention has an affine norm before it.
    pub cross_attn_norm: bool,
    /// Added to variances.
    pub eps: f64,
    /// Positions per axis that the model may see.
    pub rope_positions: usize,
}

/// Latent positions that one token covers, as (frames, rows, columns); the only patch Wan2.2-T2V-A14B has.
pub const PATCH: [usize; 3] = [1, 2, 2];

/// Latent values of one channel in a patch.
pub(crate) const PATCH_VALUES: usize = PATCH[0] * PATCH[1] * PATCH[2];

impl TransformerConfig {
    /// Width of the residual stream.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Reads diffusers' `transformer/config.json`; `path` is named in errors.
    ///
    /// # Errors
    /// When a number is missing or absurd, or a field asks for arithmetic that text-to-video models do not have.
    pub fn from_diffusers(path: &Path, bytes: &[u8]) -> Result<Self> {
        Ok(Self::diffusers_with_causal(path, bytes)?.0)
    }

    /// As [`Self::from_diffusers`], with what a causal transformer says about going on block by block.
    pub(crate) fn diffusers_with_causal(path: &Path, bytes: &[u8]) -> Result<(Self, Option<CausalFields>)> {
        let mut fields = Fields::parse(path, bytes)?;
        let is_causal = match fields.optional_text("_class_name")?.as_deref() {
            None | Some("WanTransformer3DModel") => false,
            Some("CausalWanTransformer3DModel") => true,
            Some(other) => {
                let expected = "WanTransformer3DModel or CausalWanTransformer3DModel: only Wan transformers are supported";
                return Err(fields.fault("_class_name", other, expected));
            }
        };
        let causal = if is_causal { Some(CausalFields::take(&mut fields)?) } else { None };
        fields.only("patch_size", &json!(PATCH), "no other patch is supported")?;
        fields.only(
            "qk_norm",
            &json!("rms_norm_across_heads"),
            "no other norm of queries and keys is known",
        )?;
        for name in ["image_dim", "added_kv_proj_dim", "pos_embed_seq_len"] {
            fields.only(name, &json!(null), "image conditioning is not supported")?;
        }
        let config = Self {
            heads: fields.count("num_attention_heads", 1..=512)?,
            head_dim: fields.count("attention_head_dim", 6..=256)?,
            channels: fields.count("in_channels", 1..=1024)?,
            text_dim: fields.count("text_dim", 1..=WIDTH_MAX)?,
            freq_dim: fields.count("freq_dim", 2..=WIDTH_MAX)?,
            ffn_dim: fields.count("ffn_dim", 1..=4 * WIDTH_MAX)?,
            layers: fields.count("num_layers", 1..=1024)?,
            cross_attn_norm: fields.optional_flag("cross_attn_norm")?.unwrap_or(true),
            eps: fields.optional_number("eps", 0.0..=1.0)?.unwrap_or(1e-6),
            rope_positions: fields.optional_count("rope_max_seq_len", 1..=1 << 20)?.unwrap_or(1024),
        };
        let out_channels = fields.optional_count("out_channels", 1..=1024)?.unwrap_or(config.channels);
        config.check(&fields, ["attention_head_dim", "freq_dim", "num_attention_heads"], out_channels)?;
        fields.finish()?;
        Ok((config, causal))
    }

    /// Reads the official layout's `high_noise_model/config.json`; fields it leaves out have `WanModel`'s defaults.
    ///
    /// # Errors
    /// As [`Self::from_diffusers`].
    pub fn from_official(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields::parse(path, bytes)?;
        fields.only("_class_name", &json!("WanModel"), "only Wan transformers are supported")?;
        fields.only("model_type", &json!("t2v"), "only text-to-video is supported")?;
        fields.only("patch_size", &json!(PATCH), "no other patch is supported")?;
        fields.only("window_size", &json!([-1, -1]), "windowed attention is not supported")?;
        fields.only("qk_norm", &json!(true), "queries and keys are always normalised")?;
        fields.only("text_len", &json!(TOKENS_MAX), "every prompt is padded to that many tokens")?;
        let dim = fields.count("dim", 6..=WIDTH_MAX)?;
        let heads = fields.count("num_heads", 1..=512)?;
        if !dim.is_multiple_of(heads) {
            return Err(fields.fault("num_heads", heads, format!("a divisor of dim, {dim}")));
        }
        let config = Self {
            heads,
            head_dim: dim / heads,
            channels: fields.count("in_dim", 1..=1024)?,
            text_dim: fields.optional_count("text_dim", 1..=WIDTH_MAX)?.unwrap_or(4096),
            freq_dim: fields.count("freq_dim", 2..=WIDTH_MAX)?,
            ffn_dim: fields.count("ffn_dim", 1..=4 * WIDTH_MAX)?,
            layers: fields.count("num_layers", 1..=1024)?,
            cross_attn_norm: fields.optional_flag("cross_attn_norm")?.unwrap_or(true),
            eps: fields.optional_number("eps", 0.0..=1.0)?.unwrap_or(1e-6),
            rope_positions: 1024,
        };
        if !(6..=256).contains(&config.head_dim) {
            return Err(fields.fault("dim / num_heads", config.head_dim, "a number from 6 to 256"));
        }
        let out_channels = fields.count("out_dim", 1..=1024)?;
        config.check(&fields, ["dim / num_heads", "freq_dim", "dim"], out_channels)?;
        fields.finish()?;
        Ok(config)
    }

    /// Relations between fields; `names` are what the file calls the head's width, the sinusoid's and the stream's.
    fn check(&self, fields: &Fields, names: [&str; 3], out_channels: usize) -> Result<()> {
        let [head_dim, freq_dim, dim] = names;
        if !self.head_dim.is_multiple_of(2) {
            return Err(fields.fault(
                head_dim,
                self.head_dim,
                "an even number, since rotations act on pairs",
            ));
        }
        if !self.freq_dim.is_multiple_of(2) {
            return Err(fields.fault(freq_dim, self.freq_dim, "an even number: cosines and sines"));
        }
        if self.dim() > WIDTH_MAX {
            return Err(fields.fault(dim, self.dim(), format!("a width of at most {WIDTH_MAX}")));
        }
        if out_channels != self.channels {
            let expected = format!("{}, the input's channels", self.channels);
            return Err(fields.fault("output channels", out_channels, expected));
        }
        Ok(())
    }
}
