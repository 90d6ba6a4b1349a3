//! The first eight bytes say how long the file claims to be, the rest is its header.
#![no_main]

use std::path::Path;

use evanesce_wan::checkpoint::parse_header;

libfuzzer_sys::fuzz_target!(|input: (u64, &[u8])| {
    let (file_bytes, header) = input;
    if let Ok(entries) = parse_header(Path::new("fuzz"), header, file_bytes) {
        for entry in entries.values() {
            assert!(entry.offset_bytes + entry.len_bytes() <= file_bytes);
        }
    }
});
