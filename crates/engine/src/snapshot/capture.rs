//! A captured snapshot on its way to disk: parts, then the manifest that names them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use evanesce_cache::policy::EntryId;
use evanesce_cache::{GetError, Job, Kind, Lease, Owned, Recover, Reservation};

use super::manifest::{Extent, Manifest, Saved, Video};
use super::take::Kept;
use super::{SnapshotError, SnapshotStore, Taken};
use crate::adapt::Adapt;
use crate::output::SavedVideo;
use crate::run::Phase;
use crate::video::SinkState;

type Outcome<T> = Result<T, SnapshotError>;

/// What a job was at one moment. It holds copies, so the job may go on, and room that counts them.
pub struct Capture {
    pub(super) manifest: Manifest,
    pub(super) at: (Phase, Adapt),
    pub(super) entries: Vec<Owned>,
    pub(super) before: Arc<Kept>,
    pub(super) video: SavedVideo,
    pub(super) copies: Copies,
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture").field("at", &self.at).finish_non_exhaustive()
    }
}

/// Entries that no snapshot has on disk, copied.
#[derive(Debug, Default)]
pub(super) struct Copies {
    pub(super) bytes: Vec<u8>,
    pub(super) places: BTreeMap<EntryId, Range<usize>>,
    /// Counts them as long as they are there (law 2).
    pub(super) room: Option<Reservation>,
}

/// A snapshot that stands.
#[derive(Debug)]
pub struct Written {
    pub(super) kept: Kept,
    pub(super) taken: Taken,
}

/// An entry, to be copied; `None` when it has been dropped since it was listed. Another thread that makes room may do that with
/// what can be computed again, and a snapshot is whole without it.
pub(super) fn lease_of(job: &Job, owned: &Owned) -> Result<Option<Lease>, GetError> {
    match job.peek(&owned.key) {
        Err(GetError::Absent { .. }) if owned.recover != Recover::Never => Ok(None),
        found => found.map(Some),
    }
}

/// Where the bytes of an entry are read.
pub(super) trait Source {
    /// Gives the bytes, or nothing where there are none and they can be computed again.
    fn give(&self, owned: &Owned, to: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>;
}

impl Source for Copies {
    fn give(&self, owned: &Owned, to: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match self.places.get(&owned.id).and_then(|place| self.bytes.get(place.clone())) {
            Some(bytes) => to(bytes),
            None if owned.recover != Recover::Never => Ok(()),
            None => Err(io::Error::other("an entry was not copied")),
        }
    }
}

impl Source for Job {
    fn give(&self, owned: &Owned, to: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match lease_of(self, owned).map_err(io::Error::other)? {
            Some(lease) => to(lease.bytes()),
            None => Ok(()),
        }
    }
}

impl Capture {
    /// Writes it; `None` when it turns out that the video cannot be gone on from. If it cannot be written, the last snapshot stands,
    /// or this one where all that failed was to make sure that its manifest stays.
    ///
    /// # Errors
    /// [`SnapshotError::Io`] when the store refuses.
    pub fn write(mut self, store: &dyn SnapshotStore) -> Outcome<Option<Written>> {
        let copies = std::mem::take(&mut self.copies);
        let written = self.write_from(store, &copies);
        // The bytes before what counts them.
        let Copies { bytes, places, room } = copies;
        drop((bytes, places));
        drop(room);
        written
    }

    pub(super) fn write_from(
        self,
        store: &dyn SnapshotStore,
        source: &dyn Source,
    ) -> Outcome<Option<Written>> {
        let Self { mut manifest, at, entries, before, video, .. } = self;
        let Some(state) = video.wait().map_err(|error| SnapshotError::written(io::Error::other(error)))?
        else {
            return Ok(None);
        };
        manifest.sequence = unused_sequence(store, manifest.sequence)?;
        let mut writing = Writing { store, sequence: manifest.sequence, written_bytes: 0, before: &before };
        let written = writing.all(&mut manifest, &entries, state, source);
        let written_bytes = writing.written_bytes;
        match written {
            Ok(mut kept) => {
                // The snapshot stands, whatever becomes of what it no longer needs.
                drop(store.retain(&kept.parts));
                let taken = Taken { written_bytes, ..manifest.taken() };
                kept.at = Some((at.0, at.1, taken));
                Ok(Some(Written { kept, taken }))
            }
            Err(error) => {
                remove_leftovers(store, &before.parts);
                Err(error)
            }
        }
    }
}

/// The manifest that the store has now.
fn published(store: &dyn SnapshotStore) -> Outcome<Option<Manifest>> {
    let bytes = store.manifest().map_err(SnapshotError::read)?;
    bytes.as_deref().map(Manifest::decode).transpose()
}

/// A number whose parts the manifest in the store does not name: it may be one whose publishing failed when it was in place already, and
/// a part that is written over would be lost to it.
fn unused_sequence(store: &dyn SnapshotStore, sequence: u64) -> Outcome<u64> {
    match published(store) {
        Ok(Some(standing)) => Ok(sequence.max(standing.sequence.wrapping_add(1))),
        // Nobody goes on from a manifest that says nothing.
        Ok(None) | Err(SnapshotError::Damaged(_) | SnapshotError::Foreign(_)) => Ok(sequence),
        Err(error) => Err(error),
    }
}

/// Removes what a snapshot that failed has left, best effort: what stays is removed after the next one. After a power cut there is the
/// manifest before or the one in the store now, so parts of both stay; where that one cannot be read, all do.
fn remove_leftovers(store: &dyn SnapshotStore, before: &BTreeSet<String>) {
    if let Ok(standing) = published(store) {
        let named = standing.map(|manifest| manifest.parts()).unwrap_or_default();
        drop(store.retain(&(before | &named)));
    }
}

/// Writes parts and counts.
struct Writing<'a> {
    store: &'a dyn SnapshotStore,
    sequence: u64,
    written_bytes: u64,
    before: &'a Kept,
}

