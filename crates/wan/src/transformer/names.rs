//! Which tensors a transformer has, in which group each lies, and what the official checkpoint calls them.

use super::config::{PATCH, PATCH_VALUES, TransformerConfig};

/// Tensors by group: 0 = everything before the blocks, 1..=layers = the blocks, layers + 1 = the head.
/// Each is (canonical name, shape).
#[must_use]
pub fn expected_tensors(config: &TransformerConfig) -> Vec<Vec<(String, Vec<usize>)>> {
    let mut groups = Vec::with_capacity(config.layers + 2);
    groups.push(embedder(config));
    groups.extend((0..config.layers).map(|layer| block(config, layer)));
    let dim = config.dim();
    let mut head = linear("proj_out", PATCH_VALUES * config.channels, dim);
    head.push(("scale_shift_table".to_owned(), vec![1, 2, dim]));
    groups.push(head);
    groups
}

/// The linear layers, by the ends of their names; patches do not overlap, so their embedding is one.
pub(crate) const LINEAR_LAYERS: &[&str] = &[
    "patch_embedding",
    "linear_1",
    "linear_2",
    "time_proj",
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "ffn.net.0.proj",
    "ffn.net.2",
    "proj_out",
];

fn linear(name: &str, outputs: usize, inputs: usize) -> Vec<(String, Vec<usize>)> {
    vec![(format!("{name}.weight"), vec![outputs, inputs]), (format!("{name}.bias"), vec![outputs])]
}

fn embedder(config: &TransformerConfig) -> Vec<(String, Vec<usize>)> {
    let dim = config.dim();
    let [frames, rows, columns] = PATCH;
    let mut tensors = vec![
        ("patch_embedding.weight".to_owned(), vec![dim, config.channels, frames, rows, columns]),
        ("patch_embedding.bias".to_owned(), vec![dim]),
    ];
    tensors.extend(linear("condition_embedder.time_embedder.linear_1", dim, config.freq_dim));
    tensors.extend(linear("condition_embedder.time_embedder.linear_2", dim, dim));
    tensors.extend(linear("condition_embedder.time_proj", 6 * dim, dim));
    tensors.extend(linear("condition_embedder.text_embedder.linear_1", dim, config.text_dim));
    tensors.extend(linear("condition_embedder.text_embedder.linear_2", dim, dim));
    tensors
}

fn block(config: &TransformerConfig, layer: usize) -> Vec<(String, Vec<usize>)> {
    let dim = config.dim();
    let prefix = format!("blocks.{layer}");
    let mut tensors = vec![(format!("{prefix}.scale_shift_table"), vec![1, 6, dim])];
    for attention in ["attn1", "attn2"] {
        for part in ["to_q", "to_k", "to_v", "to_out.0"] {
            tensors.extend(linear(&format!("{prefix}.{attention}.{part}"), dim, dim));
        }
        for norm in ["norm_q", "norm_k"] {
            tensors.push((format!("{prefix}.{attention}.{norm}.weight"), vec![dim]));
        }
    }
    if config.cross_attn_norm {
        tensors.push((format!("{prefix}.norm2.weight"), vec![dim]));
        tensors.push((format!("{prefix}.norm2.bias"), vec![dim]));
    }
    tensors.extend(linear(&format!("{prefix}.ffn.net.0.proj"), config.ffn_dim, dim));
    tensors.extend(linear(&format!("{prefix}.ffn.net.2"), dim, config.ffn_dim));
    tensors
}

/// Official name parts and their canonical counterparts, as in diffusers' `scripts/convert_wan_to_diffusers.py`.
/// The affine norm before cross-attention is the official `norm3` and the canonical `norm2`.
const RENAMED: [(&str, &str); 14] = [
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("modulation", "scale_shift_table"),
    ("self_attn", "attn1"),
    ("cross_attn", "attn2"),
    (".q.", ".to_q."),
    (".k.", ".to_k."),
    (".v.", ".to_v."),
    (".o.", ".to_out.0."),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
];

/// What the official checkpoint calls the tensor `canonical`.
#[must_use]
pub fn official_name(canonical: &str) -> String {
    match canonical {
        "scale_shift_table" => return "head.modulation".to_owned(),
        _ if canonical.starts_with("proj_out") => return canonical.replacen("proj_out", "head.head", 1),
        _ => {}
    }
    RENAMED.iter().fold(canonical.replace(".norm2.", ".norm3."), |name, (official, canonical)| {
        name.replace(canonical, official)
    })
}
