//! One chunk going through a half's layers.

use evanesce_kernels::{
    Activation, AttentionDims, Conv2dMode, Conv3d, Epilogue, KvSegment, LinearDims, add, attend,
    channel_norm, conv2d, conv3d_causal, linear_then, split_pairs,
};

use super::plan::{Layer, Slot, Stage};
use super::slots::FeatureSlots;
use crate::error::{Result, WanError};
use crate::weights::{Matrix, Param, WeightGroup};

/// Activations between two layers, `[frames, height, width, channels]`.
#[derive(Debug)]
pub(super) struct Features {
    pub(super) values: Vec<f32>,
    pub(super) frames: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
}

impl Features {
    fn zeros(frames: usize, height: usize, width: usize, channels: usize) -> Self {
        Self { values: vec![0.0; frames * height * width * channels], frames, height, width, channels }
    }

    fn pixels(&self) -> usize {
        self.frames * self.height * self.width
    }

    fn frame_len(&self) -> usize {
        self.height * self.width * self.channels
    }
}

/// A branch ends in what it is added to.
const ADD: Epilogue<'static> = Epilogue::AddTo { gate: None };

/// What every layer of one chunk works with.
pub(super) struct Pass<'a> {
    pub(super) group: &'a dyn WeightGroup,
    pub(super) slots: &'a dyn FeatureSlots,
    /// Number of the chunk in its stream.
    pub(super) chunk: u64,
}

