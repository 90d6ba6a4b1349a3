//! A job as it is kept: what was asked with every default filled in, and what has become of it.

use evanesce_engine::page_codecs::PageStorage;
use evanesce_engine::{HeldWeights, JobSpec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock::UnixMs;
use crate::id::VideoId;

/// Whose jobs go first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Somebody waits in front of a screen: goes before everything else.
    Interactive,
    /// The usual.
    #[default]
    Standard,
    /// When nothing else wants the machine; it always finishes all the same.
    Background,
}

impl Class {
    /// All classes, first served first.
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Standard, Self::Background];

    /// The name in requests, metrics and the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Standard => "standard",
            Self::Background => "background",
        }
    }

    /// The class of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == name)
    }
}

/// What may give way when memory runs short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Quality {
    /// Nothing: the job waits instead.
    Exact,
    /// What is hard to see.
    #[default]
    Balanced,
    /// Size and detail too.
    Draft,
}

impl Quality {
    /// All qualities.
    pub const ALL: [Self; 3] = [Self::Exact, Self::Balanced, Self::Draft];

    /// The name in requests.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Balanced => "balanced",
            Self::Draft => "draft",
        }
    }

    /// The quality of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|quality| quality.as_str() == name)
    }
}

/// What a job does, with nothing left open: the same order over the same checkpoint, held in memory as the order says, gives the same
/// bits, whenever it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// The model's name.
    pub model: String,
    /// What the video should show.
    pub prompt: String,
    /// What it should not show.
    pub negative_prompt: String,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Frames.
    pub frames: usize,
    /// Frames per second.
    pub fps: u32,
    /// The length as it was asked for, in the API's words.
    pub seconds: String,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance of the high-noise expert.
    pub guidance_high: f64,
    /// Guidance of the low-noise expert.
    pub guidance_low: f64,
    /// Where the experts meet.
    pub boundary: f64,
    /// Shift of the noise schedule.
    pub shift: f64,
    /// Keys and values of earlier frames; `None` for a video that is made at once, and for one that was accepted by a service that
    /// could not choose.
    pub pages: Option<OrderPages>,
    /// How the experts' matrices were held when it was accepted; `None` for one that was accepted by a service that could not choose:
    /// as they are stored. They are held once for the process, so a job has them as they are held while it is made.
    pub weights: Option<HeldWeights>,
    /// Seed of the initial noise.
    pub seed: u64,
    /// Whose jobs go first.
    pub class: Class,
    /// What may give way.
    pub quality: Quality,
    /// When it should be done, in seconds after it was created.
    pub deadline_s: Option<f64>,
    /// Bytes of the Device tier that are planned for it.
    pub device_bytes: u64,
}

/// Keys and values of earlier frames, in a video that is made block by block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderPages {
    /// How they are stored.
    pub storage: PageStorage,
    /// Latent frames right before a block that it sees.
    pub window: usize,
    /// Latent frames at the beginning that every block sees, besides.
    pub sink: usize,
}

impl OrderPages {
    /// Those of a job that is made block by block.
    pub(crate) fn of(spec: &JobSpec) -> Option<Self> {
        let rollout = spec.rollout?;
        let storage = PageStorage { codec: spec.kv_codec, overrides: spec.kv_overrides.clone() };
        Some(Self { storage, window: rollout.recent_frames, sink: rollout.sink_frames })
    }
}

/// Where a job stands. There are four, because clients poll while they see one of the first two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waits for its first unit of work.
    Queued,
    /// Has been started.
    InProgress,
    /// Its video is there.
    Completed,
    /// It ended without a video; `error` says why.
    Failed,
}

impl Status {
    /// All statuses.
    pub const ALL: [Self; 4] = [Self::Queued, Self::InProgress, Self::Completed, Self::Failed];

    /// The name in answers and in the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }

    /// The status of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }
}

/// Why a job has no video.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// A word for programs: `cancelled`, `internal_error`, `invalid_request`, `crashed`.
    pub code: String,
    /// A sentence for people.
    pub message: String,
}

impl Failure {
    /// A failure with its code and sentence.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }

    /// What a cancelled job says.
    #[must_use]
    pub fn cancelled() -> Self {
        Self::new("cancelled", "the job was cancelled before its video was done")
    }
}

/// One tier, as one job saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TierBytes {
    /// Bytes that the job owns now; 0 when it has ended.
    pub owned_bytes: u64,
    /// The most that it owned at once.
    pub peak_bytes: u64,
}

/// What a job holds in memory, from the cache's own counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobMemory {
    /// Next to the arithmetic.
    pub device: TierBytes,
    /// Where what must make room waits.
    pub host: TierBytes,
    /// Where what the host cannot hold waits.
    #[serde(default)]
    #[schema(required = true)]
    pub disk: TierBytes,
}

impl JobMemory {
    /// The same job when it owns nothing.
    pub(crate) fn let_go(self) -> Self {
        let let_go = |tier: TierBytes| TierBytes { owned_bytes: 0, ..tier };
        Self { device: let_go(self.device), host: let_go(self.host), disk: let_go(self.disk) }
    }
}

/// Who is told when a job has ended, and what became of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// Where to.
    pub url: String,
    /// The message's name, the same at every attempt.
    pub message_id: String,
    /// Attempts made.
    pub attempts: i64,
    /// When the next attempt is made, once the job has ended; `None`: there is none.
    pub due: Option<UnixMs>,
    /// When it arrived.
    pub delivered: Option<UnixMs>,
    /// What the last attempt said.
    pub said: Option<String>,
}

impl Webhook {
    /// One that is sent when the job ends.
    #[must_use]
    pub fn new(url: String, message_id: String) -> Self {
        Self { url, message_id, attempts: 0, due: Some(UnixMs(0)), delivered: None, said: None }
    }
}

/// A job and what has become of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Its place in the order of arrival; numbers are never used twice.
    pub seq: i64,
    /// Its name, and its video's.
    pub id: VideoId,
    /// Whose it is.
    pub tenant: String,
    /// What it does.
    pub order: Order,
    /// Where it stands.
    pub status: Status,
    /// When it was created.
    pub created: UnixMs,
    /// When it was started last.
    pub started: Option<UnixMs>,
    /// When it ended.
    pub ended: Option<UnixMs>,
    /// When it and its files will be removed.
    pub expires: Option<UnixMs>,
    /// How often it has been started. It fences: who holds an older number can no longer write.
    pub epoch: i64,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// What it held, once it has ended.
    pub memory: Option<JobMemory>,
    /// What gave way for lack of memory, in the order in which it did; and whether weights are held otherwise than its order says.
    pub degradations: Vec<String>,
    /// Who is told when it ends.
    pub webhook: Option<Webhook>,
}

impl Job {
    /// When it should be done.
    #[must_use]
    pub fn deadline(&self) -> Option<UnixMs> {
        let seconds = self.order.deadline_s?;
        let delay = std::time::Duration::try_from_secs_f64(seconds).unwrap_or(std::time::Duration::MAX);
        Some(self.created.after(delay))
    }
}
