//! The transformer against diffusers' WanTransformer3DModel. Weights and inputs are drawn on both sides by the same
//! formula (`xtask/goldens/transformer.py`); only diffusers' outputs are stored.

#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that fails")]

#[path = "support/draw.rs"]
mod draw;
#[path = "support/golden.rs"]
mod golden;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use draw::{draw, parameter, to_bytes};
use evanesce_kernels::{Dtype, Isa, Rows};
use evanesce_wan::transformer::{
    Branch, CrossKv, CrossKvPage, FrameKv, FramePage, NoCrossKv, TextRows, Transformer, TransformerConfig,
    expected_tensors, official_name,
};
use evanesce_wan::weights::{Component, GroupId, MapSource, WeightGroup, WeightSource};
use evanesce_wan::{Result, WanError};
use golden::{golden_path, read_golden, relative_error};
use serde_json::Value;

const TOLERANCE: f64 = 1e-5;
const CASES: [&str; 5] = ["head12", "head32", "head128", "no_cross_norm", "head32_bf16"];

struct Call {
    timestep: f64,
    real_rows: usize,
    pad_rows: usize,
}

struct Case {
    model: Transformer,
    weights: MapSource,
    latents: Tensor,
    calls: Vec<Call>,
    outputs: BTreeMap<String, Vec<f32>>,
}

fn source(config: &TransformerConfig, dtype: Dtype) -> MapSource {
    let mut source = MapSource::default();
    for (index, group) in expected_tensors(config).into_iter().enumerate() {
        let tensors = group.into_iter().map(|(name, shape)| {
            let bytes = to_bytes(&parameter(&name, &shape), dtype);
            (name, dtype, shape, bytes)
        });
        source.insert(GroupId { component: Component::HighNoise, index }, tensors.collect());
    }
    source
}

impl Case {
    fn load(name: &str) -> Self {
        let path = golden_path("transformer", &format!("{name}.json"));
        let config = TransformerConfig::from_diffusers(&path, &std::fs::read(&path).unwrap()).unwrap();
        let calls = std::fs::read(golden_path("transformer", "calls.json")).unwrap();
        let calls: Value = serde_json::from_slice(&calls).unwrap();
        let size = |key: &str| usize::try_from(calls[key].as_u64().unwrap()).unwrap();
        let shape = (config.channels, size("frames"), size("height"), size("width"));
        let numbers = draw("latents", shape.0 * shape.1 * shape.2 * shape.3, 3.0, 0.0);
        let dtype = if name.ends_with("bf16") { Dtype::BF16 } else { Dtype::F32 };
        let calls = calls["calls"].as_array().unwrap().iter().map(|call| {
            let rows = |key: &str| usize::try_from(call[key].as_u64().unwrap()).unwrap();
            Call {
                timestep: call["timestep"].as_f64().unwrap(),
                real_rows: rows("real_rows"),
                pad_rows: rows("rows") - rows("real_rows"),
            }
        });
        Self {
            weights: source(&config, dtype),
            model: Transformer::new(Component::HighNoise, config),
            latents: Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap(),
            calls: calls.collect(),
            outputs: read_golden("transformer", &format!("{name}.safetensors")),
        }
    }

    fn text(&self, index: usize) -> Vec<f32> {
        let numbers = self.calls[index].real_rows * self.model.config().text_dim;
        draw(&format!("text.{index}"), numbers, 3.0, 0.0)
    }

    fn branch<'a>(&self, index: usize, text: &'a [f32], cross: &'a dyn CrossKv) -> Branch<'a> {
        Branch { text: TextRows { real: text, pad_rows: self.calls[index].pad_rows }, cross, past: None }
    }

