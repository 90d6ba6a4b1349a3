//! Configurations that are accepted have sizes whose products do not overflow.
#![no_main]

use std::path::Path;

use evanesce_wan::checkpoint::parse_settings;
use evanesce_wan::text::Umt5Config;
use evanesce_wan::transformer::{Transformer, TransformerConfig};
use evanesce_wan::vae::VaeConfig;
use evanesce_wan::weights::Component;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let path = Path::new("fuzz");
    let configs = [TransformerConfig::from_diffusers(path, input), TransformerConfig::from_official(path, input)];
    for config in configs.into_iter().flatten() {
        _ = Transformer::new(Component::HighNoise, config).workspace_bytes(1 << 20, 2);
    }
    drop(Umt5Config::from_json(input, path));
    drop(std::str::from_utf8(input).map(|json| VaeConfig::from_json(path, json)));
    drop(parse_settings(path, input, input));
});
