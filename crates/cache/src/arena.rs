//! One tier's memory: the ledger of its bytes and the buffers that wait for reuse.

use std::collections::BTreeMap;

use crate::Owner;
use crate::buffer::Buffer;

/// Why bytes are in use. Every byte in use stands in exactly one account (law 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Account {
    /// Promised to a reservation; no memory behind it yet.
    Reserved,
    /// Behind an open writer.
    Writing,
    /// Behind a visible entry.
    Live,
    /// The destination of a demotion or promotion under way.
    Moving,
    /// Behind an entry that is gone from sight but still leased or in flight.
    Quiescing,
    /// Behind an entry whose flight never reported back.
    Quarantined,
}

const ACCOUNTS: usize = 6;

/// A freed buffer and who wrote it last.
struct Idle {
    buffer: Buffer,
    last_owner: Owner,
}

/// Invariant: `used_bytes` is the sum of `accounts`, and `used_bytes + free_listed_bytes <= budget_bytes`
/// whenever the store's lock is free.
pub(crate) struct Arena {
    budget_bytes: u64,
    accounts: [u64; ACCOUNTS],
    used_bytes: u64,
    peak_bytes: u64,
    free_listed_bytes: u64,
    /// Freed buffers by their size, each size a stack.
    free_list: BTreeMap<u64, Vec<Idle>>,
}

impl Arena {
    pub(crate) fn new(budget_bytes: u64) -> Self {
        Self {
            budget_bytes,
            accounts: [0; ACCOUNTS],
            used_bytes: 0,
            peak_bytes: 0,
            free_listed_bytes: 0,
            free_list: BTreeMap::new(),
        }
    }

    pub(crate) fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    /// Changes the budget, as far as what is used allows; the caller calls [`shed`](Self::shed) before it unlocks.
    pub(crate) fn set_budget_bytes(&mut self, bytes: u64) {
        self.budget_bytes = bytes.max(self.used_bytes);
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    pub(crate) fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }

    pub(crate) fn free_listed_bytes(&self) -> u64 {
        self.free_listed_bytes
    }

    pub(crate) fn in_account(&self, account: Account) -> u64 {
        self.accounts[account as usize]
    }

    /// Bytes that can be charged: idle buffers give way to whatever needs the room.
    pub(crate) fn room_bytes(&self) -> u64 {
        self.budget_bytes - self.used_bytes
    }

    /// The caller has checked [`room_bytes`](Self::room_bytes), and calls [`shed`](Self::shed) before it unlocks.
    pub(crate) fn charge(&mut self, account: Account, bytes: u64) {
        self.accounts[account as usize] += bytes;
        self.used_bytes += bytes;
        self.peak_bytes = self.peak_bytes.max(self.used_bytes);
    }

    pub(crate) fn release(&mut self, account: Account, bytes: u64) {
        self.accounts[account as usize] -= bytes;
        self.used_bytes -= bytes;
    }

    pub(crate) fn transfer(&mut self, from: Account, to: Account, bytes: u64) {
        self.accounts[from as usize] -= bytes;
        self.accounts[to as usize] += bytes;
    }

    /// A waiting buffer of exactly this size, with its last owner; `last_owner` decides only whether it must be
    /// wiped (law 10).
    pub(crate) fn take(&mut self, charged_bytes: u64) -> Option<(Buffer, Owner)> {
        let stack = self.free_list.get_mut(&charged_bytes)?;
        let idle = stack.pop()?;
        if stack.is_empty() {
            self.free_list.remove(&charged_bytes);
        }
        self.free_listed_bytes -= charged_bytes;
        Some((idle.buffer, idle.last_owner))
    }

    /// Keeps a buffer whose bytes were released for reuse.
    pub(crate) fn give(&mut self, buffer: Buffer, last_owner: Owner) {
        let bytes = buffer.charged_bytes();
        if bytes > 0 {
            self.free_listed_bytes += bytes;
            self.free_list.entry(bytes).or_default().push(Idle { buffer, last_owner });
        }
    }

    /// Moves idle buffers, largest first, to `debris` until used and idle bytes fit the budget together.
    /// The caller drops `debris` after it has unlocked.
    pub(crate) fn shed(&mut self, debris: &mut Vec<Buffer>) {
        self.shed_to(self.budget_bytes - self.used_bytes, debris);
    }

    /// As [`shed`](Self::shed), until at most `limit_bytes` are idle.
    pub(crate) fn shed_to(&mut self, limit_bytes: u64, debris: &mut Vec<Buffer>) {
        while self.free_listed_bytes > limit_bytes {
            let Some(mut largest) = self.free_list.last_entry() else { return };
            if let Some(idle) = largest.get_mut().pop() {
                self.free_listed_bytes -= idle.buffer.charged_bytes();
                debris.push(idle.buffer);
            }
            if largest.get().is_empty() {
                largest.remove();
            }
        }
    }

    /// What is wrong with this arena's sums, if anything.
    pub(crate) fn check(&self) -> Result<(), String> {
        let sum: u64 = self.accounts.iter().sum();
        let idle: u64 = self.free_list.iter().map(|(bytes, stack)| bytes * stack.len() as u64).sum();
        if sum != self.used_bytes {
            return Err(format!("accounts sum to {sum} bytes but {} are used", self.used_bytes));
        }
        if idle != self.free_listed_bytes {
            return Err(format!("{idle} bytes are idle but {} are counted", self.free_listed_bytes));
        }
        if self.used_bytes + idle > self.budget_bytes {
            return Err(format!(
                "{} used and {idle} idle pass budget {}",
                self.used_bytes, self.budget_bytes
            ));
        }
        Ok(())
    }
}
