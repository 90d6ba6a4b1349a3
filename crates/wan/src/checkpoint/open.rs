//! Opening a checkpoint directory of either layout.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use evanesce_kernels::Dtype;

use super::component::{ComponentWeights, Expected, is_linear, resolve};
use super::description::Description;
use super::files::{WeightFiles, read_small};
use super::mapping::WeightFile;
use super::settings::{ModelIndex, Settings, parse_scheduler};
use super::{Checkpoint, Layout};
use crate::error::{Result, WanError};
use crate::text::{self, Umt5Config};
use crate::transformer::{self, TransformerConfig};
use crate::vae::{self, VaeConfig};
use crate::weights::{Component, GroupSpec};

const WEIGHTS_STEM: &str = "diffusion_pytorch_model";

pub(super) fn open(dir: &Path, want: Want) -> Result<Checkpoint> {
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
        return open_diffusers(dir, want);
    }
    if dir.join("high_noise_model").exists() || dir.join("low_noise_model").exists() {
        return open_official(dir, want);
    }
    if let Some(pt) = self_forcing_file(dir)? {
        return open_self_forcing(dir, &pt, want);
    }
    if entries.next().is_none() {
        return fault("the directory is empty, expected a Wan2.2 checkpoint");
    }
    fault(
        "neither model_index.json (diffusers) nor high_noise_model (official) is here, nor a config.json with a .pt (Self-Forcing)",
    )
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

/// Whether a part's weights must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// All of them: the checkpoint is to run.
    Weights,
    /// What there is. The rest is taken to be in the types that Wan publishes: it is to be planned for.
    Sizes,
}

/// A directory being opened.
struct Opening {
    want: Want,
    weights: BTreeMap<Component, ComponentWeights>,
    groups: BTreeMap<Component, Vec<GroupSpec>>,
    experts: BTreeMap<Component, TransformerConfig>,
}

impl Opening {
    fn new(want: Want) -> Self {
        Self { want, weights: BTreeMap::new(), groups: BTreeMap::new(), experts: BTreeMap::new() }
    }

    /// Finds the tensors of some components in one part's files, or lays them out as if they were there.
    fn add(
        &mut self,
        parts: Vec<(Component, Expected)>,
        is_there: bool,
        files: impl FnOnce() -> Result<WeightFiles>,
        canonical: impl Fn(&str) -> Option<String>,
    ) -> Result<()> {
        let (components, expected): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        if self.want == Want::Sizes && !is_there {
            let assumed = components.iter().zip(expected).map(|(component, expected)| {
                let groups = expected.into_iter().map(|group| assumed_group(*component, group));
                (*component, groups.collect())
            });
            self.groups.extend(assumed);
            return Ok(());
        }
        for (component, (weights, groups)) in
            components.into_iter().zip(resolve(files()?, expected, canonical)?)
        {
            self.weights.insert(component, weights);
            self.groups.insert(component, groups);
        }
        Ok(())
    }

    fn add_expert(
        &mut self,
        component: Component,
        config: TransformerConfig,
        (is_there, files): (bool, impl FnOnce() -> Result<WeightFiles>),
        layout: Layout,
    ) -> Result<()> {
        let expected = transformer::expected_tensors(&config);
        self.experts.insert(component, config);
        if layout == Layout::Diffusers {
            return self.add(vec![(component, expected)], is_there, files, |name| Some(name.to_owned()));
        }
        let official = |(name, _): &(String, _)| (transformer::official_name(name), name.clone());
        let names: BTreeMap<_, _> = expected.iter().flatten().map(official).collect();
        self.add(vec![(component, expected)], is_there, files, |name| names.get(name).cloned())
    }

    fn add_text(
        &mut self,
        config: &Umt5Config,
        (is_there, files): (bool, impl FnOnce() -> Result<WeightFiles>),
        layout: Layout,
    ) -> Result<()> {
        let expected = text::expected_tensors(config);
        let mut names = BTreeMap::new();
        for (name, _) in expected.iter().flatten() {
            let file_name = match layout {
                Layout::Diffusers => Some(name.clone()),
                Layout::Official | Layout::SelfForcing => text::official_name(name),
            };
            names.extend(file_name.map(|file_name| (file_name, name.clone())));
        }
        // A tied tensor may be stored under both of its names; the second copy is not read.
        let aliases = text::ALIASES;
        let files = || {
            let mut files = files()?;
            for (alias, name) in aliases {
                if files.tensors.contains_key(name) {
                    files.tensors.remove(alias);
                }
            }
            Ok(files)
        };
        names.extend(aliases.map(|(alias, name)| (alias.to_owned(), name.to_owned())));
        self.add(vec![(Component::TextEncoder, expected)], is_there, files, |name| names.get(name).cloned())
    }

