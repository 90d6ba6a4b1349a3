//! What a branch brings along: its text, and where its cross-attention keys and values live between steps.

use evanesce_kernels::KvSegment;

use super::frames::FrameKv;
use crate::error::Result;

/// Text embeddings of one prompt. Pad rows are all zero and take part in attention without a mask, so they are
/// counted instead of stored.
#[derive(Clone, Copy, Debug)]
pub struct TextRows<'a> {
    /// Rows of real tokens, `[real rows, text_dim]`.
    pub real: &'a [f32],
    /// How many zero rows follow them.
    pub pad_rows: usize,
}

/// One of the forward passes that a step makes over the same latents.
#[derive(Clone, Copy)]
pub struct Branch<'a> {
    /// The prompt.
    pub text: TextRows<'a>,
    /// Keys and values of that prompt under this expert.
    pub cross: &'a dyn CrossKv,
    /// Earlier latent frames, when the latents are one block of a video that is made block by block.
    pub past: Option<&'a dyn FrameKv>,
}

impl std::fmt::Debug for Branch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Branch").field("pad_rows", &self.text.pad_rows).finish_non_exhaustive()
    }
}

/// Cross-attention keys and values of one (expert, prompt), by layer.
///
/// The implementor must give back exactly the numbers that were put, or nothing: a miss costs time, never correctness.
pub trait CrossKv {
    /// The rows of `layer`, if they are held.
    ///
    /// # Errors
    /// When the holder fails in a way other than not having the page.
    fn get(&self, layer: usize) -> Result<Option<Box<dyn CrossKvPage + '_>>>;

    /// Offers the rows of `layer` for later steps: `keys` and `values`, each `[rows, dim]`. Rows are the real rows,
    /// then one row for all pad rows if there are any. The holder may decline silently.
    ///
    /// # Errors
    /// When the holder fails in a way other than having no room.
    fn put(&self, layer: usize, keys: &[f32], values: &[f32]) -> Result<()>;
}

/// Rows of one layer; they stay where they are until this is dropped.
pub trait CrossKvPage {
    /// Normalised keys, `[rows, dim]`.
    fn keys(&self) -> &[f32];
    /// Values, `[rows, dim]`.
    fn values(&self) -> &[f32];
}

/// Keeps nothing: every call computes its own keys and values.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCrossKv;

impl CrossKv for NoCrossKv {
    fn get(&self, _layer: usize) -> Result<Option<Box<dyn CrossKvPage + '_>>> {
        Ok(None)
    }

    fn put(&self, _layer: usize, _keys: &[f32], _values: &[f32]) -> Result<()> {
        Ok(())
    }
}

impl TextRows<'_> {
    /// Rows that are stored: the real ones, and one for all pads.
    pub(crate) fn stored_rows(&self, text_dim: usize) -> usize {
        self.real.len() / text_dim + usize::from(self.pad_rows > 0)
    }

    /// Splits stored rows into the real ones and the one that stands for `pad_rows` equal rows: their softmax mass is
    /// `n exp(logit)`, that is one row at `logit + ln n`.
    pub(crate) fn segments<'a>(&self, keys: &'a [f32], values: &'a [f32], dim: usize) -> Vec<KvSegment<'a>> {
        let real = keys.len() - usize::from(self.pad_rows > 0) * dim;
        let mut segments = Vec::with_capacity(2);
        if real > 0 {
            segments.push(KvSegment {
                keys: keys[..real].into(),
                values: values[..real].into(),
                logit_bias: 0.0,
                turn: None,
            });
        }
        if self.pad_rows > 0 {
            #[expect(clippy::cast_precision_loss, reason = "a prompt has at most some hundred rows")]
            let logit_bias = (self.pad_rows as f32).ln();
            segments.push(KvSegment {
                keys: keys[real..].into(),
                values: values[real..].into(),
                logit_bias,
                turn: None,
            });
        }
        segments
    }
}
