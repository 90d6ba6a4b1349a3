//! Checkpoint directories: what opens, what is read, and what is refused with which sentence.
#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that fails")]

#[path = "support/checkpoint.rs"]
mod directory;
#[path = "support/draw.rs"]
mod draw;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use directory::{Stored, copy_of, diffusers_directory, drawn, edit_json, safetensors, stored};
use evanesce_wan::checkpoint::{Checkpoint, Description, HeldWeights, Layout};
use evanesce_wan::schedule::{Grid, Solver};
use evanesce_wan::transformer::{Branch, NoCrossKv, TextRows, Transformer};
use evanesce_wan::weights::{Component, GroupId, GroupSpec, MapSource, Order, WeightGroup, WeightSource};
use evanesce_wan::{Result, WanError};
use half::bf16;
use serde_json::json;

/// Every component of a checkpoint with two experts.
const COMPONENTS: [Component; 5] = [
    Component::TextEncoder,
    Component::HighNoise,
    Component::LowNoise,
    Component::VaeEncoder,
    Component::VaeDecoder,
];

/// Tensors of a component by name.
fn drawn_by_name(component: Component) -> BTreeMap<String, Stored> {
    drawn(component).into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect()
}

/// Leases straight from the files.
struct FromDisk<'a>(&'a Checkpoint);

struct Loaded<'a>(&'a GroupSpec, Vec<u8>);

impl WeightGroup for Loaded<'_> {
    fn spec(&self) -> &GroupSpec {
        self.0
    }

    fn bytes(&self) -> &[u8] {
        &self.1
    }
}

impl WeightSource for FromDisk<'_> {
    fn lease(&self, id: GroupId) -> Result<Box<dyn WeightGroup + '_>> {
        let spec = &self.0.groups(id.component)[id.index];
        let mut bytes = vec![0xaa; spec.len_bytes];
        self.0.read_group(id, &mut bytes)?;
        Ok(Box::new(Loaded(spec, bytes)))
    }
}

fn read_all(checkpoint: &Checkpoint, component: Component) -> Vec<Vec<u8>> {
    let groups = checkpoint.groups(component).iter().enumerate();
    let read = |(index, spec): (usize, &GroupSpec)| {
        let mut bytes = vec![0xaa; spec.len_bytes];
        checkpoint.read_group(GroupId { component, index }, &mut bytes).unwrap();
        bytes
    };
    groups.map(read).collect()
}

#[test]
fn both_layouts_open_and_hold_every_byte_that_was_written() {
    let diffusers = diffusers_directory();
    for (dir, layout) in [(diffusers.path(), Layout::Diffusers), (&stored("official"), Layout::Official)] {
        let checkpoint = Checkpoint::open(dir).unwrap();
        assert_eq!(checkpoint.layout(), layout);
        assert_eq!(checkpoint.components().collect::<Vec<_>>(), COMPONENTS);
        for component in COMPONENTS {
            let mut written = drawn_by_name(component);
            let groups = read_all(&checkpoint, component);
            for (spec, bytes) in checkpoint.groups(component).iter().zip(&groups) {
                for tensor in spec.tensors.values() {
                    let Stored { bytes: mut expected, shape, .. } = written.remove(&tensor.name).unwrap();
                    tensor.settle(&mut expected);
                    let start = tensor.offset_bytes;
                    assert_eq!(tensor.shape, shape);
                    assert!(
                        bytes[start..start + tensor.len_bytes()] == expected,
                        "{layout:?} {}",
                        tensor.name
                    );
                }
            }
            assert!(written.is_empty(), "{component:?} lacks {:?}", written.keys());
        }
    }
}

