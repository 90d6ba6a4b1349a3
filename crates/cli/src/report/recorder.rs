//! What the cache held while a job ran, in a fixed number of samples however long the job.

use evanesce_engine::progress::Stage;
use evanesce_engine::report::MemoryNow;

/// Samples kept; twice as many are halved to this.
const SAMPLES: usize = 512;

/// Bytes after some units of work: of two samples that became one, the larger number each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) stage: Stage,
    pub(crate) memory: MemoryNow,
}

/// Takes a sample after every unit of work.
#[derive(Debug)]
pub(crate) struct Recorder {
    samples: Vec<Sample>,
    /// Units of work behind each sample but the last.
    stride: usize,
    /// Units of work behind the last one.
    in_last: usize,
    units: usize,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { samples: Vec::new(), stride: 1, in_last: 1, units: 0 }
    }
}

impl Recorder {
    /// Notes what the cache holds after one more unit of `stage`.
    pub(crate) fn note(&mut self, stage: Stage, memory: MemoryNow) {
        self.units += 1;
        let sample = Sample { stage, memory };
        match self.samples.last_mut() {
            Some(last) if self.in_last < self.stride => {
                self.in_last += 1;
                merge(last, &sample);
                return;
            }
            _ => {}
        }
        if self.samples.len() == 2 * SAMPLES {
            let pairs = std::mem::take(&mut self.samples);
            self.samples = pairs.chunks_exact(2).map(|pair| merged(&pair[0], &pair[1])).collect();
            self.stride *= 2;
        }
        self.samples.push(sample);
        self.in_last = 1;
    }

    /// The samples in order.
    pub(crate) fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// How many units of work there were.
    pub(crate) fn units(&self) -> usize {
        self.units
    }
}

fn merged(a: &Sample, b: &Sample) -> Sample {
    let mut both = a.clone();
    merge(&mut both, b);
    both
}

/// The later stage, and of every number the larger one.
fn merge(into: &mut Sample, other: &Sample) {
    into.stage = other.stage;
    for (mine, theirs) in into.memory.tiers.iter_mut().zip(&other.memory.tiers) {
        mine.used_bytes = mine.used_bytes.max(theirs.used_bytes);
        for (mine, theirs) in mine.kinds.iter_mut().zip(&theirs.kinds) {
            mine.1 = mine.1.max(theirs.1);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use evanesce_engine::report::TierNow;

    use super::*;

    pub(crate) fn holding(bytes: u64) -> MemoryNow {
        let kinds = vec![("weights", bytes), ("self_kv", bytes / 2)];
        let tier = TierNow { tier: "device", used_bytes: bytes + bytes / 2, kinds };
        MemoryNow { tiers: vec![tier] }
    }

    #[test]
    fn short_jobs_keep_every_sample_and_long_ones_keep_the_peaks() {
        let mut recorder = Recorder::default();
        for unit in 0..100 {
            recorder.note(Stage::Denoise, holding(unit));
        }
        assert_eq!(recorder.samples().len(), 100);
        assert_eq!(recorder.samples()[7].memory, holding(7));
        for unit in 100..50_000u64 {
            recorder.note(Stage::Decode, holding(if unit == 31_234 { 1 << 20 } else { unit % 100 }));
        }
        assert!((SAMPLES..=2 * SAMPLES).contains(&recorder.samples().len()), "{}", recorder.samples().len());
        assert_eq!(recorder.units(), 50_000);
        let peaks = recorder.samples().iter().filter(|s| s.memory.tiers[0].kinds[0].1 == 1 << 20);
        assert_eq!(peaks.count(), 1, "a peak of one unit survives");
    }
}
