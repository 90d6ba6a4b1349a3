//! How long units take on this machine, learnt from those that were done, to say when a job will be.

use std::time::Duration;

use evanesce_engine::progress::Stage;

use super::meter::Meter;
use crate::job::Order;

/// How much the newest unit counts.
const NEWEST: f64 = 0.1;

/// Seconds for one denoising step and for one latent frame, each per pixel of what it works on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    step_s_per_pixel: Option<f64>,
    frame_s_per_pixel: Option<f64>,
}

impl Pace {
    /// Learns from one unit.
    pub(super) fn learn(&mut self, unit: Option<Stage>, order: &Order, took: Duration) {
        let (rate, pixels) = match unit {
            Some(Stage::Denoise) => (&mut self.step_s_per_pixel, step_pixels(order)),
            Some(Stage::Decode) => (&mut self.frame_s_per_pixel, frame_pixels(order)),
            Some(Stage::Text | Stage::Encode) | None => return,
        };
        let now = took.as_secs_f64() / pixels;
        *rate = Some(rate.map_or(now, |before| before + NEWEST * (now - before)));
    }

    /// Seconds that a job still needs the machine; `None` until both rates are known.
    pub(super) fn seconds_left(&self, order: &Order, meter: &Meter) -> Option<f64> {
        let steps = meter.steps_left() as f64 * self.step_s_per_pixel? * step_pixels(order);
        let frames = meter.frames_left() as f64 * self.frame_s_per_pixel? * frame_pixels(order);
        Some(steps + frames)
    }
}

fn frame_pixels(order: &Order) -> f64 {
    (order.width * order.height) as f64
}

fn step_pixels(order: &Order) -> f64 {
    frame_pixels(order) * ((order.frames - 1) / 4 + 1) as f64
}
