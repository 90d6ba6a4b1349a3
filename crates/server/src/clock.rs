//! The only place of this crate that looks at a clock. Everything else is handed moments and durations.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A moment in milliseconds since 1970, UTC: what is stored and shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixMs(pub i64);

impl UnixMs {
    /// Now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one reading of the wall clock")]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// This moment and some time.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Whole seconds since 1970, as the API writes moments.
    #[must_use]
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// This moment as RFC 3339 writes it, in UTC, to the millisecond.
    #[must_use]
    pub fn rfc3339(self) -> String {
        let (days, ms) = (self.0.div_euclid(MS_PER_DAY), self.0.rem_euclid(MS_PER_DAY));
        let (year, month, day) = date_of(days);
        let (seconds, ms) = (ms / 1000, ms % 1000);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    }

    /// Midnight, UTC, at the start of a day of the Gregorian calendar.
    #[must_use]
    pub fn of_date(year: i64, month: i64, day: i64) -> Self {
        Self(days_to(year, month, day) * MS_PER_DAY)
    }

    /// Milliseconds from `earlier` to this moment; 0 if it comes after.
    #[must_use]
    pub fn ms_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0).max(0)
    }
}

const MS_PER_DAY: i64 = 86_400_000;

/// Days from 1970-01-01 to a date: years are counted from March, so that the leap day ends one (H. Hinnant, `days_from_civil`).
const fn days_to(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The inverse of [`days_to`] (`civil_from_days`).
const fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let months = (5 * of_year + 2) / 153;
    let (month, day) = ((months + 2) % 12 + 1, of_year - (153 * months + 2) / 5 + 1);
    (era * 400 + year + if month <= 2 { 1 } else { 0 }, month, day)
}

/// Measures how long something takes, on a clock that never goes back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "the one reading of the monotonic clock")]
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_dates_and_dates_are_read_as_moments() {
        assert_eq!(UnixMs(0).rfc3339(), "1970-01-01T00:00:00.000Z");
        assert_eq!(UnixMs(951_782_399_999).rfc3339(), "2000-02-28T23:59:59.999Z");
        assert_eq!(UnixMs(1_709_164_800_001).rfc3339(), "2024-02-29T00:00:00.001Z");
        assert_eq!(UnixMs::of_date(2024, 2, 29), UnixMs(1_709_164_800_000));
        for days in (-200_000..200_000).step_by(97) {
            let (year, month, day) = date_of(days);
            assert_eq!(days_to(year, month, day), days, "{year}-{month}-{day}");
        }
    }
}