    fn run(&self, timestep: f64, branches: &[Branch<'_>]) -> Vec<Vec<f32>> {
        let velocities = self.model.forward(&self.latents, timestep, branches, &self.weights).unwrap();
        for velocity in &velocities {
            assert_eq!(velocity.shape(), self.latents.shape());
        }
        velocities.iter().map(|v| v.flatten_all().unwrap().to_vec1().unwrap()).collect()
    }
}

/// Pages in a map, with the calls counted.
#[derive(Default)]
struct Pages {
    pages: RefCell<BTreeMap<usize, (Vec<f32>, Vec<f32>)>>,
    puts: Cell<usize>,
}

struct Page(Vec<f32>, Vec<f32>);

impl CrossKvPage for Page {
    fn keys(&self) -> &[f32] {
        &self.0
    }

    fn values(&self) -> &[f32] {
        &self.1
    }
}

impl CrossKv for Pages {
    fn get(&self, layer: usize) -> Result<Option<Box<dyn CrossKvPage + '_>>> {
        let page = self.pages.borrow().get(&layer).cloned();
        Ok(page.map(|(keys, values)| Box::new(Page(keys, values)) as Box<dyn CrossKvPage>))
    }

    fn put(&self, layer: usize, keys: &[f32], values: &[f32]) -> Result<()> {
        self.puts.set(self.puts.get() + 1);
        self.pages.borrow_mut().insert(layer, (keys.to_vec(), values.to_vec()));
        Ok(())
    }
}

/// Remembers which groups were leased and how many at the same time.
struct Watched<'a> {
    inner: &'a MapSource,
    leased: RefCell<Vec<usize>>,
}

impl WeightSource for Watched<'_> {
    fn lease(&self, id: GroupId) -> Result<Box<dyn WeightGroup + '_>> {
        self.leased.borrow_mut().push(id.index);
        self.inner.lease(id)
    }
}

#[test]
fn velocities_equal_those_of_diffusers_at_every_head_size_and_amount_of_padding() {
    for name in CASES {
        let case = Case::load(name);
        for (index, call) in case.calls.iter().enumerate() {
            let text = case.text(index);
            for isa in Isa::present() {
                let branches = [case.branch(index, &text, &NoCrossKv)];
                let velocities = isa.run(|| case.run(call.timestep, &branches));
                let error = relative_error(&velocities[0], &case.outputs[&format!("velocity.{index}")]);
                println!("{name} call {index}, {isa}: {error:.2e}");
                assert!(error <= TOLERANCE, "{name} call {index}, {isa}: {error:.2e}");
            }
        }
    }
}

#[test]
fn cached_cross_attention_gives_the_same_bits_and_needs_no_text_embedder() {
    let case = Case::load("head32");
    let text = case.text(0);
    let pages = Pages::default();
    let first = case.run(900.0, &[case.branch(0, &text, &pages)]);
    assert_eq!(pages.puts.get(), 2, "one page per layer");
    let second = case.run(900.0, &[case.branch(0, &text, &pages)]);
    assert_eq!(first, second);
    assert_eq!(pages.puts.get(), 2, "nothing is computed twice");
    // Wrong text of the same length is not even looked at once all pages are there.
    let other = vec![0.5; text.len()];
    assert_eq!(case.run(900.0, &[case.branch(0, &other, &pages)]), first);
}

#[test]
fn a_page_lost_between_steps_is_computed_again_with_the_same_bits() {
    let case = Case::load("head32");
    let text = case.text(0);
    let pages = Pages::default();
    let first = case.run(900.0, &[case.branch(0, &text, &pages)]);
    pages.pages.borrow_mut().remove(&1);
    assert_eq!(case.run(900.0, &[case.branch(0, &text, &pages)]), first);
}

#[test]
fn a_page_of_another_prompt_s_length_is_refused() {
    let case = Case::load("head32");
    let text = case.text(0);
    let pages = Pages::default();
    case.run(900.0, &[case.branch(0, &text, &pages)]);
    let longer = case.text(2);
    let branch = case.branch(2, &longer, &pages);
    let error = case.model.forward(&case.latents, 900.0, &[branch], &case.weights).unwrap_err();
    assert!(error.to_string().contains("page of layer 0"), "{error}");
}

