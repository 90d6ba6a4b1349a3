//! How a model asks for its weights: by group, from whoever holds them.
//!
//! A group is the unit that is resident or not: one transformer block, one encoder layer, a whole small VAE half. The
//! holder (the engine, over its cache) decides when a group's bytes are in memory; the model leases a group, reads its
//! tensors by name, and drops the lease. Nothing here knows tiers.

use std::collections::BTreeMap;
use std::fmt;

use evanesce_kernels::{Dtype, PackedWeights, Values, Weight};

use crate::error::{Result, WanError};

/// A part of a checkpoint with weights of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// The UMT5 encoder.
    TextEncoder,
    /// The transformer for timesteps at or above the boundary (`transformer`, `high_noise_model`).
    HighNoise,
    /// The transformer below the boundary (`transformer_2`, `low_noise_model`).
    LowNoise,
    /// The VAE's encoder half, with `quant_conv`.
    VaeEncoder,
    /// The VAE's decoder half, with `post_quant_conv`.
    VaeDecoder,
}

/// One group of a component. Groups are numbered in the order a forward pass reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId {
    /// The component the group belongs to.
    pub component: Component,
    /// Position in the component's forward order.
    pub index: usize,
}

/// How a tensor's numbers are ordered in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Row-major, as in the checkpoint.
    Rows,
    /// A linear layer's matrix, in the panels that the arithmetic reads. As many bytes as its rows.
    Panels,
}

/// Where one tensor lies inside its group's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Canonical name: diffusers' for the transformer and the VAE, transformers' for the text encoder, with the whole
    /// path inside the component (`blocks.3.attn1.to_q.weight`).
    pub name: String,
    /// Element type in memory: that of the checkpoint, unless numbers are rounded as they are read.
    pub dtype: Dtype,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Order of the numbers.
    pub order: Order,
    /// First byte inside the group; a multiple of [`TENSOR_ALIGN_BYTES`].
    pub offset_bytes: usize,
}

/// Tensors start at multiples of this inside a group.
pub const TENSOR_ALIGN_BYTES: usize = 64;

impl TensorSpec {
    /// Bytes of the tensor, without padding.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size_bytes()
    }

    /// Outputs and inputs of the linear layer that the tensor is the matrix of.
    fn matrix(&self) -> [usize; 2] {
        match self.shape[..] {
            [outputs, ref inputs @ ..] => [outputs, inputs.iter().product()],
            [] => [0, 0],
        }
    }

    /// Bytes of scratch in which the matrix is turned into panels wherever it is used, at most; none where it lies in panels.
    pub(crate) fn turned_bytes(&self) -> usize {
        let [outputs, inputs] = self.matrix();
        match self.order {
            Order::Rows => evanesce_kernels::turned_bytes(outputs, inputs),
            Order::Panels => 0,
        }
    }

    /// Brings the tensor's `bytes`, row-major as in the checkpoint, into its order.
    pub fn settle(&self, bytes: &mut [u8]) {
        if self.order == Order::Panels {
            let [outputs, inputs] = self.matrix();
            evanesce_kernels::pack_weights(self.dtype, bytes, outputs, inputs);
        }
    }
}

/// The tensors of one group and the bytes they take together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSpec {
    /// Tensors by canonical name.
    pub tensors: BTreeMap<String, TensorSpec>,
    /// Bytes of the whole group, padding included.
    pub len_bytes: usize,
    /// What these bytes would be in the types of the checkpoint: more where numbers are rounded as they are read.
    pub stored_bytes: usize,
}

impl GroupSpec {
    /// Lays tensors out one after another, in the given order, each aligned.
    #[must_use]
    pub fn pack(tensors: impl IntoIterator<Item = (String, Dtype, Vec<usize>)>) -> Self {
        let mut packed = BTreeMap::new();
        let mut offset_bytes = 0;
        for (name, dtype, shape) in tensors {
            let order = Order::Rows;
            let spec = TensorSpec { name: name.clone(), dtype, shape, order, offset_bytes };
            offset_bytes = (offset_bytes + spec.len_bytes()).next_multiple_of(TENSOR_ALIGN_BYTES);
            packed.insert(name, spec);
        }
        Self { tensors: packed, len_bytes: offset_bytes, stored_bytes: offset_bytes }
    }

    /// The same group, every tensor in rows and of the type that `held` gives it in memory. What the checkpoint stores stays.
    #[must_use]
    pub(crate) fn with_types(&self, held: impl Fn(&TensorSpec) -> Dtype) -> Self {
        let mut tensors: Vec<_> = self.tensors.values().collect();
        tensors.sort_by_key(|tensor| tensor.offset_bytes);
        let typed =
            tensors.into_iter().map(|tensor| (tensor.name.clone(), held(tensor), tensor.shape.clone()));
        Self { stored_bytes: self.stored_bytes, ..Self::pack(typed) }
    }