    fn add_vae(
        &mut self,
        config: &VaeConfig,
        (is_there, files): (bool, impl FnOnce() -> Result<WeightFiles>),
        layout: Layout,
    ) -> Result<()> {
        let halves = [Component::VaeEncoder, Component::VaeDecoder];
        let parts = halves.map(|half| (half, vae::expected_tensors(config, half))).to_vec();
        self.add(parts, is_there, files, |name| match layout {
            Layout::Diffusers => Some(name.to_owned()),
            Layout::Official | Layout::SelfForcing => vae::canonical_name(config, name),
        })
    }

    /// Text encoder, VAE and tokenizer of the official layouts. The two `.pth` files come without sizes; they are those of
    /// UMT5-XXL and of Wan 2.1's VAE unless a `.json` of the same name, with the fields diffusers' and transformers'
    /// configurations have, says otherwise.
    fn add_official_parts(&mut self, dir: &Path) -> Result<(Umt5Config, VaeConfig, PathBuf)> {
        let path = self.required(dir.join("models_t5_umt5-xxl-enc-bf16.pth"))?;
        let sizes = path.with_extension("json");
        let text = if sizes.exists() {
            Umt5Config::from_json(&read_small(&sizes)?, &sizes)?
        } else {
            Umt5Config::xxl()
        };
        self.add_text(&text, (path.exists(), || WeightFiles::open_archive(&path)), Layout::Official)?;
        let path = self.required(dir.join("Wan2.1_VAE.pth"))?;
        let sizes = path.with_extension("json");
        let vae = if sizes.exists() { parse_vae(sizes)? } else { VaeConfig::wan21() };
        self.add_vae(&vae, (path.exists(), || WeightFiles::open_archive(&path)), Layout::Official)?;
        let tokenizer = self.required(dir.join("google/umt5-xxl/tokenizer.json"))?;
        Ok((text, vae, tokenizer))
    }

    /// A file that must be there for the checkpoint to run.
    fn required(&self, path: PathBuf) -> Result<PathBuf> {
        if self.want == Want::Sizes { Ok(path) } else { required(path) }
    }

    fn finish(
        self,
        dir: &Path,
        layout: Layout,
        (text, vae, tokenizer): (Umt5Config, VaeConfig, PathBuf),
        settings: Settings,
    ) -> Result<Checkpoint> {
        let Self { weights, groups, experts, .. } = self;
        let description = Description {
            experts,
            text,
            vae,
            settings,
            groups,
            tokenizer: tokenizer.exists().then_some(tokenizer.clone()),
        };
        checked(Checkpoint { dir: dir.to_owned(), layout, tokenizer, description, weights })
    }
}

fn open_diffusers(dir: &Path, want: Want) -> Result<Checkpoint> {
    let (path, bytes) = read_config(dir.join("model_index.json"))?;
    let index = ModelIndex::parse(&path, &bytes)?;
    let (path, bytes) = read_config(subdirectory(dir, "scheduler")?.join("scheduler_config.json"))?;
    let scheduler = parse_scheduler(&path, &bytes)?;
    let mut opening = Opening::new(want);
    let mut causal = Vec::new();
    let parts = [(Component::HighNoise, "transformer"), (Component::LowNoise, "transformer_2")];
    for (component, name) in parts.into_iter().take(1 + usize::from(index.has_second_expert)) {
        let part = subdirectory(dir, name)?;
        let (path, bytes) = read_config(part.join("config.json"))?;
        let (config, causal_fields) = TransformerConfig::diffusers_with_causal(&path, &bytes)?;
        causal.push(causal_fields);
        let files = (WeightFiles::are_there(&part, WEIGHTS_STEM), || WeightFiles::open(&part, WEIGHTS_STEM));
        opening.add_expert(component, config, files, Layout::Diffusers)?;
    }
    if causal.iter().any(|fields| *fields != causal[0]) {
        let message =
            "the two transformers differ in how they go on block by block, expected the same of both";
        return Err(WanError::checkpoint(dir, message));
    }
    let part = subdirectory(dir, "text_encoder")?;
    let (path, bytes) = read_config(part.join("config.json"))?;
    let text = Umt5Config::from_json(&bytes, &path)?;
    let files = (WeightFiles::are_there(&part, "model"), || WeightFiles::open(&part, "model"));
    opening.add_text(&text, files, Layout::Diffusers)?;
    let part = subdirectory(dir, "vae")?;
    let vae = parse_vae(part.join("config.json"))?;
    let files = (WeightFiles::are_there(&part, WEIGHTS_STEM), || WeightFiles::open(&part, WEIGHTS_STEM));
    opening.add_vae(&vae, files, Layout::Diffusers)?;
    let tokenizer = match want {
        Want::Weights => required(subdirectory(dir, "tokenizer")?.join("tokenizer.json"))?,
        Want::Sizes => dir.join("tokenizer/tokenizer.json"),
    };
    let settings = index.settings(scheduler, causal[0]);
    opening.finish(dir, Layout::Diffusers, (text, vae, tokenizer), settings)
}

