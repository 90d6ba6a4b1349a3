use evanesce_kernels::Isa;
use evanesce_wan::vae::{MapSlots, expected_tensors};
use evanesce_wan::weights::Component;

use crate::setup::{case, relative_error, weights};

const CASES: [&str; 4] = ["thin", "wide", "early", "halves"];

#[test]
fn decoding_matches_diffusers() {
    for name in CASES {
        let case = case(name);
        for isa in Isa::present() {
            let slots = MapSlots::default();
            let decode = || case.decoder.decode_chunk(&case.latents, 0, &case.weights, &slots);
            let error = relative_error(&isa.run(decode).unwrap(), &case.decoded);
            assert!(error <= 1e-5, "{name}, {isa}: {error}");
        }
    }
}

#[test]
fn encoding_matches_diffusers() {
    for name in CASES {
        let case = case(name);
        for isa in Isa::present() {
            let slots = MapSlots::default();
            let encode = || case.encoder.encode_chunk(&case.pictures, 0, &case.weights, &slots);
            let error = relative_error(&isa.run(encode).unwrap(), &case.encoded);
            assert!(error <= 1e-5, "{name}, {isa}: {error}");
        }
    }
}

/// A tensor that the goldens do not see could be read wrongly without a test failing.
#[test]
fn every_tensor_matters_to_the_goldens() {
    let case = case("early");
    for component in [Component::VaeEncoder, Component::VaeDecoder] {
        for (name, _) in expected_tensors(&case.config, component).iter().flatten() {
            let changed = weights(&case.config, |tensor, values| {
                if tensor == name {
                    values.iter_mut().for_each(|value| *value = -*value);
                }
            });
            let slots = MapSlots::default();
            let error = if component == Component::VaeDecoder {
                let decoded = case.decoder.decode_chunk(&case.latents, 0, &changed, &slots).unwrap();
                relative_error(&decoded, &case.decoded)
            } else {
                let encoded = case.encoder.encode_chunk(&case.pictures, 0, &changed, &slots).unwrap();
                relative_error(&encoded, &case.encoded)
            };
            assert!(error > 1e-4, "{name}: {error}");
        }
    }
}