    /// The same group with the matrices of linear layers packed, as far as they can be in their own bytes; `is_linear` says
    /// by name which these are. What is filled with the group must then be packed as well, see [`TensorSpec::settle`].
    #[must_use]
    pub fn with_packed(mut self, is_linear: impl Fn(&str) -> bool) -> Self {
        for tensor in self.tensors.values_mut() {
            let [outputs, inputs] = tensor.matrix();
            if is_linear(&tensor.name) && PackedWeights::fits(tensor.dtype, outputs, inputs) {
                tensor.order = Order::Panels;
            }
        }
        self
    }
}

/// One weight tensor, borrowed from a leased group.
#[derive(Clone, Copy, Debug)]
pub struct Param<'a> {
    /// The numbers.
    pub values: Values<'a>,
    /// Row-major shape.
    pub shape: &'a [usize],
}

/// The matrix of one linear layer, borrowed from a leased group.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// The numbers.
    pub weight: Weight<'a>,
    /// Rows of the matrix.
    pub outputs: usize,
    /// Columns of the matrix.
    pub inputs: usize,
}

/// A leased group: its bytes stay where they are until this is dropped.
pub trait WeightGroup {
    /// The layout of the group.
    fn spec(&self) -> &GroupSpec;
    /// The bytes, `spec().len_bytes` of them.
    fn bytes(&self) -> &[u8];
}

impl dyn WeightGroup + '_ {
    /// The tensor called `name`.
    ///
    /// # Errors
    /// When the group has no such tensor: a loader admitted a checkpoint that it should have refused.
    pub fn param(&self, name: &str) -> Result<Param<'_>> {
        let (spec, bytes) = self.tensor(name)?;
        let rows = spec.order == Order::Rows;
        let values = if rows { Values::new(spec.dtype, bytes) } else { None };
        let values = values.ok_or_else(|| WanError::mismatch(name, "packed weights", "rows of numbers"))?;
        Ok(Param { values, shape: &spec.shape })
    }

    /// The matrix of a linear layer called `name`, `[outputs, inputs]`, in whatever order the group holds its numbers.
    ///
    /// # Errors
    /// As [`Self::param`].
    pub fn matrix(&self, name: &str) -> Result<Matrix<'_>> {
        let (spec, bytes) = self.tensor(name)?;
        let [outputs, inputs] = spec.matrix();
        let weight = match spec.order {
            Order::Rows => Values::new(spec.dtype, bytes).map(Weight::from),
            Order::Panels => PackedWeights::new(spec.dtype, bytes, outputs, inputs).map(Weight::from),
        };
        let weight = weight.ok_or_else(|| WanError::mismatch(name, bytes.len(), spec.len_bytes()))?;
        Ok(Matrix { weight, outputs, inputs })
    }

    fn tensor(&self, name: &str) -> Result<(&TensorSpec, &[u8])> {
        let spec = self.spec().tensors.get(name);
        let spec =
            spec.ok_or_else(|| WanError::mismatch("weight group", format!("no tensor {name}"), name))?;
        let bytes = self.bytes().get(spec.offset_bytes..spec.offset_bytes + spec.len_bytes());
        let bytes =
            bytes.ok_or_else(|| WanError::mismatch(name, self.bytes().len(), self.spec().len_bytes))?;
        Ok((spec, bytes))
    }

    /// Whether the group holds a tensor called `name` (biases and shortcuts that only some layers have).
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.spec().tensors.contains_key(name)
    }
}

/// Whoever holds weights.
pub trait WeightSource {
    /// Leases one group, bringing its bytes into memory first when they are not there.
    ///
    /// # Errors
    /// When the bytes cannot be brought in: no room, or the checkpoint can no longer be read.
    fn lease(&self, id: GroupId) -> Result<Box<dyn WeightGroup + '_>>;
}

/// All groups of some components in plain memory: for tests and small tools.
#[derive(Default)]
pub struct MapSource {
    groups: BTreeMap<GroupId, (GroupSpec, Vec<u8>)>,
}

impl fmt::Debug for MapSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapSource").field("groups", &self.groups.len()).finish()
    }
}

struct MapGroup<'a>(&'a GroupSpec, &'a [u8]);

impl WeightGroup for MapGroup<'_> {
    fn spec(&self) -> &GroupSpec {
        self.0
    }

    fn bytes(&self) -> &[u8] {
        self.1
    }
}

impl MapSource {
    /// Adds a group; `tensors` are (canonical name, dtype, shape, little-endian bytes).
    pub fn insert(&mut self, id: GroupId, tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>) {
        let layout = tensors.iter().map(|(name, dtype, shape, _)| (name.clone(), *dtype, shape.clone()));
        let spec = GroupSpec::pack(layout);
        let mut bytes = vec![0; spec.len_bytes];
        for (name, _, _, data) in tensors {
            let offset = spec.tensors[&name].offset_bytes;
            bytes[offset..offset + data.len()].copy_from_slice(&data);
        }
        self.groups.insert(id, (spec, bytes));
    }
}

impl WeightSource for MapSource {
    fn lease(&self, id: GroupId) -> Result<Box<dyn WeightGroup + '_>> {
        let (spec, bytes) = self.groups.get(&id).ok_or_else(|| WanError::Store {
            what: format!("{id:?}"),
            message: "no such group".to_owned(),
            source: None,
        })?;
        Ok(Box::new(MapGroup(spec, bytes)))
    }
}
