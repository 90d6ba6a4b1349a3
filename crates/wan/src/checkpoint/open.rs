//! Opening a checkpoint directory of either layout.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::component::{ComponentWeights, resolve};
use super::files::{WeightFiles, read_small};
use super::mapping::WeightFile;
use super::settings::{ModelIndex, Settings, parse_scheduler};
use super::{Checkpoint, Layout};
use crate::error::{Result, WanError};
use crate::schedule::Grid;
use crate::text::{self, Umt5Config};
use crate::transformer::{self, TransformerConfig};
use crate::vae::{self, VaeConfig};
use crate::weights::Component;

const WEIGHTS_STEM: &str = "diffusion_pytorch_model";

pub(crate) fn open(dir: &Path) -> Result<Checkpoint> {
    let fault = |message: &str| Err(WanError::checkpoint(dir, message));
    if !dir.exists() {
        return fault("there is no such directory, expected a Wan2.2 checkpoint");
    }
    let entries = std::fs::read_dir(dir);
    let mut entries = match entries {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            return fault("not a directory, expected a Wan2.2 checkpoint");
        }
        Err(source) => return Err(WanError::Io { path: dir.to_owned(), source }),
    };
    if dir.join("model_index.json").exists() {
        return open_diffusers(dir);
    }
    if dir.join("high_noise_model").exists() || dir.join("low_noise_model").exists() {
        return open_official(dir);
    }
    if entries.next().is_none() {
        return fault("the directory is empty, expected a Wan2.2 checkpoint");
    }
    fault("neither model_index.json (diffusers) nor high_noise_model (official) is here")
}

/// A part of the checkpoint that must be a directory.
fn subdirectory(dir: &Path, name: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    if path.is_dir() { Ok(path) } else { Err(WanError::checkpoint(path, "the directory is missing")) }
}

/// A part of the checkpoint that must be a file.
fn required(path: PathBuf) -> Result<PathBuf> {
    if path.is_file() { Ok(path) } else { Err(WanError::checkpoint(path, "the file is missing")) }
}

fn read_config(path: PathBuf) -> Result<(PathBuf, Vec<u8>)> {
    let path = required(path)?;
    let bytes = read_small(&path)?;
    Ok((path, bytes))
}

/// The bytes of a `tokenizer.json`.
pub(crate) fn read_tokenizer(path: &Path) -> Result<Vec<u8>> {
    let file = WeightFile::open(path)?;
    let mut bytes = Vec::new();
    let read = file.file().take(text::TOKENIZER_BYTES_MAX as u64).read_to_end(&mut bytes);
    read.map_err(|source| WanError::Io { path: path.to_owned(), source })?;
    Ok(bytes)
}

type Weights = BTreeMap<Component, ComponentWeights>;

fn open_diffusers(dir: &Path) -> Result<Checkpoint> {
    let (path, bytes) = read_config(dir.join("model_index.json"))?;
    let index = ModelIndex::parse(&path, &bytes)?;
    let (path, bytes) = read_config(subdirectory(dir, "scheduler")?.join("scheduler_config.json"))?;
    let (solver, flow_shift) = parse_scheduler(&path, &bytes)?;
    let mut weights = Weights::new();
    let mut experts = BTreeMap::new();
    let parts = [(Component::HighNoise, "transformer"), (Component::LowNoise, "transformer_2")];
    for (component, name) in parts.into_iter().take(1 + usize::from(index.has_second_expert)) {
        let part = subdirectory(dir, name)?;
        let (path, bytes) = read_config(part.join("config.json"))?;
        let config = TransformerConfig::from_diffusers(&path, &bytes)?;
        let expected = vec![transformer::expected_tensors(&config)];
        let files = WeightFiles::open(&part, WEIGHTS_STEM)?;
        let resolved = resolve(files, expected, |name| Some(name.to_owned()))?;
        weights.extend(std::iter::once(component).zip(resolved));
        experts.insert(component, config);
    }
    let part = subdirectory(dir, "text_encoder")?;
    let (path, bytes) = read_config(part.join("config.json"))?;
    let text = Umt5Config::from_json(&bytes, &path)?;
    add_text(&mut weights, WeightFiles::open(&part, "model")?, &text, Layout::Diffusers)?;
    let part = subdirectory(dir, "vae")?;
    let vae = parse_vae(part.join("config.json"))?;
    add_vae(&mut weights, WeightFiles::open(&part, WEIGHTS_STEM)?, &vae, Layout::Diffusers)?;
    let boundary = if index.has_second_expert { index.boundary.unwrap_or(0.0) } else { 0.0 };
    checked(Checkpoint {
        dir: dir.to_owned(),
        layout: Layout::Diffusers,
        experts,
        text,
        vae,
        tokenizer: required(subdirectory(dir, "tokenizer")?.join("tokenizer.json"))?,
        settings: Settings {
            solver,
            grid: Grid::Diffusers,
            flow_shift,
            boundary,
            defaults: index.defaults,
            rollout: index.rollout,
        },
        weights,
    })
}