#[test]
fn two_branches_together_equal_each_alone_bit_for_bit() {
    for name in ["head32", "head32_bf16", "head128"] {
        let case = Case::load(name);
        let texts = [case.text(0), case.text(1)];
        let branches = [case.branch(0, &texts[0], &NoCrossKv), case.branch(1, &texts[1], &NoCrossKv)];
        let together = case.run(750.0, &branches);
        assert_ne!(together[0], together[1]);
        assert_eq!(together[0], case.run(750.0, &branches[..1])[0]);
        assert_eq!(together[1], case.run(750.0, &branches[1..])[0]);
    }
}

#[test]
fn every_group_is_leased_once_a_step_whatever_the_number_of_branches() {
    let case = Case::load("head12");
    let texts = [case.text(0), case.text(1)];
    let watched = Watched { inner: &case.weights, leased: RefCell::default() };
    let branches = [case.branch(0, &texts[0], &NoCrossKv), case.branch(1, &texts[1], &NoCrossKv)];
    case.model.forward(&case.latents, 750.0, &branches, &watched).unwrap();
    assert_eq!(*watched.leased.borrow(), [0, 1, 2, 3]);
}

#[test]
fn a_pad_row_weighs_as_much_as_a_zero_row_that_is_spelled_out() {
    let case = Case::load("head32");
    let text = case.text(0);
    let counted = case.run(500.0, &[case.branch(0, &text, &NoCrossKv)]);
    let mut spelled = text.clone();
    spelled.resize(12 * case.model.config().text_dim, 0.0);
    let branch = Branch { text: TextRows { real: &spelled, pad_rows: 0 }, cross: &NoCrossKv, past: None };
    let error = relative_error(&counted[0], &case.run(500.0, &[branch])[0]);
    assert!(error <= 1e-6, "{error:.2e}");
    let unpadded = Branch { text: TextRows { real: &text, pad_rows: 0 }, cross: &NoCrossKv, past: None };
    let difference = relative_error(&counted[0], &case.run(500.0, &[unpadded])[0]);
    assert!(difference > 1e-3, "pads take part in attention, {difference:.2e}");
}

#[test]
fn time_is_one_row_per_call_so_its_memory_does_not_grow_with_the_video() {
    let case = Case::load("head128");
    let config = case.model.config();
    let per_token = case.model.workspace_bytes(20_001, 1) - case.model.workspace_bytes(20_000, 1);
    // Residual, four scratch rows, rotations, latents; a modulation of its own would add six rows.
    let activations = 5 * config.dim() + config.head_dim + 12 * config.channels;
    assert_eq!(per_token, 4 * activations);
}

/// Committed frames in a map, at positions that the test chooses.
struct Frames {
    positions: Vec<usize>,
    block_position: usize,
    pages: RefCell<BTreeMap<usize, Vec<(Vec<f32>, Vec<f32>)>>>,
    commits: bool,
    frames: usize,
}

impl Frames {
    fn at(block_position: usize, positions: &[usize]) -> Self {
        let positions = positions.to_vec();
        Self { positions, block_position, pages: RefCell::default(), commits: false, frames: 3 }
    }
}

impl FramePage for Page {
    fn keys(&self) -> Rows<'_> {
        self.0[..].into()
    }

    fn values(&self) -> Rows<'_> {
        self.1[..].into()
    }
}

impl FrameKv for Frames {
    fn positions(&self) -> &[usize] {
        &self.positions
    }

    fn block_position(&self) -> usize {
        self.block_position
    }

    fn pages(&self, layer: usize) -> Result<Vec<Box<dyn FramePage + '_>>> {
        let pages = self.pages.borrow().get(&layer).cloned().unwrap_or_default();
        Ok(pages.into_iter().map(|(k, v)| Box::new(Page(k, v)) as Box<dyn FramePage>).collect())
    }

    fn commit(&self, layer: usize, keys: &[f32], values: &[f32]) -> Result<()> {
        if self.commits {
            let each = keys.len() / self.frames;
            let pages = keys.chunks_exact(each).zip(values.chunks_exact(each));
            let pages = pages.map(|(k, v)| (k.to_vec(), v.to_vec()));
            self.pages.borrow_mut().entry(layer).or_default().extend(pages);
        }
        Ok(())
    }
}

