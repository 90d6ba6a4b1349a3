//! Codecs of single layers and of the sink, beside the one that all other pages have, and the file that says so.
//!
//! The file is JSON, such as `calibrate` writes it. A codec is a name, or names for keys and values:
//!
//! ```json
//! {
//!   "base": "int4",
//!   "sink": "bf16",
//!   "newest": "int8",
//!   "layers": { "high_noise": ["int8", { "keys": "int8", "values": "int2" }], "low_noise": ["int4", "int4"] }
//! }
//! ```
//!
//! Only `base` must be there. `layers` names all layers of an expert or none; a checkpoint with one transformer has
//! `high_noise` alone. What a calibration `measured` may stand there too and is not read.

use std::collections::BTreeMap;
use std::path::Path;

use evanesce_cache::Key;
use evanesce_wan::weights::Component;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::blocks::Blocks;
use crate::error::{EngineError, Result};
use crate::keys::{self, BranchName};
use crate::request::JobSpec;
use crate::self_kv::KvCodec;

/// The experts by their names in a file.
const EXPERTS: [(&str, Component); 2] =
    [("high_noise", Component::HighNoise), ("low_noise", Component::LowNoise)];

/// Pages that are not stored as all others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KvOverrides {
    /// The first frames, which every later block sees: noise there is seen longest.
    pub sink: Option<KvCodec>,
    /// The frames right before a block, beyond the sink. They are stored twice when they are committed, in this codec for the next
    /// block and in their own for those after it, so that no page is encoded from what another codec left.
    pub newest: Option<KvCodec>,
    /// All layers of an expert.
    layers: BTreeMap<Component, Vec<KvCodec>>,
}

impl KvOverrides {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Stores the layers of one expert in these codecs.
    pub fn set_layers(&mut self, expert: Component, codecs: Vec<KvCodec>) {
        self.layers.insert(expert, codecs);
    }

    /// Reads a file: the codec of most pages, and what differs.
    ///
    /// # Errors
    /// What is wrong with it, in one sentence.
    pub fn read(path: &Path) -> Result<(KvCodec, Self)> {
        let wrong = |message: String| EngineError::file(path, message);
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let value: Value =
            serde_json::from_str(&text).map_err(|error| wrong(format!("is no JSON: {error}")))?;
        Self::from_json(&value).map_err(wrong)
    }

    fn from_json(value: &Value) -> std::result::Result<(KvCodec, Self), String> {
        const FIELDS: [&str; 5] = ["base", "sink", "newest", "layers", "measured"];
        let fields = value.as_object().ok_or("must be an object with \"base\"")?;
        if let Some(unknown) = fields.keys().find(|key| !FIELDS.contains(&key.as_str())) {
            return Err(format!("has a field {unknown:?}; it may have {}", FIELDS.join(", ")));
        }
        let base = fields.get("base").ok_or("lacks \"base\", the codec of most pages")?;
        let optional = |name| fields.get(name).filter(|codec| !codec.is_null()).map(codec_from).transpose();
        let (sink, newest) = (optional("sink")?, optional("newest")?);
        let mut overrides = Self { sink, newest, layers: BTreeMap::new() };
        let none = Map::new();
        let layers = match fields.get("layers") {
            None => &none,
            Some(layers) => layers.as_object().ok_or("must name codecs of \"layers\" by expert")?,
        };
        for (name, codecs) in layers {
            let expert = EXPERTS.iter().find(|(known, _)| known == name);
            let (_, expert) =
                expert.ok_or(format!("has layers of {name:?}; experts are high_noise and low_noise"))?;
            let codecs = codecs.as_array().ok_or(format!("must list one codec for each layer of {name}"))?;
            overrides
                .set_layers(*expert, codecs.iter().map(codec_from).collect::<std::result::Result<_, _>>()?);
        }
        Ok((codec_from(base)?, overrides))
    }

    /// As [`Self::read`] reads it.
    #[must_use]
    pub fn to_json(&self, base: KvCodec) -> Value {
        let layers = EXPERTS.iter().filter_map(|(name, expert)| {
            let codecs = self.layers.get(expert)?.iter().map(|codec| codec_json(*codec));
            Some(((*name).to_owned(), codecs.collect()))
        });
        json!({
            "base": codec_json(base),
            "sink": self.sink.map(codec_json),
            "newest": self.newest.map(codec_json),
            "layers": layers.collect::<Map<_, _>>(),
        })
    }

