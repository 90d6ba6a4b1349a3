//! Two experts of 300 MB each run where only one and a part of the other fit.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use evanesce_engine::plan::{Planner, TierBudgets, WeightsIn};
use evanesce_engine::{Request, RequestedLength};
use evanesce_wan::transformer::{TransformerConfig, expected_tensors};
use half::bf16;
use support::{copy_tree, generate, golden_checkpoint};

const CONFIG: &str = r#"{
  "_class_name": "WanTransformer3DModel", "attention_head_dim": 128, "cross_attn_norm": true, "eps": 1e-06,
  "ffn_dim": 4096, "freq_dim": 256, "in_channels": 16, "num_attention_heads": 8, "num_layers": 9, "out_channels": 16,
  "patch_size": [1, 2, 2], "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024, "text_dim": 32
}"#;

/// Writes random bf16 weights of the given size: a repeated pattern, since only its length matters here.
fn write_expert(dir: &Path) -> u64 {
    std::fs::write(dir.join("config.json"), CONFIG).unwrap();
    let config = TransformerConfig::from_diffusers(&dir.join("config.json"), CONFIG.as_bytes()).unwrap();
    let mut state = 1_u32;
    let pattern: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bf16::from_f32((f32::from(u16::try_from(state >> 16).unwrap()) / 65_536.0 - 0.5) * 0.05).to_le_bytes()
    })
    .take(1 << 19)
    .flatten()
    .collect();
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in expected_tensors(&config).into_iter().flatten() {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header
            .insert(name, serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}));
    }
    let header = serde_json::to_string(&header).unwrap();
    let mut file = BufWriter::new(File::create(dir.join("diffusion_pytorch_model.safetensors")).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let mut left = end;
    while left > 0 {
        let n = left.min(pattern.len());
        file.write_all(&pattern[..n]).unwrap();
        left -= n;
    }
    file.flush().unwrap();
    u64::try_from(end).unwrap()
}

#[test]
fn two_experts_run_in_less_memory_than_both_take() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    copy_tree(&golden_checkpoint(), &model);
    let both: u64 =
        ["transformer", "transformer_2"].map(|expert| write_expert(&model.join(expert))).iter().sum();
    assert!(both > 600_000_000, "{both}");
    let arguments = ["a ball", "--size", "32x32", "--frames", "1", "--steps", "4", "--seed", "1", "--json"];
    let run = |budget: &str| {
        let output = generate(&model, dir.path(), &[&arguments[..], &["--device-memory", budget]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (json, std::fs::read(dir.path().join("out.mp4")).unwrap())
    };
    let (tight, tight_video) = run("400MB");
    let device = &tight["memory"]["tiers"]["device"];
    assert!(device["peak"].as_u64().unwrap() <= 400_000_000, "{device}");
    assert_eq!(device["owned_at_end"], 0);
    let process_peak = tight["process_peak_bytes"].as_u64().unwrap();
    assert!(process_peak < both, "the process held {process_peak} bytes, both experts are {both}");
    // Every group of either expert is read once: what one expert needs fits, so nothing is read twice.
    let weights = &tight["memory"]["kinds"]["weights"];
    let (ample, ample_video) = run("2GB");
    assert_eq!(weights["puts"], ample["memory"]["kinds"]["weights"]["puts"], "{weights}");
    assert!(weights["evicted"].as_u64() > Some(0) && ample["memory"]["kinds"]["weights"]["evicted"] == 0);
    assert_eq!(tight_video, ample_video);
    // Less than one expert: groups stream, and most of them are asked for before they are read.
    let (streamed, streamed_video) = run("200MB");
    assert!(streamed["memory"]["tiers"]["device"]["peak"].as_u64().unwrap() <= 200_000_000);
    assert!(streamed["memory"]["kinds"]["weights"]["puts"].as_u64() > weights["puts"].as_u64());
    assert_eq!(streamed_video, ample_video);
    let budgets = TierBudgets { device_bytes: 200_000_000, host_bytes: 0, disk_bytes: 0 };
    let request = Request {
        size: Some((32, 32)),
        length: Some(RequestedLength::Frames(1)),
        steps: Some(4),
        ..Request::new("a ball", 1)
    };
    let plan = Planner::open(&model).unwrap().plan(request, None, budgets).unwrap();
    assert_eq!(plan.choice.weights, WeightsIn::Streamed);
    let counted = plan.memory.unwrap().kinds.into_iter().find(|kind| kind.kind == "weights").unwrap();
    assert!(2 * counted.misses < counted.puts, "{} of {} groups came late", counted.misses, counted.puts);
}