#[test]
fn a_block_that_sees_nothing_before_it_is_a_whole_clip_wherever_it_stands() {
    for name in ["head12", "head32", "head128"] {
        let case = Case::load(name);
        let text = case.text(0);
        let branch = case.branch(0, &text, &NoCrossKv);
        let whole = case.run(900.0, &[branch]);
        let frames = [Frames::at(0, &[]), Frames::at(100_000, &[])];
        let [first, later] =
            frames.each_ref().map(|frames| case.run(900.0, &[Branch { past: Some(frames), ..branch }]));
        assert_eq!(first, later, "only differences of positions count");
        let error = relative_error(&first[0], &whole[0]);
        assert!(error <= 2e-6, "turning queries is turning keys: {error:.2e}");
    }
}

#[test]
fn pages_are_read_at_the_positions_they_are_listed_at_and_do_not_know_any() {
    let case = Case::load("head32");
    let text = case.text(0);
    let mut past = Frames::at(0, &[]);
    past.commits = true;
    let run = |past: &Frames| {
        let branch = Branch { past: Some(past), ..case.branch(0, &text, &NoCrossKv) };
        case.run(300.0, &[branch])
    };
    run(&past);
    past.commits = false;
    let mut at = |block_position, positions: &[usize]| {
        past.block_position = block_position;
        past.positions = positions.to_vec();
        run(&past)
    };
    let near = at(3, &[0, 1, 2]);
    assert_eq!(at(1_000_003, &[1_000_000, 1_000_001, 1_000_002]), near);
    let far = at(5, &[0, 1, 2]);
    let difference = relative_error(&far[0], &near[0]);
    assert!(difference > 1e-3, "distance in time matters: {difference:.2e}");
    let alone = run(&Frames::at(3, &[]));
    assert!(relative_error(&alone[0], &near[0]) > 1e-2, "what came before matters");
}

/// Two blocks of three frames, one after the other over what the first left, are one pass over all six under a mask that
/// hides later blocks: keys turned in time by their own place there, the query turned for each page here.
#[test]
fn cached_passes_block_by_block_are_one_pass_under_a_block_causal_mask() {
    let case = Case::load("head32");
    let expected = read_golden("transformer", "block_causal.safetensors").remove("velocity").unwrap();
    let [channels, blocks, plane] = [case.model.config().channels, 2, 6 * 10];
    let clip = draw("clip", channels * blocks * 3 * plane, 3.0, 0.0);
    let block_of = |numbers: &[f32], block: usize| -> Vec<f32> {
        numbers
            .chunks_exact(blocks * 3 * plane)
            .flat_map(|c| &c[block * 3 * plane..][..3 * plane])
            .copied()
            .collect()
    };
    let text = case.text(0);
    let mut past = Frames { commits: true, ..Frames::at(0, &[]) };
    for block in 0..blocks {
        (past.block_position, past.positions) = (block * 3, (0..block * 3).collect());
        let latents = Tensor::from_vec(block_of(&clip, block), (channels, 3, 6, 10), &Device::Cpu).unwrap();
        let branch = Branch { past: Some(&past), ..case.branch(0, &text, &NoCrossKv) };
        let velocity = case.model.forward(&latents, 0.0, &[branch], &case.weights).unwrap();
        let got: Vec<f32> = velocity[0].flatten_all().unwrap().to_vec1().unwrap();
        let error = relative_error(&got, &block_of(&expected, block));
        assert!(error <= TOLERANCE, "block {block} differs by {error:.2e}");
    }
}

