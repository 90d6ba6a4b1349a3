//! The safetensors files by which another implementation can be compared, and a video gone on from: noise and frames in,
//! latents and frames out.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use evanesce_wan::checkpoint::{Entry, parse_header};
use evanesce_wan::kernels::Dtype;
use tempfile::NamedTempFile;

use crate::error::{EngineError, Result};
use crate::output::{Outputs, directory_of};

/// The file of a job's noise, whose header has been read: `noise`, f32, of exactly the job's shape.
#[derive(Debug)]
pub(crate) struct NoiseFile<'a> {
    numbers: TensorFile<'a>,
    /// Channels, latent frames, height, width.
    shape: [usize; 4],
}

impl<'a> NoiseFile<'a> {
    /// # Errors
    /// When the file cannot be read, is no safetensors file, or holds anything else under that name.
    pub(crate) fn open(path: &'a Path, shape: [usize; 4]) -> Result<Self> {
        let numbers = TensorFile::open(path, "noise")?;
        let got = numbers.shape();
        if got != shape {
            return Err(EngineError::file(path, format!("`noise` is F32 {got:?}; expected F32 {shape:?}")));
        }
        Ok(Self { numbers, shape })
    }

    /// Reads some latent frames; no others are read.
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    pub(crate) fn read(&mut self, wanted: Range<usize>) -> Result<Vec<f32>> {
        let [channels, frames, height, width] = self.shape;
        let place = |channel: usize, frame: usize| (channel * frames + frame) * height * width;
        self.numbers.read((0..channels).map(|c| place(c, wanted.start)..place(c, wanted.end)))
    }
}

/// An f32 tensor of a safetensors file, whose header has been read.
#[derive(Debug)]
pub(crate) struct TensorFile<'a> {
    path: &'a Path,
    name: &'a str,
    file: File,
    entry: Entry,
}

impl<'a> TensorFile<'a> {
    /// # Errors
    /// When the file cannot be read, is no safetensors file, or holds no such tensor.
    pub(crate) fn open(path: &'a Path, name: &'a str) -> Result<Self> {
        let fault = |message: String| EngineError::file(path, message);
        let mut file = File::open(path).map_err(|error| EngineError::file(path, error))?;
        let file_bytes = file.metadata().map_err(|error| EngineError::file(path, error))?.len();
        let header = read_header(&mut file, file_bytes)
            .map_err(|error| fault(format!("not a safetensors file ({error})")))?;
        let mut tensors = parse_header(path, &header, file_bytes)
            .map_err(|error| fault(format!("not a safetensors file ({error})")))?;
        match tensors.remove(name) {
            Some(entry) if entry.dtype == Dtype::F32 => Ok(Self { path, name, file, entry }),
            Some(entry) => Err(fault(format!("`{name}` is {:?}; expected F32", entry.dtype))),
            None => Err(fault(format!("has no tensor `{name}`; expected it in f32"))),
        }
    }

    /// The tensor's shape.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.entry.shape
    }

    /// Reads some numbers, one range of places in row-major order after the other; no others are read.
    ///
    /// # Errors
    /// When the file cannot be read, or one of them is not finite.
    pub(crate) fn read(&mut self, places: impl IntoIterator<Item = Range<usize>>) -> Result<Vec<f32>> {
        let Self { path, name, file, entry } = self;
        let (mut numbers, mut bytes) = (Vec::new(), Vec::new());
        for range in places {
            bytes.resize(4 * range.len(), 0);
            file.seek(SeekFrom::Start(entry.offset_bytes + 4 * range.start as u64))
                .and_then(|_| file.read_exact(&mut bytes))
                .map_err(|error| EngineError::file(*path, error))?;
            let begin = numbers.len();
            numbers.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            if let Some(at) = numbers[begin..].iter().position(|x| !x.is_finite()) {
                let (number, place) = (numbers[begin + at], range.start + at);
                let message = format!("`{name}` holds {number} at position {place}; expected finite numbers");
                return Err(EngineError::file(*path, message));
            }
        }
        Ok(numbers)
    }
}

fn read_header(file: &mut File, file_bytes: u64) -> std::io::Result<Vec<u8>> {
    let mut len = [0; 8];
    file.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    if len > file_bytes.saturating_sub(8) {
        return Err(std::io::Error::other(format!(
            "its header would pass the end of its {file_bytes} bytes"
        )));
    }
    let mut header = Vec::new();
    file.take(len).read_to_end(&mut header)?;
    Ok(header)
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
    /// When no file can be there, or the directory is missing or cannot be written.
    pub(crate) fn create(path: &Path, name: &str, shape: &[usize]) -> Result<Self> {
        let n_numbers: usize = shape.iter().product();
        let place = Outputs::place(path)?;
        let file = tempfile::Builder::new()
            .prefix(".evanesce-")
            .suffix(".part")
            .tempfile_in(directory_of(&place))
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
        let mut writer = Self { path: place, file, header_bytes, left: n_numbers };
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

    /// Waits until all of it is on disk, where nobody sees it yet.
    ///
    /// # Errors
    /// When numbers are missing or the disk refuses.
    pub(crate) fn complete(&mut self) -> Result<()> {
        if self.left > 0 {
            return Err(EngineError::file(&self.path, format!("{} numbers are missing", self.left)));
        }
        self.file.flush().map_err(|error| EngineError::file(&self.path, error))?;
        let file = self.file.get_ref().as_file();
        readable_by_others(file);
        file.sync_all().map_err(|error| EngineError::file(&self.path, error))
    }

    /// Puts the file in place.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub(crate) fn finish(mut self) -> Result<()> {
        self.complete()?;
        let Self { path, file, .. } = self;
        let file = file.into_inner().map_err(|error| EngineError::file(&path, error.into_error()))?;
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
        let mut writer = TensorWriter::create(&path, "noise", &[2, 3, 1, 2]).unwrap();
        writer.push([0.0, 1.5, -2.0, 3.0, 4.0, 5.0]).unwrap();
        writer.push([6.0, 7.0, 8.0, 9.0, f32::NAN, 11.0]).unwrap();
        writer.finish().unwrap();
        let mut noise = NoiseFile::open(&path, [2, 3, 1, 2]).unwrap();
        assert_eq!(noise.read(0..2).unwrap(), [0.0, 1.5, -2.0, 3.0, 6.0, 7.0, 8.0, 9.0]);
        assert_eq!(noise.read(1..2).unwrap(), [-2.0, 3.0, 8.0, 9.0]);
        let wrong = noise.read(2..3).unwrap_err().to_string();
        assert!(wrong.contains("NaN at position 10"), "{wrong}");
        let wrong = NoiseFile::open(&path, [3, 2, 1, 2]).unwrap_err().to_string();
        assert!(wrong.contains("[2, 3, 1, 2]") && wrong.contains("[3, 2, 1, 2]"), "{wrong}");
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
