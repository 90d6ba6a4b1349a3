//! Sizes as people write them.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use evanesce_engine::plan::KvShape;
use evanesce_engine::{Codec, EngineError, HeldWeights, KvCodec, KvOverrides, Request};

/// `8GiB`, `400MB`, `1.5 GiB`, `1048576`: bytes. KiB, MiB, GiB, TiB count in 1024s; kB, MB, GB, TB in 1000s.
pub(crate) fn parse_bytes(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kib" | "k" => 1024.0,
        "mib" | "m" => 1024.0 * 1024.0,
        "gib" | "g" => 1024.0 * 1024.0 * 1024.0,
        "tib" | "t" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        _ => return Err("write a size as 8GiB, 400MB or a number of bytes".to_owned()),
    };
    let number: f64 =
        number.parse().map_err(|_| "write a size as 8GiB, 400MB or a number of bytes".to_owned())?;
    let bytes = number * scale;
    if !(1.0..=1e15).contains(&bytes) {
        return Err("a size lies between 1 byte and 1000 TB".to_owned());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to lie in 1..=1e15")]
    Ok(bytes as usize)
}

/// A whole number that is not negative.
pub(crate) fn parse_whole<T: FromStr>(text: &str) -> Result<T, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let wrong = if digits { "it is too large" } else { "write a whole number from 0 on, such as 5" };
    text.parse().map_err(|_| wrong.to_owned())
}

/// Seconds to repeat a measurement for.
pub(crate) fn parse_measured_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.trim().parse::<f64>().ok().filter(|seconds| *seconds > 0.0 && *seconds <= 3600.0);
    seconds.ok_or_else(|| "write seconds above 0 and up to 3600, such as 2".to_owned())
}

/// So many of a thing that has a regular plural.
pub(crate) fn plural<N: Copy + Display + PartialEq + From<u8>>(n: N, thing: &str) -> String {
    let ending = if n == N::from(1_u8) { "" } else { "s" };
    format!("{n} {thing}{ending}")
}

/// `832x480`: width and height in pixels.
pub(crate) fn parse_frame_size(text: &str) -> Result<(usize, usize), String> {
    let wrong = || "write a size as WIDTHxHEIGHT in pixels, such as 832x480".to_owned();
    let (width, height) = text.split_once(['x', 'X', '*', '×']).ok_or_else(wrong)?;
    let pixels = |side: &str| side.trim().parse().map_err(|_| wrong());
    Ok((pixels(width)?, pixels(height)?))
}

/// Where the disk tier may put its file, and how large.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskCache {
    pub(crate) directory: PathBuf,
    pub(crate) bytes: usize,
}

/// `/fast/ssd:64GiB`: a directory and a size, which follows the last colon.
pub(crate) fn parse_disk_cache(text: &str) -> Result<DiskCache, String> {
    let wrong = || "write a directory and a size, such as /fast/ssd:64GiB".to_owned();
    let (directory, bytes) = text.rsplit_once(':').ok_or_else(wrong)?;
    if directory.is_empty() {
        return Err(wrong());
    }
    Ok(DiskCache { directory: directory.into(), bytes: parse_bytes(bytes)? })
}

/// How pages are stored: a codec's name, or a file that says it for every layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KvCodecs {
    /// All in this one.
    Named(KvCodec),
    /// As the file says.
    File(PathBuf),
}

impl KvCodecs {
    /// The file, if it is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            Self::Named(_) => None,
            Self::File(path) => Some(path),
        }
    }

    /// The request with what the flag asks, if it was given.
    pub(crate) fn fill(asked: Option<&Self>, request: Request) -> Result<Request, EngineError> {
        let (codec, kv_overrides) = match asked {
            None => return Ok(request),
            Some(Self::Named(codec)) => (*codec, KvOverrides::default()),
            Some(Self::File(path)) => KvOverrides::read(path)?,
        };
        Ok(Request { kv_codec: Some(codec), kv_overrides, ..request })
    }
}

/// A codec's name, or a file: what has a dot or a separator in it.
pub(crate) fn parse_kv_codecs(text: &str) -> Result<KvCodecs, String> {
    match parse_kv_codec(text) {
        Ok(codec) => Ok(KvCodecs::Named(codec)),
        Err(_) if text.contains(['.', '/', '\\']) => Ok(KvCodecs::File(text.into())),
        Err(message) => Err(format!("{message}, or a file such as calibrate writes")),
    }
}

/// The codec of this name.
pub(crate) fn parse_kv_codec(text: &str) -> Result<KvCodec, String> {
    KvCodec::from_name(text).ok_or_else(|| format!("write one of {}", KvCodec::NAMES.join(", ")))
}

