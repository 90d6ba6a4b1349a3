//! The encoder's tensors: canonical names (transformers'), shapes, groups, and their names in the official checkpoint.

use super::Umt5Config;

/// Other names under which a file may hold a tensor: (alias, canonical). The embedding table is tied, and some writers
/// store it twice or under the encoder's name only.
pub const ALIASES: [(&str, &str); 1] = [("encoder.embed_tokens.weight", EMBEDDING)];

pub(super) const EMBEDDING: &str = "shared.weight";
pub(super) const FINAL_NORM: &str = "encoder.final_layer_norm.weight";

/// One layer's tensors, below `encoder.block.{i}.`, and below `blocks.{i}.` in the official checkpoint.
const LAYER: [(&str, &str); 10] = [
    ("layer.0.layer_norm.weight", "norm1.weight"),
    ("layer.0.SelfAttention.q.weight", "attn.q.weight"),
    ("layer.0.SelfAttention.k.weight", "attn.k.weight"),
    ("layer.0.SelfAttention.v.weight", "attn.v.weight"),
    ("layer.0.SelfAttention.o.weight", "attn.o.weight"),
    ("layer.0.SelfAttention.relative_attention_bias.weight", "pos_embedding.embedding.weight"),
    ("layer.1.layer_norm.weight", "norm2.weight"),
    ("layer.1.DenseReluDense.wi_0.weight", "ffn.gate.0.weight"),
    ("layer.1.DenseReluDense.wi_1.weight", "ffn.fc1.weight"),
    ("layer.1.DenseReluDense.wo.weight", "ffn.fc2.weight"),
];

/// The linear layers, by the ends of their names.
pub(crate) const LINEAR_LAYERS: &[&str] = &[
    "SelfAttention.q",
    "SelfAttention.k",
    "SelfAttention.v",
    "SelfAttention.o",
    "DenseReluDense.wi_0",
    "DenseReluDense.wi_1",
    "DenseReluDense.wo",
];

/// Every tensor of an encoder with its shape, group by group in forward order: the embedding table, the layers, the final
/// norm. Names are canonical.
#[must_use]
pub fn expected_tensors(config: &Umt5Config) -> Vec<Vec<(String, Vec<usize>)>> {
    let (width, inner, ff) = (config.d_model, config.inner_dim(), config.d_ff);
    let shapes: [Vec<usize>; 10] = [
        vec![width],
        vec![inner, width],
        vec![inner, width],
        vec![inner, width],
        vec![width, inner],
        vec![config.relative_attention_num_buckets, config.num_heads],
        vec![width],
        vec![ff, width],
        vec![ff, width],
        vec![width, ff],
    ];
    let layer = |index: usize| {
        let named = LAYER.iter().zip(&shapes);
        named.map(|((name, _), shape)| (format!("encoder.block.{index}.{name}"), shape.clone())).collect()
    };
    let mut groups = vec![vec![(EMBEDDING.to_owned(), vec![config.vocab_size, width])]];
    groups.extend((0..config.num_layers).map(layer));
    groups.push(vec![(FINAL_NORM.to_owned(), vec![width])]);
    groups
}

/// The group that a tensor belongs to, by its canonical name or an alias; `None` for a name the encoder does not have.
#[must_use]
pub fn group_of(config: &Umt5Config, name: &str) -> Option<usize> {
    match name {
        EMBEDDING => Some(0),
        FINAL_NORM => Some(config.num_layers + 1),
        _ if ALIASES.iter().any(|(alias, _)| *alias == name) => Some(0),
        _ => {
            let (index, _) = layer_tensor(name)?;
            (index < config.num_layers).then_some(index + 1)
        }
    }
}

/// What the official checkpoint (`models_t5_umt5-xxl-enc-bf16.pth`) calls a tensor, given its canonical name; `None` for a
/// name no encoder has.
#[must_use]
pub fn official_name(canonical: &str) -> Option<String> {
    match canonical {
        EMBEDDING => Some("token_embedding.weight".to_owned()),
        FINAL_NORM => Some("norm.weight".to_owned()),
        _ => {
            let (index, official) = layer_tensor(canonical)?;
            Some(format!("blocks.{index}.{official}"))
        }
    }
}

/// Layer and official name within it, for a canonical name.
fn layer_tensor(canonical: &str) -> Option<(usize, &'static str)> {
    let (index, name) = canonical.strip_prefix("encoder.block.")?.split_once('.')?;
    let (_, official) = LAYER.iter().find(|(known, _)| *known == name)?;
    let number: usize = index.parse().ok()?;
    (number.to_string() == index).then_some((number, official))
}