impl Pass<'_> {
    /// Runs `stages` over `x`, dropping each activation as soon as the next one exists.
    pub(super) fn run(&self, stages: &[Stage], mut x: Features) -> Result<Features> {
        for stage in stages {
            debug_assert_eq!(x.frames, stage.rate.of(self.chunk), "{}", stage.names.canonical);
            x = self.layer(stage, x)?;
        }
        Ok(x)
    }

    fn layer(&self, stage: &Stage, x: Features) -> Result<Features> {
        let name = stage.names.canonical.as_str();
        match &stage.layer {
            Layer::Pointwise { channels } => self.pointwise(&x, name, *channels),
            Layer::Input { outputs, slot, .. } => self.causal(&x, name, *outputs, slot),
            Layer::Residual { outputs, slots, .. } => self.residual(&x, name, *outputs, slots),
            Layer::Attention { .. } => self.attention(x, name),
            Layer::Upsample { time, .. } => self.upsample(x, name, time.as_ref()),
            Layer::Downsample { time, .. } => self.downsample(x, name, time.as_ref()),
            Layer::Output { outputs, slot, .. } => {
                let x = self.norm(&x, &format!("{name}.norm_out"), Activation::Silu)?;
                self.causal(&x, &format!("{name}.conv_out"), *outputs, slot)
            }
        }
    }

    fn param(&self, name: &str, elements: usize) -> Result<Param<'_>> {
        let param = self.group.param(name)?;
        if param.values.len() == elements {
            return Ok(param);
        }
        Err(WanError::mismatch(name, format!("shape {:?}", param.shape), format!("{elements} numbers")))
    }

    fn conv(&self, name: &str, cin: usize, cout: usize, [kt, kh, kw]: [usize; 3]) -> Result<Conv3d<'_>> {
        let weight = self.param(&format!("{name}.weight"), cout * cin * kt * kh * kw)?.values;
        let bias = Some(self.param(&format!("{name}.bias"), cout)?.values);
        Ok(Conv3d { weight, bias, cin, cout, kt, kh, kw })
    }

    fn norm(&self, x: &Features, name: &str, activation: Activation) -> Result<Features> {
        let gamma = self.param(&format!("{name}.gamma"), x.channels)?.values;
        let mut out = Features::zeros(x.frames, x.height, x.width, x.channels);
        channel_norm(&x.values, gamma, activation, &mut out.values);
        Ok(out)
    }

    fn pointwise(&self, x: &Features, name: &str, outputs: usize) -> Result<Features> {
        let mut out = Features::zeros(x.frames, x.height, x.width, outputs);
        self.pointwise_then(x, name, Epilogue::Activate(Activation::None), &mut out)?;
        Ok(out)
    }

    /// As [`Self::pointwise`], with `epilogue` applied to what the convolution gives.
    fn pointwise_then(
        &self,
        x: &Features,
        name: &str,
        epilogue: Epilogue<'_>,
        out: &mut Features,
    ) -> Result<()> {
        let outputs = out.channels;
        let Matrix { weight, outputs: rows, inputs } = self.group.matrix(&format!("{name}.weight"))?;
        if [rows, inputs] != [outputs, x.channels] {
            let expected = format!("[{outputs}, {}]", x.channels);
            return Err(WanError::mismatch(name, format!("[{rows}, {inputs}]"), expected));
        }
        let bias = Some(self.param(&format!("{name}.bias"), outputs)?.values);
        let dims = LinearDims { rows: x.pixels(), inputs, outputs };
        linear_then(&x.values, weight, bias, dims, epilogue, &mut out.values);
        Ok(())
    }

    fn residual(&self, x: &Features, name: &str, outputs: usize, slots: &[Slot; 2]) -> Result<Features> {
        let mut h = self.norm(x, &format!("{name}.norm1"), Activation::Silu)?;
        h = self.causal(&h, &format!("{name}.conv1"), outputs, &slots[0])?;
        h = self.norm(&h, &format!("{name}.norm2"), Activation::Silu)?;
        h = self.causal(&h, &format!("{name}.conv2"), outputs, &slots[1])?;
        if x.channels == outputs {
            add(&mut h.values, &x.values);
        } else {
            self.pointwise_then(x, &format!("{name}.conv_shortcut"), ADD, &mut h)?;
        }
        Ok(h)
    }

    /// The causal 3x3x3 convolution `name`.
    fn causal(&self, x: &Features, name: &str, outputs: usize, slot: &Slot) -> Result<Features> {
        let conv = self.conv(name, x.channels, outputs, [3, 3, 3])?;
        let mut out = Features::zeros(x.frames, x.height, x.width, outputs);
        self.convolve(x, conv, slot, 1, &mut out)?;
        Ok(out)
    }

    /// Reads the slot's past, convolves, gives the past up, keeps the newest frames of `x`: in this order, so that a
    /// slot never holds more than it needs.
    fn convolve(
        &self,
        x: &Features,
        conv: Conv3d<'_>,
        slot: &Slot,
        stride_t: usize,
        out: &mut Features,
    ) -> Result<()> {
        let past = slot.past(self.chunk).map(|index| self.slots.read(slot.id, index));
        let past = past.collect::<Result<Vec<_>>>()?;
        let past_values: Vec<&[f32]> = past.iter().map(|frame| frame.values()).collect();
        if let Some(wrong) = past_values.iter().find(|values| values.len() != x.frame_len()) {
            let what = format!("a kept frame of {}", slot.id);
            return Err(WanError::mismatch(what, wrong.len(), format!("{} numbers", x.frame_len())));
        }
        let Features { frames, height, width, .. } = *x;
        conv3d_causal(&x.values, &past_values, frames, height, width, conv, stride_t, &mut out.values);
        drop(past);
        self.commit(x, slot)
    }

    fn commit(&self, x: &Features, slot: &Slot) -> Result<()> {
        let committed = slot.committed(self.chunk);
        let frames = x.values.chunks_exact(x.frame_len());
        let older = frames.len() - committed.clone().count();
        for (index, frame) in committed.zip(frames.skip(older)) {
            self.slots.commit(slot.id, index, slot.readings(self.chunk, index), frame)?;
        }
        Ok(())
    }

    fn attention(&self, mut x: Features, name: &str) -> Result<Features> {
        let (pixels, channels) = (x.height * x.width, x.channels);
        let normed = self.norm(&x, &format!("{name}.norm"), Activation::None)?;
        let qkv = self.pointwise(&normed, &format!("{name}.to_qkv"), 3 * channels)?;
        let mut mixed = normed;
        #[expect(clippy::cast_precision_loss, reason = "channel counts are small")]
        let scale = 1.0 / (channels as f32).sqrt();
        let dims = AttentionDims { queries: pixels, heads: 1, head_dim: channels, scale };
        let frames = qkv.values.chunks_exact(pixels * 3 * channels);
        for (qkv, out) in frames.zip(mixed.values.chunks_exact_mut(pixels * channels)) {
            let part = |index: usize| -> Vec<f32> {
                let rows = qkv.chunks_exact(3 * channels);
                rows.flat_map(|row| &row[index * channels..(index + 1) * channels]).copied().collect()
            };
            let (keys, values) = (part(1), part(2));
            let segment =
                KvSegment { keys: keys[..].into(), values: values[..].into(), logit_bias: 0.0, turn: None };
            attend(&part(0), &[segment], dims, out);
        }
        self.pointwise_then(&mixed, &format!("{name}.proj"), ADD, &mut x)?;
        Ok(x)
    }

    fn upsample(&self, mut x: Features, name: &str, time: Option<&Slot>) -> Result<Features> {
        if let Some(slot) = time
            && self.chunk > 0
        {
            x = self.double_frames(&x, &format!("{name}.time_conv"), slot)?;
        }
        let outputs = x.channels / 2;
        let conv = self.conv(&format!("{name}.resample.1"), x.channels, outputs, [1, 3, 3])?;
        let mut out = Features::zeros(x.frames, 2 * x.height, 2 * x.width, outputs);
        conv2d(&x.values, x.frames, x.height, x.width, conv, Conv2dMode::UpNearest2, &mut out.values);
        Ok(out)
    }

    /// Each frame becomes two: the first half of the convolution's channels, then the second.
    fn double_frames(&self, x: &Features, name: &str, slot: &Slot) -> Result<Features> {
        let channels = x.channels;
        let conv = self.conv(name, channels, 2 * channels, [3, 1, 1])?;
        let mut pairs = Features::zeros(x.frames, x.height, x.width, 2 * channels);
        self.convolve(x, conv, slot, 1, &mut pairs)?;
        let mut out = Features::zeros(2 * x.frames, x.height, x.width, channels);
        split_pairs(&pairs.values, x.height * x.width, channels, &mut out.values);
        Ok(out)
    }

    fn downsample(&self, x: Features, name: &str, time: Option<&Slot>) -> Result<Features> {
        let channels = x.channels;
        let conv = self.conv(&format!("{name}.resample.1"), channels, channels, [1, 3, 3])?;
        let mut halved = Features::zeros(x.frames, x.height / 2, x.width / 2, channels);
        conv2d(&x.values, x.frames, x.height, x.width, conv, Conv2dMode::Down2, &mut halved.values);
        drop(x);
        let Some(slot) = time else { return Ok(halved) };
        if self.chunk == 0 {
            self.commit(&halved, slot)?;
            return Ok(halved);
        }
        let conv = self.conv(&format!("{name}.time_conv"), channels, channels, [3, 1, 1])?;
        let mut out = Features::zeros(halved.frames / 2, halved.height, halved.width, channels);
        self.convolve(&halved, conv, slot, 2, &mut out)?;
        Ok(out)
    }
}
