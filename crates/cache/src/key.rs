//! What entries are called, and whom they belong to.

use std::fmt;

/// What an entry holds. Counters are kept by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Output of the text encoder for one prompt.
    TextEmbedding,
    /// Keys and values of cross-attention, one prompt through one expert.
    CrossKv,
    /// Keys and values of self-attention.
    SelfKv,
    /// What a step changed, kept so that a later step can skip work.
    StepResidual,
    /// Latent frames and the sampler's history of them.
    Latent,
    /// Input frames that a causal convolution of the VAE will read again.
    VaeFeature,
    /// Parameters of a model.
    Weights,
}

impl Kind {
    /// Every kind, in the order in which reports list them.
    pub const ALL: [Self; 7] = [
        Self::TextEmbedding,
        Self::CrossKv,
        Self::SelfKv,
        Self::StepResidual,
        Self::Latent,
        Self::VaeFeature,
        Self::Weights,
    ];

    /// The kind's name in reports and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TextEmbedding => "text_embedding",
            Self::CrossKv => "cross_kv",
            Self::SelfKv => "self_kv",
            Self::StepResidual => "step_residual",
            Self::Latent => "latent",
            Self::VaeFeature => "vae_feature",
            Self::Weights => "weights",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of an entry inside its job. Two jobs may use equal keys and never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// What the entry holds.
    pub kind: Kind,
    /// Expert, branch or component, as the caller numbers them.
    pub part: u32,
    /// Layer, slot or group.
    pub index: u32,
    /// Latent frame: the number by which [`Lifetime::Window`](crate::Lifetime::Window) counts.
    pub frame: u32,
}

impl Key {
    /// A key of `kind` with part, index and frame 0.
    pub const fn new(kind: Kind) -> Self {
        Self { kind, part: 0, index: 0, frame: 0 }
    }

    /// The same key with another part.
    #[must_use]
    pub const fn part(self, part: u32) -> Self {
        Self { part, ..self }
    }

    /// The same key with another index.
    #[must_use]
    pub const fn index(self, index: u32) -> Self {
        Self { index, ..self }
    }

    /// The same key with another frame.
    #[must_use]
    pub const fn frame(self, frame: u32) -> Self {
        Self { frame, ..self }
    }

    /// The series that a window slides over: everything but the frame.
    pub(crate) const fn series(self) -> Self {
        self.frame(0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} part {} index {} frame {}", self.kind, self.part, self.index, self.frame)
    }
}

/// The name of a shared entry: its kind, and a hash of everything that its bytes depend on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentKey {
    kind: Kind,
    hash: [u8; 32],
}

impl ContentKey {
    /// The key of what follows from `parts`, by BLAKE3. Each part is hashed with its length, so that moving
    /// a byte from one part to its neighbour makes another key.
    pub fn of(kind: Kind, parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(kind.as_str().as_bytes());
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self { kind, hash: *hasher.finalize().as_bytes() }
    }

    /// A key from a hash that was computed elsewhere.
    pub const fn from_hash(kind: Kind, hash: [u8; 32]) -> Self {
        Self { kind, hash }
    }

    /// What the entry holds.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The 32 bytes of the hash.
    pub const fn hash(&self) -> &[u8; 32] {
        &self.hash
    }
}

impl fmt::Display for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        self.hash.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentKey({self})")
    }
}

/// The name of any entry that a job reads: one of its own, or a shared one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKey {
    /// An entry that the job owns.
    Own(Key),
    /// An entry of the shared pool.
    Shared(ContentKey),
}

impl EntryKey {
    /// What the entry holds.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Own(key) => key.kind,
            Self::Shared(key) => key.kind(),
        }
    }
}

impl From<Key> for EntryKey {
    fn from(key: Key) -> Self {
        Self::Own(key)
    }
}

impl From<ContentKey> for EntryKey {
    fn from(key: ContentKey) -> Self {
        Self::Shared(key)
    }
}

impl fmt::Display for EntryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(key) => key.fmt(f),
            Self::Shared(key) => write!(f, "shared {key}"),
        }
    }
}

/// One job of one cache. Numbers are never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub(crate) u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {}", self.0)
    }
}

/// Whom bytes belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// One job: its bytes come back when it ends.
    Job(JobId),
    /// The shared pool, which outlives all jobs.
    Shared,
}
