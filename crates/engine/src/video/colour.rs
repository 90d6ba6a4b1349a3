//! RGB to planar YUV 4:2:0: BT.709 matrix, limited range, 8 bits.
//!
//! Equations: ITU-R BT.709-6 sections 3 and 4. Chroma is the mean of each 2x2 square, which is exact to take in
//! RGB since the matrix is linear.

const KR: f32 = 0.2126;
const KB: f32 = 0.0722;
const KG: f32 = 1.0 - KR - KB;
const LUMA_FLOOR: f32 = 16.0;
const LUMA_SPAN: f32 = 219.0;
const CHROMA_ZERO: f32 = 128.0;
const CHROMA_SPAN: f32 = 224.0;

/// One 8-bit picture in planes: `luma` `[height, width]`, `cb` and `cr` `[height / 2, width / 2]`.
#[derive(Debug)]
pub(super) struct Yuv420 {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) luma: Vec<u8>,
    pub(super) cb: Vec<u8>,
    pub(super) cr: Vec<u8>,
}

impl Yuv420 {
    /// A picture of even size, black until written.
    pub(super) fn new(width: usize, height: usize) -> Self {
        let chroma_len = (width / 2) * (height / 2);
        Self {
            width,
            height,
            luma: vec![16; width * height],
            cb: vec![128; chroma_len],
            cr: vec![128; chroma_len],
        }
    }

    /// Overwrites the picture with `rgb` `[height, width, 3]`; values are clamped to 0..1 and NaN is 0.
    ///
    /// # Panics
    /// If `rgb` is not height x width x 3 long.
    pub(super) fn write_rgb(&mut self, rgb: &[f32]) {
        assert_eq!(rgb.len(), self.width * self.height * 3, "rgb holds height x width x 3 numbers");
        let row_pairs = rgb
            .chunks_exact(2 * self.width * 3)
            .zip(self.luma.chunks_exact_mut(2 * self.width))
            .zip(self.cb.chunks_exact_mut(self.width / 2).zip(self.cr.chunks_exact_mut(self.width / 2)));
        for ((rgb, luma), (cb, cr)) in row_pairs {
            write_row_pair(self.width, rgb, luma, (cb, cr));
        }
    }
}

/// Two rows of RGB into two rows of luma and one of each chroma.
fn write_row_pair(width: usize, rgb: &[f32], luma: &mut [u8], (cb, cr): (&mut [u8], &mut [u8])) {
    let (rgb_top, rgb_bottom) = rgb.split_at(width * 3);
    let (luma_top, luma_bottom) = luma.split_at_mut(width);
    for x in 0..width / 2 {
        let mut sum = [0.0; 3];
        for (rgb, luma) in [(rgb_top, &mut *luma_top), (rgb_bottom, &mut *luma_bottom)] {
            for column in [2 * x, 2 * x + 1] {
                let pixel = [0, 1, 2].map(|c| unit(rgb[3 * column + c]));
                luma[column] = quantise(LUMA_FLOOR + LUMA_SPAN * brightness(pixel));
                for (sum, value) in sum.iter_mut().zip(pixel) {
                    *sum += value;
                }
            }
        }
        let mean = sum.map(|s| s * 0.25);
        let y = brightness(mean);
        cb[x] = quantise(CHROMA_ZERO + CHROMA_SPAN * (mean[2] - y) / (2.0 * (1.0 - KB)));
        cr[x] = quantise(CHROMA_ZERO + CHROMA_SPAN * (mean[0] - y) / (2.0 * (1.0 - KR)));
    }
}

/// The inverse of [`Yuv420::write_rgb`], but for rounding and for chroma that four pixels share: planes with their strides into
/// `rgb` `[height, width, 3]`.
pub(super) fn read_rgb(
    (luma, cb, cr): (&[u8], &[u8], &[u8]),
    (luma_stride, cb_stride, cr_stride): (usize, usize, usize),
    (width, height): (usize, usize),
    rgb: &mut Vec<f32>,
) {
    rgb.clear();
    for row in 0..height {
        for column in 0..width {
            let at = |plane: &[u8], stride: usize| f32::from(plane[row / 2 * stride + column / 2]);
            let y = (f32::from(luma[row * luma_stride + column]) - LUMA_FLOOR) / LUMA_SPAN;
            let blue = y + (at(cb, cb_stride) - CHROMA_ZERO) / CHROMA_SPAN * 2.0 * (1.0 - KB);
            let red = y + (at(cr, cr_stride) - CHROMA_ZERO) / CHROMA_SPAN * 2.0 * (1.0 - KR);
            let green = (y - KR * red - KB * blue) / KG;
            rgb.extend([red, green, blue].map(unit));
        }
    }
}

