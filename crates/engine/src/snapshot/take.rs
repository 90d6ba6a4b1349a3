//! Taking a snapshot between two units of a job: what changes is copied out of the cache at once, and written whenever that is.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use evanesce_cache::policy::EntryId;
use evanesce_cache::{Kind, Owned, Reservation};

use super::capture::{Capture, Copies, Written, lease_of};
use super::manifest::{Extent, Manifest, fingerprint, sum_bytes};
use super::{SnapshotError, SnapshotMode, SnapshotStore, Taken};
use crate::adapt::Adapt;
use crate::admission::spare_room;
use crate::error::{EngineError, Result};
use crate::output::SavedVideo;
use crate::run::{JobRun, Phase};

/// What the last snapshot of a job has on disk already.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Snapshots so far.
    pub(super) sequence: u64,
    pub(super) entries: BTreeMap<EntryId, Extent>,
    pub(super) stream: Vec<Extent>,
    pub(super) facts: Option<Extent>,
    /// Parts of the last manifest.
    pub(super) parts: BTreeSet<String>,
    /// Where the job stood, and what that snapshot holds.
    pub(super) at: Option<(Phase, Adapt, Taken)>,
}

impl Kept {
    pub(super) fn stream_bytes(&self) -> u64 {
        sum_bytes(&self.stream)
    }
}

/// What there is to take.
#[derive(Debug)]
pub enum Captured {
    /// A snapshot to be written, by any thread; then [`JobRun::captured`].
    Copied(Box<Capture>),
    /// There is one, but no room for a copy: [`JobRun::snapshot`] writes it from where it is.
    NoRoom,
    /// The last snapshot has it all.
    Known(Taken),
    /// Nothing: the job stands where it cannot be gone on from, or the last snapshot is still being written.
    Nothing,
}