#[test]
fn both_layouts_of_the_same_weights_are_the_same_groups_the_same_fingerprints_and_the_same_velocities() {
    let temp = diffusers_directory();
    let (ours, official) =
        (Checkpoint::open(temp.path()).unwrap(), Checkpoint::open(&stored("official")).unwrap());
    for component in COMPONENTS {
        assert_eq!(ours.groups(component), official.groups(component));
        assert!(read_all(&ours, component) == read_all(&official, component), "{component:?}");
        assert_eq!(ours.fingerprint(component).unwrap(), official.fingerprint(component).unwrap());
    }
    let latents =
        Tensor::from_vec(draw::draw("latents", 4 * 2 * 4 * 6, 3.0, 0.0), (4, 2, 4, 6), &Device::Cpu);
    let (latents, text) = (latents.unwrap(), draw::draw("text", 3 * 16, 3.0, 0.0));
    for expert in [Component::HighNoise, Component::LowNoise] {
        let velocities = [&ours, &official].map(|checkpoint| {
            let model = Transformer::new(expert, checkpoint.transformer(expert).unwrap().clone());
            let branch =
                Branch { text: TextRows { real: &text, pad_rows: 509 }, cross: &NoCrossKv, past: None };
            let velocity = model.forward(&latents, 900.0, &[branch], &FromDisk(checkpoint)).unwrap();
            velocity[0].flatten_all().unwrap().to_vec1::<f32>().unwrap()
        });
        assert!(velocities[0].iter().all(|number| number.is_finite()));
        assert_eq!(velocities[0], velocities[1]);
    }
}

/// Groups with every tensor in rows, as a holder without packing has them.
fn in_rows(checkpoint: &Checkpoint, expert: Component) -> MapSource {
    let mut written = drawn_by_name(expert);
    let mut source = MapSource::default();
    for (index, spec) in checkpoint.groups(expert).iter().enumerate() {
        let tensors = spec.tensors.values().map(|tensor| {
            let bytes = written.remove(&tensor.name).unwrap().bytes;
            (tensor.name.clone(), tensor.dtype, tensor.shape.clone(), bytes)
        });
        source.insert(GroupId { component: expert, index }, tensors.collect());
    }
    source
}

#[test]
fn packed_weights_take_the_bytes_of_rows_and_give_their_bits() {
    let temp = diffusers_directory();
    let checkpoint = Checkpoint::open(temp.path()).unwrap();
    let latents =
        Tensor::from_vec(draw::draw("latents", 4 * 2 * 4 * 6, 3.0, 0.0), (4, 2, 4, 6), &Device::Cpu);
    let (latents, text) = (latents.unwrap(), draw::draw("text", 3 * 16, 3.0, 0.0));
    for expert in [Component::HighNoise, Component::LowNoise] {
        let packed: Vec<&str> = checkpoint
            .groups(expert)
            .iter()
            .flat_map(|spec| spec.tensors.values())
            .filter(|tensor| tensor.order == Order::Panels)
            .map(|tensor| tensor.name.as_str())
            .collect();
        // The model is 24 wide, which is no whole number of panels; these layers are 144, 32 and 16 wide.
        let expected = [
            "condition_embedder.time_proj",
            "blocks.0.ffn.net.0.proj",
            "blocks.1.ffn.net.0.proj",
            "proj_out",
        ];
        let expected = expected.map(|layer| format!("{layer}.weight"));
        assert_eq!(packed, expected, "{expert:?}");
        let rows = in_rows(&checkpoint, expert);
        let sources: [&dyn WeightSource; 2] = [&FromDisk(&checkpoint), &rows];
        let velocities = sources.map(|source| {
            let model = Transformer::new(expert, checkpoint.transformer(expert).unwrap().clone());
            let branch =
                Branch { text: TextRows { real: &text, pad_rows: 509 }, cross: &NoCrossKv, past: None };
            let velocity = model.forward(&latents, 900.0, &[branch], source).unwrap();
            velocity[0].flatten_all().unwrap().to_vec1::<f32>().unwrap()
        });
        assert_eq!(velocities[0], velocities[1], "{expert:?}");
        let last = FromDisk(&checkpoint);
        let last = last.lease(GroupId { component: expert, index: 3 }).unwrap();
        let refusal = last.param("proj_out.weight").unwrap_err().to_string();
        assert!(refusal.contains("packed weights"), "{refusal}");
    }
}