    /// Which pages are stored in which codec, beside `base`, in words.
    #[must_use]
    pub fn used(&self, base: KvCodec) -> Vec<(String, KvCodec)> {
        let mut used: Vec<(String, KvCodec)> = Vec::new();
        for (name, expert) in EXPERTS {
            let codecs = self.layers.get(&expert).map_or(&[][..], Vec::as_slice);
            let mut by_codec: Vec<(KvCodec, Vec<String>)> = Vec::new();
            for (layer, codec) in codecs.iter().enumerate() {
                match by_codec.iter_mut().find(|(known, _)| known == codec) {
                    Some((_, layers)) => layers.push(layer.to_string()),
                    None => by_codec.push((*codec, vec![layer.to_string()])),
                }
            }
            used.extend(by_codec.into_iter().map(|(codec, layers)| {
                (format!("{} layers {}", name.replace('_', " "), layers.join(", ")), codec)
            }));
        }
        if self.layers.len() < EXPERTS.len() {
            let which = if self.layers.is_empty() { "all layers" } else { "other layers" };
            used.push((which.to_owned(), base));
        }
        used.extend(self.sink.map(|codec| ("first frames".to_owned(), codec)));
        used.extend(self.newest.map(|codec| ("newest frames, for the next block".to_owned(), codec)));
        used
    }

    /// Refuses layers that the model does not have.
    pub(crate) fn check(&self, layers: impl Fn(Component) -> Option<usize>) -> Result<()> {
        for (name, expert) in EXPERTS {
            let Some(codecs) = self.layers.get(&expert) else { continue };
            let message = match layers(expert) {
                Some(layers) if layers == codecs.len() => continue,
                Some(layers) => format!("the model has {layers} layers there"),
                None => "the model has no such expert".to_owned(),
            };
            let named = codecs.len();
            return Err(EngineError::Request(format!(
                "the codecs of keys and values name {named} layers of {name}, but {message}"
            )));
        }
        Ok(())
    }
}

/// How all pages of a job are stored: what a file says. It is kept as such a file, too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct PageStorage {
    /// The codec of most pages.
    pub codec: KvCodec,
    /// Pages that are stored in other codecs.
    pub overrides: KvOverrides,
}

impl PageStorage {
    /// All pages in the codec of this name; what has a dot or a separator in it is a file that says it for every layer.
    ///
    /// # Errors
    /// When it is neither, or what is wrong with the file, in one sentence.
    pub fn open(name: &str) -> Result<Self> {
        if let Some(codec) = KvCodec::from_name(name) {
            return Ok(Self { codec, overrides: KvOverrides::default() });
        }
        if !Self::is_file(name) {
            let names = KvCodec::NAMES.join(", ");
            let message =
                format!("{name:?} is no codec; write one of {names}, or a file such as calibrate writes");
            return Err(EngineError::Request(message));
        }
        let (codec, overrides) = KvOverrides::read(Path::new(name))?;
        Ok(Self { codec, overrides })
    }

    /// Whether [`Self::open`] takes this for a file.
    #[must_use]
    pub fn is_file(name: &str) -> bool {
        KvCodec::from_name(name).is_none() && name.contains(['.', '/', '\\'])
    }
}

impl TryFrom<Value> for PageStorage {
    type Error = String;

    fn try_from(value: Value) -> std::result::Result<Self, String> {
        let (codec, overrides) = KvOverrides::from_json(&value)?;
        Ok(Self { codec, overrides })
    }
}

impl From<PageStorage> for Value {
    fn from(storage: PageStorage) -> Self {
        storage.overrides.to_json(storage.codec)
    }
}

fn codec_from(value: &Value) -> std::result::Result<KvCodec, String> {
    let known = |name: &str| {
        KvCodec::from_name(name)
            .ok_or_else(|| format!("has a codec {name:?}; codecs are {}", KvCodec::NAMES.join(", ")))
    };
    if let Some(name) = value.as_str() {
        return known(name);
    }
    let side = |name: &str| value.get(name).and_then(Value::as_str);
    let (Some(keys), Some(values), Some(2)) = (side("keys"), side("values"), value.as_object().map(Map::len))
    else {
        return Err(format!(
            "has a codec {value}; write a name, or an object with \"keys\" and \"values\" and nothing else"
        ));
    };
    let alone = |name: &str| match known(name)? {
        KvCodec { keys, values } if keys == values => Ok(keys),
        _ => Err(format!("has a codec {value}, but {name:?} is one for keys and values together")),
    };
    Ok(KvCodec { keys: alone(keys)?, values: alone(values)? })
}

fn codec_json(codec: KvCodec) -> Value {
    let KvCodec { keys, values } = codec;
    if keys == values {
        return keys.as_str().into();
    }
    json!({ "keys": keys.as_str(), "values": values.as_str() })
}

/// How each page of a job is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageCodecs<'a> {
    pub(crate) base: KvCodec,
    pub(crate) overrides: &'a KvOverrides,
    pub(crate) sink_frames: usize,
    pub(crate) blocks: Blocks,
}

impl JobSpec {
    pub(crate) fn page_codecs(&self) -> PageCodecs<'_> {
        PageCodecs {
            base: self.kv_codec,
            overrides: &self.kv_overrides,
            sink_frames: self.rollout.map_or(0, |rollout| rollout.sink_frames),
            blocks: self.blocks(),
        }
    }
}

