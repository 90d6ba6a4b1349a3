//! A check of the normalizer that SentencePiece compiles into a tokenizer.
//!
//! `precompiled_charsmap` is base64 of: the trie's length in bytes (u32), the trie (little-endian u32 units of a double
//! array), then the replacement texts, each ended by a zero byte. The library that walks the trie trusts it; this makes
//! sure that no walk leaves the array and that no leaf points outside the texts.

use serde_json::Value;

/// Checks every precompiled normalizer inside a tokenizer's `normalizer`; the error says what is wrong.
pub(super) fn check(normalizer: &Value) -> Result<(), &'static str> {
    if let Some(charsmap) = normalizer.get("precompiled_charsmap") {
        let text = charsmap.as_str().ok_or("precompiled_charsmap is no text")?;
        check_bytes(&from_base64(text).ok_or("precompiled_charsmap is no base64")?)?;
    }
    let nested = normalizer.get("normalizers").and_then(Value::as_array);
    nested.into_iter().flatten().try_for_each(check)
}

fn check_bytes(bytes: &[u8]) -> Result<(), &'static str> {
    const TRUNCATED: &str = "precompiled_charsmap is shorter than it says";
    let (length, rest) = bytes.split_first_chunk().ok_or(TRUNCATED)?;
    let length = u32::from_le_bytes(*length) as usize / 4 * 4;
    let (trie, texts) = rest.split_at_checked(length).ok_or(TRUNCATED)?;
    let units: Vec<u32> =
        trie.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let texts =
        std::str::from_utf8(texts).map_err(|_| "precompiled_charsmap holds texts that are not UTF-8")?;
    if walks_stay_inside(&units, texts) {
        Ok(())
    } else {
        Err("precompiled_charsmap points outside of itself")
    }
}

/// Visits every node that some text can reach.
fn walks_stay_inside(units: &[u32], texts: &str) -> bool {
    let children = |at: usize| at ^ ((units[at] >> 10) << ((units[at] & (1 << 9)) >> 6)) as usize;
    let mut seen = vec![false; units.len()];
    let mut next = vec![0];
    while let Some(at) = next.pop() {
        if at >= units.len() {
            return false;
        }
        if std::mem::replace(&mut seen[at], true) {
            continue;
        }
        let base = children(at);
        if base | 0xff >= units.len() {
            return false;
        }
        let leaf = at != 0 && units[at] >> 8 & 1 == 1;
        if leaf && !texts.is_char_boundary((units[base] & (u32::MAX >> 1)) as usize) {
            return false;
        }
        let labelled = |label: &u32| units[base ^ *label as usize] & (1 << 31 | 0xff) == *label;
        next.extend((1..=0xff).filter(labelled).map(|label| base ^ label as usize));
    }
    true
}

/// Standard alphabet, padded to whole groups of four.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let digits = text.trim_end_matches('=');
    if text.len() - digits.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in digits.as_bytes().chunks(4) {
        let mut bits = 0u32;
        for &digit in group {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trie that maps "a" to "b": the root's children lie at 256, those of "a" at 512.
    fn charsmap() -> Vec<u8> {
        let mut units = vec![0u32; 768];
        units[0] = 256 << 10;
        let a = 256 ^ usize::from(b'a');
        units[a] = (512 ^ u32::try_from(a).unwrap()) << 10 | 1 << 8 | u32::from(b'a');
        units[512] = 1 << 31;
        let trie: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        [&u32::try_from(trie.len()).unwrap().to_le_bytes()[..], &trie, b"b\0"].concat()
    }

    #[test]
    fn a_sound_trie_passes_and_one_that_leads_outside_does_not() {
        let sound = charsmap();
        assert_eq!(check_bytes(&sound), Ok(()));
        let damaged = |at: usize, byte: u8| {
            let mut bytes = sound.clone();
            bytes[at] = byte;
            check_bytes(&bytes).is_err()
        };
        assert!(damaged(3, 0xff), "a length past the end");
        assert!(damaged(4 + 3, 0x7f), "a root whose children lie outside");
        assert!(damaged(4 + 512 * 4, 9), "a leaf past the texts");
        assert!(damaged(sound.len() - 1, 0xff), "texts that are not UTF-8");
        assert!(check_bytes(&sound[..100]).is_err() && check_bytes(&[]).is_err());
    }

    #[test]
    fn base64_is_read_in_whole_groups_only() {
        assert_eq!(from_base64("").unwrap(), b"");
        assert_eq!(from_base64("TWE=").unwrap(), b"Ma");
        assert_eq!(from_base64("TQ==").unwrap(), b"M");
        assert_eq!(from_base64("TWFu+/8=").unwrap(), b"Man\xfb\xff");
        assert!(
            from_base64("TWF").is_none() && from_base64("TW u").is_none() && from_base64("T===").is_none()
        );
    }
}