#[test]
fn settings_come_from_the_files_or_are_the_official_ones() {
    let temp = diffusers_directory();
    let checkpoint = Checkpoint::open(temp.path()).unwrap();
    assert_eq!((checkpoint.solver(), checkpoint.grid()), (Solver::UniPc, Grid::Diffusers));
    assert_eq!((checkpoint.flow_shift(), checkpoint.boundary()), (3.0, 0.875));
    let defaults = checkpoint.defaults();
    assert_eq!((defaults.size, defaults.frames, defaults.fps), (Some((64, 48)), Some(17), Some(8)));
    assert_eq!((defaults.steps, defaults.shift), (Some(12), Some(5.0)));
    assert_eq!((defaults.guidance_high, defaults.guidance_low), (Some(3.5), Some(2.5)));
    assert_eq!(defaults.negative_prompt.as_deref(), Some("blurry"));

    let scheduler = stored("euler").join("scheduler_config.json");
    fs::copy(scheduler, temp.path().join("scheduler/scheduler_config.json")).unwrap();
    assert_eq!(Checkpoint::open(temp.path()).unwrap().solver(), Solver::Euler);

    let official = Checkpoint::open(&stored("official")).unwrap();
    assert_eq!((official.solver(), official.grid()), (Solver::UniPc, Grid::Official));
    assert_eq!((official.flow_shift(), official.boundary()), (12.0, 0.875));
    let defaults = official.defaults();
    assert_eq!((defaults.guidance_high, defaults.guidance_low), (Some(4.0), Some(3.0)));
}

#[test]
fn a_checkpoint_with_one_expert_uses_it_for_every_timestep() {
    let temp = diffusers_directory();
    fs::remove_dir_all(temp.path().join("transformer_2")).unwrap();
    edit_json(&temp.path().join("model_index.json"), |index| {
        index["transformer_2"] = json!([null, null]);
        index["boundary_ratio"] = json!(null);
        index["image_encoder"] = json!([null, null]);
    });
    let checkpoint = Checkpoint::open(temp.path()).unwrap();
    assert_eq!(checkpoint.boundary(), 0.0);
    assert!(checkpoint.transformer(Component::LowNoise).is_none());
    assert!(checkpoint.groups(Component::LowNoise).is_empty());
    let error = checkpoint.read_group(GroupId { component: Component::LowNoise, index: 0 }, &mut []);
    assert!(matches!(error, Err(WanError::Mismatch { .. })));
}

#[test]
fn sharded_weights_equal_weights_in_one_file() {
    let temp = diffusers_directory();
    let whole = Checkpoint::open(temp.path()).unwrap();
    let before = read_all(&whole, Component::TextEncoder);
    shard_text(temp.path());
    let sharded = Checkpoint::open(temp.path()).unwrap();
    assert!(read_all(&sharded, Component::TextEncoder) == before);
    assert_eq!(
        sharded.fingerprint(Component::TextEncoder).unwrap(),
        whole.fingerprint(Component::TextEncoder).unwrap()
    );
}

