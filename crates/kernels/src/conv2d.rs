//! 2-D convolution over channels-last frames, with the VAE's resampling folded in.

use crate::conv3d::Conv3d;
use crate::convolve::Taps;
use crate::isa::Isa;
use crate::values::Values;

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
    let isa = Isa::current();
    let sources = x.chunks(h * w * conv.cin).map(Some).collect();
    let phases = match mode {
        Conv2dMode::Same | Conv2dMode::Down2 => vec![conv.taps(isa)],
        Conv2dMode::UpNearest2 => enlarged(isa, conv),
    };
    let mut plan = conv.plan(isa, sources, [h, w], phases);
    match mode {
        Conv2dMode::Same => {}
        Conv2dMode::Down2 => (plan.pad, plan.stride, plan.grid) = ([0, 0], 2, [oh, ow]),
        Conv2dMode::UpNearest2 => plan.cell = 2,
    }
    plan.run(out);
}

/// The four pixels that a source pixel becomes, each a 2x2 convolution of the source: where two taps of the kernel
/// meet the same source pixel, their weights are added beforehand.
fn enlarged(isa: Isa, conv: Conv3d<'_>) -> Vec<Taps> {
    // For the upper (left) and the lower (right) pixel: which source pixel, of three around the cell, a tap reads.
    const READS: [[usize; 3]; 2] = [[0, 1, 1], [1, 1, 2]];
    let kernel = conv.weight.to_vec();
    let phase = |row: usize, column: usize| {
        let mut weight = vec![0.0; conv.cout * conv.cin * 4];
        for (to, from) in weight.chunks_exact_mut(4).zip(kernel.chunks_exact(9)) {
            for (y, from) in from.chunks_exact(3).enumerate() {
                for (x, from) in from.iter().enumerate() {
                    to[(READS[row][y] - row) * 2 + READS[column][x] - column] += from;
                }
            }
        }
        let offsets = (0..4).map(|tap| [0, row + tap / 2, column + tap % 2]).collect();
        Taps::new(isa, Values::from(&weight[..]), [conv.cout, conv.cin], offsets, [row, column])
    };
    vec![phase(0, 0), phase(0, 1), phase(1, 0), phase(1, 1)]
}
