//! A file of codecs, such as `calibrate` writes and `--kv-codec` reads, is refused in words, or understood; and what was understood is
//! understood alike when it is written.
#![no_main]

mod scratch;

use evanesce_engine::{KvCodec, KvOverrides};

fn read(file: &[u8]) -> Option<(KvCodec, KvOverrides)> {
    let path = scratch::path("input");
    std::fs::write(&path, file).expect("temporary files can be written");
    KvOverrides::read(&path).ok()
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Some((base, overrides)) = read(input) {
        drop(overrides.used(base));
        let json = overrides.to_json(base).to_string();
        assert_eq!(read(json.as_bytes()), Some((base, overrides)), "{json}");
    }
});
