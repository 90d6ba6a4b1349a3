//! What stands before an entry's bytes on disk.

/// Sequence, length, checksum of the payload, checksum of these; padded so that the payload starts on a line.
pub(super) type Header = [u8; HEADER_BYTES];

pub(super) const HEADER_BYTES: usize = 64;

pub(super) const EMPTY: Header = [0; HEADER_BYTES];

const MAGIC: [u8; 8] = *b"evanesce";

/// The header of a payload. No two records of one tier have one sequence number, so that what an earlier record left
/// in the same extents is never taken for this one.
pub(super) fn header(sequence: u64, payload: &[u8]) -> Header {
    header_of(sequence, payload.len() as u64, crc32fast::hash(payload))
}

/// As [`header`], of a payload whose checksum is known.
pub(super) fn header_of(sequence: u64, payload_bytes: u64, checksum: u32) -> Header {
    let mut header = EMPTY;
    header[..8].copy_from_slice(&MAGIC);
    header[8..16].copy_from_slice(&sequence.to_le_bytes());
    header[16..24].copy_from_slice(&payload_bytes.to_le_bytes());
    header[24..28].copy_from_slice(&checksum.to_le_bytes());
    let checksum = crc32fast::hash(&header[..28]);
    header[28..32].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// Length and checksum of the payload that a header stands before; `None` if it is none.
pub(super) fn checked(header: &Header) -> Option<(u64, u32)> {
    let number = |at: usize| Some(u64::from_le_bytes(header.get(at..at + 8)?.try_into().ok()?));
    let (sequence, payload_bytes) = (number(8)?, number(16)?);
    let checksum = u32::from_le_bytes(header.get(24..28)?.try_into().ok()?);
    (header_of(sequence, payload_bytes, checksum) == *header).then_some((payload_bytes, checksum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_of_one_payload_and_one_sequence_number() {
        let payload = [7; 192];
        let first = header(1, &payload);
        let mut flipped = payload;
        flipped[100] ^= 4;
        assert_ne!(first, header(1, &flipped));
        assert_ne!(first, header(1, &payload[..128]));
        assert_ne!(first, header(2, &payload));
        assert_eq!(first, header(1, &payload));
    }
}
