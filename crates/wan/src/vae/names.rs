//! Tensor names and shapes, read off the plan.

use super::config::VaeConfig;
use super::plan::{Layer, Stage, decoder_stages, encoder_stages};
use crate::weights::Component;

/// The pointwise convolutions, by the ends of their names: linear layers over channels.
pub(crate) const LINEAR_LAYERS: &[&str] =
    &["quant_conv", "post_quant_conv", "conv_shortcut", "to_qkv", "proj"];

/// One tensor of a layer.
pub(super) struct TensorName {
    canonical: String,
    official: String,
    shape: Vec<usize>,
}

impl TensorName {
    /// How many numbers the tensor holds.
    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Stage {
    /// The layer's tensors in the order that the forward pass reads them.
    pub(super) fn tensors(&self) -> Vec<TensorName> {
        let mut list = TensorList { stage: self, tensors: Vec::new() };
        match self.layer {
            Layer::Pointwise { channels } => list.conv("", "", [channels, channels], &[1, 1, 1]),
            Layer::Input { inputs, outputs, .. } => list.conv("", "", [outputs, inputs], &[3, 3, 3]),
            Layer::Residual { inputs, outputs, .. } => {
                list.gamma(".norm1", ".residual.0", &[inputs, 1, 1, 1]);
                list.conv(".conv1", ".residual.2", [outputs, inputs], &[3, 3, 3]);
                list.gamma(".norm2", ".residual.3", &[outputs, 1, 1, 1]);
                list.conv(".conv2", ".residual.6", [outputs, outputs], &[3, 3, 3]);
                if inputs != outputs {
                    list.conv(".conv_shortcut", ".shortcut", [outputs, inputs], &[1, 1, 1]);
                }
            }
            Layer::Attention { channels } => {
                list.gamma(".norm", ".norm", &[channels, 1, 1]);
                list.conv(".to_qkv", ".to_qkv", [3 * channels, channels], &[1, 1]);
                list.conv(".proj", ".proj", [channels, channels], &[1, 1]);
            }
            Layer::Upsample { channels, time } => {
                if time.is_some() {
                    list.conv(".time_conv", ".time_conv", [2 * channels, channels], &[3, 1, 1]);
                }
                list.conv(".resample.1", ".resample.1", [channels / 2, channels], &[3, 3]);
            }
            Layer::Downsample { channels, time } => {
                list.conv(".resample.1", ".resample.1", [channels, channels], &[3, 3]);
                if time.is_some() {
                    list.conv(".time_conv", ".time_conv", [channels, channels], &[3, 1, 1]);
                }
            }
            Layer::Output { inputs, outputs, .. } => {
                list.gamma(".norm_out", ".head.0", &[inputs, 1, 1, 1]);
                list.conv(".conv_out", ".head.2", [outputs, inputs], &[3, 3, 3]);
            }
        }
        list.tensors
    }
}

struct TensorList<'a> {
    stage: &'a Stage,
    tensors: Vec<TensorName>,
}

impl TensorList<'_> {
    fn push(&mut self, canonical: &str, official: &str, leaf: &str, shape: Vec<usize>) {
        let canonical = format!("{}{canonical}.{leaf}", self.stage.names.canonical);
        let official = format!("{}{official}.{leaf}", self.stage.names.official);
        self.tensors.push(TensorName { canonical, official, shape });
    }

    fn gamma(&mut self, canonical: &str, official: &str, shape: &[usize]) {
        self.push(canonical, official, "gamma", shape.to_vec());
    }

    fn conv(&mut self, canonical: &str, official: &str, [outputs, inputs]: [usize; 2], taps: &[usize]) {
        self.push(canonical, official, "weight", [&[outputs, inputs], taps].concat());
        self.push(canonical, official, "bias", vec![outputs]);
    }
}

/// The tensors (canonical name, shape) that each weight group of a VAE half holds; empty for other components. Each
/// half is one group: it is small next to one transformer block.
#[must_use]
pub fn expected_tensors(config: &VaeConfig, component: Component) -> Vec<Vec<(String, Vec<usize>)>> {
    let stages = match component {
        Component::VaeDecoder => decoder_stages(config),
        Component::VaeEncoder => encoder_stages(config),
        Component::TextEncoder | Component::HighNoise | Component::LowNoise => return Vec::new(),
    };
    let tensors = stages.iter().flat_map(Stage::tensors);
    vec![tensors.map(|tensor| (tensor.canonical, tensor.shape)).collect()]
}

/// The canonical name of a tensor that the official checkpoint (`Wan2.1_VAE.pth`) calls `official`, or `None` for a
/// name that no VAE of this shape has there.
#[must_use]
pub fn canonical_name(config: &VaeConfig, official: &str) -> Option<String> {
    let stages = [encoder_stages(config), decoder_stages(config)].concat();
    let mut tensors = stages.iter().flat_map(Stage::tensors);
    tensors.find(|tensor| tensor.official == official).map(|tensor| tensor.canonical)
}
