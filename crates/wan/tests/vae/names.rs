use std::collections::{BTreeMap, BTreeSet};

use evanesce_wan::vae::{VaeConfig, canonical_name, expected_tensors};
use evanesce_wan::weights::Component;

use crate::setup::golden_path;

type Names = BTreeMap<String, (String, Vec<usize>)>;

#[test]
fn official_names_and_shapes_are_those_of_the_published_checkpoint() {
    let text = std::fs::read_to_string(golden_path("names.json")).unwrap();
    let golden: Names = serde_json::from_str(&text).unwrap();
    let config = VaeConfig::wan21();
    for (official, (canonical, _)) in &golden {
        assert_eq!(canonical_name(&config, official).as_ref(), Some(canonical), "{official}");
    }
    let golden: BTreeSet<(String, Vec<usize>)> = golden.into_values().collect();
    let halves = [Component::VaeEncoder, Component::VaeDecoder];
    let ours = halves.map(|half| expected_tensors(&config, half)).into_iter().flatten().flatten();
    assert_eq!(ours.collect::<BTreeSet<_>>(), golden);
}

#[test]
fn official_block_numbers_follow_the_depth() {
    let path = golden_path("thin.json");
    let config = VaeConfig::from_json(&path, &std::fs::read_to_string(&path).unwrap()).unwrap();
    let name = |official: &str| canonical_name(&config, official);
    assert_eq!(
        name("decoder.upsamples.2.time_conv.bias").unwrap(),
        "decoder.up_blocks.0.upsamplers.0.time_conv.bias"
    );
    assert_eq!(
        name("decoder.upsamples.10.residual.6.weight").unwrap(),
        "decoder.up_blocks.3.resnets.1.conv2.weight"
    );
    assert_eq!(
        name("encoder.downsamples.5.resample.1.weight").unwrap(),
        "encoder.down_blocks.5.resample.1.weight"
    );
    assert_eq!(name("decoder.upsamples.11.residual.6.weight"), None);
    assert_eq!(name("decoder.conv_in.weight"), None);
}

#[test]
fn the_halves_share_no_tensor_and_other_components_have_none() {
    let config = VaeConfig::wan21();
    let names = |component| -> BTreeSet<String> {
        expected_tensors(&config, component).into_iter().flatten().map(|(name, _)| name).collect()
    };
    assert!(names(Component::VaeEncoder).is_disjoint(&names(Component::VaeDecoder)));
    assert!(names(Component::TextEncoder).is_empty());
}