/// `bf16` or `stored`: how weights are held.
pub(crate) fn parse_held_weights(text: &str) -> Result<HeldWeights, String> {
    let names = || HeldWeights::ALL.map(HeldWeights::as_str).join(" or ");
    HeldWeights::from_name(text).ok_or_else(|| format!("write {}", names()))
}

/// `32x8192x4096`: layers, tokens and numbers of a key.
pub(crate) fn parse_kv_shape(text: &str) -> Result<KvShape, String> {
    let wrong = || "write LAYERSxTOKENSxNUMBERS, such as 32x8192x4096".to_owned();
    let numbers: Option<Vec<usize>> = text.split('x').map(|number| number.trim().parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[layers, tokens, dim])
            if (1..=10_000).contains(&layers)
                && (1..=1_000_000_000).contains(&tokens)
                && (1..=1_000_000).contains(&dim) =>
        {
            Ok(KvShape { layers, tokens, dim })
        }
        _ => Err(wrong()),
    }
}

/// The codec of one half of a page.
pub(crate) fn parse_codec(text: &str) -> Result<Codec, String> {
    let names = || Codec::ALL.map(Codec::as_str).join(", ");
    Codec::ALL
        .into_iter()
        .find(|codec| codec.as_str() == text)
        .ok_or_else(|| format!("write one of {}", names()))
}

/// Bytes for people: three digits and a unit.
pub(crate) fn show_bytes(bytes: usize) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut amount = bytes as f64;
    let mut unit = 0;
    while amount >= 999.5 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    let decimals = if unit == 0 || amount >= 100.0 { 0 } else { usize::from(amount < 10.0) + 1 };
    format!("{amount:.decimals$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_bytes("8GiB"), Ok(8 << 30));
        assert_eq!(parse_bytes("400MB"), Ok(400_000_000));
        assert_eq!(parse_bytes("1.5 GiB"), Ok(3 << 29));
        assert_eq!(parse_bytes("77"), Ok(77));
        for wrong in ["", "GiB", "8 parsecs", "-1", "0", "1e9", "9999999TB", "1.2.3"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_frame_size("832x480"), Ok((832, 480)));
        for wrong in ["832", "832x", "x480", "axb", "-8x8", "832x480x3"] {
            assert!(parse_frame_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_whole_number_is_told_what_is() {
        assert_eq!(parse_whole::<usize>("81"), Ok(81));
        for wrong in ["-1", "", "many", "1.5"] {
            assert!(parse_whole::<u64>(wrong).unwrap_err().contains("from 0 on"), "{wrong}");
        }
        assert!(parse_whole::<u64>("99999999999999999999999").unwrap_err().contains("too large"));
        assert_eq!(parse_measured_seconds("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "3601", "nan", "inf", "soon"] {
            assert!(parse_measured_seconds(wrong).is_err(), "{wrong}");
        }
        assert_eq!([1, 2].map(|n| plural(n, "step")), ["1 step", "2 steps"]);
    }

    #[test]
    fn a_disk_is_a_directory_and_a_size() {
        let disk = |directory: &str, bytes| Ok(DiskCache { directory: directory.into(), bytes });
        assert_eq!(parse_disk_cache("/ssd:2GiB"), disk("/ssd", 2 << 30));
        assert_eq!(parse_disk_cache("a:b:100"), disk("a:b", 100));
        for wrong in ["/ssd", ":2GiB", "/ssd:", "/ssd:much", ""] {
            assert!(parse_disk_cache(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_codec_is_a_name_and_a_file_has_a_dot() {
        let named = KvCodecs::Named(KvCodec::from_name("k8v4").unwrap());
        assert_eq!(parse_kv_codecs("k8v4"), Ok(named));
        assert_eq!(parse_kv_codecs("codecs.json"), Ok(KvCodecs::File("codecs.json".into())));
        assert!(parse_kv_codecs("int3").unwrap_err().contains("int2"));
    }

    #[test]
    fn weights_are_held_in_bf16_or_as_they_are_stored() {
        assert_eq!(parse_held_weights("bf16"), Ok(HeldWeights::Bf16));
        assert_eq!(parse_held_weights("stored"), Ok(HeldWeights::Stored));
        assert_eq!(parse_held_weights("f32"), Err("write bf16 or stored".to_owned()));
    }

    #[test]
    fn bytes_are_shown_with_a_unit() {
        assert_eq!(show_bytes(0), "0 B");
        assert_eq!(show_bytes(1536), "1.50 KiB");
        assert_eq!(show_bytes(400 << 20), "400 MiB");
    }
}
