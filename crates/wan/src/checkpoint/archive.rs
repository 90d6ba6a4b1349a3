//! `.pth` files: a zip of stored records, one of them a pickle that says which tensor lies where.

use std::collections::BTreeMap;
use std::io::BufReader;

use evanesce_kernels::Dtype;
use zip::{CompressionMethod, ZipArchive};

use super::header::{Entry, tensor_bytes};
use super::mapping::WeightFile;
use super::pickle::{PickledTensor, parse_pickle};
use crate::error::{Result, WanError};

/// Longest pickle that is read; a state dict of thousands of tensors takes well under a megabyte.
const PICKLE_MAX_BYTES: u64 = 64 << 20;

/// Where a record's bytes lie in the archive.
struct Record {
    offset_bytes: u64,
    len_bytes: u64,
}

/// Tensors of the state dict in `file`, by name.
pub(crate) fn read_archive(file: &WeightFile) -> Result<BTreeMap<String, Entry>> {
    let fault = |message: String| WanError::checkpoint(file.path(), message);
    let mut zip = ZipArchive::new(BufReader::new(file.file()))
        .map_err(|error| fault(format!("not a PyTorch zip archive: {error}")))?;
    let mut records = BTreeMap::new();
    let mut pickle = None;
    for index in 0..zip.len() {
        let entry = zip.by_index_raw(index).map_err(|error| fault(format!("record {index}: {error}")))?;
        let name = entry.name().map_err(|error| fault(format!("record {index}: {error}")))?.into_owned();
        let compressed = entry.compression() != CompressionMethod::Stored;
        let offset_bytes = entry.data_start().ok_or_else(|| fault(format!("record {name} has no place")))?;
        let record = Record { offset_bytes, len_bytes: entry.size() };
        let end_bytes = offset_bytes.checked_add(record.len_bytes);
        if compressed || end_bytes.is_none_or(|end| end > file.len_bytes()) {
            return Err(fault(format!("record {name} is compressed or passes the end of the file")));
        }
        if let Some(prefix) = name.strip_suffix("data.pkl") {
            pickle = Some((prefix.to_owned(), record));
        } else {
            records.insert(name, record);
        }
    }
    let (prefix, record) = pickle.ok_or_else(|| fault("the archive has no data.pkl".into()))?;
    let bytes = read_record(file, &record)?;
    let tensors = parse_pickle(&bytes).map_err(|message| fault(format!("data.pkl: {message}")))?;
    let mut entries = BTreeMap::new();
    for tensor in tensors {
        let record = records.get(&format!("{prefix}data/{}", tensor.storage_key));
        let entry =
            locate(&tensor, record).map_err(|message| fault(format!("tensor {}: {message}", tensor.name)))?;
        if entries.insert(tensor.name.clone(), entry).is_some() {
            return Err(fault(format!("tensor {} is listed twice", tensor.name)));
        }
    }
    Ok(entries)
}

fn read_record(file: &WeightFile, record: &Record) -> Result<Vec<u8>> {
    if record.len_bytes > PICKLE_MAX_BYTES {
        let message = format!("data.pkl has {} bytes, at most {PICKLE_MAX_BYTES} are read", record.len_bytes);
        return Err(WanError::checkpoint(file.path(), message));
    }
    let len = usize::try_from(record.len_bytes).expect("the limit above fits memory");
    let mut bytes = vec![0; len];
    file.copy_range(record.offset_bytes, &mut bytes)?;
    Ok(bytes)
}

/// The byte range of a contiguous tensor inside its record.
fn locate(tensor: &PickledTensor, record: Option<&Record>) -> std::result::Result<Entry, String> {
    let dtype = match tensor.storage_class.as_str() {
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        other => return Err(format!("its storage is a {other}, expected Float, Half or BFloat16")),
    };
    let record = record.ok_or_else(|| format!("storage {} is not in the archive", tensor.storage_key))?;
    if !is_contiguous(&tensor.shape, &tensor.strides) {
        return Err(format!("strides {:?} of shape {:?} are not contiguous", tensor.strides, tensor.shape));
    }
    let start_bytes = tensor.offset.checked_mul(dtype.size_bytes() as u64);
    let needed = tensor_bytes(&tensor.shape, dtype);
    let end_bytes = start_bytes.zip(needed).and_then(|(start, len)| start.checked_add(len));
    let (Some(start_bytes), Some(_)) = (start_bytes, end_bytes.filter(|end| *end <= record.len_bytes)) else {
        let message =
            format!("shape {:?} passes the {} bytes of its storage", tensor.shape, record.len_bytes);
        return Err(message);
    };
    let shape = tensor.shape.iter().map(|axis| usize::try_from(*axis)).collect::<std::result::Result<_, _>>();
    let shape = shape.map_err(|_| "it is too large".to_owned())?;
    Ok(Entry { dtype, shape, offset_bytes: record.offset_bytes + start_bytes })
}

fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    let mut expected = 1_u64;
    shape.len() == strides.len()
        && shape.iter().zip(strides).rev().all(|(axis, stride)| {
            let fits = *axis == 1 || *stride == expected;
            expected = expected.saturating_mul(*axis);
            fits
        })
}
