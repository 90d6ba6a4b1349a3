use evanesce_kernels::{Conv2dMode, Conv3d, Dtype, Values, conv2d, conv3d_causal};
use proptest::prelude::*;

use crate::reference::Frames;
use crate::support::{
    Numbers, as_bf16, assert_alike_on_any_threads, assert_near, bits, on_every_isa, poisoned,
};

struct Case {
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    size: [usize; 3],
    channels: [usize; 2],
    kernel: [usize; 3],
}

impl Case {
    fn new(size: [usize; 3], [cin, cout]: [usize; 2], kernel: [usize; 3]) -> Self {
        let pixels: usize = size.iter().product();
        let taps: usize = kernel.iter().product();
        let mut numbers = Numbers::new((pixels * 131 + cin * 17 + cout * 3 + taps) as u64);
        Self {
            x: numbers.many(pixels * cin),
            weight: numbers.many(cout * cin * taps),
            bias: numbers.many(cout),
            size,
            channels: [cin, cout],
            kernel,
        }
    }

    fn conv(&self) -> Conv3d<'_> {
        let ([cin, cout], [kt, kh, kw]) = (self.channels, self.kernel);
        let (weight, bias) = (Values::from(&self.weight[..]), Some(Values::from(&self.bias[..])));
        Conv3d { weight, bias, cin, cout, kt, kh, kw }
    }

    fn frame(&self) -> usize {
        self.size[1] * self.size[2] * self.channels[0]
    }

    /// The output for frames `from..to`, with as many of the `past` frames before them as there are.
    fn causal(&self, from: usize, to: usize, past: usize, stride_t: usize) -> Vec<f32> {
        let [_, h, w] = self.size;
        let past: Vec<&[f32]> = self.x[from.saturating_sub(past) * self.frame()..from * self.frame()]
            .chunks(self.frame())
            .collect();
        let frames_out = match stride_t {
            1 => to - from,
            _ => (past.len() + to - from + 2).saturating_sub(self.kernel[0]) / 2,
        };
        let x = &self.x[from * self.frame()..to * self.frame()];
        on_every_isa("a causal convolution", || {
            let mut out = poisoned(frames_out * h * w * self.channels[1]);
            conv3d_causal(x, &past, to - from, h, w, self.conv(), stride_t, &mut out);
            out
        })
    }

    fn check_causal(&self) {
        let [t, h, w] = self.size;
        let [kt, kh, kw] = self.kernel;
        let frames = Frames::new(&self.x, self.size, self.channels[0]);
        let what = format!("{:?} channels {:?} kernel {:?}", self.size, self.channels, self.kernel);
        let layout = [self.size, [1, 1, 1], [kt - 1, kh / 2, kw / 2]];
        let expected = frames.convolve(&self.weight, &self.bias, self.kernel, layout);
        assert_near(&what, &self.causal(0, t, 0, 1), &expected, 1e-6);
        if t >= kt {
            let layout = [[(t - kt) / 2 + 1, h, w], [2, 1, 1], [0, kh / 2, kw / 2]];
            let expected = frames.convolve(&self.weight, &self.bias, self.kernel, layout);
            assert_near(&format!("{what} stride 2"), &self.causal(0, t, 0, 2), &expected, 1e-6);
        }
    }

    fn flat(&self, mode: Conv2dMode) -> Vec<f32> {
        let [t, h, w] = self.size;
        let [oh, ow] = match mode {
            Conv2dMode::Same => [h, w],
            Conv2dMode::UpNearest2 => [2 * h, 2 * w],
            Conv2dMode::Down2 => [h / 2, w / 2],
        };
        on_every_isa("a flat convolution", || {
            let mut out = poisoned(t * oh * ow * self.channels[1]);
            conv2d(&self.x, t, h, w, self.conv(), mode, &mut out);
            out
        })
    }

    fn check_flat(&self, mode: Conv2dMode) {
        let frames = Frames::new(&self.x, self.size, self.channels[0]);
        let expected = frames.convolve_2d(&self.weight, &self.bias, self.kernel[1], mode);
        let what = format!("{mode:?} {:?} channels {:?} kernel {:?}", self.size, self.channels, self.kernel);
        assert_near(&what, &self.flat(mode), &expected, 1e-6);
    }
}

const MODES: [Conv2dMode; 3] = [Conv2dMode::Same, Conv2dMode::UpNearest2, Conv2dMode::Down2];

#[test]
fn a_causal_convolution_agrees_with_its_definition() {
    for size in [[1, 1, 1], [2, 1, 7], [3, 8, 8], [1, 5, 17], [2, 7, 16], [1, 13, 33], [4, 2, 3]] {
        for channels in [[1, 1], [3, 5], [16, 17]] {
            for kernel in [[3, 3, 3], [3, 1, 1], [1, 1, 1], [2, 1, 3], [1, 5, 5]] {
                Case::new(size, channels, kernel).check_causal();
            }
        }
    }
}

#[test]
fn a_causal_convolution_agrees_with_its_definition_at_every_depth() {
    for channels in [[15, 16], [33, 3], [85, 34], [86, 2], [128, 40], [129, 7], [192, 5], [257, 9], [384, 70]]
    {
        Case::new([2, 3, 5], channels, [3, 3, 3]).check_causal();
        Case::new([3, 2, 9], channels, [3, 1, 1]).check_causal();
        Case::new([1, 9, 11], channels, [1, 1, 1]).check_causal();
    }
}

