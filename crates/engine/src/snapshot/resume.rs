//! Going on from a snapshot.

use std::collections::BTreeMap;

use evanesce_cache::{Fill, Job, Kind, PutSpec, Tier};

use super::manifest::{Manifest, Saved, damaged, fingerprint};
use super::parts::{Stream, read, read_whole};
use super::shapes::Shapes;
use super::take::Kept;
use super::{SnapshotError, SnapshotStore};
use crate::cancel::CancelToken;
use crate::error::{EngineError, Result};
use crate::model::Model;
use crate::output::{Outputs, VideoTarget};
use crate::request::{JobSpec, Request};
use crate::run::JobRun;
use crate::video::check_quality;

impl<'m> JobRun<'m> {
    /// Admits a job that goes on from its last snapshot; `None` when there is none. `outputs` are fresh ones of the same kind.
    /// Whatever is left of snapshots that were not finished is removed.
    ///
    /// # Errors
    /// As [`JobRun::admit`], and [`EngineError::Snapshot`] when the snapshot is damaged, or of other weights, settings or
    /// another version: then [`JobRun::admit`] begins anew. [`EngineError::Video`] when it is of a file of another quality; what is at
    /// the output's path stays then.
    pub fn resume(
        model: &'m Model,
        request: Request,
        outputs: Outputs,
        cancel: CancelToken,
        store: &dyn SnapshotStore,
    ) -> Result<Option<Self>> {
        let Some(manifest) = store.manifest().map_err(SnapshotError::read)? else { return Ok(None) };
        let manifest = Manifest::decode(&manifest)?;
        // Before the outputs are opened: one that grows takes the place of what was there at once.
        let spec = JobSpec::new(request.clone(), &model.checkpoint)?;
        manifest.check(&fingerprint(model, &spec))?;
        let facts = read_whole(store, &manifest.video.facts)?;
        if let VideoTarget::Mp4 { qp, .. } = &outputs.video {
            check_quality(*qp, &facts)?;
        }
        let mut run = Self::admit(model, request, outputs, cancel)?;
        let parts = manifest.parts();
        store.retain(&parts).map_err(SnapshotError::read)?;
        run.go_on_at(manifest.phase, manifest.adapt.clone())?;
        Shapes::of(&run)?.check(&manifest.entries)?;
        restore_entries(&run.job, store, &manifest.entries)?;
        let mut stream = Stream::new(store, &manifest.video.stream);
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