impl JobRun<'_> {
    /// Writes what the job needs to go on from here, unless it stands where it cannot be gone on from: before its first
    /// noise, in the middle of a segment of its video, or when it is done. Then `None`, and the last snapshot stands.
    ///
    /// When it stands where the last snapshot was taken, that one is given as it is, with nothing written. Costs what is new since the last snapshot, which must be in the same `store`.
    ///
    /// # Errors
    /// [`EngineError::Snapshot`] when the store refuses. The job is as before, and it can be gone on from the last snapshot or from this one.
    pub fn snapshot(&mut self, store: &dyn SnapshotStore, mode: SnapshotMode) -> Result<Option<Taken>> {
        if self.is_captured || !self.can_be_saved(mode) {
            return Ok(None);
        }
        if let Some(taken) = self.last_taken() {
            return Ok(Some(taken));
        }
        let Some(video) = self.save_video()? else { return Ok(None) };
        let entries = self.entries_to_keep(mode);
        let capture = self.capture_of(entries, video, Copies::default());
        let written = capture.write_from(store, &self.job);
        self.captured(written)
    }

    /// Copies what a [snapshot](Self::snapshot) would write, where there is room below the device, so that it can be written while
    /// the job goes on. Until [`Self::captured`] is told what became of it there is no other.
    ///
    /// # Errors
    /// [`EngineError::Video`] when the video has failed, [`EngineError::Cache`] when an entry cannot be read.
    pub fn capture(&mut self, mode: SnapshotMode) -> Result<Captured> {
        if self.is_captured || !self.can_be_saved(mode) {
            return Ok(Captured::Nothing);
        }
        if let Some(taken) = self.last_taken() {
            return Ok(Captured::Known(taken));
        }
        let entries = self.entries_to_keep(mode);
        let fresh = entries.iter().filter(|owned| !self.kept.entries.contains_key(&owned.id));
        let fresh: Vec<_> = fresh.collect();
        let fresh_bytes = fresh.iter().map(|owned| owned.len_bytes).sum();
        let room = spare_room(self.model, &self.job, &self.needs, fresh_bytes as u64);
        let Some(room) = room else { return Ok(Captured::NoRoom) };
        let Some(video) = self.save_video()? else { return Ok(Captured::Nothing) };
        let copies = self.copy(&fresh, fresh_bytes, room)?;
        let capture = self.capture_of(entries, video, copies);
        self.is_captured = true;
        Ok(Captured::Copied(Box::new(capture)))
    }

    /// Takes note of what became of a capture; what it gives is what [`Self::snapshot`] would have given.
    ///
    /// # Errors
    /// As [`Self::snapshot`].
    pub fn captured(
        &mut self,
        written: std::result::Result<Option<Written>, SnapshotError>,
    ) -> Result<Option<Taken>> {
        self.is_captured = false;
        let Some(Written { kept, taken }) = written? else { return Ok(None) };
        self.kept = kept.into();
        Ok(Some(taken))
    }

    /// Bytes that the job's last snapshot holds.
    #[must_use]
    pub fn saved_bytes(&self) -> u64 {
        self.kept.at.as_ref().map_or(0, |(_, _, taken)| taken.held_bytes)
    }

    fn can_be_saved(&self, mode: SnapshotMode) -> bool {
        let phase = self.phase_to_save();
        let decodes_within_block = matches!(phase, Phase::LatentFrame { at } if !self.begins_block(at));
        let is_between = matches!(phase, Phase::Prompt { .. } | Phase::Done);
        !is_between && (mode == SnapshotMode::Full || !decodes_within_block)
    }

    /// What the last snapshot holds, if the job has not moved since.
    fn last_taken(&self) -> Option<Taken> {
        let (at, adapt, taken) = self.kept.at.as_ref()?;
        let is_here = *at == self.phase_to_save() && *adapt == self.adapt;
        is_here.then_some(Taken { written_bytes: 0, ..*taken })
    }

    fn begins_block(&self, frame: usize) -> bool {
        self.spec.block(self.spec.block_of(frame)).frames.start == frame
    }

    fn save_video(&mut self) -> Result<Option<SavedVideo>> {
        let kept_bytes = self.kept.stream_bytes();
        let Some(outputs) = self.outputs.as_mut() else { return Ok(None) };
        outputs.save_video(kept_bytes)
    }

    fn entries_to_keep(&mut self, mode: SnapshotMode) -> Vec<Owned> {
        let mut entries = self.job.entries();
        entries.retain(|owned| keeps(mode, owned.key.kind));
        for owned in &mut entries {
            let parked = self.parked.as_mut().and_then(|parked| parked.get(&owned.key));
            owned.uses.extend(parked.into_iter().flatten());
        }
        entries
    }

    fn capture_of(&self, entries: Vec<Owned>, video: SavedVideo, copies: Copies) -> Capture {
        let phase = self.phase_to_save();
        let sequence = self.kept.sequence.wrapping_add(1);
        let manifest =
            Manifest::new(fingerprint(self.model, &self.spec), sequence, phase, self.adapt.clone());
        let at = (phase, self.adapt.clone());
        Capture { manifest, at, entries, before: self.kept.clone(), video, copies }
    }

    fn copy(&self, fresh: &[&Owned], len_bytes: usize, room: Reservation) -> Result<Copies> {
        let mut bytes = Vec::with_capacity(len_bytes);
        let mut places: BTreeMap<EntryId, Range<usize>> = BTreeMap::new();
        for owned in fresh {
            let Some(lease) = lease_of(&self.job, owned).map_err(EngineError::cache)? else { continue };
            let begin = bytes.len();
            bytes.extend_from_slice(lease.bytes());
            places.insert(owned.id, begin..bytes.len());
        }
        Ok(Copies { bytes, places, room: Some(room) })
    }
}

/// Compact snapshots leave out what follows from the prompt and the weights.
fn keeps(mode: SnapshotMode, kind: Kind) -> bool {
    match kind {
        Kind::CrossKv => mode == SnapshotMode::Full,
        Kind::SelfKv | Kind::Latent | Kind::VaeFeature => true,
        Kind::TextEmbedding | Kind::Weights | Kind::StepResidual => false,
    }
}

impl From<SnapshotError> for EngineError {
    fn from(error: SnapshotError) -> Self {
        Self::Snapshot(error)
    }
}
