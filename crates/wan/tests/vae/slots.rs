use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use evanesce_wan::Result;
use evanesce_wan::vae::{Decoder, Encoder, FeatureFrame, FeatureSlots, MapSlots, SlotId, VaeConfig};

use crate::setup::case;

/// Passes everything on, and notes the slots that are committed to.
#[derive(Default)]
struct Noting {
    inner: MapSlots,
    frames: RefCell<BTreeMap<SlotId, Vec<(u64, u32)>>>,
}

impl FeatureSlots for Noting {
    fn read(&self, slot: SlotId, frame_index: u64) -> Result<Box<dyn FeatureFrame + '_>> {
        self.inner.read(slot, frame_index)
    }

    fn commit(&self, slot: SlotId, frame_index: u64, readings: u32, frame: &[f32]) -> Result<()> {
        self.frames.borrow_mut().entry(slot).or_default().push((frame_index, readings));
        self.inner.commit(slot, frame_index, readings, frame)
    }
}

/// Answers a read of one slot with a frame of another.
struct Mixing<'a> {
    inner: &'a MapSlots,
    wanted: SlotId,
    answered: SlotId,
}

impl FeatureSlots for Mixing<'_> {
    fn read(&self, slot: SlotId, frame_index: u64) -> Result<Box<dyn FeatureFrame + '_>> {
        self.inner.read(if slot == self.wanted { self.answered } else { slot }, frame_index)
    }

    fn commit(&self, slot: SlotId, frame_index: u64, readings: u32, frame: &[f32]) -> Result<()> {
        self.inner.commit(slot, frame_index, readings, frame)
    }
}

fn slots_of_official_depth() -> (Noting, Noting) {
    let case = case("wide");
    let (decoding, encoding) = (Noting::default(), Noting::default());
    case.decoder.decode_chunk(&case.latents, 0, &case.weights, &decoding).unwrap();
    case.encoder.encode_chunk(&case.pictures, 0, &case.weights, &encoding).unwrap();
    (decoding, encoding)
}

#[test]
fn the_official_depth_has_32_decoder_and_24_encoder_slots_with_distinct_codes_and_names() {
    let (decoding, encoding) = slots_of_official_depth();
    let (decoder, encoder) = (decoding.frames.borrow(), encoding.frames.borrow());
    assert_eq!((decoder.len(), encoder.len()), (32, 24));
    let ids: Vec<SlotId> = decoder.keys().chain(encoder.keys()).copied().collect();
    let codes: BTreeSet<u32> = ids.iter().map(|id| id.code()).collect();
    let names: BTreeSet<String> = ids.iter().map(ToString::to_string).collect();
    assert_eq!((codes.len(), names.len()), (56, 56));
}

#[test]
fn codes_of_slots_never_change() {
    let (decoding, encoding) = slots_of_official_depth();
    let (decoder, encoder) = (decoding.frames.borrow(), encoding.frames.borrow());
    let coded: Vec<String> =
        encoder.keys().chain(decoder.keys()).map(|id| format!("{:08x} {id}", id.code())).collect();
    for line in [
        "00000000 encoder input",
        "01000101 encoder middle block 1 conv 1",
        "02020001 encoder level 2 block 0 conv 1",
        "03010000 encoder level 1 time conv",
        "04000000 encoder output",
        "10000000 decoder input",
        "11000001 decoder middle block 0 conv 1",
        "12030200 decoder level 3 block 2 conv 0",
        "13010000 decoder level 1 time conv",
        "14000000 decoder output",
    ] {
        assert!(coded.iter().any(|coded| coded == line), "{line} is not among {coded:#?}");
    }
}

#[test]
fn a_frame_is_read_as_often_as_its_commit_said() {
    let (decoding, _) = slots_of_official_depth();
    let frames = decoding.frames.borrow();
    let of = |name: &str| frames.iter().find(|(id, _)| id.to_string() == name).unwrap().1.as_slice();
    // One frame a chunk: each is among the last two for two chunks.
    assert_eq!(of("decoder input"), [(0, 2), (1, 2), (2, 2), (3, 2), (4, 2)]);
    // The first frame of the stream is not seen by the convolutions over time.
    assert_eq!(of("decoder level 0 time conv"), [(0, 2), (1, 2), (2, 2), (3, 2)]);
    // One, then two, then two frames a chunk.
    assert_eq!(
        of("decoder level 1 block 0 conv 0"),
        [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1), (8, 1)]
    );
    // Four frames a chunk, of which two stay.
    assert_eq!(
        of("decoder output"),
        [(0, 1), (3, 1), (4, 1), (7, 1), (8, 1), (11, 1), (12, 1), (15, 1), (16, 1)]
    );
}

#[test]
fn a_frame_of_the_wrong_size_is_refused() {
    let case = case("wide");
    let slots = MapSlots::default();
    case.decoder.decode_chunk(&case.latents.narrow(1, 0, 2).unwrap(), 0, &case.weights, &slots).unwrap();
    let ids = Noting::default();
    case.decoder.decode_chunk(&case.latents, 0, &case.weights, &ids).unwrap();
    let id = |name: &str| *ids.frames.borrow().keys().find(|id| id.to_string() == name).unwrap();
    let mixed =
        Mixing { inner: &slots, wanted: id("decoder input"), answered: id("decoder middle block 0 conv 0") };
    let next = case.latents.narrow(1, 2, 1).unwrap();
    let error = case.decoder.decode_chunk(&next, 2, &case.weights, &mixed).unwrap_err();
    assert_eq!(error.to_string(), "a kept frame of decoder input: got 480, expected 240 numbers");
}

