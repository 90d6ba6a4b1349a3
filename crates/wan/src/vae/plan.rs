//! The layers of each half, in forward order, as data.
//!
//! Names, shapes, slots and memory are all read off the same list, so they cannot disagree with what is computed.

use std::ops::Range;

use super::config::VaeConfig;
use super::slots::{Half, Place, SlotId};

/// Frames per chunk at some depth: one number for the stream's first chunk, one for all later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) first: usize,
    pub(super) later: usize,
}

impl Rate {
    /// Frames of chunk `chunk`.
    pub(super) fn of(self, chunk: u64) -> usize {
        if chunk == 0 { self.first } else { self.later }
    }

    /// Frames of all chunks before `chunk`.
    fn before(self, chunk: u64) -> u64 {
        if chunk == 0 { 0 } else { self.first as u64 + (chunk - 1) * self.later as u64 }
    }
}

/// One causal convolution's kept frames.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) id: SlotId,
    pub(super) channels: usize,
    /// How many of the newest frames the next chunk reads.
    pub(super) kept: u64,
    /// Frames that the convolution is given.
    pub(super) rate: Rate,
}

impl Slot {
    /// The frames that chunk `chunk` reads, oldest first. Before them there are zeros.
    pub(super) fn past(&self, chunk: u64) -> Range<u64> {
        let end = self.rate.before(chunk);
        end.saturating_sub(self.kept)..end
    }

    /// The frames of chunk `chunk` that later chunks read.
    pub(super) fn committed(&self, chunk: u64) -> Range<u64> {
        let start = self.rate.before(chunk);
        let end = self.rate.before(chunk + 1);
        end.saturating_sub(self.kept).max(start)..end
    }

    /// In how many chunks after `chunk` frame `frame` of that chunk is read: until it is no longer among the newest.
    pub(super) fn readings(&self, chunk: u64, frame: u64) -> u32 {
        let newer = self.rate.before(chunk + 1) - 1 - frame;
        let readings = (self.kept - newer).div_ceil(self.rate.later as u64);
        u32::try_from(readings).expect("at most two")
    }
}

/// A layer's name in diffusers' checkpoints and in the official one.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) canonical: String,
    pub(super) official: String,
}

#[derive(Clone, Debug)]
pub(super) enum Layer {
    /// 1x1x1 convolution at the latent end.
    Pointwise { channels: usize },
    /// Causal 3x3x3 convolution that the half begins with.
    Input { inputs: usize, outputs: usize, slot: Slot },
    /// Norm, SiLU, convolution, twice, and a shortcut.
    Residual { inputs: usize, outputs: usize, slots: [Slot; 2] },
    /// Single-head attention inside each frame.
    Attention { channels: usize },
    /// Twice the frames (with a slot), twice the height and width, half the channels.
    Upsample { channels: usize, time: Option<Slot> },
    /// Half the height and width, half the frames (with a slot).
    Downsample { channels: usize, time: Option<Slot> },
    /// Norm, SiLU and the causal 3x3x3 convolution that the half ends with.
    Output { inputs: usize, outputs: usize, slot: Slot },
}

/// One layer with everything known about it before any weight is read.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    pub(super) names: Names,
    pub(super) layer: Layer,
    /// Frames that the layer is given.
    pub(super) rate: Rate,
}

/// A half under construction.
struct Builder {
    half: Half,
    stages: Vec<Stage>,
    channels: usize,
    rate: Rate,
}

impl Builder {
    fn push(&mut self, canonical: &str, official: &str, layer: Layer) {
        let names = Names { canonical: canonical.to_owned(), official: official.to_owned() };
        self.stages.push(Stage { names, layer, rate: self.rate });
    }

