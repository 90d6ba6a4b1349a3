//! When memory is short, and what gives way then. Pure: levels follow from shares, and what a job gives up from the level that its
//! class goes by and from its quality.

use crate::config::PressureConfig;
use crate::job::Quality;

/// How short memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// There is enough.
    #[default]
    Calm,
    /// What costs little makes room.
    Watch,
    /// What is hard to see gives way.
    High,
    /// What can wait waits.
    Critical,
}

impl Level {
    /// All levels, from enough to least.
    pub const ALL: [Self; 4] = [Self::Calm, Self::Watch, Self::High, Self::Critical];

    /// The level that a job under way goes by: one less for each worse class that has a job on the device. These give way first.
    #[must_use]
    pub fn behind(self, worse_classes: usize) -> Self {
        Self::ALL[(self as usize).saturating_sub(worse_classes)]
    }

    /// The name in metrics and in the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Watch => "watch",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// A level that follows a share, rising at once and falling only when the share is clearly below the mark.
#[derive(Clone, Copy, Debug)]
pub struct Gauge {
    marks: [f64; 3],
    hysteresis: f64,
    level: Level,
}

impl Gauge {
    /// A calm gauge.
    #[must_use]
    pub fn new(config: &PressureConfig) -> Self {
        let marks = [config.watch, config.high, config.critical];
        Self { marks, hysteresis: config.hysteresis, level: Level::Calm }
    }

    /// The level after the last reading.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// Takes a reading.
    pub fn read(&mut self, share: f64) -> Level {
        let above = |slack: f64| {
            let passed = self.marks.iter().filter(|mark| share >= **mark - slack).count();
            Level::ALL[passed]
        };
        // Between a mark and its lower edge the level stays what it was.
        self.level = self.level.clamp(above(0.0), above(self.hysteresis));
        self.level
    }
}

/// How pages are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// As the job asked.
    AsAsked,
    /// In 8 bits.
    Int8,
    /// In 4 bits.
    Int4,
}

/// What a job gives up at a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relief {
    /// What it can compute again; changes nothing in the video.
    pub drops_recomputable: bool,
    /// What it reads last goes below the device; changes nothing in the video.
    pub demotes_cold: bool,
    /// How pages of coming blocks are stored.
    pub pages: Pages,
    /// Coming blocks see half the window.
    pub halves_window: bool,
    /// A job that has not begun begins smaller. Whatever its class: none that is under way can.
    pub begins_smaller: bool,
}

/// What a job of this quality gives up at the level that it goes by ([`Level::behind`]).
#[must_use]
pub fn relief(level: Level, quality: Quality) -> Relief {
    let is_high = level >= Level::High;
    Relief {
        drops_recomputable: level >= Level::Watch,
        demotes_cold: level >= Level::Watch,
        pages: match quality {
            Quality::Balanced if is_high => Pages::Int8,
            Quality::Draft if is_high => Pages::Int4,
            Quality::Exact | Quality::Balanced | Quality::Draft => Pages::AsAsked,
        },
        halves_window: is_high && quality == Quality::Draft,
        begins_smaller: level >= Level::Critical && quality == Quality::Draft,
    }
}

/// Three quarters of an edge, on the grid of sizes that the model makes.
#[must_use]
pub fn smaller_edge(px: usize, grid_px: usize) -> usize {
    let grid_px = grid_px.max(1);
    (px * 3 / 4 / grid_px).max(1) * grid_px
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_rise_at_their_marks_and_fall_below_them() {
        let mut gauge = Gauge::new(&PressureConfig::default());
        let shares = [0.5, 0.70, 0.66, 0.64, 0.86, 0.81, 0.79, 0.96, 0.91, 0.89, 0.2, 1.5];
        let levels = shares.map(|share| gauge.read(share).as_str());
        assert_eq!(
            levels,
            [
                "calm", "watch", "watch", "calm", "high", "high", "watch", "critical", "critical", "high",
                "calm", "critical"
            ]
        );
    }

    #[test]
    fn an_exact_job_never_gives_up_a_bit_of_its_video() {
        for level in Level::ALL {
            let relief = relief(level, Quality::Exact);
            assert_eq!(
                (relief.pages, relief.halves_window, relief.begins_smaller),
                (Pages::AsAsked, false, false)
            );
        }
        let balanced = relief(Level::Critical, Quality::Balanced);
        assert_eq!((balanced.pages, balanced.halves_window), (Pages::Int8, false));
        let draft = relief(Level::Critical, Quality::Draft);
        assert_eq!((draft.pages, draft.halves_window, draft.begins_smaller), (Pages::Int4, true, true));
    }

    #[test]
    fn a_job_goes_by_one_level_less_for_each_worse_class_on_the_device() {
        let behind = |worse_classes| Level::ALL.map(|level| level.behind(worse_classes).as_str());
        assert_eq!(behind(0), ["calm", "watch", "high", "critical"]);
        assert_eq!(behind(1), ["calm", "calm", "watch", "high"]);
        assert_eq!(behind(2), ["calm", "calm", "calm", "watch"]);
        // So of two jobs that would give up the same one gives way first, and with it alone memory may be enough.
        let pages = |worse_classes| {
            Level::ALL.map(|level| relief(level.behind(worse_classes), Quality::Balanced).pages)
        };
        assert_eq!(pages(0), [Pages::AsAsked, Pages::AsAsked, Pages::Int8, Pages::Int8]);
        assert_eq!(pages(1), [Pages::AsAsked, Pages::AsAsked, Pages::AsAsked, Pages::Int8]);
        assert_eq!(pages(2), [Pages::AsAsked; 4]);
    }

    #[test]
    fn a_smaller_edge_lies_on_the_grid_and_is_never_nothing() {
        assert_eq!([832, 480, 16, 32].map(|px| smaller_edge(px, 16)), [624, 352, 16, 16]);
    }
}