#[test]
fn a_chunk_out_of_turn_is_refused_rather_than_decoded_after_zeros() {
    let case = case("thin");
    let slots = MapSlots::default();
    let frame = case.latents.narrow(1, 0, 1).unwrap();
    let error = case.decoder.decode_chunk(&frame, 1, &case.weights, &slots).unwrap_err();
    assert_eq!(error.to_string(), "cannot hold frame 0 of decoder input: no such frame is kept");
    case.decoder.decode_chunk(&frame, 0, &case.weights, &slots).unwrap();
    let error = case.decoder.decode_chunk(&frame, 0, &case.weights, &slots).unwrap_err();
    assert_eq!(error.to_string(), "cannot hold frame 0 of decoder input: the frame is already kept");
}

/// 480p and 720p in f32: 3.52 and 8.12 GiB.
#[test]
fn the_official_decoder_keeps_what_its_32_slots_add_up_to() {
    let decoder = Decoder::new(VaeConfig::wan21());
    let bytes = |h: usize, w: usize| {
        let latent = 16 + 11 * 384;
        let twice = 192 + 6 * 384;
        2 * 4 * h * w * (latent + 4 * twice + 16 * (6 * 192) + 64 * (7 * 96))
    };
    assert_eq!(decoder.slot_bytes(60, 104), bytes(60, 104));
    let gib = |bytes: usize| (bytes as f64 / f64::from(1 << 30) * 100.0).round() / 100.0;
    assert_eq!(gib(decoder.slot_bytes(60, 104)), 3.52);
    assert_eq!(gib(decoder.slot_bytes(90, 160)), 8.12);
    let encoder = Encoder::new(VaeConfig::wan21());
    assert!(encoder.slot_bytes(60, 104) < decoder.slot_bytes(60, 104));
    // Input, normed input and output of a residual block on the last level, and the largest kernel.
    let workspace = 4 * (3 * 4 * 480 * 832 * 96 + 384 * 384 * 27);
    assert_eq!(decoder.workspace_bytes(60, 104), workspace);
}

/// Refuses a commit while frames are still being read, and notes the most that is kept at any commit.
#[derive(Default)]
struct Strict {
    inner: MapSlots,
    being_read: Rc<Cell<usize>>,
    most_bytes: Cell<usize>,
}

struct Counted<'a>(Box<dyn FeatureFrame + 'a>, Rc<Cell<usize>>);

impl FeatureFrame for Counted<'_> {
    fn values(&self) -> &[f32] {
        self.0.values()
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.1.set(self.1.get() - 1);
    }
}

impl FeatureSlots for Strict {
    fn read(&self, slot: SlotId, frame_index: u64) -> Result<Box<dyn FeatureFrame + '_>> {
        self.being_read.set(self.being_read.get() + 1);
        Ok(Box::new(Counted(self.inner.read(slot, frame_index)?, Rc::clone(&self.being_read))))
    }

    fn commit(&self, slot: SlotId, frame_index: u64, readings: u32, frame: &[f32]) -> Result<()> {
        assert_eq!(self.being_read.get(), 0, "{slot} is still being read");
        self.inner.commit(slot, frame_index, readings, frame)?;
        self.most_bytes.set(self.most_bytes.get().max(self.inner.held_bytes()));
        Ok(())
    }
}

#[test]
fn even_inside_a_chunk_no_more_is_kept_than_between_two() {
    let case = case("wide");
    let slots = Strict::default();
    case.decoder.decode_chunk(&case.latents, 0, &case.weights, &slots).unwrap();
    assert_eq!(slots.most_bytes.get(), case.decoder.slot_bytes(3, 5));
    let slots = Strict::default();
    case.encoder.encode_chunk(&case.pictures, 0, &case.weights, &slots).unwrap();
    assert_eq!(slots.most_bytes.get(), case.encoder.slot_bytes(3, 5));
}

/// Notes what is read from every slot, and what it is given.
#[derive(Default)]
struct Watching {
    read: RefCell<Vec<(SlotId, u64)>>,
    kept: RefCell<Vec<(SlotId, u64, u32, usize)>>,
    inner: MapSlots,
}

impl FeatureSlots for Watching {
    fn read(&self, slot: SlotId, frame_index: u64) -> Result<Box<dyn FeatureFrame + '_>> {
        self.read.borrow_mut().push((slot, frame_index));
        self.inner.read(slot, frame_index)
    }

    fn commit(&self, slot: SlotId, frame_index: u64, readings: u32, frame: &[f32]) -> Result<()> {
        self.kept.borrow_mut().push((slot, frame_index, readings, size_of_val(frame)));
        self.inner.commit(slot, frame_index, readings, frame)
    }
}

#[test]
fn what_a_stream_reads_and_keeps_is_known_without_decoding_it() {
    for name in ["wide", "thin"] {
        let case = case(name);
        let slots = Watching::default();
        let (_, frames, height, width) = case.latents.dims4().unwrap();
        for chunk in 0..frames {
            let latents = case.latents.narrow(1, chunk, 1).unwrap();
            case.decoder.decode_chunk(&latents, chunk as u64, &case.weights, &slots).unwrap();
            let uses = case.decoder.slot_uses(chunk as u64, height, width);
            let read = uses.iter().flat_map(|u| u.read.clone().map(|frame| (u.slot, frame)));
            assert_eq!(read.collect::<Vec<_>>(), slots.read.take(), "{name} {chunk}");
            let kept = uses.iter().flat_map(|u| u.kept.iter().map(|k| (u.slot, k.0, k.1, u.frame_bytes)));
            assert_eq!(kept.collect::<Vec<_>>(), slots.kept.take(), "{name} {chunk}");
        }
    }
}
