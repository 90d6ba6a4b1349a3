//! What each class may count on, and what it may not pass, as shares of a tier.

use crate::job::Class;

/// What a class may count on, and what it may not pass, in one tier: shares of the tier's budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quota {
    /// Never taken away for other classes.
    pub guarantee: f64,
    /// Never passed.
    pub limit: f64,
}

impl Default for Quota {
    fn default() -> Self {
        Self { guarantee: 0.0, limit: 1.0 }
    }
}

/// One class's quotas.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quotas {
    /// Of the device.
    pub device: Quota,
    /// Of the host, where jobs are parked.
    pub host: Quota,
}

/// Bytes of the disk that snapshots may have together, and each class's quota of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiskShares {
    /// For all snapshots.
    pub bytes: u64,
    /// By class, in the order of [`Class::ALL`].
    pub quotas: [Quota; Class::ALL.len()],
}

impl Default for DiskShares {
    fn default() -> Self {
        Self { bytes: u64::MAX, quotas: [Quota::default(); Class::ALL.len()] }
    }
}

/// So much of some bytes.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share between 0 and 1 of some bytes; nobody misses the last bits"
)]
pub(super) fn share(share: f64, bytes: u64) -> u64 {
    (share * bytes as f64) as u64
}
