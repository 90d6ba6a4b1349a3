//! Stored outputs of the reference implementations.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use evanesce_kernels::{Dtype, Values};
use safetensors::SafeTensors;

/// A stored golden.
pub(crate) fn golden_path(area: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(area).join(file)
}

/// Every tensor of a golden as f32.
pub(crate) fn read_golden(area: &str, file: &str) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(golden_path(area, file)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let number = |bytes: &[u8]| Values::new(Dtype::F32, bytes).unwrap().to_vec();
    tensors.tensors().into_iter().map(|(name, view)| (name, number(view.data()))).collect()
}

/// `‖a − b‖ / ‖b‖`.
pub(crate) fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    (difference / norm).sqrt()
}