/// Splits the text encoder's weights in two shards with an index.
fn shard_text(dir: &Path) {
    let dir = dir.join("text_encoder");
    let tensors = drawn(Component::TextEncoder);
    let (one, two) = tensors.split_at(5);
    let mut map = serde_json::Map::new();
    for (file, part) in [("model-1.safetensors", one), ("model-2.safetensors", two)] {
        fs::write(dir.join(file), safetensors(part)).unwrap();
        map.extend(part.iter().map(|tensor| (tensor.name.clone(), json!(file))));
    }
    fs::remove_file(dir.join("model.safetensors")).unwrap();
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn a_tied_embedding_may_be_stored_under_either_name_or_both() {
    let temp = diffusers_directory();
    let before = read_all(&Checkpoint::open(temp.path()).unwrap(), Component::TextEncoder);
    let mut tensors = drawn(Component::TextEncoder);
    let mut tied = tensors[0].clone();
    assert_eq!(tied.name, "shared.weight");
    "encoder.embed_tokens.weight".clone_into(&mut tied.name);
    tensors.push(tied);
    for tensors in [&tensors[..], &tensors[1..]] {
        fs::write(temp.path().join("text_encoder/model.safetensors"), safetensors(tensors)).unwrap();
        let checkpoint = Checkpoint::open(temp.path()).unwrap();
        assert!(read_all(&checkpoint, Component::TextEncoder) == before);
    }
}

#[test]
fn a_fingerprint_changes_with_the_weights_and_with_the_tokenizer() {
    let temp = diffusers_directory();
    let print = |component| Checkpoint::open(temp.path()).unwrap().fingerprint(component).unwrap();
    let (high, text) = (print(Component::HighNoise), print(Component::TextEncoder));
    let mut tensors = drawn(Component::HighNoise);
    tensors[7].bytes[1] ^= 1;
    fs::write(temp.path().join("transformer/diffusion_pytorch_model.safetensors"), safetensors(&tensors))
        .unwrap();
    assert_ne!(print(Component::HighNoise), high);
    assert_eq!(print(Component::TextEncoder), text);
    fs::write(temp.path().join("tokenizer/tokenizer.json"), "{}").unwrap();
    assert_ne!(print(Component::TextEncoder), text);
}

#[test]
fn a_fingerprint_changes_with_a_number_of_the_configuration_that_no_shape_follows_from() {
    let temp = diffusers_directory();
    let prints = || {
        let checkpoint = Checkpoint::open(temp.path()).unwrap();
        COMPONENTS.map(|component| checkpoint.fingerprint(component).unwrap())
    };
    for (file, field, value, of) in [
        ("transformer/config.json", "eps", json!(1e-5), [Component::HighNoise; 2]),
        (
            "text_encoder/config.json",
            "relative_attention_max_distance",
            json!(64),
            [Component::TextEncoder; 2],
        ),
        (
            "vae/config.json",
            "latents_mean",
            json!([0.5, -0.25, 0.125, 1.0]),
            [Component::VaeEncoder, Component::VaeDecoder],
        ),
    ] {
        let before = prints();
        edit_json(&temp.path().join(file), |config| config[field] = value);
        for ((component, before), after) in COMPONENTS.into_iter().zip(before).zip(prints()) {
            assert_eq!(before != after, of.contains(&component), "{component:?} after {field} of {file}");
        }
    }
}

#[test]
fn a_fingerprint_looks_at_all_of_a_small_tensor_and_all_over_a_large_one() {
    let temp = diffusers_directory();
    let print = |tensors: &[Stored]| {
        let path = temp.path().join("transformer/diffusion_pytorch_model.safetensors");
        fs::write(path, safetensors(tensors)).unwrap();
        Checkpoint::open(temp.path()).unwrap().fingerprint(Component::HighNoise).unwrap()
    };
    let tensors = drawn(Component::HighNoise);
    let before = print(&tensors);
    let changed = |name: &str, first: usize, bytes: usize| {
        let mut tensors = tensors.clone();
        let tensor = tensors.iter_mut().find(|tensor| tensor.name == name).unwrap();
        tensor.bytes[first..first + bytes].iter_mut().for_each(|byte| *byte ^= 1);
        print(&tensors) != before
    };
    // 32 x 24 numbers of two bytes are fewer than all samples.
    for at in [0, 1, 700, 1535] {
        assert!(changed("blocks.0.ffn.net.0.proj.weight", at, 1), "byte {at}");
    }
    // Of 144 x 24 there are samples with gaps of some 40 bytes.
    for first in [0, 100, 1000, 3456, 5000, 6912 - 48] {
        assert!(changed("condition_embedder.time_proj.weight", first, 48), "bytes from {first} on");
    }
    assert!(changed("condition_embedder.time_proj.weight", 6911, 1), "the last byte");
}

#[test]
fn what_matrices_in_rows_are_turned_in_is_known_and_nothing_where_all_are_packed() {
    let temp = diffusers_directory();
    let checkpoint = Checkpoint::open(temp.path()).unwrap();
    // Two panels of 16 outputs for the widest of those that have 24: `ffn.net.2` and the first of time, over 32 inputs.
    assert_eq!(checkpoint.description().turned_bytes(Component::HighNoise), 2 * 16 * 32 * 4);
    // Half precision is never packed.
    assert!(checkpoint.description().turned_bytes(Component::VaeDecoder) > 0);
    for held in HeldWeights::ALL {
        let published = Description::wan22_t2v_a14b().holding(held);
        assert_eq!(COMPONENTS.map(|component| published.turned_bytes(component)), [0; 5], "{held:?}");
    }
}

#[test]
fn the_published_experts_take_53_gib_to_read_and_half_of_it_to_hold_in_bf16() {
    let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
    let sizes = |held: HeldWeights, component: Component| {
        let published = Description::wan22_t2v_a14b().holding(held);
        let groups = published.groups(component);
        let sum = |bytes: fn(&GroupSpec) -> usize| gib(groups.iter().map(bytes).sum());
        [sum(|group| group.len_bytes), sum(|group| group.stored_bytes)]
    };
    for (held, component, in_memory, in_files) in [
        (HeldWeights::Stored, Component::HighNoise, 53.23, 53.23),
        (HeldWeights::Bf16, Component::HighNoise, 26.67, 53.23),
        (HeldWeights::Bf16, Component::LowNoise, 26.67, 53.23),
        (HeldWeights::Bf16, Component::TextEncoder, 10.58, 10.58),
        (HeldWeights::Bf16, Component::VaeDecoder, 0.27, 0.27),
    ] {
        let got = sizes(held, component);
        let off = got.iter().zip([in_memory, in_files]).map(|(got, expected)| (got - expected).abs());
        assert!(off.fold(0.0, f64::max) < 0.01, "{component:?} held {held:?}: {got:?}");
    }
}

/// Whether the tensor of a transformer is a matrix that may be held in bfloat16.
fn is_rounded(tensor: &Stored) -> bool {
    let kept = ["scale_shift_table", "time_embedder"];
    tensor.shape.len() > 1 && !kept.iter().any(|part| tensor.name.contains(part))
}

#[test]
fn an_expert_stored_in_f32_and_held_in_bf16_is_bit_for_bit_one_whose_matrices_are_stored_so() {
    let [exact, coarse] = [diffusers_directory(), diffusers_directory()];
    let mut tensors = drawn(Component::LowNoise);
    let mut changed = 0;
    for tensor in tensors.iter_mut().filter(|tensor| is_rounded(tensor)) {
        let numbers = tensor.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let numbers: Vec<_> = numbers.map(|exact| (exact, bf16::from_f32(exact))).collect();
        changed += numbers.iter().filter(|(exact, rounded)| rounded.to_f32() != *exact).count();
        tensor.bytes = numbers.iter().flat_map(|(_, rounded)| rounded.to_le_bytes()).collect();
        "BF16".clone_into(&mut tensor.dtype);
    }
    assert!(changed > 1000, "what is rounded loses something: {changed}");
    let path = coarse.path().join("transformer_2/diffusion_pytorch_model.safetensors");
    fs::write(path, safetensors(&tensors)).unwrap();
    let plain = Checkpoint::open(exact.path()).unwrap();
    let held = Checkpoint::open(exact.path()).unwrap().holding(HeldWeights::Bf16);
    let stored = Checkpoint::open(coarse.path()).unwrap();
    let low = Component::LowNoise;
    for ((ours, theirs), plain) in held.groups(low).iter().zip(stored.groups(low)).zip(plain.groups(low)) {
        assert_eq!((&ours.tensors, ours.len_bytes), (&theirs.tensors, theirs.len_bytes));
        assert!(ours.len_bytes < plain.len_bytes && ours.stored_bytes == plain.len_bytes);
    }
    assert!(read_all(&held, low) == read_all(&stored, low));
    // What is in memory is told apart from the same files held otherwise; all else is as it was.
    assert_ne!(held.fingerprint(low).unwrap(), plain.fingerprint(low).unwrap());
    for component in COMPONENTS.into_iter().filter(|component| *component != low) {
        assert_eq!(held.groups(component), plain.groups(component));
        assert_eq!(held.fingerprint(component).unwrap(), plain.fingerprint(component).unwrap());
    }
    let untouched = Checkpoint::open(exact.path()).unwrap().holding(HeldWeights::Stored);
    assert_eq!(untouched.groups(low), plain.groups(low));
    assert_eq!(untouched.fingerprint(low).unwrap(), plain.fingerprint(low).unwrap());
    assert_eq!((held.held(), plain.held()), (HeldWeights::Bf16, HeldWeights::Stored));
    assert_eq!(stored.holding(HeldWeights::Bf16).held(), HeldWeights::Stored, "there is nothing to round");
}

#[test]
fn a_file_truncated_after_opening_is_an_error_and_no_crash() {
    let temp = diffusers_directory();
    let checkpoint = Checkpoint::open(temp.path()).unwrap();
    let path = temp.path().join("transformer/diffusion_pytorch_model.safetensors");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(fs::metadata(&path).unwrap().len() / 2).unwrap();
    let id = GroupId { component: Component::HighNoise, index: 2 };
    let mut bytes = vec![0; checkpoint.groups(Component::HighNoise)[2].len_bytes];
    let error = checkpoint.read_group(id, &mut bytes).unwrap_err().to_string();
    assert!(error.contains("changed while in use"), "{error}");
}

#[test]
fn a_buffer_of_the_wrong_length_and_a_group_that_is_not_there_are_refused() {
    let checkpoint = Checkpoint::open(copy_of("official").path()).unwrap();
    let component = Component::VaeDecoder;
    assert!(checkpoint.read_group(GroupId { component, index: 0 }, &mut [0; 64]).is_err());
    assert!(checkpoint.read_group(GroupId { component, index: 99 }, &mut [0; 64]).is_err());
}

#[test]
fn sizes_and_lengths_that_cannot_be_made_are_refused_with_the_nearest_that_can() {
    let checkpoint = Checkpoint::open(&stored("official")).unwrap();
    for (width, height) in [(832, 480), (1280, 720), (16, 16)] {
        checkpoint.validate_size(width, height).unwrap();
    }
    for frames in [1, 5, 81, 4093] {
        checkpoint.validate_frames(frames).unwrap();
    }
    let refusal = |result: Result<()>| match result.unwrap_err() {
        WanError::Request(message) => message,
        other => panic!("{other}"),
    };
    let size = |width, height| refusal(checkpoint.validate_size(width, height));
    assert!(size(833, 479).ends_with("the nearest is 832x480"), "{}", size(833, 479));
    assert!(size(0, 480).ends_with("the nearest is 16x480"));
    assert!(size(usize::MAX, 8).ends_with("the nearest is 16384x16"));
    let frames = |frames| refusal(checkpoint.validate_frames(frames));
    assert!(frames(80).ends_with("the nearest is 77 and 81"), "{}", frames(80));
    assert!(frames(0).ends_with("the nearest is 1"));
    assert!(frames(usize::MAX).ends_with("the nearest is 4093"));
}

#[test]
fn nothing_stays_mapped_after_a_group_was_read() {
    // a directory of its own: other tests of this process map the stored files at the same time
    let dir = copy_of("official");
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let mapped = || {
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        maps.contains(dir.path().to_str().unwrap())
    };
    read_all(&checkpoint, Component::HighNoise);
    assert!(!mapped());
}

#[test]
fn the_shipped_checkpoint_opens_and_every_group_of_it_can_be_read() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/shapes");
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert_eq!(checkpoint.components().collect::<Vec<_>>(), COMPONENTS);
    for component in COMPONENTS {
        assert!(read_all(&checkpoint, component).iter().any(|group| group.iter().any(|byte| *byte != 0)));
    }
    let defaults = checkpoint.defaults();
    let (width, height) = defaults.size.unwrap();
    checkpoint.validate_size(width, height).unwrap();
    checkpoint.validate_frames(defaults.frames.unwrap()).unwrap();
}
