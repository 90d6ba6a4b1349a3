//! Borrowed numbers of any floating-point type a checkpoint may hold.

use crate::isa::{Isa, by_isa};

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
        self.read_with(Isa::current(), start, out);
    }

    pub(crate) fn read_with(&self, isa: Isa, start: usize, out: &mut [f32]) {
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
            Dtype::F16 => widen_f16(isa, bytes, out),
            Dtype::BF16 => widen_bf16(isa, bytes, out),
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

by_isa! {
    fn widen_bf16(bytes: &[u8], out: &mut [f32]) = widen_bf16_inner
}

#[inline(always)]
fn widen_bf16_inner(bytes: &[u8], out: &mut [f32]) {
    for (to, from) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *to = f32::from_bits(u32::from(u16::from_le_bytes([from[0], from[1]])) << 16);
    }
}

by_isa! {
    fn widen_f16(bytes: &[u8], out: &mut [f32]) = widen_f16_inner
}

#[inline(always)]
fn widen_f16_inner(bytes: &[u8], out: &mut [f32]) {
    // With the exponent where `f32` has its own, a number is 2^112 too small; denormals come out right as well.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    const INFINITE: u32 = 0x1F << 23;
    for (to, from) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        let bits = u32::from(u16::from_le_bytes([from[0], from[1]]));
        let magnitude = (bits & 0x7FFF) << 13;
        let scaled = (f32::from_bits(magnitude) * REBIAS).to_bits();
        let finite = if magnitude < INFINITE { scaled } else { magnitude | 0x7F80_0000 };
        *to = f32::from_bits(finite | (bits & 0x8000) << 16);
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::{Dtype, Values};

    #[test]
    fn every_half_is_widened_exactly() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let half = Values::new(Dtype::F16, &bytes).unwrap().to_vec();
        let brain = Values::new(Dtype::BF16, &bytes).unwrap().to_vec();
        for bits in 0..=u16::MAX {
            let expected = [f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32()];
            for (value, expected) in
                [half[usize::from(bits)], brain[usize::from(bits)]].into_iter().zip(expected)
            {
                assert!(
                    value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan(),
                    "{bits:x}"
                );
            }
        }
    }

    #[test]
    fn numbers_are_read_from_anywhere() {
        let numbers = [1.0_f32, -2.5, 3.25];
        let mut bytes = vec![7];
        bytes.extend(numbers.iter().flat_map(|v| v.to_le_bytes()));
        let values = Values::new(Dtype::F32, &bytes[1..]).unwrap();
        let mut two = [0.0; 2];
        values.read(1, &mut two);
        assert_eq!(two, [-2.5, 3.25]);
        assert_eq!(values.to_vec(), numbers);
        assert!(Values::new(Dtype::F32, &bytes).is_none());
    }
}
