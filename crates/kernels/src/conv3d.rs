//! Causal 3-D convolution over channels-last frames.

use crate::convolve::{Plan, Taps};
use crate::isa::Isa;
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
            self.cin > 0 && self.kt > 0 && self.kh % 2 == 1 && self.kw % 2 == 1,
            "{name}: kh and kw must be odd, cin and kt at least 1"
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

    /// The weights of all taps, for one output pixel per input pixel.
    pub(crate) fn taps(&self, isa: Isa) -> Taps {
        let mut offsets = Vec::with_capacity(self.kt * self.kh * self.kw);
        for t in 0..self.kt {
            for y in 0..self.kh {
                offsets.extend((0..self.kw).map(|x| [t, y, x]));
            }
        }
        Taps::new(isa, self.weight, [self.cout, self.cin], offsets, [0, 0])
    }

    /// A convolution of `sources` with spatial zero padding of `(k - 1) / 2` and stride 1, by `phases`.
    pub(crate) fn plan<'a>(
        &self,
        isa: Isa,
        sources: Vec<Option<&'a [f32]>>,
        size: [usize; 2],
        phases: Vec<Taps>,
    ) -> Plan<'a> {
        Plan {
            isa,
            sources,
            stride_t: 1,
            size,
            cin: self.cin,
            cout: self.cout,
            reach: [self.kt, self.kh, self.kw],
            pad: [self.kh / 2, self.kw / 2],
            stride: 1,
            grid: size,
            cell: 1,
            phases,
            bias: self.bias.map_or_else(|| vec![0.0; self.cout], |bias| bias.to_vec()),
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
#[expect(
    clippy::too_many_arguments,
    reason = "sizes of one picture stack; a struct would be built at every call"
)]
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
    let frames_out = match stride_t {
        1 => frames,
        _ => (given + 2).saturating_sub(conv.kt) / 2,
    };
    assert_eq!(
        out.len(),
        frames_out * h * w * conv.cout,
        "conv3d_causal: out must be [frames_out, h, w, cout]"
    );
    if out.is_empty() {
        return;
    }
    let padding = conv.kt - 1 - past.len();
    let mut sources = vec![None; if stride_t == 1 { padding } else { 0 }];
    sources.extend(past.iter().copied().map(Some));
    sources.extend((0..frames).map(|t| Some(&x[t * frame..(t + 1) * frame])));
    let isa = Isa::current();
    let mut plan = conv.plan(isa, sources, [h, w], vec![conv.taps(isa)]);
    plan.stride_t = stride_t;
    plan.run(out);
}
