//! Arrays into entries and back: copied or encoded, a few rows at a time.

use std::process;
use std::sync::OnceLock;

use evanesce_cache::{CommitError, Lease, Writer};
use evanesce_kernels::{Codec, Dtype as Number, EncodedRows, Values, encode};
use half::{bf16, f16};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::buffers::{Sink, Source};
use crate::errors::{CacheError, Refusal};
use crate::layout::{LINE_BYTES, Part};

/// Numbers that are widened to f32 and encoded at once, by all threads: what encoding takes beside the entry.
const ENCODED_NUMBERS: usize = 1 << 18;
/// Numbers that are decoded at once: few enough to stay in the cache of a core, and in memory that the allocator keeps.
const DECODED_NUMBERS: usize = 1 << 14;

/// The process that encoded first. The kernels' threads are its own: in a child that was forked later nobody would do what they are given.
static ENCODING_PROCESS_ID: OnceLock<u32> = OnceLock::new();

fn check_encoding() -> PyResult<()> {
    let owner = *ENCODING_PROCESS_ID.get_or_init(process::id);
    if owner == process::id() {
        return Ok(());
    }
    Err(CacheError::new_err(format!(
        "the threads that encode belong to process {owner}, which this one was forked from; use codec exact here, or start processes by spawn"
    )))
}

/// Buffer, element type, shape and codec of each array that an entry is made of.
pub(crate) type ArrayWords<'py> = Vec<(Bound<'py, PyAny>, String, Vec<usize>, String)>;

/// What a put will write.
pub(crate) struct Content {
    arrays: Vec<(Part, Source)>,
    /// Whether the entry is a tuple of arrays, and not one.
    together: bool,
}

impl Content {
    pub(crate) fn new(words: ArrayWords<'_>, together: bool) -> PyResult<Self> {
        if words.is_empty() {
            return Err(PyValueError::new_err("an entry of no arrays; give one at least"));
        }
        let mut arrays = Vec::with_capacity(words.len());
        for (object, dtype, shape, codec) in words {
            let (part, source) = (Part::new(&dtype, &codec, shape)?, Source::new(&object)?);
            if source.len() != part.raw_bytes {
                let (given, expected) = (source.len(), part.raw_bytes);
                return Err(PyValueError::new_err(format!(
                    "a buffer of {given} bytes for {dtype} of shape {:?}, which are {expected}",
                    part.shape
                )));
            }
            if part.codec().is_some() {
                check_encoding()?;
            }
            arrays.push((part, source));
        }
        Ok(Self { arrays, together })
    }

    /// Bytes of the entry.
    pub(crate) fn entry_bytes(&self) -> usize {
        self.arrays.iter().fold(0, |sum, (part, _)| sum.saturating_add(part.entry_bytes()))
    }

    /// Bytes before encoding.
    pub(crate) fn raw_bytes(&self) -> u64 {
        self.arrays.iter().map(|(part, _)| part.raw_bytes as u64).sum()
    }

    /// Writes everything and makes the entry visible. What fails gives the writer's bytes back.
    pub(crate) fn commit(&self, mut writer: Writer) -> Result<Lease, Refusal> {
        let mut rest = writer.bytes_mut();
        for (part, source) in &self.arrays {
            let (entry, later) = rest.split_at_mut(part.entry_bytes());
            let (line, bytes) = entry.split_at_mut(LINE_BYTES);
            line.copy_from_slice(&part.line(self.together));
            let bytes = &mut bytes[..part.stored_bytes];
            match (part.codec(), part.dtype().number) {
                (Some(codec), Some(number)) => encode_rows(codec, number, part.width(), source, bytes),
                _ => source.read(0, bytes),
            }
            rest = later;
        }
        writer.commit().map_err(|CommitError { refusal, .. }| Refusal::Commit(refusal))
    }
}

fn encode_rows(codec: Codec, number: Number, width: usize, source: &Source, out: &mut [u8]) {
    let rows = ENCODED_NUMBERS.div_ceil(width);
    let (row_in, row_out) = (width * number.size_bytes(), codec.row_bytes(width));
    let rows = rows.min(out.len().div_ceil(row_out));
    let (mut raw, mut numbers) = (vec![0; rows * row_in], vec![0.0; rows * width]);
    for (at, out) in out.chunks_mut(rows.max(1) * row_out).enumerate() {
        let n_rows = out.len() / row_out;
        let (raw, numbers) = (&mut raw[..n_rows * row_in], &mut numbers[..n_rows * width]);
        source.read(at * rows * row_in, raw);
        Values::new(number, raw).expect("rows are whole numbers").read(0, numbers);
        encode(codec, numbers, width, out);
    }
}

/// Decodes an array into its element type.
pub(crate) fn decode_rows(part: &Part, stored: &[u8], sink: &Sink) {
    let (Some(codec), Some(number)) = (part.codec(), part.dtype().number) else {
        return sink.write(0, stored);
    };
    let width = part.width();
    let rows = DECODED_NUMBERS.div_ceil(width);
    let mut at = 0;
    for chunk in stored.chunks(rows * codec.row_bytes(width)) {
        let numbers = EncodedRows::new(codec, chunk, width).expect("chunks are whole rows").to_vec();
        let raw = narrow(number, &numbers);
        sink.write(at, &raw);
        at += raw.len();
    }
}

fn narrow(number: Number, numbers: &[f32]) -> Vec<u8> {
    match number {
        Number::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Number::F16 => numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        Number::BF16 => numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
    }
}
