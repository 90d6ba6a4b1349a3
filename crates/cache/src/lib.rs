//! The life of a cached block: owners, lifetimes, tiers, budgets and leases.
