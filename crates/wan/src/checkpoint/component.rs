//! A component's tensors, checked against what the model needs and laid out by group.

use std::collections::{BTreeMap, BTreeSet};

use evanesce_kernels::Dtype;

use super::files::{Located, WeightFiles};
use super::mapping::WeightFile;
use crate::error::{Result, WanError};
use crate::weights::{GroupSpec, TENSOR_ALIGN_BYTES, TensorSpec};
use crate::{text, transformer, vae};

/// Tensors by group, as model modules list them: (canonical name, shape).
pub(crate) type Expected = Vec<Vec<(String, Vec<usize>)>>;

/// Where the bytes of one component's tensors lie.
#[derive(Debug)]
pub(crate) struct ComponentWeights {
    tensors: BTreeMap<String, Located>,
    files: std::sync::Arc<Vec<WeightFile>>,
}

/// Places of a large tensor that the fingerprint looks at, evenly spaced: the first is its beginning, the last its end.
const SAMPLES: usize = 66;
/// Bytes of each.
const SAMPLE_BYTES: usize = 64;

/// Splits the tensors of `files` among components: `parts` are the expected groups of each, `canonical` tells a file's
/// name for a tensor from the canonical one. Gives the layout of each group as well.
///
/// # Errors
/// One sentence that names the first tensor missing, misshapen or unknown, and how many there are.
pub(crate) fn resolve(
    files: WeightFiles,
    parts: Vec<Expected>,
    canonical: impl Fn(&str) -> Option<String>,
) -> Result<Vec<(ComponentWeights, Vec<GroupSpec>)>> {
    let WeightFiles { path, files, tensors } = files;
    let fault = |message: String| WanError::checkpoint(&path, message);
    let expected: BTreeSet<&str> = parts.iter().flatten().flatten().map(|(name, _)| name.as_str()).collect();
    let mut found = BTreeMap::new();
    let mut unknown = Vec::new();
    for (name, located) in tensors {
        let Some(target) = canonical(&name).filter(|target| expected.contains(target.as_str())) else {
            unknown.push(name);
            continue;
        };
        if let Some((earlier, _)) = found.insert(target, (name.clone(), located)) {
            return Err(fault(format!("{earlier} and {name} are names of the same tensor")));
        }
    }
    check_shapes(&parts, &found).map_err(&fault)?;
    if let Some(first) = unknown.first() {
        return Err(fault(format!(
            "{} unknown {}, first {first}",
            unknown.len(),
            tensors_word(unknown.len())
        )));
    }
    let found: BTreeMap<_, _> = found.into_iter().map(|(name, (_, located))| (name, located)).collect();
    let files = std::sync::Arc::new(files);
    let component = |groups: Expected| {
        let tensors = groups
            .iter()
            .flatten()
            .filter_map(|(name, _)| found.get(name).map(|located| (name.clone(), located.clone())))
            .collect();
        let specs = groups.into_iter().map(|group| pack(group, &found)).collect();
        (ComponentWeights { tensors, files: files.clone() }, specs)
    };
    Ok(parts.into_iter().map(component).collect())
}

fn tensors_word(count: usize) -> &'static str {
    if count == 1 { "tensor" } else { "tensors" }
}

fn check_shapes(
    parts: &[Expected],
    found: &BTreeMap<String, (String, Located)>,
) -> std::result::Result<(), String> {
    let all = || parts.iter().flatten().flatten();
    let missing: Vec<_> = all().filter(|(name, _)| !found.contains_key(name)).collect();
    if let Some((first, shape)) = missing.first() {
        let count = missing.len();
        return Err(format!("{count} {} missing, first {first} of shape {shape:?}", tensors_word(count)));
    }
    let misshapen = all().filter_map(|(name, shape)| {
        let (file_name, located) = found.get(name)?;
        (located.entry.shape != *shape).then_some((file_name, &located.entry.shape, shape))
    });
    let misshapen: Vec<_> = misshapen.collect();
    match misshapen.first() {
        None => Ok(()),
        Some((name, got, expected)) => {
            let count = misshapen.len();
            let word = tensors_word(count);
            Err(format!("{count} {word} of a wrong shape, first {name}: got {got:?}, expected {expected:?}"))
        }
    }
}

/// Whether a tensor is the matrix of a linear layer, by its canonical name in any component.
pub(crate) fn is_linear(name: &str) -> bool {
    let lists = [transformer::LINEAR_LAYERS, text::LINEAR_LAYERS, vae::LINEAR_LAYERS];
    name.strip_suffix(".weight").is_some_and(|layer| {
        lists.into_iter().flatten().any(|known| {
            layer.strip_suffix(known).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        })
    })
}

fn pack(group: Vec<(String, Vec<usize>)>, found: &BTreeMap<String, Located>) -> GroupSpec {
    let dtype = |name: &str| found.get(name).map_or(Dtype::F32, |located| located.entry.dtype);
    GroupSpec::pack(group.into_iter().map(|(name, shape)| {
        let dtype = dtype(&name);
        (name, dtype, shape)
    }))
    .with_packed(is_linear)
}

/// Where sample `i` begins in a tensor of `len_bytes`.
fn place(i: u64, len_bytes: u64) -> u64 {
    let (last, gaps) = (len_bytes - SAMPLE_BYTES as u64, SAMPLES as u64 - 1);
    // `last * i / gaps`, in parts that cannot overflow.
    last / gaps * i + last % gaps * i / gaps
}

impl ComponentWeights {
    /// Fills `out` with group `spec`: tensors at their offsets, each in its type and order, zeros between them.
    pub(crate) fn read(&self, spec: &GroupSpec, out: &mut [u8]) -> Result<()> {
        for tensor in spec.tensors.values() {
            let start = tensor.offset_bytes;
            let end = start + tensor.len_bytes();
            let Located { file, entry } = &self.tensors[&tensor.name];
            let file = &self.files[*file];
            match (entry.dtype, tensor.dtype) {
                (Dtype::F32, Dtype::BF16) => file.round_range(entry.offset_bytes, &mut out[start..end])?,
                _ => file.copy_range(entry.offset_bytes, &mut out[start..end])?,
            }
            tensor.settle(&mut out[start..end]);
            out[end..end.next_multiple_of(TENSOR_ALIGN_BYTES)].fill(0);
        }
        Ok(())
    }

    /// Whether the tensor's numbers are rounded as they are read.
    pub(crate) fn rounds(&self, tensor: &TensorSpec) -> bool {
        self.tensors.get(&tensor.name).is_some_and(|located| located.entry.dtype != tensor.dtype)
    }

    /// Feeds names, types, shapes and samples of every tensor to `hasher`; a tensor that is no longer than all samples
    /// counts whole.
    pub(crate) fn identify(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        let mut samples = [0_u8; SAMPLES * SAMPLE_BYTES];
        for (name, Located { file, entry }) in &self.tensors {
            let line = format!("{name} {:?} {:?}\n", entry.dtype, entry.shape);
            hasher.update(line.as_bytes());
            let (file, len_bytes) = (&self.files[*file], entry.len_bytes());
            let small = usize::try_from(len_bytes).ok().filter(|len| *len <= samples.len());
            if let Some(len) = small {
                file.read_at(entry.offset_bytes, &mut samples[..len])?;
                hasher.update(&samples[..len]);
                continue;
            }
            for (i, sample) in (0..).zip(samples.chunks_exact_mut(SAMPLE_BYTES)) {
                file.read_at(entry.offset_bytes + place(i, len_bytes), sample)?;
            }
            hasher.update(&samples);
        }
        Ok(())
    }
}
