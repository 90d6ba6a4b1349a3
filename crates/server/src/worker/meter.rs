//! How far a job is, from what its run reports.

use evanesce_engine::Position;
use evanesce_engine::progress::{Event, Observer, Stage};

use crate::board::Phase;
use crate::job::Order;

/// Of the whole, what denoising takes in the progress bar; the rest is decoding.
const DENOISE_PERCENT: usize = 85;

/// Counts a job's units.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meter {
    n_blocks: usize,
    block: usize,
    steps_per_block: usize,
    step_of_block: usize,
    latent_frames: usize,
    decoded_frames: usize,
    pub(super) phase: Phase,
    /// The stage that the last unit belonged to; drawing noise belongs to none.
    unit: Option<Stage>,
}

impl Meter {
    pub(super) fn new(order: &Order) -> Self {
        Self {
            n_blocks: 1,
            block: 0,
            steps_per_block: order.steps,
            step_of_block: 0,
            latent_frames: (order.frames - 1) / 4 + 1,
            decoded_frames: 0,
            phase: Phase::Text,
            unit: None,
        }
    }

    /// Sets it to where a job goes on.
    pub(super) fn go_on_at(&mut self, position: Position) {
        self.n_blocks = position.n_blocks.max(1);
        self.block = position.block;
        self.step_of_block = position.steps.min(self.steps_per_block);
        self.decoded_frames = position.latent_frames.min(self.latent_frames);
        self.phase = if self.step_of_block < self.steps_per_block { Phase::Denoise } else { Phase::Decode };
    }

    /// The stage that the last unit belonged to, since this was asked last.
    pub(super) fn take_unit(&mut self) -> Option<Stage> {
        self.unit.take()
    }

    /// Steps done, of the order's steps: for a video made block by block, the mean over its blocks.
    pub(super) fn step(&self) -> usize {
        (self.block * self.steps_per_block + self.step_of_block) / self.n_blocks
    }

    /// Denoising steps still to do, over all blocks.
    pub(super) fn steps_left(&self) -> usize {
        (self.n_blocks - self.block) * self.steps_per_block - self.step_of_block
    }

    /// Latent frames still to decode.
    pub(super) fn frames_left(&self) -> usize {
        self.latent_frames - self.decoded_frames
    }

    /// Percent done; 100 is for a video that is there.
    pub(super) fn progress(&self) -> u8 {
        let all_steps = self.n_blocks * self.steps_per_block;
        let steps = (all_steps - self.steps_left()) * DENOISE_PERCENT / all_steps;
        let frames = self.decoded_frames * (100 - DENOISE_PERCENT) / self.latent_frames;
        u8::try_from((steps + frames).min(99)).unwrap_or(99)
    }
}

impl Observer for Meter {
    fn on_event(&mut self, event: Event<'_>) {
        if let Event::Advanced { stage, .. } = event {
            self.unit = Some(stage);
        }
        match event {
            Event::Block { at, n_blocks } => {
                (self.block, self.n_blocks, self.step_of_block) = (at, n_blocks.max(1), 0);
            }
            Event::Started { stage, .. } => {
                self.phase = match stage {
                    Stage::Text => Phase::Text,
                    Stage::Denoise => Phase::Denoise,
                    Stage::Decode => Phase::Decode,
                    Stage::Encode => Phase::Encode,
                };
            }
            Event::Advanced { stage: Stage::Denoise, done_units } => {
                // What comes after the steps are commits.
                self.step_of_block = done_units.min(self.steps_per_block);
            }
            Event::Advanced { stage: Stage::Decode, .. } => {
                self.decoded_frames = (self.decoded_frames + 1).min(self.latent_frames);
            }
            Event::Advanced { stage: Stage::Text | Stage::Encode, .. }
            | Event::Finished { .. }
            | Event::Encoding(_)
            | Event::Notice(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(steps: usize, frames: usize) -> Order {
        let order = serde_json::json!({
            "model": "m", "prompt": "p", "negative_prompt": "", "width": 16, "height": 16, "frames": frames, "fps": 16,
            "seconds": "1", "steps": steps, "guidance_high": 1.0, "guidance_low": 1.0, "boundary": 0.9, "shift": 3.0,
            "seed": 1, "class": "standard", "quality": "exact", "deadline_s": null, "device_bytes": 1
        });
        serde_json::from_value(order).unwrap()
    }

    #[test]
    fn progress_grows_to_99_and_steps_to_their_number_over_blocks_too() {
        let mut meter = Meter::new(&order(4, 21));
        let mut before = 0;
        for block in 0..2 {
            meter.on_event(Event::Block { at: block, n_blocks: 2 });
            meter.on_event(Event::Started { stage: Stage::Denoise, n_units: 6 });
            for done_units in 1..=6 {
                meter.on_event(Event::Advanced { stage: Stage::Denoise, done_units });
                assert!(meter.progress() >= before, "block {block} unit {done_units}");
                before = meter.progress();
            }
            for done_units in 1..=3 {
                meter.on_event(Event::Advanced { stage: Stage::Decode, done_units });
                assert!(meter.progress() >= before);
                before = meter.progress();
            }
        }
        assert_eq!((meter.step(), meter.steps_left(), meter.frames_left(), meter.progress()), (4, 0, 0, 99));
    }
}