fn brightness([r, g, b]: [f32; 3]) -> f32 {
    KR * r + KG * g + KB * b
}

/// Clamped to 0..1; NaN becomes 0.
fn unit(value: f32) -> f32 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) }
}

#[expect(clippy::cast_possible_truncation, reason = "16 to 240 by construction")]
fn quantise(value: f32) -> u8 {
    value.round() as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same equations in f64, unrounded: (luma of each pixel, cb, cr) of one 2x2 square.
    fn reference(square: &[[f32; 3]; 4]) -> ([f64; 4], f64, f64) {
        let y = |p: [f64; 3]| 0.2126 * p[0] + 0.7152 * p[1] + 0.0722 * p[2];
        let wide = square.map(|p| p.map(f64::from));
        let mean = [0, 1, 2].map(|c| wide.iter().map(|p| p[c]).sum::<f64>() / 4.0);
        let cb = 128.0 + 224.0 * (mean[2] - y(mean)) / 1.8556;
        let cr = 128.0 + 224.0 * (mean[0] - y(mean)) / 1.5748;
        (wide.map(|p| 16.0 + 219.0 * y(p)), cb, cr)
    }

    fn picture(pixels: &[[f32; 3]], width: usize) -> Yuv420 {
        let mut yuv = Yuv420::new(width, pixels.len() / width);
        yuv.write_rgb(&pixels.concat());
        yuv
    }

    proptest! {
        /// Half a code value is the rounding itself; the rest is f32 against f64.
        #[test]
        fn every_code_value_is_the_rounded_f64_reference(
            pixels in prop::collection::vec([0.0f32..=1.0, 0.0f32..=1.0, 0.0f32..=1.0], 24)
        ) {
            let (width, within) = (6, 0.5 + 1e-4);
            let yuv = picture(&pixels, width);
            for (row, column) in (0..2).flat_map(|r| (0..3).map(move |c| (r, c))) {
                let at = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(dr, dc)| (2 * row + dr) * width + 2 * column + dc);
                let (luma, cb, cr) = reference(&at.map(|i| pixels[i]));
                for (i, expected) in at.into_iter().zip(luma) {
                    prop_assert!((f64::from(yuv.luma[i]) - expected).abs() <= within);
                }
                let chroma = row * 3 + column;
                prop_assert!((f64::from(yuv.cb[chroma]) - cb).abs() <= within);
                prop_assert!((f64::from(yuv.cr[chroma]) - cr).abs() <= within);
            }
        }
    }

    #[test]
    fn primaries_have_the_code_values_of_the_standard() {
        for (rgb, codes) in [
            ([0.0, 0.0, 0.0], (16, 128, 128)),
            ([1.0, 1.0, 1.0], (235, 128, 128)),
            ([1.0, 0.0, 0.0], (63, 102, 240)),
            ([0.0, 1.0, 0.0], (173, 42, 26)),
            ([0.0, 0.0, 1.0], (32, 240, 118)),
        ] {
            let yuv = picture(&[rgb; 4], 2);
            assert_eq!((yuv.luma[0], yuv.cb[0], yuv.cr[0]), codes, "{rgb:?}");
        }
    }

    #[test]
    fn values_outside_zero_to_one_are_clamped_and_nan_is_black() {
        let wild =
            picture(&[[f32::NAN, f32::NAN, f32::NAN], [7.0, f32::INFINITY, 1.5], [-1.0; 3], [2.0; 3]], 2);
        assert_eq!(wild.luma, [16, 235, 16, 235]);
        assert_eq!((wild.cb[0], wild.cr[0]), (128, 128));
    }
}
