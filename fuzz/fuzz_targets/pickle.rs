//! Any bytes are a state dict or a refusal.
#![no_main]

use evanesce_wan::checkpoint::parse_pickle;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Ok(tensors) = parse_pickle(input) {
        assert!(tensors.len() <= input.len());
    }
});
