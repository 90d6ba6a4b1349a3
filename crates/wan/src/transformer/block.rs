//! One transformer block: self-attention, cross-attention to the text, feed-forward.
//!
//! The residual stream and the modulation are f32, as in the official code; weights are read as they are stored.

use evanesce_kernels::{
    Activation, AttentionDims, Epilogue, KvSegment, Values, attend, layer_norm_affine, layer_norm_modulate,
    rms_norm, rotate,
};

use super::config::TransformerConfig;
use super::frames::{Attended, FrameKv, TimeTurns, check_pages};
use super::params::{linear, linear_then, table};
use super::rope::RopeTable;
use super::workspace::{FFN_CHUNK_ROWS, Scratch};
use crate::error::Result;
use crate::weights::WeightGroup;

/// One block over a leased group.
pub(crate) struct Block<'a> {
    config: &'a TransformerConfig,
    prefix: String,
    weights: &'a dyn WeightGroup,
    /// Rows shift, scale, gate of self-attention, then of the feed-forward part; one set per call, not per token.
    modulation: &'a [f32],
}

/// Keys and values of the text for one block, each `[rows, dim]`.
pub(crate) struct CrossRows {
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

/// What the tokens of one call attend to besides themselves, and where they sit.
#[derive(Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    /// Rotations of the call's own tokens: in space alone where there are earlier frames.
    pub(crate) rope: &'a RopeTable<'a>,
    /// Earlier frames, for models that make a video block by block.
    pub(crate) past: Option<Past<'a>>,
    /// Keys and values of the text.
    pub(crate) text: &'a [KvSegment<'a>],
}

/// Earlier frames of one (expert, prompt) at one layer.
#[derive(Clone, Copy)]
pub(crate) struct Past<'a> {
    pub(crate) layer: usize,
    pub(crate) holder: &'a dyn FrameKv,
    pub(crate) turns: &'a TimeTurns,
    /// Tokens of one latent frame.
    pub(crate) tokens_per_frame: usize,
}

impl<'a> Block<'a> {
    /// Block `layer`, modulated by `timestep`: the six projected rows `[6, dim]` of the time embedding. `memory`, as large,
    /// holds the block's own.
    pub(crate) fn new(
        config: &'a TransformerConfig,
        layer: usize,
        weights: &'a dyn WeightGroup,
        timestep: &[f32],
        memory: &'a mut [f32],
    ) -> Result<Self> {
        let prefix = format!("blocks.{layer}");
        table(weights, &format!("{prefix}.scale_shift_table"), timestep.len())?.read(0, memory);
        memory.iter_mut().zip(timestep).for_each(|(row, projected)| *row += projected);
        Ok(Self { config, prefix, weights, modulation: memory })
    }

