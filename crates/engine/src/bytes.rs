//! Numbers in the bytes of entries.

/// The numbers of an entry.
///
/// # Panics
/// When the length is no multiple of 4; entries start at multiples of 64, so alignment always holds.
pub(crate) fn as_f32(bytes: &[u8]) -> &[f32] {
    bytemuck::cast_slice(bytes)
}

/// Writes numbers over the whole of an entry.
///
/// # Panics
/// When the lengths differ.
pub(crate) fn write_f32(bytes: &mut [u8], numbers: &[f32]) {
    bytes.copy_from_slice(bytemuck::cast_slice(numbers));
}