fn open_official(dir: &Path, want: Want) -> Result<Checkpoint> {
    let mut opening = Opening::new(want);
    let parts = [(Component::HighNoise, "high_noise_model"), (Component::LowNoise, "low_noise_model")];
    for (component, name) in parts {
        let part = subdirectory(dir, name)?;
        let (path, bytes) = read_config(part.join("config.json"))?;
        let config = TransformerConfig::from_official(&path, &bytes)?;
        let files = (WeightFiles::are_there(&part, WEIGHTS_STEM), || WeightFiles::open(&part, WEIGHTS_STEM));
        opening.add_expert(component, config, files, Layout::Official)?;
    }
    let others = opening.add_official_parts(dir)?;
    opening.finish(dir, Layout::Official, others, Settings::official())
}

/// The directory of Wan 2.1 that Self-Forcing starts from, with the `.pt` that its training writes put beside the
/// configuration; the `.pt` holds the transformer's weights, averaged (`generator_ema`) and not (`generator`).
fn open_self_forcing(dir: &Path, pt: &Path, want: Want) -> Result<Checkpoint> {
    let mut opening = Opening::new(want);
    let (path, bytes) = read_config(dir.join("config.json"))?;
    let config = TransformerConfig::from_official(&path, &bytes)?;
    let files = (pt.exists(), || WeightFiles::open_archive(pt).and_then(generator));
    opening.add_expert(Component::HighNoise, config, files, Layout::SelfForcing)?;
    let others = opening.add_official_parts(dir)?;
    opening.finish(dir, Layout::SelfForcing, others, Settings::self_forcing())
}

/// The averaged generator where there is one, as its authors sample from it, under the names of the official
/// transformer.
fn generator(files: WeightFiles) -> Result<WeightFiles> {
    let has = |prefix: &str| files.tensors.keys().any(|name| name.starts_with(prefix));
    let Some(prefix) = ["generator_ema.", "generator."].into_iter().find(|prefix| has(prefix)) else {
        let message =
            "no generator in it, expected a checkpoint of Self-Forcing, with `generator_ema` or `generator`";
        return Err(WanError::checkpoint(files.path, message));
    };
    let WeightFiles { path, files, tensors } = files;
    let tensors = tensors.into_iter().filter_map(|(name, located)| {
        // Training under FSDP leaves its wrappers in the names.
        let name = name.strip_prefix(prefix)?.replace("_fsdp_wrapped_module.", "");
        Some((name.strip_prefix("model.").map_or(name.clone(), str::to_owned), located))
    });
    Ok(WeightFiles { tensors: tensors.collect(), path, files })
}

/// The only `.pt` beside a transformer's configuration.
fn self_forcing_file(dir: &Path) -> Result<Option<PathBuf>> {
    if !dir.join("config.json").is_file() {
        return Ok(None);
    }
    let io = |source| WanError::Io { path: dir.to_owned(), source };
    let entries = std::fs::read_dir(dir).map_err(io)?.collect::<std::io::Result<Vec<_>>>().map_err(io)?;
    let mut found = entries.into_iter().map(|entry| entry.path());
    let mut found = found.by_ref().filter(|path| path.extension().is_some_and(|extension| extension == "pt"));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(Some(one)),
        (None, _) => Ok(None),
        (Some(_), Some(_)) => {
            Err(WanError::checkpoint(dir, "more than one .pt file is here, expected the one to use"))
        }
    }
}

/// A group as Wan publishes it, in either layout: the text encoder in bfloat16, the transformers and the VAE in f32.
pub(super) fn assumed_group(component: Component, group: Vec<(String, Vec<usize>)>) -> GroupSpec {
    let dtype = match component {
        Component::TextEncoder => Dtype::BF16,
        Component::HighNoise | Component::LowNoise | Component::VaeEncoder | Component::VaeDecoder => {
            Dtype::F32
        }
    };
    GroupSpec::pack(group.into_iter().map(|(name, shape)| (name, dtype, shape))).with_packed(is_linear)
}

fn parse_vae(path: PathBuf) -> Result<VaeConfig> {
    let (path, bytes) = read_config(path)?;
    let json = std::str::from_utf8(&bytes).map_err(|error| WanError::checkpoint(&path, error.to_string()))?;
    VaeConfig::from_json(&path, json)
}

/// Checks that the parts fit each other.
fn checked(checkpoint: Checkpoint) -> Result<Checkpoint> {
    let Description { experts, text, vae, .. } = &checkpoint.description;
    for (expert, config) in experts {
        let widths = [
            ("text_dim", config.text_dim, text.d_model, "the text encoder's d_model"),
            ("latent channels", config.channels, vae.z_dim(), "the VAE's z_dim"),
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