#[test]
fn pages_that_do_not_fit_are_refused_in_a_sentence() {
    let case = Case::load("head12");
    let text = case.text(0);
    let refuse = |frames: &Frames, part: &str| {
        let branch = Branch { past: Some(frames), ..case.branch(0, &text, &NoCrossKv) };
        let error = case.model.forward(&case.latents, 1.0, &[branch], &case.weights).unwrap_err().to_string();
        assert!(error.contains("pages of layer 0") && error.contains(part), "{error}");
    };
    let with = |block_position, positions: &[usize], numbers: usize| {
        let frames = Frames::at(block_position, positions);
        frames.pages.borrow_mut().insert(0, vec![(vec![0.0; numbers], vec![0.0; numbers])]);
        frames
    };
    // 3 x 5 tokens of 24 numbers in a latent frame.
    refuse(&with(3, &[1, 2], 360), "1 pages");
    refuse(&with(3, &[1], 359), "None keys");
    refuse(&with(3, &[1], 336), "Some(14) keys");
    refuse(&with(3, &[3], 360), "position 3");
    let text = case.text(0);
    let frames = Frames::at(0, &[]);
    let plain = case.branch(0, &text, &NoCrossKv);
    let mixed = [Branch { past: Some(&frames), ..plain }, plain];
    let error = case.model.forward(&case.latents, 1.0, &mixed, &case.weights).unwrap_err().to_string();
    assert!(error.contains("all or none"), "{error}");
}

#[test]
fn latents_and_texts_that_do_not_fit_are_refused_in_a_sentence() {
    let case = Case::load("head12");
    let text = case.text(0);
    let branch = case.branch(0, &text, &NoCrossKv);
    let refuse = |shape: &[usize], branch: Branch<'_>, part: &str| {
        let latents = Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let error = case.model.forward(&latents, 1.0, &[branch], &case.weights).unwrap_err();
        assert!(matches!(error, WanError::Mismatch { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    refuse(&[4, 3, 5, 10], branch, "latents");
    refuse(&[3, 3, 6, 10], branch, "latents");
    refuse(&[4, 0, 6, 10], branch, "latents");
    refuse(&[4, 33, 6, 10], branch, "at most 32 tokens");
    refuse(&[4, 6, 10], branch, "latents");
    let ragged = Branch { text: TextRows { real: &text[1..], pad_rows: 0 }, cross: &NoCrossKv, past: None };
    refuse(&[4, 3, 6, 10], ragged, "whole rows of 16");
    let empty = Branch { text: TextRows { real: &[], pad_rows: 0 }, cross: &NoCrossKv, past: None };
    refuse(&[4, 3, 6, 10], empty, "at least one");
}

#[test]
fn the_affine_norm_before_cross_attention_is_norm2_here_and_norm3_in_the_official_checkpoint() {
    let case = Case::load("head12");
    let names: Vec<_> =
        expected_tensors(case.model.config()).into_iter().flatten().map(|(name, _)| name).collect();
    let norms = names.iter().filter(|name| name.starts_with("blocks.0.norm"));
    let official: Vec<_> = norms.map(|name| (name.as_str(), official_name(name))).collect();
    let expected =
        ["weight", "bias"].map(|leaf| (format!("blocks.0.norm2.{leaf}"), format!("blocks.0.norm3.{leaf}")));
    assert_eq!(official, expected.each_ref().map(|(ours, theirs)| (ours.as_str(), theirs.clone())));
    assert_eq!(official_name("scale_shift_table"), "head.modulation");
    assert_eq!(official_name("blocks.11.scale_shift_table"), "blocks.11.modulation");
    assert_eq!(official_name("blocks.11.attn2.to_out.0.bias"), "blocks.11.cross_attn.o.bias");
    assert_eq!(official_name("blocks.1.ffn.net.0.proj.weight"), "blocks.1.ffn.0.weight");
}

#[test]
fn the_drawn_norms_and_tables_are_far_from_the_values_that_would_hide_a_swap() {
    let case = Case::load("no_cross_norm");
    let names: Vec<_> = expected_tensors(case.model.config()).into_iter().flatten().collect();
    assert!(
        !names.iter().any(|(name, _)| name.contains("norm2")),
        "without the norm there are no such tensors"
    );
    for (name, shape) in names {
        let numbers = parameter(&name, &shape);
        let spread = numbers.iter().fold(0_f32, |spread, number| spread.max((number - numbers[0]).abs()));
        assert!(spread > 0.01, "{name} is constant");
    }
}