impl PageCodecs<'_> {
    /// The codec of a second page of a frame, if it has one: see [`KvOverrides::newest`].
    pub(crate) fn newest_codec(&self, frame: usize) -> Option<KvCodec> {
        self.overrides.newest.filter(|_| frame >= self.sink_frames)
    }

    /// The page of a frame that block `block` reads, and its codec.
    pub(crate) fn page_read(
        &self,
        (expert, branch): (Component, BranchName),
        layer: usize,
        frame: usize,
        block: usize,
    ) -> (Key, KvCodec) {
        match self.newest_codec(frame).filter(|_| self.blocks.holding(frame) + 1 == block) {
            Some(newest) => (keys::newest_kv(expert, branch, layer, frame), newest),
            None => (keys::self_kv(expert, branch, layer, frame), self.page_codec(expert, layer, frame)),
        }
    }

    /// The codec of the page that a frame has as long as it is seen.
    pub(crate) fn page_codec(&self, expert: Component, layer: usize, frame: usize) -> KvCodec {
        let overrides = self.overrides;
        let of_layer = || overrides.layers.get(&expert).and_then(|layers| layers.get(layer)).copied();
        overrides.sink.filter(|_| frame < self.sink_frames).or_else(of_layer).unwrap_or(self.base)
    }
}

#[cfg(test)]
mod tests {
    use evanesce_wan::transformer::Codec;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mixed = KvCodec::from_name("k8v4").unwrap();
        let base = KvCodec::from_name("int2").unwrap();
        let mut overrides =
            KvOverrides { sink: KvCodec::from_name("bf16"), newest: Some(mixed), ..KvOverrides::default() };
        overrides.set_layers(Component::LowNoise, vec![mixed, base]);
        let json = overrides.to_json(base);
        assert_eq!(KvOverrides::from_json(&json), Ok((base, overrides)));
        assert_eq!(json["layers"]["low_noise"][0]["values"], "int4");
        let least = json!({ "base": "int8" });
        assert_eq!(
            KvOverrides::from_json(&least),
            Ok((KvCodec::from_name("int8").unwrap(), KvOverrides::default()))
        );
    }

    #[test]
    fn storage_is_kept_whatever_its_codecs_are_called_and_named_or_read_from_a_file() {
        let halves = KvCodec { keys: Codec::F32, values: Codec::Int2 };
        let overrides = KvOverrides { sink: Some(halves), ..KvOverrides::default() };
        let storage = PageStorage { codec: halves, overrides };
        let kept = serde_json::to_string(&storage).unwrap();
        assert_eq!(serde_json::from_str::<PageStorage>(&kept).unwrap(), storage);
        assert!(serde_json::from_str::<PageStorage>("{}").unwrap_err().to_string().contains("base"));
        let file = tempfile::NamedTempFile::with_suffix(".json").unwrap();
        std::fs::write(file.path(), &kept).unwrap();
        assert_eq!(PageStorage::open(file.path().to_str().unwrap()).unwrap(), storage);
        assert_eq!(PageStorage::open("k8v4").unwrap().codec, KvCodec::from_name("k8v4").unwrap());
        let refusal = PageStorage::open("int3").unwrap_err().to_string();
        assert!(refusal.contains("\"int3\" is no codec") && refusal.contains("int4"), "{refusal}");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (value, says) in [
            (json!([]), "object"),
            (json!({}), "base"),
            (json!({ "base": "int3" }), "int4"),
            (json!({ "base": "int8", "sinks": "bf16" }), "\"sinks\""),
            (json!({ "base": "int8", "layers": { "middle": [] } }), "high_noise and low_noise"),
            (json!({ "base": "int8", "layers": { "low_noise": "int8" } }), "each layer"),
            (json!({ "base": { "keys": "int8" } }), "\"values\""),
            (json!({ "base": { "keys": "int8", "values": "int4", "sink": "f32" } }), "nothing else"),
            (json!({ "base": { "keys": "k8v4", "values": "int4" } }), "\"k8v4\" is one for keys and values"),
            (json!({ "base": { "keys": "int8", "values": "k4v2" } }), "\"k4v2\" is one for keys and values"),
        ] {
            let message = KvOverrides::from_json(&value).unwrap_err();
            assert!(message.contains(says), "{value}: {message}");
        }
    }

    #[test]
    fn layers_that_are_not_there_are_refused() {
        let mut overrides = KvOverrides::default();
        overrides.set_layers(Component::LowNoise, vec![KvCodec::default(); 3]);
        assert!(overrides.check(|_| Some(3)).is_ok());
        let message = |layers| overrides.check(|_| layers).unwrap_err().to_string();
        assert!(message(Some(4)).contains("name 3 layers of low_noise, but the model has 4"));
        assert!(message(None).contains("no such expert"));
    }
}
