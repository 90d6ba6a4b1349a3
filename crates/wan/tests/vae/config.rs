use std::path::Path;

use evanesce_wan::vae::VaeConfig;
use serde_json::{Value, json};

fn parse(json: &Value) -> Result<VaeConfig, String> {
    VaeConfig::from_json(Path::new("vae/config.json"), &json.to_string()).map_err(|error| error.to_string())
}

/// The file that is published with the diffusers checkpoint.
fn published() -> Value {
    json!({
        "_class_name": "AutoencoderKLWan", "_diffusers_version": "0.33.0", "attn_scales": [], "base_dim": 96,
        "dim_mult": [1, 2, 4, 4], "dropout": 0.0,
        "latents_mean": [
            -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
            0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921
        ],
        "latents_std": [
            2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
            3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916
        ],
        "num_res_blocks": 2, "temperal_downsample": [false, true, true], "z_dim": 16
    })
}

#[test]
fn the_published_file_is_the_official_vae() {
    let config = parse(&published()).unwrap();
    assert_eq!(config, VaeConfig::wan21());
    assert_eq!((config.z_dim(), config.spatial_factor(), config.temporal_factor()), (16, 8, 4));
}

#[test]
fn unsupported_and_absurd_values_are_refused_in_a_sentence() {
    let means: Vec<f64> = vec![0.0; 15];
    let mut zero_std: Vec<f64> = vec![1.0; 16];
    zero_std[3] = 0.0;
    for (key, value, message) in [
        ("_class_name", json!("AutoencoderKL"), "_class_name is AutoencoderKL, expected AutoencoderKLWan"),
        ("base_dim", json!(0), "base_dim is 0, expected 1 to 1024"),
        ("base_dim", json!(1), "decoder_base_dim times dim_mult is 1, expected 2 to 8192"),
        ("base_dim", json!(-96), "invalid value: integer `-96`, expected usize"),
        ("base_dim", json!(1e30), "invalid type: floating point"),
        ("decoder_base_dim", json!(100_000), "decoder_base_dim is 100000, expected 1 to 1024"),
        ("z_dim", json!(0), "z_dim is 0, expected 1 to 256"),
        ("dim_mult", json!([]), "the length of dim_mult is 0, expected 2 to 6"),
        ("dim_mult", json!([1, 2, 4, 0]), "every number in dim_mult is 0, expected 1 to 64"),
        ("num_res_blocks", json!(1000), "num_res_blocks is 1000, expected 1 to 8"),
        ("attn_scales", json!([0.5]), "attn_scales must be empty"),
        ("temperal_downsample", json!([true]), "the length of temperal_downsample is 1, expected 3"),
        ("latents_mean", json!(means), "the length of latents_mean is 15, expected 16"),
        ("latents_std", json!(zero_std), "latents_std holds a number that is not above zero"),
        ("is_residual", json!(true), "is_residual and patch_size belong to the VAE of Wan 2.2 5B"),
        ("patch_size", json!(2), "is_residual and patch_size belong to the VAE of Wan 2.2 5B"),
        ("in_channels", json!(12), "in_channels is 12, expected 3"),
        ("scale_factor_spatial", json!(16), "scale_factor_spatial is 16, expected 8"),
        ("scale_factor_temporal", json!(8), "scale_factor_temporal is 8, expected 4"),
    ] {
        let mut changed = published();
        changed[key] = value;
        let error = parse(&changed).unwrap_err();
        assert!(error.starts_with(&format!("vae/config.json: {message}")), "{key}: {error}");
    }
}

#[test]
fn a_missing_number_is_named() {
    for key in [
        "base_dim",
        "z_dim",
        "dim_mult",
        "num_res_blocks",
        "temperal_downsample",
        "latents_mean",
        "latents_std",
    ] {
        let mut without = published();
        without.as_object_mut().unwrap().remove(key);
        let error = parse(&without).unwrap_err();
        assert!(error.contains(&format!("missing field `{key}`")), "{error}");
    }
}
