//! How arrays lie in an entry: each behind a line of 64 bytes that says what it is, so that whoever leases the entry, wherever it has
//! been meanwhile, can read it; and each on a line of its own, so that any element type is aligned.

use evanesce_kernels::{Codec, Dtype as Number};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::words::one_of;

/// Bytes of a line, which the cache aligns entries to.
pub(crate) const LINE_BYTES: usize = 64;
/// Dimensions that a line has room for.
const DIMENSIONS_MAX: usize = 6;
const MAGIC: [u8; 3] = *b"EV1";

/// An element type: its name in PyTorch and NumPy, its size, and what the codecs call it if they take it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dtype {
    pub(crate) name: &'static str,
    pub(crate) size_bytes: usize,
    pub(crate) number: Option<Number>,
}

const fn dtype(name: &'static str, size_bytes: usize, number: Option<Number>) -> Dtype {
    Dtype { name, size_bytes, number }
}

/// Their order is the byte in an entry's line.
const DTYPES: [Dtype; 13] = [
    dtype("bool", 1, None),
    dtype("uint8", 1, None),
    dtype("int8", 1, None),
    dtype("int16", 2, None),
    dtype("int32", 4, None),
    dtype("int64", 8, None),
    dtype("float16", 2, Some(Number::F16)),
    dtype("bfloat16", 2, Some(Number::BF16)),
    dtype("float32", 4, Some(Number::F32)),
    dtype("float64", 8, None),
    dtype("complex64", 8, None),
    dtype("float8_e4m3fn", 1, None),
    dtype("float8_e5m2", 1, None),
];

/// Codecs by name; none keeps the bytes as they are. Their order is the byte in an entry's line.
const CODECS: [(&str, Option<Codec>); 5] = [
    ("exact", None),
    ("bf16", Some(Codec::Bf16)),
    ("int8", Some(Codec::Int8)),
    ("int4", Some(Codec::Int4)),
    ("int2", Some(Codec::Int2)),
];

/// One array of an entry.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    dtype: u8,
    codec: u8,
    pub(crate) shape: Vec<usize>,
    /// Its length before encoding.
    pub(crate) raw_bytes: usize,
    /// Its length in the entry, without the fill of its last line.
    pub(crate) stored_bytes: usize,
}

impl Part {
    /// An array of `shape`, to be stored by the codec of that name.
    pub(crate) fn new(dtype_name: &str, codec_name: &str, shape: Vec<usize>) -> PyResult<Self> {
        let dtypes: Vec<_> = (0_u8..).zip(DTYPES).map(|(at, dtype)| (dtype.name, at)).collect();
        let codecs: Vec<_> = (0_u8..).zip(CODECS).map(|(at, (name, _))| (name, at)).collect();
        let mut part = Self {
            dtype: one_of("element type", dtype_name, &dtypes)?,
            codec: one_of("codec", codec_name, &codecs)?,
            shape,
            raw_bytes: 0,
            stored_bytes: 0,
        };
        if part.shape.len() > DIMENSIONS_MAX {
            let given = part.shape.len();
            return Err(PyValueError::new_err(format!(
                "an array of {given} dimensions; up to {DIMENSIONS_MAX} are kept, so flatten some"
            )));
        }
        let too_large = || PyValueError::new_err("an array of more bytes than there are addresses");
        let count = part.shape.iter().try_fold(1_usize, |product, n| product.checked_mul(*n));
        let count = count.ok_or_else(too_large)?;
        part.raw_bytes = count.checked_mul(part.dtype().size_bytes).ok_or_else(too_large)?;
        part.stored_bytes = match part.codec() {
            None => part.raw_bytes,
            Some(codec) => part.coded_bytes(codec, count)?,
        };
        Ok(part)
    }

    fn coded_bytes(&self, codec: Codec, count: usize) -> PyResult<usize> {
        let (dtype, width) = (self.dtype(), self.width());
        if dtype.number.is_none() {
            return Err(PyValueError::new_err(format!(
                "codec {codec} takes float32, float16 and bfloat16, not {}; use codec exact",
                dtype.name
            )));
        }
        if width == 0 {
            return Err(PyValueError::new_err(format!(
                "codec {codec} cuts the last dimension into groups, and the array has none; use codec exact"
            )));
        }
        Ok(count / width * codec.row_bytes(width))
    }

    pub(crate) fn dtype(&self) -> Dtype {
        DTYPES[usize::from(self.dtype)]
    }

    pub(crate) fn codec(&self) -> Option<Codec> {
        CODECS[usize::from(self.codec)].1
    }

    pub(crate) fn codec_name(&self) -> &'static str {
        CODECS[usize::from(self.codec)].0
    }

    /// Numbers of a row: of the last dimension.
    pub(crate) fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    /// Bytes that it takes in an entry, its line included; saturates, and no budget holds what saturates.
    pub(crate) fn entry_bytes(&self) -> usize {
        self.stored_bytes.div_ceil(LINE_BYTES).saturating_add(1).saturating_mul(LINE_BYTES)
    }

    /// The line that says what follows it; `together` if the entry is a tuple of arrays and not one array.
    pub(crate) fn line(&self, together: bool) -> [u8; LINE_BYTES] {
        let mut line = [0; LINE_BYTES];
        line[..3].copy_from_slice(&MAGIC);
        line[3] = self.dtype;
        line[4] = self.codec;
        line[5] = u8::try_from(self.shape.len()).expect("as many as a line has room for");
        line[6] = u8::from(together);
        for (n, to) in self.shape.iter().zip(line[16..].chunks_exact_mut(8)) {
            to.copy_from_slice(&(*n as u64).to_le_bytes());
        }
        line
    }

    fn of_line(line: &[u8]) -> Option<(Self, bool)> {
        let (dtype, codec, dimensions) = (line[3], line[4], usize::from(line[5]));
        let known = line[..3] == MAGIC && dimensions <= DIMENSIONS_MAX;
        let (dtype, codec) = (DTYPES.get(usize::from(dtype))?, CODECS.get(usize::from(codec))?);
        let number = |bytes: &[u8]| usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok();
        let shape: Option<Vec<_>> = line[16..].chunks_exact(8).take(dimensions).map(number).collect();
        let part = Self::new(dtype.name, codec.0, shape?).ok()?;
        known.then_some((part, line[6] != 0))
    }
}

/// The arrays of an entry, where each begins, and whether they are a tuple. `None` for bytes that this package did not write.
pub(crate) fn parse(bytes: &[u8]) -> Option<(Vec<(usize, Part)>, bool)> {
    let (mut parts, mut is_tuple, mut at) = (Vec::new(), false, 0);
    while at < bytes.len() {
        let line = bytes.get(at..at.checked_add(LINE_BYTES)?)?;
        let (part, together) = Part::of_line(line)?;
        is_tuple = together;
        let start = at + LINE_BYTES;
        at = at.checked_add(part.entry_bytes())?;
        parts.push((start, part));
    }
    (at == bytes.len()).then_some((parts, is_tuple))
}
