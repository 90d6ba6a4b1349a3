//! A tokenizer that loads also tokenizes.
#![no_main]

use std::path::Path;

use evanesce_wan::text::Tokenizer;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Ok(tokenizer) = Tokenizer::from_bytes(input, Path::new("fuzz")) {
        drop(tokenizer.prompt_ids("a red circle moves to the left"));
    }
});
