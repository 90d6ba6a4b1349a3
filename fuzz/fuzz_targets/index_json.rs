//! No shard that an index names lies outside its directory.
#![no_main]

use std::path::Path;

use evanesce_wan::checkpoint::parse_index;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Ok(shards) = parse_index(Path::new("fuzz"), input) {
        assert!(shards.values().all(|shard| Path::new(shard).file_name() == Some(shard.as_ref())));
    }
});
