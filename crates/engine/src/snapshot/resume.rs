//! Going on from a snapshot.

use std::collections::BTreeMap;
use std::io::{self, Read};

use evanesce_cache::{Fill, Job, Kind, PutSpec, Tier};

use super::manifest::{Extent, Manifest, Saved, damaged, fingerprint};
use super::take::Kept;
use super::{SnapshotError, SnapshotStore};
use crate::cancel::CancelToken;
use crate::error::{EngineError, Result};
use crate::model::Model;
use crate::output::Outputs;
use crate::request::Request;
use crate::run::JobRun;

impl<'m> JobRun<'m> {
    /// Admits a job that goes on from its last snapshot; `None` when there is none. `outputs` are fresh ones of the same kind.
    /// Whatever is left of snapshots that were not finished is removed.
    ///
    /// # Errors
    /// As [`JobRun::admit`], and [`EngineError::Snapshot`] when the snapshot is damaged, or of other weights, settings or
    /// another version: then [`JobRun::admit`] begins anew.
    pub fn resume(
        model: &'m Model,
        request: Request,
        outputs: Outputs,
        cancel: CancelToken,
        store: &dyn SnapshotStore,
    ) -> Result<Option<Self>> {
        let Some(manifest) = store.manifest().map_err(SnapshotError::read)? else { return Ok(None) };
        let manifest = Manifest::decode(&manifest)?;
        let mut run = Self::admit(model, request, outputs, cancel)?;
        manifest.check(&fingerprint(model, &run.spec))?;
        let parts = manifest.parts();
        store.retain(&parts).map_err(SnapshotError::read)?;
        run.go_on_at(manifest.phase, manifest.adapt.clone())?;
        restore_entries(&run.job, store, &manifest.entries)?;
        let mut facts = vec![0; manifest.video.facts.len()?];
        read(store, &manifest.video.facts, &mut facts)?;
        let left = manifest.video.stream.iter();
        let mut stream = Stream { store, left, bytes: io::Cursor::default(), fault: None };
        let outputs = run.outputs.as_mut().ok_or_else(|| damaged("the video is closed"))?;
        let restored = outputs.restore_video(&facts, &mut stream);
        // What is wrong with the stream is more than that it cannot be read.
        match stream.fault {
            Some(fault) => return Err(fault.into()),
            None => restored?,
        }
        let saved = manifest.entries.iter().map(|saved| Ok((saved.key()?, saved.bytes.clone())));
        let saved = saved.collect::<std::result::Result<BTreeMap<_, _>, SnapshotError>>()?;
        let owned = run.job.entries().into_iter();
        let entries = owned.filter_map(|owned| Some((owned.id, saved.get(&owned.key)?.clone()))).collect();
        let taken = manifest.taken();
        let Manifest { sequence, video, phase, adapt, .. } = manifest;
        let at = Some((phase, adapt, taken));
        let (stream, facts) = (video.stream, Some(video.facts));
        run.kept = Kept { sequence, entries, stream, facts, parts, at }.into();
        Ok(Some(run))
    }
}

/// Puts all entries, those of a group together (law 7).
fn restore_entries(job: &Job, store: &dyn SnapshotStore, entries: &[Saved]) -> Result<()> {
    let mut groups: BTreeMap<(Option<u64>, usize), Vec<&Saved>> = BTreeMap::new();
    for (at, saved) in entries.iter().enumerate() {
        // What stands alone is a group of its own.
        let name = (saved.group, if saved.group.is_some() { 0 } else { at });
        groups.entry(name).or_default().push(saved);
    }
    for ((group, _), members) in groups {
        let mut specs = Vec::with_capacity(members.len());
        for saved in &members {
            let key = saved.key()?;
            // Reads of text and pages are announced with the blocks that read them.
            if matches!(key.kind, Kind::Latent | Kind::VaeFeature) {
                saved.uses().for_each(|uses| job.announce(key, uses));
            }
            let spec = PutSpec::new(Tier::Device, saved.lifetime(), saved.bytes.len()?);
            specs.push((key, spec.recover(saved.recover()).fill(Fill::Any)));
        }
        if group.is_some() {
            let mut writer = job.put_group(specs).map_err(EngineError::cache)?;
            for (at, saved) in members.iter().enumerate() {
                read(store, &saved.bytes, writer.bytes_mut(at))?;
            }
            writer.commit().map_err(EngineError::cache)?;
        } else {
            for ((key, spec), saved) in specs.into_iter().zip(members) {
                let mut writer = job.put_with(key, spec).map_err(EngineError::cache)?;
                read(store, &saved.bytes, writer.bytes_mut())?;
                drop(writer.commit().map_err(EngineError::cache)?);
            }
        }
    }
    Ok(())
}

pub(super) fn read(
    store: &dyn SnapshotStore,
    extent: &Extent,
    into: &mut [u8],
) -> std::result::Result<(), SnapshotError> {
    store.read_part(&extent.part, extent.offset, into).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => {
            damaged(format!("{} is missing or cut short", extent.part))
        }
        _ => SnapshotError::read(error),
    })?;
    extent.check(into)
}

/// The stream of a video, extent by extent, each checked before any of it is given.
struct Stream<'a> {
    store: &'a dyn SnapshotStore,
    left: std::slice::Iter<'a, Extent>,
    bytes: io::Cursor<Vec<u8>>,
    /// Why it ended early.
    fault: Option<SnapshotError>,
}

impl Stream<'_> {
    fn next(&mut self) -> std::result::Result<Option<Vec<u8>>, SnapshotError> {
        let Some(extent) = self.left.next() else { return Ok(None) };
        let mut bytes = vec![0; extent.len()?];
        read(self.store, extent, &mut bytes)?;
        Ok(Some(bytes))
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.bytes.read(into)?;
            if n > 0 || into.is_empty() {
                return Ok(n);
            }
            match self.next() {
                Ok(Some(bytes)) => self.bytes = io::Cursor::new(bytes),
                Ok(None) => return Ok(0),
                Err(fault) => {
                    let said = io::Error::other(fault.to_string());
                    self.fault = Some(fault);
                    return Err(said);
                }
            }
        }
    }
}
