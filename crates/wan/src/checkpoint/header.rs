//! The header of a safetensors file, believed only as far as the file's length bears it out.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use evanesce_kernels::Dtype;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::{Result, WanError};

/// Longest header that is read.
pub(crate) const HEADER_MAX_BYTES: u64 = 100_000_000;
/// Most axes a tensor may have.
const RANK_MAX: usize = 8;

/// Where one tensor lies in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Element type.
    pub dtype: Dtype,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub offset_bytes: u64,
}

impl Entry {
    /// Bytes of the tensor.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.size_bytes()) as u64
    }
}

/// Bytes of a tensor of this shape, if there can be one.
pub(crate) fn tensor_bytes(shape: &[u64], dtype: Dtype) -> Option<u64> {
    let numbers = shape.iter().try_fold(1_u64, |product, axis| product.checked_mul(*axis))?;
    // `Entry::len_bytes` multiplies in `usize`; sizes beyond it do not fit memory anyway.
    numbers.checked_mul(dtype.size_bytes() as u64).filter(|bytes| usize::try_from(*bytes).is_ok())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

struct RawHeader(BTreeMap<String, RawEntry>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> std::result::Result<RawHeader, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some(name) = access.next_key::<String>()? {
            if name == "__metadata__" {
                access.next_value::<IgnoredAny>()?;
                continue;
            }
            let entry = access.next_value()?;
            if entries.insert(name.clone(), entry).is_some() {
                return Err(A::Error::custom(format!("tensor {name} is listed twice")));
            }
        }
        Ok(RawHeader(entries))
    }
}

/// Parses `header`, the JSON part of a safetensors file of `file_bytes` bytes; `path` is named in errors.
///
/// # Errors
/// When the header is no JSON of the format, lists a tensor twice or in a type other than f32, f16, bf16, or when its
/// offsets do not tile the rest of the file exactly.
pub fn parse_header(path: &Path, header: &[u8], file_bytes: u64) -> Result<BTreeMap<String, Entry>> {
    let fault = |message: String| WanError::checkpoint(path, message);
    let raw: RawHeader =
        serde_json::from_slice(header).map_err(|error| fault(format!("bad safetensors header: {error}")))?;
    let data_start = header.len() as u64 + 8;
    let data_bytes =
        file_bytes.checked_sub(data_start).ok_or_else(|| fault("the header passes the end".into()))?;
    let mut spans = Vec::with_capacity(raw.0.len());
    let mut entries = BTreeMap::new();
    for (name, raw) in raw.0 {
        let [begin, end] = raw.data_offsets;
        if end > data_bytes {
            let message = format!("truncated: tensor {name} ends at data byte {end} of {data_bytes}");
            return Err(fault(message));
        }
        let dtype = parse_dtype(&raw.dtype).ok_or_else(|| {
            fault(format!("tensor {name} has dtype {}, expected F32, F16 or BF16", raw.dtype))
        })?;
        if raw.shape.len() > RANK_MAX {
            return Err(fault(format!(
                "tensor {name} has {} axes, at most {RANK_MAX} make sense",
                raw.shape.len()
            )));
        }
        let expected = tensor_bytes(&raw.shape, dtype);
        if end.checked_sub(begin) != expected {
            let needed = expected.map_or_else(|| "too many".to_owned(), |bytes| bytes.to_string());
            let message = format!(
                "tensor {name} of shape {:?} needs {needed} bytes, its offsets are {begin}..{end}",
                raw.shape
            );
            return Err(fault(message));
        }
        spans.push((begin, end));
        let shape =
            raw.shape.iter().map(|axis| usize::try_from(*axis)).collect::<std::result::Result<_, _>>();
        let shape = shape.map_err(|_| fault(format!("tensor {name} is too large")))?;
        entries.insert(name, Entry { dtype, shape, offset_bytes: data_start + begin });
    }
    check_tiling(path, spans, data_bytes)?;
    Ok(entries)
}

/// Tensors must fill the data part without gaps or overlaps, as the format demands.
fn check_tiling(path: &Path, mut spans: Vec<(u64, u64)>, data_bytes: u64) -> Result<()> {
    spans.sort_unstable();
    let mut reached = 0;
    for (begin, end) in spans {
        if begin != reached {
            let kind = if begin < reached { "overlap" } else { "leave a gap" };
            let message = format!("tensors {kind} at data byte {}", begin.min(reached));
            return Err(WanError::checkpoint(path, message));
        }
        reached = end;
    }
    if reached == data_bytes {
        return Ok(());
    }
    let message = format!("tensors fill {reached} data bytes, the file has {data_bytes}");
    Err(WanError::checkpoint(path, message))
}

fn parse_dtype(name: &str) -> Option<Dtype> {
    match name {
        "F32" => Some(Dtype::F32),
        "F16" => Some(Dtype::F16),
        "BF16" => Some(Dtype::BF16),
        _ => None,
    }
}
