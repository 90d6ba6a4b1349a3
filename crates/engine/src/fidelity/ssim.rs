//! Structural similarity of two pictures (Wang, Bovik, Sheikh and Simoncelli, 2004).

/// The window: 11 x 11, Gaussian with a standard deviation of 1.5 pixels.
pub(super) const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;
/// Stabilisers (0.01 L)^2 and (0.03 L)^2 for values in 0..1.
const C1: f64 = 1e-4;
const C2: f64 = 9e-4;

/// The mean over all whole windows of one plane; `a` and `b` are `[height, width]` in 0..1, both sides at least [`WINDOW`].
pub(super) fn ssim(a: &[f64], b: &[f64], width: usize) -> f64 {
    let product =
        |x: &[f64], y: &[f64]| blurred(&x.iter().zip(y).map(|(x, y)| x * y).collect::<Vec<_>>(), width);
    let (mean_a, mean_b) = (blurred(a, width), blurred(b, width));
    let (square_a, square_b, both) = (product(a, a), product(b, b), product(a, b));
    let total: f64 = (0..mean_a.len())
        .map(|i| {
            let (ma, mb) = (mean_a[i], mean_b[i]);
            let (var_a, var_b, covariance) =
                (square_a[i] - ma * ma, square_b[i] - mb * mb, both[i] - ma * mb);
            ((2.0 * ma * mb + C1) * (2.0 * covariance + C2))
                / ((ma * ma + mb * mb + C1) * (var_a + var_b + C2))
        })
        .sum();
    total / mean_a.len() as f64
}

/// The weighted mean of every whole window, rows first, then columns.
fn blurred(plane: &[f64], width: usize) -> Vec<f64> {
    let weights = weights();
    let narrow = width + 1 - WINDOW;
    let rows: Vec<f64> = plane
        .chunks_exact(width)
        .flat_map(|row| {
            row.windows(WINDOW).map(|window| window.iter().zip(weights).map(|(x, w)| x * w).sum::<f64>())
        })
        .collect();
    let height = rows.len() / narrow + 1 - WINDOW;
    (0..height * narrow)
        .map(|at| weights.iter().enumerate().map(|(k, w)| w * rows[at + k * narrow]).sum())
        .collect()
}

fn weights() -> [f64; WINDOW] {
    let middle = (WINDOW / 2) as f64;
    let raw: [f64; WINDOW] =
        std::array::from_fn(|i| (-(i as f64 - middle).powi(2) / (2.0 * SIGMA * SIGMA)).exp());
    let sum: f64 = raw.iter().sum();
    raw.map(|w| w / sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in 0..1 that look random and are the same everywhere.
    fn plane(len: usize, seed: u32) -> Vec<f64> {
        let mut state = seed;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f64::from(state >> 8) / f64::from(1u32 << 24)
            })
            .collect()
    }

    /// The definition, window by window in two dimensions, variances as means of squared differences.
    fn by_definition(a: &[f64], b: &[f64], width: usize) -> f64 {
        let (w, height) = (weights(), a.len() / width);
        let mut sum = 0.0;
        for (row, column) in (0..=height - WINDOW).flat_map(|r| (0..=width - WINDOW).map(move |c| (r, c))) {
            let at = |k: usize| (row + k / WINDOW) * width + column + k % WINDOW;
            let weight = |k: usize| w[k / WINDOW] * w[k % WINDOW];
            let mean =
                |f: &dyn Fn(usize) -> f64| (0..WINDOW * WINDOW).map(|k| weight(k) * f(at(k))).sum::<f64>();
            let (ma, mb) = (mean(&|i| a[i]), mean(&|i| b[i]));
            let (va, vb) = (mean(&|i| (a[i] - ma).powi(2)), mean(&|i| (b[i] - mb).powi(2)));
            let covariance = mean(&|i| (a[i] - ma) * (b[i] - mb));
            sum +=
                (2.0 * ma * mb + C1) * (2.0 * covariance + C2) / ((ma * ma + mb * mb + C1) * (va + vb + C2));
        }
        sum / ((height - WINDOW + 1) * (width - WINDOW + 1)) as f64
    }

    #[test]
    fn it_is_the_definition_for_every_shape() {
        for (width, height) in [(11, 11), (16, 12), (13, 29)] {
            let a = plane(width * height, 1);
            let b: Vec<f64> =
                a.iter().zip(plane(width * height, 2)).map(|(x, y)| 0.8 * x + 0.2 * y).collect();
            let (got, want) = (ssim(&a, &b, width), by_definition(&a, &b, width));
            assert!((got - want).abs() < 1e-12, "{width}x{height}: {got} {want}");
            assert!((0.5..0.999).contains(&got), "{got}");
        }
    }

    #[test]
    fn a_plane_is_like_itself_and_unlike_its_negative() {
        let a = plane(20 * 20, 3);
        let negative: Vec<f64> = a.iter().map(|x| 1.0 - x).collect();
        assert!((ssim(&a, &a, 20) - 1.0).abs() < 1e-12);
        assert!(ssim(&a, &negative, 20) < 0.0);
    }
}
