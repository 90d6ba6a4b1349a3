//! What `vae/config.json` says, checked.

use std::ops::RangeInclusive;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Result, WanError};

/// Shape of a VAE. Only supported shapes can be made, so nothing downstream checks again.
#[derive(Clone, Debug, PartialEq)]
pub struct VaeConfig {
    pub(super) encoder_dim: usize,
    pub(super) decoder_dim: usize,
    pub(super) z_dim: usize,
    pub(super) dim_mult: Vec<usize>,
    pub(super) num_res_blocks: usize,
    pub(super) temporal_downsample: Vec<bool>,
    pub(super) latents_mean: Vec<f32>,
    pub(super) latents_std: Vec<f32>,
}

/// The file as diffusers writes it. Fields that older versions of diffusers did not write have their defaults.
#[derive(Deserialize)]
struct Fields {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    base_dim: usize,
    decoder_base_dim: Option<usize>,
    z_dim: usize,
    dim_mult: Vec<usize>,
    num_res_blocks: usize,
    #[serde(default)]
    attn_scales: Vec<f64>,
    temperal_downsample: Vec<bool>,
    latents_mean: Vec<f32>,
    latents_std: Vec<f32>,
    #[serde(default)]
    is_residual: bool,
    #[serde(default = "rgb")]
    in_channels: usize,
    #[serde(default = "rgb")]
    out_channels: usize,
    patch_size: Option<usize>,
    scale_factor_temporal: Option<usize>,
    scale_factor_spatial: Option<usize>,
}

const fn rgb() -> usize {
    3
}

impl VaeConfig {
    /// The VAE of Wan 2.1, which `Wan2.1_VAE.pth` holds without saying so; numbers as in diffusers' class defaults.
    #[must_use]
    pub fn wan21() -> Self {
        Self {
            encoder_dim: 96,
            decoder_dim: 96,
            z_dim: 16,
            dim_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            temporal_downsample: vec![false, true, true],
            latents_mean: vec![
                -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517,
                -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
            ],
            latents_std: vec![
                2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652,
                1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
            ],
        }
    }

    /// Reads the text of a `config.json`; `path` is where it came from and only appears in messages.
    ///
    /// # Errors
    /// [`WanError::Checkpoint`] when it is not JSON, lacks a field, or describes a VAE other than Wan 2.1's kind.
    pub fn from_json(path: &Path, json: &str) -> Result<Self> {
        let fields: Fields =
            serde_json::from_str(json).map_err(|error| WanError::checkpoint(path, error.to_string()))?;
        check(&fields).map_err(|message| WanError::checkpoint(path, message))?;
        Ok(Self {
            encoder_dim: fields.base_dim,
            decoder_dim: fields.decoder_base_dim.unwrap_or(fields.base_dim),
            z_dim: fields.z_dim,
            dim_mult: fields.dim_mult,
            num_res_blocks: fields.num_res_blocks,
            temporal_downsample: fields.temperal_downsample,
            latents_mean: fields.latents_mean,
            latents_std: fields.latents_std,
        })
    }

    /// Channels of a latent frame.
    #[must_use]
    pub fn z_dim(&self) -> usize {
        self.z_dim
    }

    /// Picture rows (columns) of one latent row (column).
    #[must_use]
    pub fn spatial_factor(&self) -> usize {
        1 << self.temporal_downsample.len()
    }

    /// Pictures of one latent frame, the first latent frame aside.
    #[must_use]
    pub fn temporal_factor(&self) -> usize {
        1 << self.temporal_downsample.iter().filter(|&&halves| halves).count()
    }
}

fn check(fields: &Fields) -> std::result::Result<(), String> {
    let class = fields.class_name.as_deref().unwrap_or("AutoencoderKLWan");
    if class != "AutoencoderKLWan" {
        return Err(format!("_class_name is {class}, expected AutoencoderKLWan"));
    }
    if fields.is_residual || fields.patch_size.is_some() {
        return Err(
            "is_residual and patch_size belong to the VAE of Wan 2.2 5B; expected that of Wan 2.1".to_owned()
        );
    }
    if !fields.attn_scales.is_empty() {
        return Err(
            "attn_scales must be empty: attention outside the middle block is not supported".to_owned()
        );
    }
    within("base_dim", fields.base_dim, 1..=1024)?;
    within("decoder_base_dim", fields.decoder_base_dim.unwrap_or(1), 1..=1024)?;
    within("z_dim", fields.z_dim, 1..=256)?;
    within("num_res_blocks", fields.num_res_blocks, 1..=8)?;
    within("in_channels", fields.in_channels, 3..=3)?;
    within("out_channels", fields.out_channels, 3..=3)?;
    check_levels(fields)?;
    check_normalisation(fields)
}

fn check_levels(fields: &Fields) -> std::result::Result<(), String> {
    let levels = fields.dim_mult.len();
    within("the length of dim_mult", levels, 2..=6)?;
    within("the length of temperal_downsample", fields.temperal_downsample.len(), levels - 1..=levels - 1)?;
    for &factor in &fields.dim_mult {
        within("every number in dim_mult", factor, 1..=64)?;
        // Every level but the decoder's last hands half of its channels on.
        within("base_dim times dim_mult", factor * fields.base_dim, 1..=8192)?;
        within(
            "decoder_base_dim times dim_mult",
            factor * fields.decoder_base_dim.unwrap_or(fields.base_dim),
            2..=8192,
        )?;
    }
    let spatial = 1 << (levels - 1);
    let temporal = 1 << fields.temperal_downsample.iter().filter(|&&halves| halves).count();
    within("scale_factor_spatial", fields.scale_factor_spatial.unwrap_or(spatial), spatial..=spatial)?;
    within("scale_factor_temporal", fields.scale_factor_temporal.unwrap_or(temporal), temporal..=temporal)
}

fn check_normalisation(fields: &Fields) -> std::result::Result<(), String> {
    within("the length of latents_mean", fields.latents_mean.len(), fields.z_dim..=fields.z_dim)?;
    within("the length of latents_std", fields.latents_std.len(), fields.z_dim..=fields.z_dim)?;
    if !fields.latents_mean.iter().all(|mean| mean.is_finite()) {
        return Err("latents_mean holds a number that is not finite".to_owned());
    }
    if !fields.latents_std.iter().all(|std| std.is_finite() && *std > 0.0) {
        return Err("latents_std holds a number that is not above zero and finite".to_owned());
    }
    Ok(())
}

fn within(what: &str, value: usize, range: RangeInclusive<usize>) -> std::result::Result<(), String> {
    if range.contains(&value) {
        return Ok(());
    }
    let (low, high) = (range.start(), range.end());
    let expected = if low == high { low.to_string() } else { format!("{low} to {high}") };
    Err(format!("{what} is {value}, expected {expected}"))
}
