//! The UMT5 encoder against transformers, as stored by `xtask/goldens/text.py`.

use std::path::Path;

use evanesce_kernels::{Dtype, Isa};
use evanesce_wan::WanError;
use evanesce_wan::text::{ALIASES, TextEncoder, Umt5Config, expected_tensors, group_of, official_name};
use evanesce_wan::weights::{Component, GroupId, MapSource};
use safetensors::SafeTensors;

static SQUARE: (&[u8], &[u8]) = (
    include_bytes!("goldens/text/encoder_square.json"),
    include_bytes!("goldens/text/encoder_square.safetensors"),
);
static NARROW: (&[u8], &[u8]) = (
    include_bytes!("goldens/text/encoder_narrow.json"),
    include_bytes!("goldens/text/encoder_narrow.safetensors"),
);

fn config(json: &[u8]) -> Umt5Config {
    Umt5Config::from_json(json, Path::new("text_encoder/config.json")).expect("a good configuration")
}

fn dtype(stored: safetensors::Dtype) -> Dtype {
    match stored {
        safetensors::Dtype::F32 => Dtype::F32,
        safetensors::Dtype::BF16 => Dtype::BF16,
        other => panic!("the goldens hold no {other:?}"),
    }
}

/// The stored weights, grouped as the encoder expects them; every stored tensor must be expected and the reverse.
fn source(config: &Umt5Config, goldens: &SafeTensors<'_>) -> MapSource {
    let mut source = MapSource::default();
    let mut taken = 0;
    for (index, group) in expected_tensors(config).into_iter().enumerate() {
        let tensors = group.into_iter().map(|(name, shape)| {
            let stored = goldens.tensor(&format!("weights/{name}")).expect("stored");
            assert_eq!(stored.shape(), shape, "{name}");
            assert_eq!(group_of(config, &name), Some(index), "{name}");
            taken += 1;
            (name, dtype(stored.dtype()), shape, stored.data().to_vec())
        });
        let tensors: Vec<_> = tensors.collect();
        source.insert(GroupId { component: Component::TextEncoder, index }, tensors);
    }
    assert_eq!(taken, goldens.names().iter().filter(|name| name.starts_with("weights/")).count());
    source
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn ids(goldens: &SafeTensors<'_>, length: usize) -> Vec<u32> {
    let bytes = goldens.tensor(&format!("ids/{length}")).expect("stored").data();
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn relative_error(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let distance: f64 = got.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (distance / expected.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

#[test]
fn embeddings_are_those_of_the_reference_at_every_length() {
    for ((json, stored), lengths) in [(SQUARE, &[1, 7, 200][..]), (NARROW, &[5, 23][..])] {
        let goldens = SafeTensors::deserialize(stored).unwrap();
        let config = config(json);
        let source = source(&config, &goldens);
        let encoder = TextEncoder::new(config);
        for &length in lengths {
            let expected = floats(goldens.tensor(&format!("out/{length}")).unwrap().data());
            for isa in Isa::present() {
                let out = isa.run(|| encoder.encode(&source, &ids(&goldens, length))).unwrap();
                assert_eq!(out.dims(), [length, encoder.config().d_model]);
                let got: Vec<f32> = out.flatten_all().unwrap().to_vec1().unwrap();
                let error = relative_error(&got, &expected);
                assert!(error <= 1e-5, "{length} tokens, {isa}: relative error {error:e}");
            }
        }
    }
}

#[test]
fn a_text_without_tokens_has_an_embedding_without_rows() {
    let goldens = SafeTensors::deserialize(SQUARE.1).unwrap();
    let config = config(SQUARE.0);
    let source = source(&config, &goldens);
    assert_eq!(TextEncoder::new(config).encode(&source, &[]).unwrap().dims(), [0, 32]);
}

#[test]
fn ids_that_the_table_does_not_have_and_texts_that_are_too_long_are_refused() {
    let goldens = SafeTensors::deserialize(SQUARE.1).unwrap();
    let config = config(SQUARE.0);
    let source = source(&config, &goldens);
    let encoder = TextEncoder::new(config);
    for ids in [&[3, 256][..], &[u32::MAX], &[1; 513]] {
        assert!(matches!(encoder.encode(&source, ids), Err(WanError::Mismatch { .. })));
    }
}

#[test]
fn every_tensor_has_a_group_and_an_official_name_of_its_own() {
    let config = Umt5Config::xxl();
    let groups = expected_tensors(&config);
    assert_eq!(groups.len(), config.groups());
    let parameters: usize = groups.iter().flatten().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!(parameters, 5_680_910_336);
    let mut official: Vec<_> =
        groups.iter().flatten().map(|(name, _)| official_name(name).unwrap()).collect();
    assert!(official.contains(&"blocks.23.ffn.gate.0.weight".to_owned()));
    assert!(official.contains(&"blocks.0.pos_embedding.embedding.weight".to_owned()));
    let count = official.len();
    official.sort();
    official.dedup();
    assert_eq!(official.len(), count);
    assert_eq!(group_of(&config, ALIASES[0].0), Some(0));
    for unknown in
        ["", "encoder.block.24.layer.0.layer_norm.weight", "encoder.block.01.layer.0.layer_norm.weight"]
    {
        assert_eq!(group_of(&config, unknown), None);
    }
    assert_eq!(official_name("encoder.block.x.layer.0.layer_norm.weight"), None);
}

#[test]
fn configurations_with_missing_or_absurd_sizes_are_refused() {
    let good: serde_json::Value = serde_json::from_slice(SQUARE.0).unwrap();
    let refused = |config: &serde_json::Value| {
        let json = serde_json::to_vec(config).unwrap();
        matches!(Umt5Config::from_json(&json, Path::new("config.json")), Err(WanError::Checkpoint { .. }))
    };
    assert!(!refused(&good));
    for size in ["vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"] {
        for wrong in [serde_json::json!(0), serde_json::json!(-1), serde_json::json!(1u64 << 60), "x".into()]
        {
            let mut config = good.clone();
            config[size] = wrong;
            assert!(refused(&config), "{config}");
        }
        let mut config = good.clone();
        config.as_object_mut().unwrap().remove(size);
        assert!(refused(&config), "{config}");
    }
    for (name, wrong) in [
        ("feed_forward_proj", serde_json::json!("relu")),
        ("layer_norm_epsilon", serde_json::json!(0.0)),
        ("relative_attention_num_buckets", serde_json::json!(7)),
        ("relative_attention_max_distance", serde_json::json!(8)),
    ] {
        let mut config = good.clone();
        config[name] = wrong;
        assert!(refused(&config), "{config}");
    }
}