/// The two `.pth` files come without sizes; they are those of UMT5-XXL and of Wan 2.1's VAE unless a `.json` of the
/// same name, with the fields diffusers' and transformers' configurations have, says otherwise.
fn open_official(dir: &Path) -> Result<Checkpoint> {
    let mut weights = Weights::new();
    let mut experts = BTreeMap::new();
    let parts = [(Component::HighNoise, "high_noise_model"), (Component::LowNoise, "low_noise_model")];
    for (component, name) in parts {
        let part = subdirectory(dir, name)?;
        let (path, bytes) = read_config(part.join("config.json"))?;
        let config = TransformerConfig::from_official(&path, &bytes)?;
        let expected = transformer::expected_tensors(&config);
        let names: BTreeMap<_, _> = expected
            .iter()
            .flatten()
            .map(|(name, _)| (transformer::official_name(name), name.clone()))
            .collect();
        let files = WeightFiles::open(&part, WEIGHTS_STEM)?;
        let resolved = resolve(files, vec![expected], |name| names.get(name).cloned())?;
        weights.extend(std::iter::once(component).zip(resolved));
        experts.insert(component, config);
    }
    let path = required(dir.join("models_t5_umt5-xxl-enc-bf16.pth"))?;
    let sizes = path.with_extension("json");
    let text =
        if sizes.exists() { Umt5Config::from_json(&read_small(&sizes)?, &sizes)? } else { Umt5Config::xxl() };
    add_text(&mut weights, WeightFiles::open_archive(&path)?, &text, Layout::Official)?;
    let path = required(dir.join("Wan2.1_VAE.pth"))?;
    let sizes = path.with_extension("json");
    let vae = if sizes.exists() { parse_vae(sizes)? } else { VaeConfig::wan21() };
    add_vae(&mut weights, WeightFiles::open_archive(&path)?, &vae, Layout::Official)?;
    checked(Checkpoint {
        dir: dir.to_owned(),
        layout: Layout::Official,
        experts,
        text,
        vae,
        tokenizer: required(dir.join("google/umt5-xxl/tokenizer.json"))?,
        settings: Settings::official(),
        weights,
    })
}

fn parse_vae(path: PathBuf) -> Result<VaeConfig> {
    let (path, bytes) = read_config(path)?;
    let json = std::str::from_utf8(&bytes).map_err(|error| WanError::checkpoint(&path, error.to_string()))?;
    VaeConfig::from_json(&path, json)
}

fn add_text(
    weights: &mut Weights,
    mut files: WeightFiles,
    config: &Umt5Config,
    layout: Layout,
) -> Result<()> {
    let expected = text::expected_tensors(config);
    let mut names = BTreeMap::new();
    for (name, _) in expected.iter().flatten() {
        let file_name = match layout {
            Layout::Diffusers => Some(name.clone()),
            Layout::Official => text::official_name(name),
        };
        names.extend(file_name.map(|file_name| (file_name, name.clone())));
    }
    // A tied tensor may be stored under both of its names; the second copy is not read.
    for (alias, name) in text::ALIASES {
        if files.tensors.contains_key(name) {
            files.tensors.remove(alias);
        } else {
            names.insert(alias.to_owned(), name.to_owned());
        }
    }
    let resolved = resolve(files, vec![expected], |name| names.get(name).cloned())?;
    weights.extend(std::iter::once(Component::TextEncoder).zip(resolved));
    Ok(())
}

fn add_vae(weights: &mut Weights, files: WeightFiles, config: &VaeConfig, layout: Layout) -> Result<()> {
    let halves = [Component::VaeEncoder, Component::VaeDecoder];
    let expected = halves.map(|half| vae::expected_tensors(config, half)).to_vec();
    let resolved = resolve(files, expected, |name| match layout {
        Layout::Diffusers => Some(name.to_owned()),
        Layout::Official => vae::canonical_name(config, name),
    })?;
    weights.extend(halves.into_iter().zip(resolved));
    Ok(())
}

/// Checks that the parts fit each other.
fn checked(checkpoint: Checkpoint) -> Result<Checkpoint> {
    for (expert, config) in &checkpoint.experts {
        let widths = [
            ("text_dim", config.text_dim, checkpoint.text.d_model, "the text encoder's d_model"),
            ("latent channels", config.channels, checkpoint.vae.z_dim(), "the VAE's z_dim"),
        ];
        for (what, got, expected, whose) in widths {
            if got != expected {
                let message = format!("{expert:?} has {what} {got}, expected {whose}, {expected}");
                return Err(WanError::checkpoint(checkpoint.dir, message));
            }
        }
    }
    Ok(checkpoint)
}
