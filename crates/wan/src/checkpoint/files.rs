//! The weight files of one component and the tensors in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::archive::read_archive;
use super::header::{Entry, HEADER_MAX_BYTES, parse_header};
use super::mapping::WeightFile;
use crate::error::{Result, WanError};

/// Longest configuration file that is read.
const JSON_MAX_BYTES: u64 = 16 << 20;

/// A tensor and the file it lies in.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    /// Position in [`WeightFiles::files`].
    pub(crate) file: usize,
    pub(crate) entry: Entry,
}

/// All tensors of a component by the names the files use.
#[derive(Debug)]
pub(crate) struct WeightFiles {
    /// What errors about the whole name.
    pub(crate) path: PathBuf,
    pub(crate) files: Vec<WeightFile>,
    pub(crate) tensors: BTreeMap<String, Located>,
}

/// The whole of a small file.
pub(crate) fn read_small(path: &Path) -> Result<Vec<u8>> {
    let file = WeightFile::open(path)?;
    if file.len_bytes() > JSON_MAX_BYTES {
        let message = format!("{} bytes long, at most {JSON_MAX_BYTES} make sense", file.len_bytes());
        return Err(WanError::checkpoint(path, message));
    }
    let mut bytes = Vec::new();
    let mut reader = file.file().take(JSON_MAX_BYTES);
    reader.read_to_end(&mut bytes).map_err(|source| WanError::Io { path: path.to_owned(), source })?;
    Ok(bytes)
}

impl WeightFiles {
    /// Whether [`Self::open`] would find something.
    pub(crate) fn are_there(dir: &Path, stem: &str) -> bool {
        ["safetensors", "safetensors.index.json"].iter().any(|end| dir.join(format!("{stem}.{end}")).exists())
    }

    /// Opens `stem.safetensors`, or the shards that `stem.safetensors.index.json` lists, in `dir`.
    pub(crate) fn open(dir: &Path, stem: &str) -> Result<Self> {
        let single = dir.join(format!("{stem}.safetensors"));
        let index = dir.join(format!("{stem}.safetensors.index.json"));
        if index.exists() {
            return Self::open_shards(dir, &index);
        }
        if !single.exists() {
            let message = format!("no weights, expected {stem}.safetensors or {stem}.safetensors.index.json");
            return Err(WanError::checkpoint(dir, message));
        }
        let file = WeightFile::open(&single)?;
        let entries = read_safetensors(&file)?;
        Ok(Self::of_one(file, entries))
    }

    /// Opens a PyTorch archive.
    pub(crate) fn open_archive(path: &Path) -> Result<Self> {
        let file = WeightFile::open(path)?;
        let entries = read_archive(&file)?;
        Ok(Self::of_one(file, entries))
    }

    fn of_one(file: WeightFile, entries: BTreeMap<String, Entry>) -> Self {
        let located = entries.into_iter().map(|(name, entry)| (name, Located { file: 0, entry }));
        Self { path: file.path().to_owned(), tensors: located.collect(), files: vec![file] }
    }

    fn open_shards(dir: &Path, index: &Path) -> Result<Self> {
        let weight_map = parse_index(index, &read_small(index)?)?;
        let names: BTreeSet<&String> = weight_map.values().collect();
        let mut all = Self { path: index.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        for shard in names {
            let path = dir.join(shard);
            if !path.exists() {
                let count = weight_map.values().filter(|name| *name == shard).count();
                let message = format!("the shard {shard} is absent; {count} tensors lie in it");
                return Err(WanError::checkpoint(index, message));
            }
            let file = WeightFile::open(&path)?;
            for (name, entry) in read_safetensors(&file)? {
                let located = Located { file: all.files.len(), entry };
                if weight_map.get(&name) != Some(shard) {
                    let place = weight_map.get(&name).map_or("no shard", String::as_str);
                    let message = format!("tensor {name} is here, but the index puts it in {place}");
                    return Err(WanError::checkpoint(&path, message));
                }
                all.tensors.insert(name, located);
            }
            all.files.push(file);
        }
        match weight_map.iter().find(|(name, _)| !all.tensors.contains_key(*name)) {
            None => Ok(all),
            Some((name, shard)) => Err(WanError::checkpoint(
                dir.join(shard),
                format!("tensor {name} is missing, the index lists it"),
            )),
        }
    }
}

fn read_safetensors(file: &WeightFile) -> Result<BTreeMap<String, Entry>> {
    let fault = |message: String| WanError::checkpoint(file.path(), message);
    let data_bytes = file
        .len_bytes()
        .checked_sub(8)
        .ok_or_else(|| fault(format!("{} bytes long: no safetensors file", file.len_bytes())))?;
    let mut length = [0; 8];
    file.copy_range(0, &mut length)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > data_bytes.min(HEADER_MAX_BYTES) {
        let message = format!("the header claims {header_bytes} bytes of the {data_bytes} that are there");
        return Err(fault(message));
    }
    let len = usize::try_from(header_bytes).map_err(|_| fault("the header is too long".into()))?;
    let mut header = vec![0; len];
    file.copy_range(8, &mut header)?;
    parse_header(file.path(), &header, file.len_bytes())
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: WeightMap,
}

struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(WeightMapVisitor)
    }
}

struct WeightMapVisitor;

impl<'de> Visitor<'de> for WeightMapVisitor {
    type Value = WeightMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of shard names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> std::result::Result<WeightMap, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(name) = access.next_key::<String>()? {
            if map.contains_key(&name) {
                access.next_value::<IgnoredAny>()?;
                return Err(A::Error::custom(format!("tensor {name} is listed twice")));
            }
            map.insert(name, access.next_value()?);
        }
        Ok(WeightMap(map))
    }
}

/// Parses a shard index (`*.safetensors.index.json`): shard by tensor. `path` is named in errors.
///
/// # Errors
/// When it is no such JSON, lists nothing, or names a shard that is not a plain file name beside it.
pub fn parse_index(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, String>> {
    let index: RawIndex = serde_json::from_slice(bytes)
        .map_err(|error| WanError::checkpoint(path, format!("bad shard index: {error}")))?;
    let weight_map = index.weight_map.0;
    let is_plain = |shard: &str| {
        shard.ends_with(".safetensors") && !shard.contains(['/', '\\', '\0', ':']) && !shard.starts_with('.')
    };
    if let Some((name, shard)) = weight_map.iter().find(|(_, shard)| !is_plain(shard)) {
        let message = format!(
            "tensor {name} is said to lie in {shard:?}, expected the plain name of a .safetensors file"
        );
        return Err(WanError::checkpoint(path, message));
    }
    if weight_map.is_empty() {
        return Err(WanError::checkpoint(path, "the shard index lists no tensor"));
    }
    Ok(weight_map)
}
