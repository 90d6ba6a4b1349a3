//! Every way a checkpoint directory can be wrong, and the one sentence that says so.
#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that fails")]

#[path = "support/checkpoint.rs"]
mod directory;
#[path = "support/draw.rs"]
mod draw;

use std::fs;
use std::path::Path;

use directory::{Stored, copy_of, diffusers_directory, drawn, edit_json, safetensors, with_header};
use evanesce_wan::WanError;
use evanesce_wan::checkpoint::Checkpoint;
use evanesce_wan::weights::Component;
use serde_json::{Value, json};

const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";

/// Opens `dir`, which must be refused in one sentence that has every one of `parts`.
fn refused(dir: &Path, parts: &[&str]) {
    let error = Checkpoint::open(dir).expect_err(&format!("should say {parts:?}"));
    assert!(matches!(error, WanError::Checkpoint { .. }), "{error:?}");
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message}");
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

/// Damages a fresh diffusers directory and expects `parts` in the refusal.
fn damaged(damage: impl FnOnce(&Path), parts: &[&str]) {
    let temp = diffusers_directory();
    damage(temp.path());
    refused(temp.path(), parts);
}

/// Replaces the transformer's weights by a file with this header and data.
fn with_transformer_header(header: &str, data: &[u8], parts: &[&str]) {
    damaged(|dir| fs::write(dir.join(TRANSFORMER), with_header(header, data)).unwrap(), parts);
}

/// Rewrites the transformer's tensors.
fn with_tensors(edit: impl FnOnce(&mut Vec<Stored>), parts: &[&str]) {
    damaged(
        |dir| {
            let mut tensors = drawn(Component::HighNoise);
            edit(&mut tensors);
            fs::write(dir.join(TRANSFORMER), safetensors(&tensors)).unwrap();
        },
        parts,
    );
}

fn with_json(file: &str, edit: impl FnOnce(&mut Value), parts: &[&str]) {
    damaged(|dir| edit_json(&dir.join(file), edit), parts);
}

#[test]
fn directories_that_hold_no_checkpoint() {
    let temp = tempfile::tempdir().unwrap();
    refused(temp.path(), &["the directory is empty"]);
    refused(&temp.path().join("absent"), &["absent", "there is no such directory"]);
    let file = temp.path().join("file");
    fs::write(&file, "x").unwrap();
    refused(&file, &["not a directory"]);
    refused(temp.path(), &["neither model_index.json", "high_noise_model"]);
}

#[test]
fn parts_that_are_absent() {
    for part in ["transformer", "transformer_2", "vae", "text_encoder", "tokenizer", "scheduler"] {
        damaged(|dir| fs::remove_dir_all(dir.join(part)).unwrap(), &[part, "the directory is missing"]);
    }
    for file in ["tokenizer/tokenizer.json", "vae/config.json", "scheduler/scheduler_config.json"] {
        damaged(|dir| fs::remove_file(dir.join(file)).unwrap(), &[file, "the file is missing"]);
    }
    let expected = ["transformer", "no weights, expected diffusion_pytorch_model.safetensors or"];
    damaged(|dir| fs::remove_file(dir.join(TRANSFORMER)).unwrap(), &expected);
    for part in ["low_noise_model", "Wan2.1_VAE.pth", "google/umt5-xxl/tokenizer.json"] {
        let temp = copy_of("official");
        let path = temp.path().join(part);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
        refused(temp.path(), &[part, "missing"]);
    }
}

