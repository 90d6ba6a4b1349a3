//! The weights and inputs that the golden script drew, drawn again.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use evanesce_kernels::Dtype;
use evanesce_wan::vae::{Decoder, Encoder, VaeConfig, expected_tensors};
use evanesce_wan::weights::{Component, GroupId, MapSource};

use crate::draw::{draw, parameter, to_bytes};

/// `weight` of the golden script.
fn weight(name: &str, shape: &[usize]) -> Vec<f32> {
    if name.ends_with("gamma") {
        return draw(name, shape.iter().product(), 1.0, 1.0);
    }
    parameter(name, shape)
}

pub(crate) fn weights(config: &VaeConfig, change: impl Fn(&str, &mut Vec<f32>)) -> MapSource {
    let mut source = MapSource::default();
    for component in [Component::VaeEncoder, Component::VaeDecoder] {
        for (index, group) in expected_tensors(config, component).into_iter().enumerate() {
            let tensors = group.into_iter().map(|(name, shape)| {
                let mut values = weight(&name, &shape);
                change(&name, &mut values);
                (name, Dtype::F32, shape, to_bytes(&values, Dtype::F32))
            });
            source.insert(GroupId { component, index }, tensors.collect());
        }
    }
    source
}

pub(crate) fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/vae").join(name)
}

/// One case of the golden script.
pub(crate) struct Case {
    pub(crate) config: VaeConfig,
    pub(crate) decoder: Decoder,
    pub(crate) encoder: Encoder,
    pub(crate) weights: MapSource,
    /// `[z, frames, h, w]`, normalised.
    pub(crate) latents: Tensor,
    /// `[pictures, H, W, 3]`.
    pub(crate) pictures: Tensor,
    pub(crate) decoded: Tensor,
    pub(crate) encoded: Tensor,
}

pub(crate) fn case(name: &str) -> Case {
    let path = golden_path(&format!("{name}.json"));
    let config = VaeConfig::from_json(&path, &std::fs::read_to_string(&path).unwrap()).unwrap();
    let path = golden_path(&format!("{name}.safetensors"));
    let mut golden = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let (decoded, encoded) = (golden.remove("decoded").unwrap(), golden.remove("encoded").unwrap());
    let drawn = |what: &str, scale: f32, like: &Tensor| {
        let values = draw(&format!("{name}.{what}"), like.elem_count(), scale, 0.0);
        Tensor::from_vec(values, like.shape(), &Device::Cpu).unwrap()
    };
    Case {
        weights: weights(&config, |_, _| ()),
        latents: drawn("latents", 4.0, &encoded),
        pictures: drawn("pictures", 2.0, &decoded),
        decoder: Decoder::new(config.clone()),
        encoder: Encoder::new(config.clone()),
        config,
        decoded,
        encoded,
    }
}

pub(crate) fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// ‖a − b‖ / ‖b‖.
pub(crate) fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (numbers(a), numbers(b));
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(&b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    (difference / norm).sqrt()
}