    /// Adds the block's three updates to the residual stream `x`, `[tokens, dim]`.
    pub(crate) fn forward(
        &self,
        x: &mut [f32],
        around: Surroundings<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Result<()> {
        self.self_attention(x, around, scratch)?;
        self.cross_attention(x, around.text, scratch)?;
        self.feed_forward(x, scratch)
    }

    /// Keys and values of embedded text rows `[rows, dim]`.
    pub(crate) fn cross_rows(&self, text: &[f32]) -> Result<CrossRows> {
        let mut projected = vec![0.0; text.len()];
        let mut values = vec![0.0; text.len()];
        self.linear("attn2.to_k", text, &mut projected)?;
        self.linear("attn2.to_v", text, &mut values)?;
        let mut keys = vec![0.0; text.len()];
        self.rms("attn2.norm_k", &projected, &mut keys)?;
        Ok(CrossRows { keys, values })
    }

    fn self_attention(
        &self,
        x: &mut [f32],
        around: Surroundings<'_>,
        scratch: &mut Scratch<'_>,
    ) -> Result<()> {
        let [shift, scale, gate] = self.rows(0);
        let Scratch { normed, queries, keys, values, .. } = scratch;
        layer_norm_modulate(x, scale, shift, self.eps(), normed);
        self.linear("attn1.to_k", normed, values)?;
        self.rms("attn1.norm_k", values, keys)?;
        self.linear("attn1.to_q", normed, values)?;
        self.rms("attn1.norm_q", values, queries)?;
        self.linear("attn1.to_v", normed, values)?;
        let TransformerConfig { heads, head_dim, .. } = *self.config;
        rotate(keys, heads, head_dim, around.rope.cos, around.rope.sin);
        rotate(queries, heads, head_dim, around.rope.cos, around.rope.sin);
        let dims = self.attention_dims(queries);
        match around.past {
            None => {
                let all = KvSegment {
                    keys: keys[..].into(),
                    values: values[..].into(),
                    logit_bias: 0.0,
                    turn: None,
                };
                attend(queries, &[all], dims, normed);
            }
            Some(past) => {
                self.attend_to_past(past, queries, keys, values, normed)?;
                past.holder.commit(past.layer, keys, values)?;
            }
        }
        self.linear_then("attn1.to_out.0", normed, Epilogue::AddTo { gate: Some(gate) }, x)
    }

    /// Attention to every page in reach and to the frames of the block itself, each with the query turned for it.
    fn attend_to_past(
        &self,
        past: Past<'_>,
        queries: &[f32],
        keys: &[f32],
        values: &[f32],
        out: &mut [f32],
    ) -> Result<()> {
        let Past { layer, holder, turns, tokens_per_frame } = past;
        let numbers = tokens_per_frame * self.config.dim();
        let pages = holder.pages(layer)?;
        check_pages(holder, &pages, layer, [tokens_per_frame, self.config.dim()])?;
        let first = holder.block_position().cast_signed();
        let earlier = pages.iter().zip(holder.positions());
        let mut segments: Vec<_> = earlier
            .map(|(page, at)| turns.segment(first - at.cast_signed(), page.keys(), page.values()))
            .collect();
        let own = keys.chunks_exact(numbers).zip(values.chunks_exact(numbers)).enumerate();
        segments.extend(
            own.map(|(frame, (keys, values))| {
                turns.segment(-frame.cast_signed(), keys.into(), values.into())
            }),
        );
        let dims = self.attention_dims(queries);
        attend(queries, &segments, dims, out);
        holder.attended(layer, &Attended { queries, segments: &segments, pages: pages.len(), dims, out });
        Ok(())
    }

    fn cross_attention(
        &self,
        x: &mut [f32],
        text: &[KvSegment<'_>],
        scratch: &mut Scratch<'_>,
    ) -> Result<()> {
        let Scratch { normed, queries, values, .. } = scratch;
        if self.config.cross_attn_norm {
            let [weight, bias] = [self.vector("norm2.weight")?, self.vector("norm2.bias")?];
            layer_norm_affine(x, weight, bias, self.eps(), normed);
        } else {
            normed.copy_from_slice(x);
        }
        self.linear("attn2.to_q", normed, values)?;
        self.rms("attn2.norm_q", values, queries)?;
        attend(queries, text, self.attention_dims(queries), normed);
        self.linear_then("attn2.to_out.0", normed, Epilogue::AddTo { gate: None }, x)
    }

    /// In chunks of rows, so that the widest activation does not grow with the video.
    fn feed_forward(&self, x: &mut [f32], scratch: &mut Scratch<'_>) -> Result<()> {
        let [shift, scale, gate] = self.rows(3);
        let dim = self.config.dim();
        let Scratch { normed, hidden, .. } = scratch;
        layer_norm_modulate(x, scale, shift, self.eps(), normed);
        let chunks = normed.chunks(FFN_CHUNK_ROWS * dim).zip(x.chunks_mut(FFN_CHUNK_ROWS * dim));
        for (input, residual) in chunks {
            let hidden = &mut hidden[..input.len() / dim * self.config.ffn_dim];
            let gelu = Epilogue::Activate(Activation::GeluTanh);
            self.linear_then("ffn.net.0.proj", input, gelu, hidden)?;
            self.linear_then("ffn.net.2", hidden, Epilogue::AddTo { gate: Some(gate) }, residual)?;
        }
        Ok(())
    }

    /// Three consecutive modulation rows: shift, scale, gate.
    fn rows(&self, first: usize) -> [&[f32]; 3] {
        let dim = self.config.dim();
        [first, first + 1, first + 2].map(|row| &self.modulation[row * dim..(row + 1) * dim])
    }

    fn attention_dims(&self, queries: &[f32]) -> AttentionDims {
        let TransformerConfig { heads, head_dim, .. } = *self.config;
        #[expect(clippy::cast_precision_loss, reason = "a head has at most 256 dimensions")]
        let scale = (head_dim as f32).sqrt().recip();
        AttentionDims { queries: queries.len() / self.config.dim(), heads, head_dim, scale }
    }

    #[expect(clippy::cast_possible_truncation, reason = "arithmetic is f32")]
    fn eps(&self) -> f32 {
        self.config.eps as f32
    }

    fn vector(&self, name: &str) -> Result<Values<'_>> {
        table(self.weights, &format!("{}.{name}", self.prefix), self.config.dim())
    }

    fn linear(&self, name: &str, x: &[f32], out: &mut [f32]) -> Result<()> {
        linear(self.weights, &format!("{}.{name}", self.prefix), x, out)
    }

    fn linear_then(&self, name: &str, x: &[f32], epilogue: Epilogue<'_>, out: &mut [f32]) -> Result<()> {
        linear_then(self.weights, &format!("{}.{name}", self.prefix), x, epilogue, out)
    }

    /// Norm over the whole width, before heads are split.
    fn rms(&self, name: &str, x: &[f32], out: &mut [f32]) -> Result<()> {
        rms_norm(x, self.vector(&format!("{name}.weight"))?, self.eps(), out);
        Ok(())
    }
}
