//! Which extents of the file are free.

use std::sync::Arc;

use super::record::HEADER_BYTES;

/// An entry's place on disk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// In the order of its bytes.
    pub(crate) extents: Vec<u32>,
    /// What the extents hold together: what the entry is charged.
    pub(crate) charged_bytes: u64,
    /// Tells this record from all others that were ever in these extents.
    pub(crate) sequence: u64,
    /// Of its payload: whole lines.
    pub(crate) payload_bytes: u64,
}

/// What a payload takes: whole extents; more than any file has where there is no disk.
pub(super) fn record_bytes(extent_bytes: u64, payload_bytes: u64) -> u64 {
    if extent_bytes == 0 {
        return u64::MAX;
    }
    let record_bytes = payload_bytes.saturating_add(HEADER_BYTES as u64);
    record_bytes.div_ceil(extent_bytes).saturating_mul(extent_bytes)
}

/// The free extents of one file. Part of the state behind the lock.
#[derive(Debug, Default)]
pub(crate) struct Extents {
    extent_bytes: u64,
    count: u32,
    free: Vec<u32>,
    records_made: u64,
    /// A write failed, so nothing is written any more; what is there can still be read.
    refuses: bool,
}

impl Extents {
    pub(crate) fn new(count: u32, extent_bytes: u64) -> Self {
        // Taken from the end: the front of the file is used first.
        Self { extent_bytes, count, free: (0..count).rev().collect(), ..Self::default() }
    }

    pub(crate) fn record_bytes(&self, payload_bytes: u64) -> u64 {
        record_bytes(self.extent_bytes, payload_bytes)
    }

    pub(crate) fn budget_bytes(&self) -> u64 {
        u64::from(self.count) * self.extent_bytes
    }

    /// Extents for a payload, unless too few are free or writing has failed.
    pub(crate) fn take(&mut self, payload_bytes: u64) -> Option<Arc<Record>> {
        let charged_bytes = self.record_bytes(payload_bytes);
        let wanted = usize::try_from(charged_bytes.checked_div(self.extent_bytes)?).ok()?;
        let left = self.free.len().checked_sub(wanted).filter(|_| !self.refuses)?;
        let mut extents = self.free.split_off(left);
        extents.reverse();
        self.records_made += 1;
        Some(Arc::new(Record { extents, charged_bytes, sequence: self.records_made, payload_bytes }))
    }

    /// Takes extents back once the last holder gives them.
    pub(crate) fn give(&mut self, record: Arc<Record>) {
        if let Some(record) = Arc::into_inner(record) {
            self.free.extend(record.extents.into_iter().rev());
        }
    }

    pub(crate) fn refuse(&mut self) {
        self.refuses = true;
    }

    pub(crate) fn refuses(&self) -> bool {
        self.refuses
    }

    /// Bytes of free extents, for checks.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.free.len() as u64 * self.extent_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_free_extents_hold_any_record() {
        let mut extents = Extents::new(4, 4096);
        let small = [0; 4].map(|_| extents.take(100).unwrap());
        assert!(extents.take(1).is_none());
        let [a, b, c, d] = small;
        extents.give(b);
        extents.give(d);
        let large = extents.take(4096).unwrap();
        assert_eq!((large.charged_bytes, extents.free_bytes()), (8192, 0));
        let mut all: Vec<u32> = [&a, &c, &large].iter().flat_map(|record| record.extents.clone()).collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3]);
        let sequences = [&a, &c, &large].map(|record| record.sequence);
        assert!(sequences.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn where_there_is_no_disk_nothing_fits() {
        let mut none = Extents::default();
        assert_eq!((none.record_bytes(1), none.budget_bytes()), (u64::MAX, 0));
        assert!(none.take(1).is_none());
    }
}
