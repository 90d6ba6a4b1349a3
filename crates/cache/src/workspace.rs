//! Memory of a step: counted as reserved, with no entry behind it, and the same memory again for the next step.

use std::fmt;
use std::sync::Arc;

use crate::arena::Account;
use crate::buffer::{Buffer, entry_bytes};
use crate::room::Shared;
use crate::store::Post;
use crate::{Displace, OutOfBudget, Owner, PerTier, Tier};

/// Bytes of a tier to work in. Dropping them returns them to the tier, where they wait, idle and within its budget, for
/// whoever asks for as many: the next step, or, wiped, another owner (law 10).
#[must_use = "dropping the workspace gives the memory up"]
pub struct Workspace {
    shared: Arc<Shared>,
    owner: Owner,
    tier: Tier,
    charged_bytes: u64,
    len_bytes: usize,
    buffer: Buffer,
}

/// No workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkspaceError {
    /// The tier cannot make the room.
    #[error(transparent)]
    OutOfBudget(#[from] OutOfBudget),
    /// A workspace on disk.
    #[error("nobody can work on the disk in place; ask for a workspace in the device or the host tier")]
    NotInMemory,
    /// The system has no such memory.
    #[error(
        "the system has no {len_bytes} bytes of memory for a workspace; lower the budget of the {tier} tier"
    )]
    NoMemory {
        /// The tier.
        tier: Tier,
        /// What was asked.
        len_bytes: usize,
    },
}

impl Workspace {
    pub(crate) fn begin(
        shared: &Arc<Shared>,
        owner: Owner,
        tier: Tier,
        len_bytes: usize,
    ) -> Result<Self, WorkspaceError> {
        if tier == Tier::Disk {
            return Err(WorkspaceError::NotInMemory);
        }
        let charged_bytes = entry_bytes(len_bytes);
        let wanted = PerTier::only(tier, charged_bytes);
        let (mut store, room) = shared.make_room(shared.lock(), wanted, Displace::Anything);
        room?;
        store.charge(Post::new(owner, None, tier, Account::Reserved), charged_bytes);
        // Idle memory is taken before what no longer fits beside it is given up.
        let idle = store.take_idle(tier, charged_bytes, owner);
        store.shed(tier);
        drop(store);
        let shared = Arc::clone(shared);
        let mut workspace = Self { shared, owner, tier, charged_bytes, len_bytes, buffer: Buffer::default() };
        workspace.buffer = match idle {
            Some((mut buffer, foreign)) => {
                if foreign {
                    buffer.bytes_mut().fill(0);
                }
                buffer
            }
            None => workspace
                .shared
                .buffer(len_bytes)
                .map_err(|_| WorkspaceError::NoMemory { tier, len_bytes })?,
        };
        Ok(workspace)
    }

    /// The bytes, 64-byte aligned, with whatever the owner left in them; none in a cache that only counts.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.first_mut(self.len_bytes)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        let mut store = self.shared.lock();
        store.arenas[self.tier].give(buffer, self.owner);
        store.release(Post::new(self.owner, None, self.tier, Account::Reserved), self.charged_bytes);
    }
}

impl fmt::Debug for Workspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workspace")
            .field("owner", &self.owner)
            .field("tier", &self.tier)
            .field("len_bytes", &self.len_bytes)
            .finish_non_exhaustive()
    }
}
