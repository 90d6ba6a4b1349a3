//! Frames of a file, one after the other: of `--frames-out`, or of a video.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::error::{EngineError, Result};
use crate::video::Mp4Reader;

/// A header of a frames file is a few hundred bytes.
const HEADER_BYTES_MAX: u64 = 1 << 20;

/// Frames `[height, width, 3]` in 0..1, in order.
#[derive(Debug)]
pub(super) enum Frames {
    Tensor(TensorFrames),
    Video(Mp4Reader),
}

impl Frames {
    /// Opens `path`, which is told by what it holds, not by its name.
    ///
    /// # Errors
    /// When it is neither a safetensors file with `frames` nor an MP4 with H.264.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).map_err(|error| EngineError::file(path, error))?;
        let mut start = [0; 8];
        file.read_exact(&mut start).map_err(|_| neither(path))?;
        if &start[4..] == b"ftyp" {
            return Ok(Self::Video(Mp4Reader::open(path)?));
        }
        TensorFrames::open(path, file, u64::from_le_bytes(start)).map(Self::Tensor)
    }

    /// Number of frames, height, width.
    pub(super) fn shape(&self) -> (usize, usize, usize) {
        match self {
            Self::Tensor(tensor) => tensor.shape,
            Self::Video(video) => (video.frames(), video.height(), video.width()),
        }
    }

    /// Frames per second, where the file says so.
    pub(super) fn fps(&self) -> Option<f64> {
        match self {
            Self::Tensor(_) => None,
            Self::Video(video) => Some(video.fps()),
        }
    }

    /// Overwrites `frame` with the next one; the caller counts.
    ///
    /// # Errors
    /// When the file ends early, cannot be decoded, or holds a number that is not finite.
    pub(super) fn next_into(&mut self, frame: &mut Vec<f32>) -> Result<()> {
        match self {
            Self::Tensor(tensor) => tensor.next_into(frame),
            Self::Video(video) => Ok(video.next_into(frame)?),
        }
    }
}

#[derive(Debug)]
pub(super) struct TensorFrames {
    path: PathBuf,
    file: BufReader<File>,
    shape: (usize, usize, usize),
    /// Numbers of the frames so far.
    numbers_read: usize,
    bytes: Vec<u8>,
}

impl TensorFrames {
    fn open(path: &Path, mut file: File, header_bytes: u64) -> Result<Self> {
        if header_bytes > HEADER_BYTES_MAX {
            return Err(neither(path));
        }
        let mut head = Vec::new();
        let read = (&mut file).take(header_bytes).read_to_end(&mut head);
        read.map_err(|error| EngineError::file(path, error))?;
        let metadata: Metadata = serde_json::from_slice(&head).map_err(|_| neither(path))?;
        let info = metadata.info("frames").filter(|info| info.dtype == Dtype::F32);
        let Some((&[frames, height, width, 3], (0, end))) = info.map(|i| (&i.shape[..], i.data_offsets))
        else {
            let message = "holds no `frames` [T, height, width, 3] in f32, first in the file, as --frames-out writes them";
            return Err(EngineError::file(path, message));
        };
        let held = file.metadata().map_err(|error| EngineError::file(path, error))?.len();
        let sizes = [frames, height, width, 3 * size_of::<f32>()];
        let needed = sizes.into_iter().try_fold(1, usize::checked_mul);
        if needed != Some(end) || held != 8 + header_bytes + end as u64 {
            let message = format!("is {held} bytes long; its header says {}", 8 + header_bytes + end as u64);
            return Err(EngineError::file(path, message));
        }
        Ok(Self {
            path: path.to_owned(),
            file: BufReader::new(file),
            shape: (frames, height, width),
            numbers_read: 0,
            bytes: Vec::new(),
        })
    }

    fn next_into(&mut self, frame: &mut Vec<f32>) -> Result<()> {
        let (_, height, width) = self.shape;
        self.bytes.resize(height * width * 3 * size_of::<f32>(), 0);
        self.file.read_exact(&mut self.bytes).map_err(|error| EngineError::file(&self.path, error))?;
        frame.clear();
        frame.extend(self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        if let Some(at) = frame.iter().position(|x| !x.is_finite()) {
            let (number, place) = (frame[at], self.numbers_read + at);
            let message = format!("`frames` holds {number} at position {place}; expected finite numbers");
            return Err(EngineError::file(&self.path, message));
        }
        self.numbers_read += frame.len();
        Ok(())
    }
}

fn neither(path: &Path) -> EngineError {
    EngineError::file(
        path,
        "is neither a video (MP4 with H.264) nor a frames file (safetensors, from --frames-out)",
    )
}
