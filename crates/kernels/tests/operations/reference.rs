//! The operations as they are defined, one number at a time in `f64`.

use evanesce_kernels::{Activation, AttentionDims, Conv2dMode};

fn wide(numbers: &[f32]) -> impl Iterator<Item = f64> + '_ {
    numbers.iter().map(|v| f64::from(*v))
}

pub(crate) fn linear(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    inputs: usize,
    outputs: usize,
) -> Vec<f64> {
    let mut out = Vec::new();
    for row in x.chunks(inputs) {
        for o in 0..outputs {
            let dot: f64 =
                wide(row).zip(wide(&weight[o * inputs..(o + 1) * inputs])).map(|(a, b)| a * b).sum();
            out.push(dot + bias.map_or(0.0, |bias| f64::from(bias[o])));
        }
    }
    out
}

/// `bias(head, query, key)` is added to each logit.
pub(crate) fn attention(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    dims: AttentionDims,
    bias: impl Fn(usize, usize, usize) -> f64,
) -> Vec<f64> {
    let AttentionDims { queries, heads, head_dim, scale } = dims;
    let width = heads * head_dim;
    let keys = k.len() / width;
    let mut out = vec![0.0; queries * width];
    for query in 0..queries {
        for head in 0..heads {
            let span = |i: usize| i * width + head * head_dim..i * width + (head + 1) * head_dim;
            let logits: Vec<f64> = (0..keys)
                .map(|key| {
                    let dot: f64 = wide(&q[span(query)]).zip(wide(&k[span(key)])).map(|(a, b)| a * b).sum();
                    dot * f64::from(scale) + bias(head, query, key)
                })
                .collect();
            let max = logits.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
            let total: f64 = logits.iter().map(|l| (l - max).exp()).sum();
            for (key, logit) in logits.iter().enumerate() {
                let weight = (logit - max).exp() / total;
                for (out, v) in out[span(query)].iter_mut().zip(wide(&v[span(key)])) {
                    *out += weight * v;
                }
            }
        }
    }
    out
}

pub(crate) fn activation(x: f64, act: Activation) -> f64 {
    match act {
        Activation::None => x,
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            // 1 + tanh(u), without its cancellation.
            x / (1.0 + (-2.0 * u).exp())
        }
    }
}

pub(crate) fn layer_norm(row: &[f32], eps: f64) -> Vec<f64> {
    let count = row.len() as f64;
    let mean = wide(row).sum::<f64>() / count;
    let variance = wide(row).map(|v| (v - mean).powi(2)).sum::<f64>() / count;
    wide(row).map(|v| (v - mean) / (variance + eps).sqrt()).collect()
}

pub(crate) fn rms_norm(row: &[f32], eps: f64) -> Vec<f64> {
    let mean = wide(row).map(|v| v * v).sum::<f64>() / row.len() as f64;
    wide(row).map(|v| v / (mean + eps).sqrt()).collect()
}

pub(crate) fn channel_norm(row: &[f32]) -> Vec<f64> {
    let norm = wide(row).map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
    wide(row).map(|v| v / norm * (row.len() as f64).sqrt()).collect()
}

/// Channels-last frames.
#[derive(Clone)]
pub(crate) struct Frames {
    pub(crate) numbers: Vec<f64>,
    pub(crate) size: [usize; 3],
    pub(crate) channels: usize,
}

impl Frames {
    pub(crate) fn new(numbers: &[f32], size: [usize; 3], channels: usize) -> Self {
        Self { numbers: wide(numbers).collect(), size, channels }
    }

    /// Zero outside.
    fn at(&self, place: [isize; 3], channel: usize) -> f64 {
        let mut index = 0;
        for (p, n) in place.into_iter().zip(self.size) {
            match usize::try_from(p) {
                Ok(p) if p < n => index = index * n + p,
                _ => return 0.0,
            }
        }
        self.numbers[index * self.channels + channel]
    }

    fn enlarged(&self) -> Self {
        let [t, h, w] = self.size;
        let mut numbers = Vec::new();
        for (f, y, x) in
            (0..t).flat_map(|f| (0..2 * h).flat_map(move |y| (0..2 * w).map(move |x| (f, y / 2, x / 2))))
        {
            let start = ((f * h + y) * w + x) * self.channels;
            numbers.extend_from_slice(&self.numbers[start..start + self.channels]);
        }
        Self { numbers, size: [t, 2 * h, 2 * w], channels: self.channels }
    }

    /// A convolution whose output pixel `o` of `out` reads from `o * stride - pad` on.
    pub(crate) fn convolve(
        &self,
        weight: &[f32],
        bias: &[f32],
        kernel: [usize; 3],
        [out, stride, pad]: [[usize; 3]; 3],
    ) -> Vec<f64> {
        let taps: usize = kernel.iter().product();
        let mut result = Vec::new();
        for cell in 0..out.iter().product() {
            let cell = [cell / (out[1] * out[2]), cell / out[2] % out[1], cell % out[2]];
            for (o, bias) in bias.iter().enumerate() {
                let mut sum = f64::from(*bias);
                for tap in 0..taps {
                    let offset =
                        [tap / (kernel[1] * kernel[2]), tap / kernel[2] % kernel[1], tap % kernel[2]];
                    let place: [isize; 3] =
                        std::array::from_fn(|i| (cell[i] * stride[i] + offset[i]) as isize - pad[i] as isize);
                    for c in 0..self.channels {
                        sum += self.at(place, c) * f64::from(weight[(o * self.channels + c) * taps + tap]);
                    }
                }
                result.push(sum);
            }
        }
        result
    }

    pub(crate) fn convolve_2d(
        &self,
        weight: &[f32],
        bias: &[f32],
        side: usize,
        mode: Conv2dMode,
    ) -> Vec<f64> {
        let [t, h, w] = self.size;
        let kernel = [1, side, side];
        let same = [0, side / 2, side / 2];
        match mode {
            Conv2dMode::Same => self.convolve(weight, bias, kernel, [self.size, [1, 1, 1], same]),
            Conv2dMode::UpNearest2 => {
                self.enlarged().convolve(weight, bias, kernel, [[t, 2 * h, 2 * w], [1, 1, 1], same])
            }
            Conv2dMode::Down2 => {
                self.convolve(weight, bias, kernel, [[t, h / 2, w / 2], [1, 2, 2], [0, 0, 0]])
            }
        }
    }
}
