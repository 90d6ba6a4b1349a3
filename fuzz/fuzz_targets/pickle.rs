//! Any bytes are a state dict or a refusal, and what comes out of them is bounded.
#![no_main]

use evanesce_wan::checkpoint::parse_pickle;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Ok(tensors) = parse_pickle(input) {
        assert!(tensors.len() <= input.len());
        // Names of a dict and of a tensor in it with a dot between them, the class of a storage and its name.
        let texts =
            tensors.iter().flat_map(|tensor| [&tensor.name, &tensor.storage_class, &tensor.storage_key]);
        assert!(texts.map(String::len).sum::<usize>() <= tensors.len() * (4 * 1024 + 1));
    }
});
