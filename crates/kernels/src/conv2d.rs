//! 2-D convolution over channels-last frames, with the VAE's resampling folded in.

use crate::conv3d::{Conv3d, conv3d_causal};

/// How a [`conv2d`] meets the borders and the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Conv2dMode {
    /// Zero padding of `(k - 1) / 2`, stride 1: `[h, w]` to `[h, w]`.
    Same,
    /// A 3x3 `Same` convolution of the picture enlarged twice by nearest neighbour: `[h, w]` to `[2 h, 2 w]`.
    UpNearest2,
    /// 3x3, zero padding by one below and to the right, stride 2: `[h, w]` to `[h / 2, w / 2]` rounded down.
    Down2,
}

/// Convolves each of `frames` pictures `x` `[frames, h, w, cin]` into `out` `[frames, h', w', cout]`.
///
/// # Panics
/// When a length does not fit, `conv.kt` is not 1, or a resampling mode is used with another kernel than 3x3.
pub fn conv2d(
    x: &[f32],
    frames: usize,
    h: usize,
    w: usize,
    conv: Conv3d<'_>,
    mode: Conv2dMode,
    out: &mut [f32],
) {
    conv.check("conv2d");
    assert_eq!(conv.kt, 1, "conv2d: kt must be 1");
    assert_eq!(x.len(), frames * h * w * conv.cin, "conv2d: x must be [frames, h, w, cin]");
    if mode != Conv2dMode::Same {
        assert!(conv.kh == 3 && conv.kw == 3, "conv2d: resampling needs a 3x3 kernel");
    }
    let (oh, ow) = match mode {
        Conv2dMode::Same => (h, w),
        Conv2dMode::UpNearest2 => (2 * h, 2 * w),
        Conv2dMode::Down2 => (h / 2, w / 2),
    };
    assert_eq!(out.len(), frames * oh * ow * conv.cout, "conv2d: out must be [frames, h', w', cout]");
    if out.is_empty() {
        return;
    }
    match mode {
        Conv2dMode::Same => conv3d_causal(x, &[], frames, h, w, conv, 1, out),
        Conv2dMode::UpNearest2 => {
            let mut large = vec![0.0; frames * oh * ow * conv.cin];
            for (i, to) in large.chunks_mut(conv.cin).enumerate() {
                let (t, y, xx) = (i / (oh * ow), i / ow % oh, i % ow);
                to.copy_from_slice(&x[((t * h + y / 2) * w + xx / 2) * conv.cin..][..conv.cin]);
            }
            conv3d_causal(&large, &[], frames, oh, ow, conv, 1, out);
        }
        Conv2dMode::Down2 => {
            let mut full = vec![0.0; frames * h * w * conv.cout];
            conv3d_causal(x, &[], frames, h, w, conv, 1, &mut full);
            for (i, to) in out.chunks_mut(conv.cout).enumerate() {
                let (t, y, xx) = (i / (oh * ow), i / ow % oh, i % ow);
                to.copy_from_slice(&full[((t * h + 2 * y + 1) * w + 2 * xx + 1) * conv.cout..][..conv.cout]);
            }
        }
    }
}