impl Writing<'_> {
    fn all(
        &mut self,
        manifest: &mut Manifest,
        entries: &[Owned],
        state: SinkState,
        source: &dyn Source,
    ) -> Outcome<Kept> {
        let extents = self.entries(entries, source)?;
        let mut groups = BTreeMap::new();
        for owned in entries {
            let n_groups = groups.len() as u64;
            let group = owned.group.map(|group| *groups.entry(group).or_insert(n_groups));
            let extent = extents.get(&owned.id).cloned();
            let saved = extent.and_then(|extent| Saved::new(owned, group, extent));
            manifest.entries.extend(saved);
        }
        let digest = blake3::hash(&state.facts).to_hex();
        let unchanged = self.before.facts.as_ref().filter(|facts| *facts.blake3 == *digest);
        let facts = match unchanged {
            Some(facts) => facts.clone(),
            None => self.part("video", &mut |to| to.write_all(&state.facts))?,
        };
        let stream = self.stream(state)?;
        manifest.video = Video { facts, stream };
        self.store.publish(&manifest.encode()?).map_err(SnapshotError::written)?;
        let (Video { stream, facts }, parts) = (manifest.video.clone(), manifest.parts());
        Ok(Kept { sequence: self.sequence, entries: extents, stream, facts: Some(facts), parts, at: None })
    }

    /// Where the bytes of each entry are: those that are new go into one part for each kind.
    fn entries(&mut self, entries: &[Owned], source: &dyn Source) -> Outcome<BTreeMap<EntryId, Extent>> {
        let mut extents = BTreeMap::new();
        for kind in Kind::ALL {
            let mut fresh = Vec::new();
            for owned in entries.iter().filter(|owned| owned.key.kind == kind) {
                match self.before.entries.get(&owned.id) {
                    Some(extent) => drop(extents.insert(owned.id, extent.clone())),
                    None => fresh.push(owned),
                }
            }
            if !fresh.is_empty() {
                extents.extend(self.fresh(kind, &fresh, source)?);
            }
        }
        Ok(extents)
    }

    fn name(&self, what: &str) -> String {
        format!("{what}.{}", self.sequence)
    }

    /// One part with one extent.
    fn part(
        &mut self,
        what: &str,
        fill: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> Outcome<Extent> {
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

    /// One part with an extent for each entry that is there.
    fn fresh(
        &mut self,
        kind: Kind,
        fresh: &[&Owned],
        source: &dyn Source,
    ) -> Outcome<Vec<(EntryId, Extent)>> {
        let part = self.name(kind.as_str());
        let mut extents = Vec::with_capacity(fresh.len());
        let mut offset = 0;
        self.store
            .put_part(&part, &mut |to| {
                extents.clear();
                offset = 0;
                for owned in fresh {
                    source.give(owned, &mut |bytes| {
                        to.write_all(bytes)?;
                        let len_bytes = bytes.len() as u64;
                        let blake3 = blake3::hash(bytes).to_hex().to_string();
                        extents.push((owned.id, Extent { part: part.clone(), offset, len_bytes, blake3 }));
                        offset += len_bytes;
                        Ok(())
                    })?;
                }
                Ok(())
            })
            .map_err(SnapshotError::written)?;
        self.written_bytes += offset;
        Ok(extents)
    }

    /// The stream's extents: those there are, and one for what has come since.
    fn stream(&mut self, mut state: SinkState) -> Outcome<Vec<Extent>> {
        let mut stream = self.before.stream.clone();
        let kept_bytes = self.before.stream_bytes();
        if state.stream_bytes > kept_bytes {
            let wanted = state.stream_bytes - kept_bytes;
            stream.push(self.part("stream", &mut |to| {
                let copied = io::copy(&mut state.tail, to)?;
                if copied == wanted { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
            })?);
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
