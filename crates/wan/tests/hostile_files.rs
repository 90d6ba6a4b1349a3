//! Readers of checkpoint files on thousands of damaged files: they may refuse, never panic, never ask for memory that
//! the file does not justify. The same readers are the targets in `fuzz/`.
#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that fails")]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use evanesce_wan::checkpoint::{Checkpoint, parse_header, parse_index, parse_pickle, parse_settings};
use evanesce_wan::text::{Tokenizer, Umt5Config};
use evanesce_wan::transformer::TransformerConfig;
use evanesce_wan::vae::VaeConfig;

/// Damaged files per reader.
const MUTANTS: u64 = 2500;

/// Damaged files per whole directory that is opened.
const DIRECTORIES: u64 = 500;

/// Address space that the process may have asked for at any time; a single length field taken at its word asks for more.
const ADDRESS_SPACE_MAX_KIB: u64 = 3 << 20;

fn stored(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/checkpoint").join(file)
}

fn read(file: &str) -> Vec<u8> {
    fs::read(stored(file)).unwrap()
}

/// Splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % (limit.max(1) as u64)).unwrap()
    }
}

/// Numbers and words that readers of such files trip over.
const POISON: [&[u8]; 14] = [
    b"0",
    b"-1",
    b"18446744073709551615",
    b"18446744073709551616",
    b"1e400",
    b"null",
    b"[",
    b"{",
    b"\"",
    &[0xff; 8],
    &[0, 0, 0, 0x80],
    &[0xff, 0xff, 0xff, 0x7f],
    b"..",
    b"\x85\x85\x85\x85",
];

/// One to four small damages to `file`: a byte changed, a cut, a piece repeated or removed, poison put in.
fn mutant(file: &[u8], seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = file.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        let end = (at + random.below(24)).min(bytes.len());
        match random.below(7) {
            0 | 1 if !bytes.is_empty() => bytes[at] = random.next().to_le_bytes()[0],
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let piece = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => {
                let poison = POISON[random.below(POISON.len())];
                let end = if random.below(2) == 0 { at } else { end };
                bytes.splice(at..end, poison.iter().copied());
            }
        }
    }
    bytes
}

/// Runs `reader` over mutants of `file`; it answers whether it accepted one. Both answers must occur, or the damage was
/// too small or too large to test anything.
fn survive(file: &[u8], reader: impl Fn(&[u8]) -> bool) {
    survive_some(MUTANTS, file, reader);
}

fn survive_some(mutants: u64, file: &[u8], reader: impl Fn(&[u8]) -> bool) {
    assert!(reader(file), "the undamaged file is accepted");
    let accepted = (0..mutants).filter(|seed| reader(&mutant(file, *seed))).count();
    assert!((1..mutants).contains(&(accepted as u64)), "{accepted} of {mutants} accepted");
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmPeak:")?.trim().strip_suffix(" kB")?.parse().ok());
    assert!(peak.is_none_or(|kib: u64| kib < ADDRESS_SPACE_MAX_KIB), "{peak:?} KiB of address space");
}

#[test]
fn safetensors_headers() {
    let file = read("official/high_noise_model/diffusion_pytorch_model-00001-of-00002.safetensors");
    let header_bytes = usize::try_from(u64::from_le_bytes(file[..8].try_into().unwrap())).unwrap();
    let path = Path::new("hostile.safetensors");
    // Undamaged tensors with a damaged header must still tile the file, so most mutants are refused: mutate names too.
    survive(&file[8..8 + header_bytes], |header| {
        let data_bytes = (file.len() - 8 - header_bytes) as u64;
        parse_header(path, header, header.len() as u64 + 8 + data_bytes).is_ok()
    });
}

#[test]
fn shard_indexes() {
    let file = read("official/high_noise_model/diffusion_pytorch_model.safetensors.index.json");
    survive(&file, |bytes| parse_index(Path::new("hostile.json"), bytes).is_ok());
}

#[test]
fn pickles() {
    for archive in ["official/models_t5_umt5-xxl-enc-bf16.pth", "official/Wan2.1_VAE.pth"] {
        let mut zip = zip::ZipArchive::new(fs::File::open(stored(archive)).unwrap()).unwrap();
        let names: Vec<_> = zip.file_names().map(|name| name.unwrap().into_owned()).collect();
        let name = names.iter().find(|name| name.ends_with("data.pkl")).unwrap();
        let mut pickle = Vec::new();
        zip.by_name(name).unwrap().read_to_end(&mut pickle).unwrap();
        survive(&pickle, |bytes| parse_pickle(bytes).is_ok());
    }
}

#[test]
fn pickles_that_double_or_nest_without_end_take_no_more_than_their_length() {
    // () memoised, then a pair of it, memoised, then a pair of that: 2^n leaves if it were copied.
    let mut doubling = b"\x80\x02)".to_vec();
    for _ in 0..100_000 {
        doubling.extend_from_slice(b"q\x00h\x00\x86");
    }
    doubling.push(b'.');
    assert!(parse_pickle(&doubling).unwrap_err().contains("no dict"));
    let mut nested = b"\x80\x02)".to_vec();
    nested.resize(1_000_000, 0x85);
    nested.push(b'.');
    assert!(parse_pickle(&nested).unwrap_err().contains("no dict"));
    let long_text = b"\x80\x02X\xff\xff\xff\xff.";
    assert!(parse_pickle(long_text).unwrap_err().contains("ends in the middle"));
}

fn refused(pickle: &[u8], says: &str) {
    let error = parse_pickle(pickle).unwrap_err();
    assert!(error.contains(says), "{error}");
}

