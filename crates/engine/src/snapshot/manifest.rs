//! What a snapshot says of itself: one JSON object behind its own checksum.

use std::collections::BTreeSet;

use evanesce_cache::{Key, Kind, Lifetime, Recover, Tick, Uses};
use serde::{Deserialize, Serialize};

use super::{SnapshotError, Taken};
use crate::adapt::Adapt;
use crate::model::Model;
use crate::request::JobSpec;
use crate::run::Phase;

/// Of the manifest and of what parts hold; another number is another version.
const FORMAT: u32 = 1;
const HEX_BYTES: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    /// Digest of the weights, and of the settings.
    weights: String,
    settings: String,
    /// Counts the snapshots of this job.
    pub(super) sequence: u64,
    pub(super) phase: Phase,
    pub(super) adapt: Adapt,
    pub(super) entries: Vec<Saved>,
    pub(super) video: Video,
}

/// Bytes of a part, with their checksum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extent {
    pub(super) part: String,
    pub(super) offset: u64,
    pub(super) len_bytes: u64,
    pub(super) blake3: String,
}

/// One entry of the job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    kind: String,
    part: u32,
    index: u32,
    frame: u32,
    life: Life,
    can_be_computed: bool,
    /// Entries of one number became visible together.
    pub(super) group: Option<u64>,
    /// First tick, period, count.
    uses: Vec<[u64; 3]>,
    pub(super) bytes: Extent,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Life {
    Steps(u32),
    Window { sink: u32, recent: u32 },
    Job,
}

/// The video so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Video {
    pub(super) facts: Extent,
    /// The stream, in order.
    pub(super) stream: Vec<Extent>,
}

impl Saved {
    /// `None` for what has no place in a job's snapshot.
    pub(super) fn new(owned: &evanesce_cache::Owned, group: Option<u64>, bytes: Extent) -> Option<Self> {
        let Key { kind, part, index, frame } = owned.key;
        let life = match owned.lifetime {
            Lifetime::Steps(steps) => Life::Steps(steps),
            Lifetime::Window { sink, recent } => Life::Window { sink, recent },
            Lifetime::Job => Life::Job,
            Lifetime::Stage | Lifetime::Persistent => return None,
        };
        let uses = owned.uses.iter().map(|uses| {
            let (first, period, count) = uses.parts();
            [first.0, period, count]
        });
        let can_be_computed = owned.recover != Recover::Never;
        let (kind, uses) = (kind.as_str().to_owned(), uses.collect());
        Some(Self { kind, part, index, frame, life, can_be_computed, group, uses, bytes })
    }

    pub(super) fn kind(&self) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.as_str() == self.kind)
    }

    pub(super) fn key(&self) -> Result<Key, SnapshotError> {
        let kind = self.kind().ok_or_else(|| damaged(format!("{:?} is no kind of entry", self.kind)))?;
        Ok(Key::new(kind).part(self.part).index(self.index).frame(self.frame))
    }

    pub(super) fn lifetime(&self) -> Lifetime {
        match self.life {
            Life::Steps(steps) => Lifetime::Steps(steps),
            Life::Window { sink, recent } => Lifetime::Window { sink, recent },
            Life::Job => Lifetime::Job,
        }
    }

    pub(super) fn recover(&self) -> Recover {
        if self.can_be_computed { Recover::Recompute } else { Recover::Never }
    }

    pub(super) fn uses(&self) -> impl Iterator<Item = Uses> {
        self.uses.iter().map(|[first, period, count]| Uses::every(*period, Tick(*first), *count))
    }
}

impl Extent {
    pub(super) fn len(&self) -> Result<usize, SnapshotError> {
        usize::try_from(self.len_bytes).map_err(|_| damaged(format!("{} is too long", self.part)))
    }

    /// Law 11.
    pub(super) fn check(&self, digest: &blake3::Hash) -> Result<(), SnapshotError> {
        if digest.to_hex().as_str() == self.blake3 {
            return Ok(());
        }
        let Self { part, offset, len_bytes, .. } = self;
        Err(damaged(format!("the checksum of {len_bytes} bytes at {offset} of {part} does not match")))
    }
}

/// Digests of what must be the same for a job to go on with the same bits.
pub(super) fn fingerprint(model: &Model, spec: &JobSpec) -> (String, String) {
    let mut weights = blake3::Hasher::new();
    for component in model.checkpoint.components() {
        weights.update(&model.blueprint.fingerprint(component));
    }
    let settings = format!("{} {spec:?}", env!("CARGO_PKG_VERSION"));
    (weights.finalize().to_hex().to_string(), blake3::hash(settings.as_bytes()).to_hex().to_string())
}

impl Manifest {
    pub(super) fn new(
        (weights, settings): (String, String),
        sequence: u64,
        phase: Phase,
        adapt: Adapt,
    ) -> Self {
        let nothing = Extent { part: String::new(), offset: 0, len_bytes: 0, blake3: String::new() };
        let video = Video { facts: nothing, stream: Vec::new() };
        Self { format: FORMAT, weights, settings, sequence, phase, adapt, entries: Vec::new(), video }
    }

    /// The parts that it names.
    pub(super) fn parts(&self) -> BTreeSet<String> {
        self.extents().map(|extent| extent.part.clone()).collect()
    }

    pub(super) fn extents(&self) -> impl Iterator<Item = &Extent> {
        let entries = self.entries.iter().map(|saved| &saved.bytes);
        entries.chain([&self.video.facts]).chain(&self.video.stream)
    }

    /// What it holds; what was written for it is not known here.
    pub(super) fn taken(&self) -> Taken {
        let held_bytes = sum_bytes(self.extents());
        Taken { written_bytes: 0, held_bytes, entries: self.entries.len() }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, SnapshotError> {
        let json = serde_json::to_vec(self).map_err(|error| SnapshotError::written(error.into()))?;
        let mut bytes = blake3::hash(&json).to_hex().as_bytes().to_vec();
        bytes.push(b'\n');
        bytes.extend(json);
        Ok(bytes)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let (digest, json) = bytes
            .split_at_checked(HEX_BYTES)
            .and_then(|(digest, rest)| Some((digest, rest.strip_prefix(b"\n")?)))
            .ok_or_else(|| damaged("the manifest is cut short"))?;
        if digest != blake3::hash(json).to_hex().as_bytes() {
            return Err(damaged("the manifest's checksum does not match"));
        }
        let manifest: Self =
            serde_json::from_slice(json).map_err(|_| SnapshotError::Foreign("another version"))?;
        if manifest.format != FORMAT {
            return Err(SnapshotError::Foreign("another version"));
        }
        Ok(manifest)
    }

    /// Refuses to go on with other weights or settings.
    pub(super) fn check(&self, (weights, settings): &(String, String)) -> Result<(), SnapshotError> {
        if self.weights != *weights {
            return Err(SnapshotError::Foreign("other weights"));
        }
        if self.settings != *settings {
            return Err(SnapshotError::Foreign("other settings or another version"));
        }
        Ok(())
    }
}

/// What extents hold, as they say: that may be too much to add up.
pub(super) fn sum_bytes<'a>(extents: impl IntoIterator<Item = &'a Extent>) -> u64 {
    extents.into_iter().fold(0, |sum, extent| sum.saturating_add(extent.len_bytes))
}

pub(super) fn damaged(what: impl Into<String>) -> SnapshotError {
    SnapshotError::Damaged(what.into())
}
