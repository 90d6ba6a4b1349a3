//! Taking a snapshot between two units of a job.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use evanesce_cache::policy::EntryId;
use evanesce_cache::{Kind, Lease, Owned};

use super::manifest::{Extent, Manifest, Saved, Video, fingerprint};
use super::{SnapshotError, SnapshotMode, SnapshotStore, Taken};
use crate::adapt::Adapt;
use crate::error::{EngineError, Result};
use crate::run::{JobRun, Phase};
use crate::video::{FrameSink, SinkState};

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

/// Writes parts and counts.
struct Writing<'a> {
    store: &'a dyn SnapshotStore,
    sequence: u64,
    written_bytes: u64,
}

impl JobRun<'_> {
    /// Writes what the job needs to go on from here, unless it stands where it cannot be gone on from: before its first
    /// noise, in the middle of a segment of its video, or when it is done. Then `None`, and the last snapshot stands.
    ///
    /// When it stands where the last snapshot was taken, that one is given as it is, with nothing written. Costs what is new since the last snapshot, which must be in the same `store`.
    ///
    /// # Errors
    /// [`EngineError::Snapshot`] when the store refuses. The job is as before, and so is the last snapshot.
    pub fn snapshot(&mut self, store: &dyn SnapshotStore, mode: SnapshotMode) -> Result<Option<Taken>> {
        let phase = self.phase_to_save();
        let decodes_within_block = matches!(phase, Phase::LatentFrame { at } if !self.begins_block(at));
        if matches!(phase, Phase::Prompt { .. } | Phase::Done)
            || (mode == SnapshotMode::Compact && decodes_within_block)
        {
            return Ok(None);
        }
        if let Some((_, _, taken)) =
            self.kept.at.as_ref().filter(|(at, adapt, _)| *at == phase && *adapt == self.adapt)
        {
            return Ok(Some(Taken { written_bytes: 0, ..*taken }));
        }
        let Some(video) = self.outputs.as_mut().and_then(|outputs| outputs.saved_video()) else {
            return Ok(None);
        };
        let Some(state) = video.save()? else { return Ok(None) };
        let sequence = self.kept.sequence + 1;
        let mut writing = Writing { store, sequence, written_bytes: 0 };
        let mut manifest =
            Manifest::new(fingerprint(self.model, &self.spec), sequence, phase, self.adapt.clone());
        let written = self.write(&mut writing, &mut manifest, &state, mode);
        let written_bytes = writing.written_bytes;
        match written {
            Ok(kept) => self.kept = kept,
            Err(error) => {
                // Best effort: what stays is removed after the next snapshot.
                drop(store.retain(&self.kept.parts));
                return Err(error.into());
            }
        }
        // The snapshot stands, whatever becomes of what it no longer needs.
        drop(store.retain(&self.kept.parts));
        let taken = Taken { written_bytes, ..manifest.taken() };
        self.kept.at = Some((phase, self.adapt.clone(), taken));
        Ok(Some(taken))
    }

    fn begins_block(&self, frame: usize) -> bool {
        self.spec.block(self.spec.block_of(frame)).frames.start == frame
    }

    fn write(
        &mut self,
        writing: &mut Writing<'_>,
        manifest: &mut Manifest,
        state: &SinkState,
        mode: SnapshotMode,
    ) -> std::result::Result<Kept, SnapshotError> {
        let mut entries = self.job.entries();
        entries.retain(|owned| keeps(mode, owned.key.kind));
        for owned in &mut entries {
            let parked = self.parked.as_mut().and_then(|parked| parked.get(&owned.key));
            owned.uses.extend(parked.into_iter().flatten());
        }
        let extents = self.write_entries(writing, &entries)?;
        let mut groups = BTreeMap::new();
        for owned in &entries {
            let n_groups = groups.len() as u64;
            let group = owned.group.map(|group| *groups.entry(group).or_insert(n_groups));
            let extent = extents.get(&owned.id).cloned();
            let saved = extent.and_then(|extent| Saved::new(owned, group, extent));
            manifest.entries.extend(saved);
        }
        let video = self.outputs.as_mut().and_then(|outputs| outputs.saved_video());
        let video = video.ok_or_else(|| super::manifest::damaged("the video is closed"))?;
        let digest = blake3::hash(&state.facts).to_hex();
        let unchanged = self.kept.facts.as_ref().filter(|facts| *facts.blake3 == *digest);
        let facts = match unchanged {
            Some(facts) => facts.clone(),
            None => writing.part("video", &mut |to| to.write_all(&state.facts))?,
        };
        let stream = writing.stream(video, &self.kept.stream, state.stream_bytes)?;
        manifest.video = Video { facts, stream };
        writing.store.publish(&manifest.encode()?).map_err(SnapshotError::written)?;
        let (Video { stream, facts }, parts) = (manifest.video.clone(), manifest.parts());
        let (sequence, facts) = (writing.sequence, Some(facts));
        Ok(Kept { sequence, entries: extents, stream, facts, parts, at: None })
    }

    /// Where the bytes of each entry are: those that are new go into one part for each kind.
    fn write_entries(
        &self,
        writing: &mut Writing<'_>,
        entries: &[Owned],
    ) -> std::result::Result<BTreeMap<EntryId, Extent>, SnapshotError> {
        let mut extents = BTreeMap::new();
        for kind in Kind::ALL {
            let mut fresh = Vec::new();
            for owned in entries.iter().filter(|owned| owned.key.kind == kind) {
                match self.kept.entries.get(&owned.id) {
                    Some(extent) => drop(extents.insert(owned.id, extent.clone())),
                    None => fresh.push(owned),
                }
            }
            if !fresh.is_empty() {
                let peek = |owned: &Owned| self.job.peek(&owned.key).map_err(io::Error::other);
                extents.extend(writing.entries(kind, &fresh, &peek)?);
            }
        }
        Ok(extents)
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

impl Writing<'_> {
    fn name(&self, what: &str) -> String {
        format!("{what}.{}", self.sequence)
    }

    /// One part with one extent.
    fn part(
        &mut self,
        what: &str,
        fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> std::result::Result<Extent, SnapshotError> {
        let part = self.name(what);
        let (mut len_bytes, mut digest) = (0, blake3::Hasher::new());
        let mut hashed = |to: &mut dyn Write| {
            let mut counting = Counting { to, len_bytes: 0, digest: blake3::Hasher::new() };
            fill(&mut counting)?;
            (len_bytes, digest) = (counting.len_bytes, counting.digest);
            Ok(())
        };
        self.store.put_part(&part, &mut hashed).map_err(SnapshotError::written)?;
        self.written_bytes += len_bytes;
        Ok(Extent { part, offset: 0, len_bytes, blake3: digest.finalize().to_hex().to_string() })
    }

    /// One part with an extent for each entry.
    fn entries(
        &mut self,
        kind: Kind,
        fresh: &[&Owned],
        peek: &dyn Fn(&Owned) -> io::Result<Lease>,
    ) -> std::result::Result<Vec<(EntryId, Extent)>, SnapshotError> {
        let part = self.name(kind.as_str());
        let mut extents = Vec::with_capacity(fresh.len());
        let mut offset = 0;
        self.store
            .put_part(&part, &mut |to| {
                extents.clear();
                offset = 0;
                for owned in fresh {
                    let lease = peek(owned)?;
                    to.write_all(lease.bytes())?;
                    let len_bytes = lease.bytes().len() as u64;
                    let blake3 = blake3::hash(lease.bytes()).to_hex().to_string();
                    extents.push((owned.id, Extent { part: part.clone(), offset, len_bytes, blake3 }));
                    offset += len_bytes;
                }
                Ok(())
            })
            .map_err(SnapshotError::written)?;
        self.written_bytes += offset;
        Ok(extents)
    }

    /// The stream's extents: those there are, and one for what has come since.
    fn stream(
        &mut self,
        video: &mut dyn FrameSink,
        before: &[Extent],
        stream_bytes: u64,
    ) -> std::result::Result<Vec<Extent>, SnapshotError> {
        let mut stream = before.to_vec();
        let kept_bytes: u64 = before.iter().map(|extent| extent.len_bytes).sum();
        if stream_bytes > kept_bytes {
            let copy = &mut |to: &mut dyn Write| video.copy_stream(kept_bytes, to).map_err(io::Error::other);
            stream.push(self.part("stream", copy)?);
        }
        Ok(stream)
    }
}

/// Counts and hashes what passes.
struct Counting<'a> {
    to: &'a mut dyn Write,
    len_bytes: u64,
    digest: blake3::Hasher,
}

impl Write for Counting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.to.write(bytes)?;
        self.len_bytes += taken as u64;
        self.digest.update(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl From<SnapshotError> for EngineError {
    fn from(error: SnapshotError) -> Self {
        Self::Snapshot(error)
    }
}