#[test]
fn a_flat_convolution_agrees_with_its_definition_in_every_mode() {
    for size in [[1, 1, 1], [2, 1, 5], [1, 2, 2], [3, 8, 8], [1, 7, 9], [2, 12, 33], [1, 33, 18]] {
        for channels in [[1, 1], [5, 3], [16, 16], [20, 33]] {
            MODES.iter().for_each(|mode| Case::new(size, channels, [1, 3, 3]).check_flat(*mode));
            Case::new(size, channels, [1, 1, 1]).check_flat(Conv2dMode::Same);
        }
    }
    MODES.iter().for_each(|mode| Case::new([1, 6, 7], [300, 20], [1, 3, 3]).check_flat(*mode));
}

#[test]
fn a_streamed_causal_convolution_gives_the_bits_of_the_whole() {
    for (size, channels, kernel) in [
        ([7, 5, 6], [6, 10], [3, 3, 3]),
        ([7, 20, 19], [16, 16], [3, 3, 3]),
        ([6, 3, 4], [200, 20], [3, 1, 1]),
        ([5, 4, 4], [9, 4], [2, 3, 3]),
        ([4, 3, 3], [12, 12], [1, 1, 1]),
    ] {
        let case = Case::new(size, channels, kernel);
        let whole = bits(&case.causal(0, size[0], 0, 1));
        for cuts in [&[1, 2, 3][..], &[1], &[2], &[1, 3]] {
            let mut parts = Vec::new();
            let mut from = 0;
            for to in cuts.iter().copied().chain([size[0]]) {
                parts.extend(bits(&case.causal(from, to, kernel[0] - 1, 1)));
                from = to;
            }
            assert!(parts == whole, "{size:?} {channels:?} {kernel:?} cut at {cuts:?}");
        }
    }
}

#[test]
fn a_streamed_time_downsample_gives_the_bits_of_the_whole() {
    // As the encoder runs it: chunks of four frames, each after the last frame of the chunk before.
    let case = Case::new([9, 4, 5], [20, 18], [3, 1, 1]);
    let whole = bits(&case.causal(0, 9, 0, 2));
    let mut parts = bits(&case.causal(1, 5, 1, 2));
    parts.extend(bits(&case.causal(5, 9, 1, 2)));
    assert_eq!(whole.len(), 4 * 4 * 5 * 18);
    assert!(parts == whole);
}

#[test]
fn a_time_downsample_of_too_few_frames_gives_none() {
    assert!(Case::new([2, 3, 3], [4, 4], [3, 1, 1]).causal(0, 2, 0, 2).is_empty());
    assert!(Case::new([1, 3, 3], [4, 4], [3, 1, 1]).causal(0, 1, 0, 2).is_empty());
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let case = Case::new([3, 20, 37], [40, 50], [3, 3, 3]);
    assert_alike_on_any_threads("conv3d_causal", 3 * 20 * 37 * 50, |out| {
        conv3d_causal(&case.x, &[], 3, 20, 37, case.conv(), 1, out);
    });
    // So few tiles that outputs are shared out as well.
    let case = Case::new([1, 8, 8], [64, 200], [1, 3, 3]);
    for (mode, pixels) in MODES.into_iter().zip([64, 256, 16]) {
        assert_alike_on_any_threads("conv2d", pixels * 200, |out| {
            conv2d(&case.x, 1, 8, 8, case.conv(), mode, out);
        });
    }
}

#[test]
fn weights_of_two_bytes_are_read_as_they_lie() {
    let mut case = Case::new([2, 6, 5], [12, 20], [3, 3, 3]);
    let (bytes, rounded) = as_bf16(&case.weight);
    case.weight = rounded;
    let mut out = poisoned(2 * 6 * 5 * 20);
    let conv = Conv3d { weight: Values::new(Dtype::BF16, &bytes).unwrap(), ..case.conv() };
    conv3d_causal(&case.x, &[], 2, 6, 5, conv, 1, &mut out);
    assert_eq!(bits(&out), bits(&case.causal(0, 2, 0, 1)));
}

#[test]
fn without_bias_zero_is_added() {
    let mut case = Case::new([1, 4, 4], [3, 3], [1, 3, 3]);
    case.bias.fill(0.0);
    let mut out = poisoned(16 * 3);
    conv2d(&case.x, 1, 4, 4, Conv3d { bias: None, ..case.conv() }, Conv2dMode::Same, &mut out);
    assert_eq!(bits(&out), bits(&case.flat(Conv2dMode::Same)));
}

#[test]
fn a_pixel_that_is_not_a_number_reaches_its_neighbours_only() {
    let mut case = Case::new([1, 9, 40], [4, 6], [3, 3, 3]);
    let before = case.causal(0, 1, 0, 1);
    case.x[(4 * 40 + 17) * 4 + 2] = f32::NAN;
    for (i, (before, after)) in before.iter().zip(case.causal(0, 1, 0, 1)).enumerate() {
        let (y, x) = (i / 6 / 40, i / 6 % 40);
        let touched = y.abs_diff(4) <= 1 && x.abs_diff(17) <= 1;
        assert_eq!(after.is_nan(), touched, "pixel {y} {x}");
        assert!(touched || before.to_bits() == after.to_bits(), "pixel {y} {x}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn convolutions_agree_with_their_definitions_at_any_shape(
        t in 1..4_usize, h in 1..14_usize, w in 1..40_usize, cin in 1..40_usize, cout in 1..40_usize, mode in 0..3_usize,
    ) {
        Case::new([t, h, w], [cin, cout], [3, 3, 3]).check_causal();
        Case::new([t, h, w], [cin, cout], [1, 3, 3]).check_flat(MODES[mode]);
    }
}