fn pickled_text(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap().to_le_bytes();
    [&b"X"[..], &length[..], text.as_bytes()].concat()
}

/// A dict of `items`, in which `h\x00` is the text `name` and `h\x01` a tensor in the storage `key` of the class `class`.
fn pickled_dict(name: &str, [class, key]: [&str; 2], items: &[u8]) -> Vec<u8> {
    [
        &b"\x80\x02"[..],
        &pickled_text(name)[..],
        &b"q\x00ctorch._utils\n_rebuild_tensor_v2\n(("[..],
        &pickled_text("storage")[..],
        format!("ctorch\n{class}\n").as_bytes(),
        &pickled_text(key)[..],
        &b"tQK\x00K\x01\x85K\x01\x85tRq\x01}("[..],
        items,
        &b"u."[..],
    ]
    .concat()
}

#[test]
fn a_pickle_cannot_grow_by_naming_one_text_many_times() {
    let float = ["FloatStorage", "0"];
    let pair = &b"h\x00h\x01"[..];
    let tensors = parse_pickle(&pickled_dict("a", float, pair)).unwrap();
    assert_eq!((tensors.len(), tensors[0].name.as_str()), (1, "a"));
    refused(&pickled_dict("a", float, &pair.repeat(100_000)), "tensor a is in it more than once");

    let long = "a".repeat(1 << 20);
    let of_bytes = "a name of 1048576 bytes, expected at most 1024";
    refused(&pickled_dict(&long, float, &pair.repeat(100_000)), of_bytes);
    refused(&pickled_dict(&long, float, b"h\x00}(X\x01\x00\x00\x00ah\x01u"), of_bytes);
    refused(&pickled_dict("a", [&long, "0"], pair), of_bytes);
    refused(&pickled_dict("a", ["FloatStorage", &long], pair), of_bytes);
    assert!(parse_pickle(&pickled_dict(&long[..1024], float, pair)).is_ok());

    let numbered = |number: u32| [&pickled_text(&number.to_string())[..], &b"h\x01"[..]].concat();
    let many: Vec<u8> = (0..65_537).flat_map(numbered).collect();
    refused(&pickled_dict("a", float, &many), "more than 65536 tensors");
}

#[test]
fn model_configurations() {
    let path = Path::new("hostile.json");
    let index = read("diffusers/model_index.json");
    let scheduler = read("diffusers/scheduler/scheduler_config.json");
    survive(&index, |bytes| parse_settings(path, bytes, &scheduler).is_ok());
    survive(&scheduler, |bytes| parse_settings(path, &index, bytes).is_ok());
    survive(&read("euler/scheduler_config.json"), |bytes| parse_settings(path, &index, bytes).is_ok());
    survive(&read("diffusers/transformer/config.json"), |bytes| {
        TransformerConfig::from_diffusers(path, bytes).is_ok()
    });
    survive(&read("official/high_noise_model/config.json"), |bytes| {
        TransformerConfig::from_official(path, bytes).is_ok()
    });
    survive(&read("diffusers/text_encoder/config.json"), |bytes| Umt5Config::from_json(bytes, path).is_ok());
    survive(&read("diffusers/vae/config.json"), |bytes| {
        std::str::from_utf8(bytes).is_ok_and(|json| VaeConfig::from_json(path, json).is_ok())
    });
}

#[test]
fn tokenizers() {
    let path = Path::new("hostile.json");
    survive(&read("official/google/umt5-xxl/tokenizer.json"), |bytes| {
        Tokenizer::from_bytes(bytes, path).is_ok_and(|tokenizer| tokenizer.prompt_ids("a red circle").is_ok())
    });
}

/// Opens the stored official directory with `file` replaced by each mutant.
fn survive_in_place(file: &str) {
    let temp = tempfile::tempdir().unwrap();
    for entry in walk(&stored("official")) {
        let target = temp.path().join(entry.strip_prefix(stored("official")).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(entry, target).unwrap();
    }
    survive_some(DIRECTORIES, &read(&format!("official/{file}")), |bytes| {
        fs::write(temp.path().join(file), bytes).unwrap();
        Checkpoint::open(temp.path()).is_ok()
    });
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn archives_in_a_checkpoint() {
    survive_in_place("models_t5_umt5-xxl-enc-bf16.pth");
}

#[test]
fn shards_in_a_checkpoint() {
    survive_in_place("high_noise_model/diffusion_pytorch_model-00002-of-00002.safetensors");
}

/// A dict of state dicts, as training writes it: each of them once, and nothing but tensors in it.
#[test]
fn a_pickle_cannot_grow_by_naming_one_dict_many_times() {
    // {"a": {}, "b": the same {}}
    refused(
        b"\x80\x02}q\x00(X\x01\x00\x00\x00a}q\x01X\x01\x00\x00\x00bh\x01u.",
        "the dict b is in it more than once",
    );
    // A dict that holds itself.
    refused(b"\x80\x02}q\x00(X\x01\x00\x00\x00ah\x00u.", "the dict a is in it more than once");
    // {"a": {"x": 1}}
    refused(
        b"\x80\x02}q\x00(X\x01\x00\x00\x00a}q\x01(X\x01\x00\x00\x00xK\x01uu.",
        "entry a.x is not a tensor",
    );
    // {"a": {"x": {}}}: state dicts do not nest deeper.
    refused(
        b"\x80\x02}q\x00(X\x01\x00\x00\x00a}q\x01(X\x01\x00\x00\x00x}q\x02uu.",
        "entry a.x is not a tensor",
    );
    assert_eq!(parse_pickle(b"\x80\x02}q\x00(X\x01\x00\x00\x00a}q\x01u."), Ok(Vec::new()));
}
