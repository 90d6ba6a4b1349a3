//! Places that hold bytes, and tables with one value per place.

use std::ops::{Index, IndexMut};

/// A place that holds cached bytes under a budget of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Next to the arithmetic. On the CPU it is host memory with a budget of its own.
    Device,
    /// Host memory: where device entries wait for their next use.
    Host,
    /// A file: where entries wait whose next use is farther than the host can hold. Nothing is read in place here.
    Disk,
}

impl Tier {
    /// Every tier, nearest to the arithmetic first.
    pub const ALL: [Self; 3] = [Self::Device, Self::Host, Self::Disk];

    /// The tier's name in reports and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Host => "host",
            Self::Disk => "disk",
        }
    }

    /// The tier that entries are demoted to from this one.
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::Device => Some(Self::Host),
            Self::Host => Some(Self::Disk),
            Self::Disk => None,
        }
    }
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One value per tier, indexed by [`Tier`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerTier<T>([T; Tier::ALL.len()]);

impl<T> PerTier<T> {
    /// A table filled by asking for each tier's value.
    pub fn from_fn(mut value: impl FnMut(Tier) -> T) -> Self {
        Self(Tier::ALL.map(&mut value))
    }

    /// Each tier with its value, nearest tier first.
    pub fn iter(&self) -> impl Iterator<Item = (Tier, &T)> {
        Tier::ALL.into_iter().zip(&self.0)
    }
}

impl PerTier<u64> {
    /// Bytes in one tier and none in the others.
    pub fn only(tier: Tier, bytes: u64) -> Self {
        Self::from_fn(|t| if t == tier { bytes } else { 0 })
    }

    /// The sum over all tiers.
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

impl<T> Index<Tier> for PerTier<T> {
    type Output = T;

    fn index(&self, tier: Tier) -> &T {
        &self.0[tier as usize]
    }
}

impl<T> IndexMut<Tier> for PerTier<T> {
    fn index_mut(&mut self, tier: Tier) -> &mut T {
        &mut self.0[tier as usize]
    }
}

/// How many bytes the tiers in memory may hold. Never exceeded. That of [`Tier::Disk`] is the size of its file, which
/// [`Cache::with_disk`](crate::Cache::with_disk) takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Budget of [`Tier::Device`].
    pub device_bytes: u64,
    /// Budget of [`Tier::Host`].
    pub host_bytes: u64,
}

impl Budgets {
    /// The budget of one tier in bytes; 0 for the disk, whose file says it.
    pub const fn of(&self, tier: Tier) -> u64 {
        match tier {
            Tier::Device => self.device_bytes,
            Tier::Host => self.host_bytes,
            Tier::Disk => 0,
        }
    }
}
