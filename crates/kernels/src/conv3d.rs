//! Causal 3-D convolution over channels-last frames.

use rayon::prelude::*;

use crate::values::Values;

/// A convolution's weights.
#[derive(Clone, Copy, Debug)]
pub struct Conv3d<'a> {
    /// `[cout, cin, kt, kh, kw]`, as in the checkpoint.
    pub weight: Values<'a>,
    /// `[cout]`.
    pub bias: Option<Values<'a>>,
    /// Channels of the input.
    pub cin: usize,
    /// Channels of the output.
    pub cout: usize,
    /// Taps in time.
    pub kt: usize,
    /// Taps down the picture.
    pub kh: usize,
    /// Taps across the picture.
    pub kw: usize,
}

impl Conv3d<'_> {
    pub(crate) fn check(&self, name: &str) {
        assert!(
            self.kt > 0 && self.kh % 2 == 1 && self.kw % 2 == 1,
            "{name}: kh and kw must be odd and kt at least 1"
        );
        assert_eq!(
            self.weight.len(),
            self.cout * self.cin * self.kt * self.kh * self.kw,
            "{name}: weight must be [cout, cin, kt, kh, kw]"
        );
        if let Some(bias) = self.bias {
            assert_eq!(bias.len(), self.cout, "{name}: bias must be [cout]");
        }
    }
}

/// Convolves `frames` new frames `x` `[frames, h, w, cin]`, which follow the frames of `past` (each `[h, w, cin]`,
/// oldest first, at most `kt - 1`), into `out` `[frames_out, h, w, cout]`. In space: zero padding of
/// `(k - 1) / 2`, stride 1.
///
/// In time, output frame `t` reads `kt` consecutive frames:
/// - `stride_t == 1`: those that end with frame `t` of `x`; frames before all that is given are zeros.
///   `frames_out == frames`.
/// - `stride_t == 2`: those that begin with frame `2 t` of `past` followed by `x`; nothing is padded.
///   `frames_out == (past.len() + frames - kt) / 2 + 1`, or none when fewer than `kt` frames are given.
///
/// An output frame has the same bits whether its predecessors arrive in `x` or in `past`.
///
/// # Panics
/// When a length does not fit, `past` holds more than `kt - 1` frames, or `stride_t` is neither 1 nor 2.
#[expect(clippy::too_many_arguments, reason = "sizes of one picture stack; a struct would be built at every call")]
pub fn conv3d_causal(
    x: &[f32],
    past: &[&[f32]],
    frames: usize,
    h: usize,
    w: usize,
    conv: Conv3d<'_>,
    stride_t: usize,
    out: &mut [f32],
) {
    conv.check("conv3d_causal");
    let frame = h * w * conv.cin;
    assert_eq!(x.len(), frames * frame, "conv3d_causal: x must be [frames, h, w, cin]");
    assert!(past.len() < conv.kt, "conv3d_causal: past must hold at most kt - 1 frames");
    assert!(past.iter().all(|p| p.len() == frame), "conv3d_causal: each past frame must be [h, w, cin]");
    assert!(stride_t == 1 || stride_t == 2, "conv3d_causal: stride_t must be 1 or 2");
    let given = past.len() + frames;
    let (frames_out, first) = match stride_t {
        1 => (frames, past.len() as isize - (conv.kt as isize - 1)),
        _ if given < conv.kt => (0, 0),
        _ => ((given - conv.kt) / 2 + 1, 0),
    };
    assert_eq!(out.len(), frames_out * h * w * conv.cout, "conv3d_causal: out must be [frames_out, h, w, cout]");
    if out.is_empty() {
        return;
    }
    let source = |t: isize| -> Option<&[f32]> {
        let t = usize::try_from(t).ok()?;
        Some(if t < past.len() { past[t] } else { &x[(t - past.len()) * frame..][..frame] })
    };
    let weight = conv.weight.to_vec();
    let bias = conv.bias.map_or_else(|| vec![0.0; conv.cout], |b| b.to_vec());
    out.par_chunks_mut(w * conv.cout).enumerate().for_each(|(row, to)| {
        let (t, y) = (row / h, row % h);
        for xx in 0..w {
            let to = &mut to[xx * conv.cout..][..conv.cout];
            to.copy_from_slice(&bias);
            for dt in 0..conv.kt {
                let Some(from) = source(first + (t * stride_t + dt) as isize) else { continue };
                for dy in 0..conv.kh {
                    let Some(sy) = (y + dy).checked_sub(conv.kh / 2).filter(|v| *v < h) else { continue };
                    for dx in 0..conv.kw {
                        let Some(sx) = (xx + dx).checked_sub(conv.kw / 2).filter(|v| *v < w) else { continue };
                        let from = &from[(sy * w + sx) * conv.cin..][..conv.cin];
                        let taps = conv.kt * conv.kh * conv.kw;
                        let tap = (dt * conv.kh + dy) * conv.kw + dx;
                        for (o, value) in to.iter_mut().enumerate() {
                            for (c, v) in from.iter().enumerate() {
                                *value += v * weight[(o * conv.cin + c) * taps + tap];
                            }
                        }
                    }
                }
            }
        }
    });
}
