use candle_core::Tensor;
use evanesce_wan::vae::{FeatureSlots, MapSlots};

use crate::setup::{Case, case, numbers};

/// Decodes latent frames `range` of `latents` in calls of `step` frames.
fn decode(
    case: &Case,
    latents: &Tensor,
    range: std::ops::Range<usize>,
    step: usize,
    slots: &dyn FeatureSlots,
) -> Vec<f32> {
    let mut pictures = Vec::new();
    for first in range.clone().step_by(step) {
        let chunk = latents.narrow(1, first, step.min(range.end - first)).unwrap();
        let decoded = case.decoder.decode_chunk(&chunk, first as u64, &case.weights, slots).unwrap();
        pictures.extend(numbers(&decoded));
    }
    pictures
}

fn encode(case: &Case, range: std::ops::Range<usize>, slots: &dyn FeatureSlots) -> Tensor {
    let chunk = case.pictures.narrow(0, range.start, range.len()).unwrap();
    case.encoder.encode_chunk(&chunk, range.start as u64, &case.weights, slots).unwrap()
}

#[test]
fn decoding_frame_by_frame_equals_the_whole_clip_bit_for_bit() {
    let case = case("wide");
    let whole = decode(&case, &case.latents, 0..5, 5, &MapSlots::default());
    for step in [1, 2, 3] {
        assert_eq!(
            decode(&case, &case.latents, 0..5, step, &MapSlots::default()),
            whole,
            "{step} frames a call"
        );
    }
}

#[test]
fn encoding_chunk_by_chunk_equals_the_whole_clip_bit_for_bit() {
    let case = case("wide");
    let whole = encode(&case, 0..17, &MapSlots::default());
    for cuts in [vec![0, 1, 5, 9, 13, 17], vec![0, 5, 13, 17]] {
        let slots = MapSlots::default();
        let parts: Vec<Tensor> = cuts.windows(2).map(|cut| encode(&case, cut[0]..cut[1], &slots)).collect();
        assert_eq!(numbers(&Tensor::cat(&parts, 1).unwrap()), numbers(&whole), "{cuts:?}");
    }
}

#[test]
fn a_stream_resumed_from_stored_slots_equals_an_uninterrupted_one() {
    let case = case("wide");
    let whole = decode(&case, &case.latents, 0..5, 1, &MapSlots::default());
    for stop in 1..5 {
        let slots = MapSlots::default();
        let mut pictures = decode(&case, &case.latents, 0..stop, 1, &slots);
        let stored = slots.clone();
        drop(slots);
        pictures.extend(decode(&case, &case.latents, stop..5, 1, &stored));
        assert_eq!(pictures, whole, "stopped after {stop}");
    }
}

#[test]
fn two_interleaved_streams_equal_each_alone() {
    let case = case("wide");
    let other = case.latents.affine(-0.5, 0.1).unwrap();
    let alone = [&case.latents, &other].map(|latents| decode(&case, latents, 0..5, 1, &MapSlots::default()));
    let slots = [MapSlots::default(), MapSlots::default()];
    let mut together = [Vec::new(), Vec::new()];
    for frame in 0..5 {
        for (stream, latents) in [&case.latents, &other].into_iter().enumerate() {
            together[stream].extend(decode(&case, latents, frame..frame + 1, 1, &slots[stream]));
        }
    }
    assert_eq!(together, alone);
}

#[test]
fn a_stream_holds_what_was_announced_and_no_more() {
    let case = case("wide");
    let slots = MapSlots::default();
    for frame in 0..5 {
        decode(&case, &case.latents, frame..frame + 1, 1, &slots);
        let announced = case.decoder.slot_bytes(3, 5);
        let held = slots.held_bytes();
        assert!(
            if frame < 2 { held < announced } else { held == announced },
            "{held} of {announced} at {frame}"
        );
    }
    let slots = MapSlots::default();
    for chunk in [0..1, 1..5, 5..9, 9..13, 13..17] {
        encode(&case, chunk, &slots);
    }
    assert_eq!(slots.held_bytes(), case.encoder.slot_bytes(3, 5));
}
