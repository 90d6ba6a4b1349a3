//! The safetensors files by which another implementation can be compared, and a video gone on from: noise and frames in,
//! latents and frames out.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::NamedTempFile;

use crate::error::{EngineError, Result};

/// Reads `noise`, f32, of exactly `shape`.
///
/// # Errors
/// When the file cannot be read, is no safetensors file, or holds anything else under that name.
pub(crate) fn read_noise(path: &Path, shape: &[usize]) -> Result<Vec<f32>> {
    let got = read_shape(path, "noise")?;
    if got != shape {
        return Err(EngineError::file(path, format!("`noise` is F32 {got:?}; expected F32 {shape:?}")));
    }
    read_tensor(path, "noise", 0..shape.iter().product())
}

/// The shape of an f32 tensor of a file.
///
/// # Errors
/// As [`read_noise`].
pub(crate) fn read_shape(path: &Path, name: &str) -> Result<Vec<usize>> {
    with_tensor(path, name, |tensor| Ok(tensor.shape().to_vec()))
}

/// Some numbers of an f32 tensor of a file, by their places in row-major order.
///
/// # Errors
/// As [`read_noise`], and when one of them is not finite.
pub(crate) fn read_tensor(path: &Path, name: &str, places: Range<usize>) -> Result<Vec<f32>> {
    with_tensor(path, name, |tensor| {
        let first = places.start;
        let bytes = tensor.data().get(4 * places.start..4 * places.end).unwrap_or_default();
        let numbers: Vec<f32> =
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        match numbers.iter().position(|x| !x.is_finite()) {
            None => Ok(numbers),
            Some(at) => {
                let (number, at) = (numbers[at], first + at);
                Err(format!("`{name}` holds {number} at position {at}; expected finite numbers"))
            }
        }
    })
}

fn with_tensor<T>(
    path: &Path,
    name: &str,
    read: impl FnOnce(&TensorView<'_>) -> std::result::Result<T, String>,
) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|error| EngineError::file(path, error))?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|error| EngineError::file(path, format!("not a safetensors file ({error})")))?;
    let tensor = tensors
        .tensor(name)
        .map_err(|_| EngineError::file(path, format!("has no tensor `{name}`; expected it in f32")))?;
    if tensor.dtype() != Dtype::F32 {
        return Err(EngineError::file(path, format!("`{name}` is {:?}; expected F32", tensor.dtype())));
    }
    read(&tensor).map_err(|message| EngineError::file(path, message))
}

/// One f32 tensor of known shape, written as its numbers arrive and put in place when it is complete. Dropping it before
/// that leaves nothing behind.
#[derive(Debug)]
pub(crate) struct TensorWriter {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    /// Where the numbers begin.
    header_bytes: u64,
    left: usize,
}

impl TensorWriter {
    /// Starts a file that will hold `name` of `shape`.
    ///
    /// # Errors
    /// When the directory is missing or cannot be written.
    pub(crate) fn create(path: &Path, name: &str, shape: &[usize]) -> Result<Self> {
        let n_numbers: usize = shape.iter().product();
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if path.is_dir() {
            return Err(EngineError::file(path, "is a directory; name a file"));
        }
        let file = tempfile::Builder::new()
            .prefix(".evanesce-")
            .suffix(".part")
            .tempfile_in(directory)
            .map_err(|error| EngineError::file(path, format!("cannot be created ({error})")))?;
        let mut header = format!(
            "{{\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape:?},\"data_offsets\":[0,{}]}}}}",
            n_numbers * 4
        );
        while !header.len().is_multiple_of(8) {
            header.push(' ');
        }
        let header_bytes = 8 + header.len() as u64;
        let file = BufWriter::new(file);
        let mut writer = Self { path: path.to_owned(), file, header_bytes, left: n_numbers };
        writer.write(&(header.len() as u64).to_le_bytes())?;
        writer.write(header.as_bytes())?;
        Ok(writer)
    }

    /// Appends numbers in row-major order.
    ///
    /// # Errors
    /// When the disk refuses them.
    pub(crate) fn push(&mut self, numbers: impl IntoIterator<Item = f32>) -> Result<()> {
        for number in numbers {
            self.write(&number.to_le_bytes())?;
            self.left = self.left.saturating_sub(1);
        }
        Ok(())
    }

    /// Writes numbers from place `at` of the row-major order on. Every number must be written once.
    ///
    /// # Errors
    /// When the disk refuses them.
    pub(crate) fn push_at(&mut self, at: usize, numbers: impl IntoIterator<Item = f32>) -> Result<()> {
        let place = self.header_bytes + (at * size_of::<f32>()) as u64;
        self.file.seek(SeekFrom::Start(place)).map_err(|error| EngineError::file(&self.path, error))?;
        self.push(numbers)
    }

    /// Puts the file in place.
    ///
    /// # Errors
    /// When numbers are missing or the disk refuses.
    pub(crate) fn finish(self) -> Result<()> {
        let Self { path, file, left, .. } = self;
        if left > 0 {
            return Err(EngineError::file(&path, format!("{left} numbers are missing")));
        }
        let file = file.into_inner().map_err(|error| EngineError::file(&path, error.into_error()))?;
        readable_by_others(file.as_file());
        file.as_file().sync_all().map_err(|error| EngineError::file(&path, error))?;
        file.persist(&path).map_err(|error| EngineError::file(&path, error.error))?;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| EngineError::file(&self.path, error))
    }
}

/// Temporary files are private; a result is as readable as any file. Best effort: a file system may know no modes.
fn readable_by_others(file: &File) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        drop(file.set_permissions(std::fs::Permissions::from_mode(0o644)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("noise.safetensors");
        let mut writer = TensorWriter::create(&path, "noise", &[2, 3]).unwrap();
        writer.push([0.0, 1.5, -2.0]).unwrap();
        writer.push([3.0, 4.0, 5.0]).unwrap();
        writer.finish().unwrap();
        assert_eq!(read_noise(&path, &[2, 3]).unwrap(), [0.0, 1.5, -2.0, 3.0, 4.0, 5.0]);
        let wrong = read_noise(&path, &[3, 2]).unwrap_err().to_string();
        assert!(wrong.contains("[2, 3]") && wrong.contains("[3, 2]"), "{wrong}");
    }

    #[test]
    fn an_unfinished_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("frames.safetensors");
        let mut writer = TensorWriter::create(&path, "frames", &[4]).unwrap();
        writer.push([1.0]).unwrap();
        assert!(writer.finish().is_err());
        drop(TensorWriter::create(&path, "frames", &[4]).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