    fn prefix(&self) -> &'static str {
        match self.half {
            Half::Encoder => "encoder",
            Half::Decoder => "decoder",
        }
    }

    fn slot(&self, place: Place, channels: usize) -> Slot {
        Slot { id: SlotId { half: self.half, place }, channels, kept: 2, rate: self.rate }
    }

    fn input(&mut self, outputs: usize) {
        let slot = self.slot(Place::Input, self.channels);
        let prefix = self.prefix();
        let layer = Layer::Input { inputs: self.channels, outputs, slot };
        self.push(&format!("{prefix}.conv_in"), &format!("{prefix}.conv1"), layer);
        self.channels = outputs;
    }

    fn residual(&mut self, canonical: &str, official: &str, outputs: usize, place: impl Fn(u8) -> Place) {
        let slots = [self.slot(place(0), self.channels), self.slot(place(1), outputs)];
        self.push(canonical, official, Layer::Residual { inputs: self.channels, outputs, slots });
        self.channels = outputs;
    }

    fn middle(&mut self) {
        let prefix = self.prefix();
        let (canonical, official) = (format!("{prefix}.mid_block"), format!("{prefix}.middle"));
        let channels = self.channels;
        let place = |block| move |conv| Place::Middle { block, conv };
        self.residual(&format!("{canonical}.resnets.0"), &format!("{official}.0"), channels, place(0));
        let attention = Layer::Attention { channels };
        self.push(&format!("{canonical}.attentions.0"), &format!("{official}.1"), attention);
        self.residual(&format!("{canonical}.resnets.1"), &format!("{official}.2"), channels, place(1));
    }

    fn output(&mut self, outputs: usize) {
        let slot = self.slot(Place::Output, self.channels);
        let prefix = self.prefix();
        let layer = Layer::Output { inputs: self.channels, outputs, slot };
        self.push(prefix, prefix, layer);
        self.channels = outputs;
    }
}

fn small(index: usize) -> u8 {
    u8::try_from(index).expect("levels and blocks are few: the config is checked")
}

/// The decoder's layers. A chunk is one latent frame.
pub(super) fn decoder_stages(config: &VaeConfig) -> Vec<Stage> {
    let rate = Rate { first: 1, later: 1 };
    let mut b = Builder { half: Half::Decoder, stages: Vec::new(), channels: config.z_dim, rate };
    b.push("post_quant_conv", "conv2", Layer::Pointwise { channels: config.z_dim });
    let last = config.dim_mult.len() - 1;
    b.input(config.decoder_dim * config.dim_mult[last]);
    b.middle();
    let blocks = config.num_res_blocks + 1;
    for level in 0..=last {
        let outputs = config.decoder_dim * config.dim_mult[last - level];
        let first_official = level * (blocks + 1);
        for block in 0..blocks {
            let canonical = format!("decoder.up_blocks.{level}.resnets.{block}");
            let official = format!("decoder.upsamples.{}", first_official + block);
            let (level, block) = (small(level), small(block));
            b.residual(&canonical, &official, outputs, |conv| Place::Level { level, block, conv });
        }
        if level == last {
            break;
        }
        let doubles = config.temporal_downsample[last - 1 - level];
        // The stream's first frame passes untouched and is never seen by the convolution over time.
        let seen = Rate { first: 0, later: b.rate.later };
        let slot = Slot { rate: seen, ..b.slot(Place::Time { level: small(level) }, outputs) };
        let layer = Layer::Upsample { channels: outputs, time: doubles.then_some(slot) };
        let canonical = format!("decoder.up_blocks.{level}.upsamplers.0");
        b.push(&canonical, &format!("decoder.upsamples.{}", first_official + blocks), layer);
        b.channels = outputs / 2;
        b.rate.later *= if doubles { 2 } else { 1 };
    }
    b.output(3);
    b.stages
}

/// The encoder's layers. A chunk is the pictures of one latent frame.
pub(super) fn encoder_stages(config: &VaeConfig) -> Vec<Stage> {
    let rate = Rate { first: 1, later: config.temporal_factor() };
    let mut b = Builder { half: Half::Encoder, stages: Vec::new(), channels: 3, rate };
    b.input(config.encoder_dim);
    let last = config.dim_mult.len() - 1;
    for level in 0..=last {
        let outputs = config.encoder_dim * config.dim_mult[level];
        let first = level * (config.num_res_blocks + 1);
        let names = |index| (format!("encoder.down_blocks.{index}"), format!("encoder.downsamples.{index}"));
        for block in 0..config.num_res_blocks {
            let (canonical, official) = names(first + block);
            let (level, block) = (small(level), small(block));
            b.residual(&canonical, &official, outputs, |conv| Place::Level { level, block, conv });
        }
        if level == last {
            break;
        }
        let halves = config.temporal_downsample[level];
        // Stride two with three taps: the frame before the chunk is all the past there is to see.
        let slot = Slot { kept: 1, ..b.slot(Place::Time { level: small(level) }, outputs) };
        let (canonical, official) = names(first + config.num_res_blocks);
        b.push(&canonical, &official, Layer::Downsample { channels: outputs, time: halves.then_some(slot) });
        b.rate.later /= if halves { 2 } else { 1 };
    }
    b.middle();
    b.output(2 * config.z_dim);
    b.push("quant_conv", "conv1", Layer::Pointwise { channels: 2 * config.z_dim });
    b.stages
}
