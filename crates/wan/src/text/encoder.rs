//! The UMT5 encoder.
//!
//! Reference: `UMT5EncoderModel` of transformers. Pre-norm residual layers; every layer has position biases of its own
//! (T5 shares the first layer's); logits are not scaled by the head's width; no linear layer has a bias.

use candle_core::{Device, Tensor};
use evanesce_kernels::{
    AttentionDims, Epilogue, LinearDims, Values, Weight, attend_biased, gated_gelu, linear, linear_then,
    rms_norm,
};

use crate::error::{Result, WanError};
use crate::weights::{Component, GroupId, Matrix, WeightGroup, WeightSource};

use super::names::{EMBEDDING, FINAL_NORM};
use super::{TOKENS_MAX, Umt5Config, bias};

/// The text encoder: sizes only, weights are leased while they are used.
#[derive(Clone, Debug)]
pub struct TextEncoder {
    config: Umt5Config,
}

impl TextEncoder {
    /// An encoder of the given sizes.
    #[must_use]
    pub fn new(config: Umt5Config) -> Self {
        Self { config }
    }

    /// Its sizes.
    #[must_use]
    pub fn config(&self) -> &Umt5Config {
        &self.config
    }

    /// Encodes token ids into an `f32` tensor `[ids.len(), d_model]`, leasing one weight group after another.
    ///
    /// # Errors
    /// [`WanError::Mismatch`] when there are more ids than [`TOKENS_MAX`] or one that the table does not have; whatever
    /// `weights` fails with.
    pub fn encode(&self, weights: &dyn WeightSource, ids: &[u32]) -> Result<Tensor> {
        if ids.len() > TOKENS_MAX {
            return Err(WanError::mismatch("prompt tokens", ids.len(), format!("at most {TOKENS_MAX}")));
        }
        let group = |index| weights.lease(GroupId { component: Component::TextEncoder, index });
        let mut stream = self.embed(&*group(0)?, ids)?;
        let mut scratch = Scratch::new(&self.config, ids.len());
        for layer in 0..self.config.num_layers {
            self.layer(&Layer { group: &*group(layer + 1)?, index: layer }, &mut stream, &mut scratch)?;
        }
        let last = group(self.config.num_layers + 1)?;
        rms_norm(&stream, last.param(FINAL_NORM)?.values, self.epsilon(), &mut scratch.normed);
        Ok(Tensor::from_vec(scratch.normed, (ids.len(), self.config.d_model), &Device::Cpu)?)
    }

    #[expect(clippy::cast_possible_truncation, reason = "checked to lie between 0 and 1")]
    fn epsilon(&self) -> f32 {
        self.config.layer_norm_epsilon as f32
    }

    fn embed(&self, group: &dyn WeightGroup, ids: &[u32]) -> Result<Vec<f32>> {
        let table = group.param(EMBEDDING)?.values;
        let width = self.config.d_model;
        let mut stream = vec![0.0; ids.len() * width];
        for (row, &id) in stream.chunks_exact_mut(width).zip(ids) {
            let index = usize::try_from(id).ok().filter(|&index| (index + 1) * width <= table.len());
            let index = index.ok_or_else(|| {
                WanError::mismatch("token id", id, format!("below the {} of the table", table.len() / width))
            })?;
            table.read(index * width, row);
        }
        Ok(stream)
    }

    fn layer(&self, layer: &Layer<'_>, stream: &mut [f32], scratch: &mut Scratch) -> Result<()> {
        let Umt5Config { d_model, d_ff, num_heads: heads, d_kv, .. } = self.config;
        let inner = self.config.inner_dim();
        let rows = stream.len() / d_model;
        let Scratch { normed, q, k, v, mixed, gate, up, bias, buckets } = scratch;

        let table = layer.values("layer.0.SelfAttention.relative_attention_bias.weight")?.to_vec();
        bias::fill(&table, buckets, heads, bias);
        rms_norm(stream, layer.values("layer.0.layer_norm.weight")?, self.epsilon(), normed);
        let project = LinearDims { rows, inputs: d_model, outputs: inner };
        for (name, out) in [("q", &mut *q), ("k", k), ("v", v)] {
            let weight = layer.matrix(&format!("layer.0.SelfAttention.{name}"), project)?;
            linear(normed, weight, None, project, out);
        }
        if rows > 0 {
            let dims = AttentionDims { queries: rows, heads, head_dim: d_kv, scale: 1.0 };
            attend_biased(q, k, v, bias, dims, mixed);
        }
        let back = LinearDims { rows, inputs: inner, outputs: d_model };
        linear_then(mixed, layer.matrix("layer.0.SelfAttention.o", back)?, None, back, ADD, stream);

        rms_norm(stream, layer.values("layer.1.layer_norm.weight")?, self.epsilon(), normed);
        let widen = LinearDims { rows, inputs: d_model, outputs: d_ff };
        linear(normed, layer.matrix("layer.1.DenseReluDense.wi_0", widen)?, None, widen, gate);
        linear(normed, layer.matrix("layer.1.DenseReluDense.wi_1", widen)?, None, widen, up);
        gated_gelu(gate, up);
        let narrow = LinearDims { rows, inputs: d_ff, outputs: d_model };
        linear_then(gate, layer.matrix("layer.1.DenseReluDense.wo", narrow)?, None, narrow, ADD, stream);
        Ok(())
    }
}

/// A branch ends in the residual stream.
const ADD: Epilogue<'static> = Epilogue::AddTo { gate: None };

/// A leased layer.
struct Layer<'a> {
    group: &'a dyn WeightGroup,
    index: usize,
}

impl Layer<'_> {
    fn values(&self, name: &str) -> Result<Values<'_>> {
        Ok(self.group.param(&format!("encoder.block.{}.{name}", self.index))?.values)
    }

    /// The matrix of the linear layer `name`, which must be of the sizes of `dims`.
    fn matrix(&self, name: &str, dims: LinearDims) -> Result<Weight<'_>> {
        let name = format!("encoder.block.{}.{name}.weight", self.index);
        let Matrix { weight, outputs, inputs } = self.group.matrix(&name)?;
        if [outputs, inputs] == [dims.outputs, dims.inputs] {
            return Ok(weight);
        }
        let expected = format!("[{}, {}]", dims.outputs, dims.inputs);
        Err(WanError::mismatch(name, format!("[{outputs}, {inputs}]"), expected))
    }
}

/// What a layer writes between its operations, one allocation for all layers.
struct Scratch {
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    mixed: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    bias: Vec<f32>,
    buckets: Vec<usize>,
}

impl Scratch {
    fn new(config: &Umt5Config, tokens: usize) -> Self {
        let rows = |width: usize| vec![0.0; tokens * width];
        let inner = config.inner_dim();
        Self {
            normed: rows(config.d_model),
            q: rows(inner),
            k: rows(inner),
            v: rows(inner),
            mixed: rows(inner),
            gate: rows(config.d_ff),
            up: rows(config.d_ff),
            bias: rows(config.num_heads * tokens),
            buckets: bias::buckets(config, tokens),
        }
    }
}
