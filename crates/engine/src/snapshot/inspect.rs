//! What a snapshot holds, for whoever looks at it from outside.

use std::collections::BTreeMap;

use super::manifest::{Manifest, sum_bytes};
use super::parts::verify;
use super::{SnapshotError, SnapshotStore};
use crate::run::Phase;

/// A snapshot that was read through and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// How many snapshots the job had taken.
    pub sequence: u64,
    /// The unit of work that comes next, in words; whatever is counted in them is counted from 1.
    pub next: String,
    /// Entries by kind.
    pub kinds: BTreeMap<String, KindContents>,
    /// Bytes of the video so far.
    pub video_bytes: u64,
    /// Bytes of all parts.
    pub held_bytes: u64,
}

/// Entries of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindContents {
    /// How many.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Reads a snapshot and verifies every checksum; `None` when there is none.
///
/// # Errors
/// [`SnapshotError`] when it cannot be read, is damaged, or is of another version.
pub fn inspect(store: &dyn SnapshotStore) -> Result<Option<Contents>, SnapshotError> {
    let Some(manifest) = store.manifest().map_err(SnapshotError::read)? else { return Ok(None) };
    let manifest = Manifest::decode(&manifest)?;
    manifest.extents().try_for_each(|extent| verify(store, extent))?;
    let mut kinds: BTreeMap<String, KindContents> = BTreeMap::new();
    for saved in &manifest.entries {
        let kind = kinds.entry(saved.key()?.kind.as_str().to_owned()).or_default();
        kind.entries += 1;
        kind.bytes = kind.bytes.saturating_add(saved.bytes.len_bytes);
    }
    Ok(Some(Contents {
        sequence: manifest.sequence,
        next: words(manifest.phase),
        kinds,
        video_bytes: sum_bytes(&manifest.video.stream),
        held_bytes: sum_bytes(manifest.extents()),
    }))
}

fn words(unit: Phase) -> String {
    // A manifest may say any number.
    let nth = |at: usize| at.saturating_add(1);
    match unit {
        Phase::Prompt { at } => format!("prompt {}", nth(at)),
        Phase::Noise { block } => format!("noise of block {}", nth(block)),
        Phase::Step { block, at } => format!("denoising step {} of block {}", nth(at), nth(block)),
        Phase::Commit { block, at } => {
            format!("pass {} that keeps keys and values of block {}", nth(at), nth(block))
        }
        Phase::LatentFrame { at } => format!("decoding of latent frame {}", nth(at)),
        Phase::Close => "closing of the video".to_owned(),
        Phase::Done => "nothing".to_owned(),
    }
}
