//! Borrowed numbers of any floating-point type a checkpoint may hold.

use half::{bf16, f16};

/// Element type of weights and pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// Numbers borrowed from wherever they lie: little-endian, densely packed, read as `f32`.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
}

impl<'a> Values<'a> {
    /// Views `bytes` as numbers of type `dtype`. `None` when the length is no multiple of the element size.
    #[must_use]
    pub fn new(dtype: Dtype, bytes: &'a [u8]) -> Option<Self> {
        (bytes.len().is_multiple_of(dtype.size_bytes())).then_some(Self { dtype, bytes })
    }

    /// How many numbers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size_bytes()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The numbers in place, when they are `f32`, aligned, and this machine is little-endian.
    #[must_use]
    pub fn as_f32(&self) -> Option<&'a [f32]> {
        if self.dtype != Dtype::F32 || cfg!(target_endian = "big") {
            return None;
        }
        bytemuck::try_cast_slice(self.bytes).ok()
    }

    /// Reads numbers `start..start + out.len()` into `out`.
    ///
    /// # Panics
    /// When the range passes the end.
    pub fn read(&self, start: usize, out: &mut [f32]) {
        let size = self.dtype.size_bytes();
        let bytes = &self.bytes[start * size..(start + out.len()) * size];
        match self.dtype {
            Dtype::F32 if cfg!(target_endian = "little") => {
                bytemuck::cast_slice_mut(out).copy_from_slice(bytes);
            }
            Dtype::F32 => {
                for (to, from) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *to = f32::from_le_bytes([from[0], from[1], from[2], from[3]]);
                }
            }
            Dtype::F16 => {
                for (to, from) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *to = f16::from_le_bytes([from[0], from[1]]).to_f32();
                }
            }
            Dtype::BF16 => {
                for (to, from) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *to = bf16::from_le_bytes([from[0], from[1]]).to_f32();
                }
            }
        }
    }

    /// All numbers as a fresh vector.
    #[must_use]
    pub fn to_vec(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        self.read(0, &mut out);
        out
    }
}

impl<'a> From<&'a [f32]> for Values<'a> {
    fn from(numbers: &'a [f32]) -> Self {
        Self { dtype: Dtype::F32, bytes: bytemuck::cast_slice(numbers) }
    }
}
