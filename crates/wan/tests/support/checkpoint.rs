//! Whole checkpoint directories with drawn weights, and ways to damage them.

use std::fs;
use std::path::{Path, PathBuf};

use evanesce_kernels::Dtype;
use evanesce_wan::text::{self, Umt5Config};
use evanesce_wan::transformer::{self, TransformerConfig};
use evanesce_wan::vae::{self, VaeConfig};
use evanesce_wan::weights::Component;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::draw::{parameter, to_bytes};

/// Where the stored directories are.
pub(crate) fn stored(layout: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/checkpoint").join(layout)
}

/// A copy of a stored directory that may be damaged.
pub(crate) fn copy_of(layout: &str) -> TempDir {
    let temp = tempfile::tempdir().unwrap();
    copy_tree(&stored(layout), temp.path());
    temp
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A tensor as a file holds it.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// The drawn tensors of a component, in the types that the stored official directory has.
pub(crate) fn drawn(component: Component) -> Vec<Stored> {
    let (prefix, dtype, groups) = match component {
        Component::HighNoise => ("high", Dtype::BF16, transformer::expected_tensors(&transformer_config())),
        Component::LowNoise => ("low", Dtype::F32, transformer::expected_tensors(&transformer_config())),
        Component::TextEncoder => ("text", Dtype::BF16, text::expected_tensors(&text_config())),
        Component::VaeEncoder | Component::VaeDecoder => {
            ("vae", Dtype::F16, vae::expected_tensors(&vae_config(), component))
        }
    };
    let tensor = |(name, shape): (String, Vec<usize>)| Stored {
        bytes: to_bytes(&parameter(&format!("{prefix}.{name}"), &shape), dtype),
        dtype: format!("{dtype:?}"),
        name,
        shape,
    };
    groups.into_iter().flatten().map(tensor).collect()
}

fn config_bytes(part: &str) -> (PathBuf, Vec<u8>) {
    let path = stored("diffusers").join(part).join("config.json");
    let bytes = fs::read(&path).unwrap();
    (path, bytes)
}

pub(crate) fn transformer_config() -> TransformerConfig {
    let (path, bytes) = config_bytes("transformer");
    TransformerConfig::from_diffusers(&path, &bytes).unwrap()
}

pub(crate) fn text_config() -> Umt5Config {
    let (path, bytes) = config_bytes("text_encoder");
    Umt5Config::from_json(&bytes, &path).unwrap()
}

pub(crate) fn vae_config() -> VaeConfig {
    let (path, bytes) = config_bytes("vae");
    VaeConfig::from_json(&path, std::str::from_utf8(&bytes).unwrap()).unwrap()
}

/// The bytes of a safetensors file, tensors in the order given.
pub(crate) fn safetensors(tensors: &[Stored]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for tensor in tensors {
        let begin = data.len();
        data.extend_from_slice(&tensor.bytes);
        let entry =
            json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()]});
        header.insert(tensor.name.clone(), entry);
    }
    with_header(&Value::Object(header).to_string(), &data)
}

/// A safetensors file with this header, right or wrong.
pub(crate) fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// A diffusers directory: the stored configurations and drawn weights.
pub(crate) fn diffusers_directory() -> TempDir {
    let temp = copy_of("diffusers");
    let write = |part: &str, file: &str, components: &[Component]| {
        let tensors: Vec<_> = components.iter().flat_map(|component| drawn(*component)).collect();
        fs::write(temp.path().join(part).join(file), safetensors(&tensors)).unwrap();
    };
    let weights = "diffusion_pytorch_model.safetensors";
    write("transformer", weights, &[Component::HighNoise]);
    write("transformer_2", weights, &[Component::LowNoise]);
    write("text_encoder", "model.safetensors", &[Component::TextEncoder]);
    write("vae", weights, &[Component::VaeEncoder, Component::VaeDecoder]);
    fs::create_dir(temp.path().join("tokenizer")).unwrap();
    let tokenizer = stored("official").join("google/umt5-xxl/tokenizer.json");
    fs::copy(tokenizer, temp.path().join("tokenizer/tokenizer.json")).unwrap();
    temp
}

/// Rewrites a JSON file.
pub(crate) fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}