#[test]
fn shards_that_are_absent_or_lie_elsewhere() {
    let index = "high_noise_model/diffusion_pytorch_model.safetensors.index.json";
    let shard = "diffusion_pytorch_model-00002-of-00002.safetensors";
    let temp = copy_of("official");
    fs::remove_file(temp.path().join("high_noise_model").join(shard)).unwrap();
    refused(temp.path(), &[index, shard, "is absent; 34 tensors lie in it"]);

    for outside in
        ["../secret.safetensors", "/etc/secret.safetensors", "a\\b.safetensors", "notes.txt", ".safetensors"]
    {
        let temp = copy_of("official");
        edit_json(&temp.path().join(index), |json| json["weight_map"]["head.head.bias"] = json!(outside));
        refused(temp.path(), &["head.head.bias", "expected the plain name of a .safetensors file"]);
    }
    let temp = copy_of("official");
    edit_json(&temp.path().join(index), |json| json["weight_map"]["ghost"] = json!(shard));
    refused(temp.path(), &[shard, "tensor ghost is missing, the index lists it"]);

    let temp = copy_of("official");
    edit_json(&temp.path().join(index), |json| {
        drop(json["weight_map"].as_object_mut().unwrap().remove("head.head.bias"))
    });
    refused(temp.path(), &["tensor head.head.bias is here, but the index puts it in no shard"]);

    for (text, part) in
        [("{", "bad shard index"), (r#"{"weight_map": {}}"#, "lists no tensor"), ("[]", "bad shard index")]
    {
        let temp = copy_of("official");
        fs::write(temp.path().join(index), text).unwrap();
        refused(temp.path(), &[part]);
    }
    let temp = copy_of("official");
    fs::write(temp.path().join(index), r#"{"weight_map": {"a": "b.safetensors", "a": "b.safetensors"}}"#)
        .unwrap();
    refused(temp.path(), &["tensor a is listed twice"]);
}

#[test]
fn files_that_are_cut_short() {
    let cut = |len_bytes: u64| {
        move |dir: &Path| {
            fs::OpenOptions::new()
                .write(true)
                .open(dir.join(TRANSFORMER))
                .unwrap()
                .set_len(len_bytes)
                .unwrap()
        }
    };
    damaged(cut(0), &[TRANSFORMER, "0 bytes long"]);
    damaged(cut(7), &["7 bytes long"]);
    damaged(cut(8), &["the header claims"]);
    damaged(cut(400), &["the header claims"]);
    damaged(cut(40_000), &["truncated: tensor", "ends at data byte"]);
}

#[test]
fn headers_that_lie() {
    let entry =
        |begin: u64, end: u64| format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":[{begin},{end}]}}"#);
    let two = |a: String, b: String| format!(r#"{{"a":{a},"b":{b}}}"#);
    with_transformer_header(&two(entry(0, 4), entry(0, 4)), &[0; 4], &["tensors overlap at data byte 0"]);
    with_transformer_header(
        &two(entry(0, 4), entry(8, 12)),
        &[0; 12],
        &["tensors leave a gap at data byte 4"],
    );
    with_transformer_header(
        &two(entry(0, 4), entry(4, 8)),
        &[0; 9],
        &["tensors fill 8 data bytes, the file has 9"],
    );
    with_transformer_header(
        &two(entry(0, 4), entry(4, 12)),
        &[0; 12],
        &["needs 4 bytes, its offsets are 4..12"],
    );
    with_transformer_header(&two(entry(0, 4), entry(8, 4)), &[0; 12], &["its offsets are 8..4"]);
    with_transformer_header(&two(entry(0, 4), entry(4, u64::MAX)), &[0; 8], &["truncated: tensor b"]);
    let twice = format!(r#"{{"a":{},"a":{}}}"#, entry(0, 4), entry(4, 8));
    with_transformer_header(&twice, &[0; 8], &["tensor a is listed twice"]);
    let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,4]}}"#;
    with_transformer_header(huge, &[0; 4], &["needs too many bytes"]);
    let deep = format!(r#"{{"a":{{"dtype":"F32","shape":{:?},"data_offsets":[0,4]}}}}"#, [1; 9]);
    with_transformer_header(&deep, &[0; 4], &["9 axes"]);
    with_transformer_header("not json", &[], &[TRANSFORMER, "bad safetensors header"]);
    with_transformer_header("[1]", &[], &["bad safetensors header"]);
    with_transformer_header(r#"{"a":{"dtype":"F32"}}"#, &[], &["missing field"]);
    damaged(
        |dir| fs::write(dir.join(TRANSFORMER), [0xff; 64]).unwrap(),
        &["the header claims 18446744073709551615 bytes"],
    );
}

#[test]
fn tensors_missing_unknown_misshapen_or_of_a_strange_type() {
    with_tensors(
        |tensors| tensors.retain(|tensor| !tensor.name.contains("blocks.0.ffn")),
        &[TRANSFORMER, "4 tensors missing, first blocks.0.ffn.net.0.proj.weight of shape [32, 24]"],
    );
    with_tensors(
        |tensors| {
            let extra = Stored { name: "blocks.2.norm2.bias".to_owned(), ..tensors[1].clone() };
            tensors.push(extra);
        },
        &["1 unknown tensor, first blocks.2.norm2.bias"],
    );
    let transposed = |tensors: &mut Vec<Stored>| {
        for tensor in tensors.iter_mut().filter(|tensor| tensor.name.contains("ffn.net.0.proj.weight")) {
            tensor.shape.reverse();
        }
    };
    with_tensors(
        transposed,
        &[
            "2 tensors of a wrong shape, first blocks.0.ffn.net.0.proj.weight: got [24, 32], expected [32, 24]",
        ],
    );
    for (dtype, size) in [("I64", 8), ("F8_E4M3", 1), ("F64", 8), ("I8", 1), ("BOOL", 1)] {
        let retype = |tensors: &mut Vec<Stored>| {
            tensors[3].dtype = dtype.to_owned();
            tensors[3].bytes = vec![0; tensors[3].shape.iter().product::<usize>() * size];
        };
        let name = drawn(Component::HighNoise)[3].name.clone();
        with_tensors(retype, &[&format!("tensor {name} has dtype {dtype}, expected F32, F16 or BF16")]);
    }
}

#[test]
fn absurd_or_missing_numbers_in_the_transformer_s_configuration() {
    let file = "transformer/config.json";
    let set = |name: &'static str, value: Value, part: &str| {
        with_json(file, |config| config[name] = value, &[file, name, part]);
    };
    for name in [
        "num_attention_heads",
        "attention_head_dim",
        "in_channels",
        "text_dim",
        "freq_dim",
        "ffn_dim",
        "num_layers",
    ] {
        set(name, json!(null), "is missing, expected a number from");
        for value in [json!(0), json!(-1), json!(1.5), json!("5"), json!(1e300), json!(u64::MAX)] {
            set(name, value, "expected a number from");
        }
    }
    set("attention_head_dim", json!(13), "even");
    set("freq_dim", json!(33), "even");
    set("patch_size", json!([1, 1, 1]), "expected [1,2,2]");
    set("qk_norm", json!("layer_norm"), "rms_norm_across_heads");
    set("image_dim", json!(1280), "image conditioning");
    set("eps", json!("tiny"), "expected a number from 0 to 1");
    set("rope_max_seq_len", json!(0), "expected a number from");
    set("new_attention", json!(true), "1 unknown field(s)");
    set("_class_name", json!("FluxTransformer"), "only Wan transformers");
    with_json(file, |config| config["out_channels"] = json!(8), &["output channels is 8, expected 4"]);
    with_json(
        file,
        |config| config["num_attention_heads"] = json!(512),
        &["missing", "first"].map(|_| "tensors"),
    );
    for text in ["", "{", "[]", "\u{feff}{}", "null"] {
        damaged(|dir| fs::write(dir.join(file), text).unwrap(), &[file, "JSON"]);
    }
}

#[test]
fn texts_of_another_length_in_the_official_configuration() {
    let file = "low_noise_model/config.json";
    let with = |text_len: Value| {
        let temp = copy_of("official");
        edit_json(&temp.path().join(file), |config| config["text_len"] = text_len);
        temp
    };
    refused(with(json!(226)).path(), &[file, "text_len is 226, expected 512"]);
    Checkpoint::open(with(json!(null)).path()).unwrap();
}

#[test]
fn parts_that_do_not_fit_each_other() {
    damaged(
        |dir| {
            edit_json(&dir.join("transformer/config.json"), |config| config["text_dim"] = json!(8));
            let mut tensors = drawn(Component::HighNoise);
            let index =
                tensors.iter().position(|t| t.name.ends_with("text_embedder.linear_1.weight")).unwrap();
            tensors[index].shape[1] = 8;
            let half = tensors[index].bytes.len() / 2;
            tensors[index].bytes.truncate(half);
            fs::write(dir.join(TRANSFORMER), safetensors(&tensors)).unwrap();
        },
        &["HighNoise has text_dim 8, expected the text encoder's d_model, 16"],
    );
}

#[test]
fn settings_that_make_no_sense() {
    let index = "model_index.json";
    with_json(index, |json| json["_class_name"] = json!("WanImageToVideoPipeline"), &["WanPipeline"]);
    with_json(index, |json| json["boundary_ratio"] = json!(null), &["boundary_ratio is absent"]);
    with_json(index, |json| json["boundary_ratio"] = json!(7), &["expected a number from 0 to 1"]);
    with_json(index, |json| json["expand_timesteps"] = json!(true), &["one timestep per token"]);
    with_json(index, |json| json["vae"] = json!(null), &["vae is absent"]);
    with_json(index, |json| json["evanesce"]["defaults"]["stepz"] = json!(1), &["evanesce.defaults.stepz"]);
    with_json(index, |json| json["evanesce"]["speed"] = json!(1), &["evanesce.speed"]);
    with_json(
        index,
        |json| json["evanesce"]["defaults"]["size"] = json!([64]),
        &["[width, height] in pixels"],
    );
    with_json(index, |json| json["evanesce"]["defaults"]["fps"] = json!(0), &["fps is 0"]);
    let scheduler = "scheduler/scheduler_config.json";
    with_json(
        scheduler,
        |json| json["_class_name"] = json!("DDIMScheduler"),
        &["expected UniPCMultistepScheduler, FlowMatchEuler"],
    );
    with_json(scheduler, |json| json["prediction_type"] = json!("epsilon"), &["flow_prediction"]);
    with_json(scheduler, |json| json["flow_shift"] = json!(-1), &["flow_shift is -1"]);
    with_json(scheduler, |json| json["solver_order"] = json!(3), &["solver_order is 3"]);
}

#[test]
fn archives_that_are_no_state_dicts() {
    let with_archive = |bytes: &[u8], parts: &[&str]| {
        let temp = copy_of("official");
        fs::write(temp.path().join("Wan2.1_VAE.pth"), bytes).unwrap();
        refused(temp.path(), parts);
    };
    with_archive(b"", &["Wan2.1_VAE.pth", "not a PyTorch zip archive"]);
    with_archive(&[0x80; 4096], &["not a PyTorch zip archive"]);
    let whole = fs::read(directory::stored("official").join("Wan2.1_VAE.pth")).unwrap();
    with_archive(&whole[..whole.len() / 2], &["not a PyTorch zip archive"]);
    let text = fs::read(directory::stored("official").join("models_t5_umt5-xxl-enc-bf16.pth")).unwrap();
    with_archive(&text, &["tensors missing, first encoder.conv_in.weight"]);
    // The same archive with a function that torch would call.
    let mut called = whole.clone();
    let at = called.windows(18).position(|window| window == b"_rebuild_tensor_v2").unwrap();
    called[at..at + 18].copy_from_slice(b"_rebuild_tensor_v9");
    with_archive(&called, &["it calls torch._utils._rebuild_tensor_v9", "nothing is executed"]);
}
