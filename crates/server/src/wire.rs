//! The objects of the API. Names and meanings of the first part of [`Video`] are OpenAI's; what follows `error` is ours.

use evanesce_engine::{Counters, Kind, KindCounters, Tier};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

use crate::board::{Live, Phase};
use crate::clock::UnixMs;
use crate::id::VideoId;
use crate::job::{Class, Failure, Job, JobMemory, Quality, Status, Webhook};
use crate::pressure::Level;

/// A request for a video, as JSON or as a multipart form of the same fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVideo {
    /// What the video should show.
    #[schema(
        min_length = 1,
        max_length = 10000,
        example = "a red ball moving to the left on a black background"
    )]
    pub prompt: String,
    /// The model, by the name that `GET /v1/models` gives; left out: the one that is served.
    pub model: Option<String>,
    /// Length in seconds, as text or number, rounded to the nearest length the model can make.
    #[schema(value_type = Option<String>, example = "5")]
    pub seconds: Option<String>,
    /// Width and height in pixels, multiples of 16.
    #[schema(example = "832x480", pattern = "^[0-9]{1,6}x[0-9]{1,6}$")]
    pub size: Option<String>,
    /// Length in frames, one more than a multiple of 4; instead of `seconds`.
    #[schema(minimum = 1)]
    pub num_frames: Option<usize>,
    /// Frames per second.
    #[schema(minimum = 1, maximum = 240)]
    pub fps: Option<u32>,
    /// Seed of the initial noise: the same number gives the same video. Left out: one is drawn and told.
    pub seed: Option<u64>,
    /// Denoising steps.
    #[schema(minimum = 1)]
    pub num_inference_steps: Option<usize>,
    /// What the video should not show.
    pub negative_prompt: Option<String>,
    /// Guidance of the high-noise expert, and of the low-noise one unless `guidance_scale_2` says otherwise; 1 turns it off.
    #[schema(minimum = 0, maximum = 100)]
    pub guidance_scale: Option<f64>,
    /// Guidance of the low-noise expert.
    #[schema(minimum = 0, maximum = 100)]
    pub guidance_scale_2: Option<f64>,
    /// Timesteps at or above this part of 1 use the high-noise expert.
    #[schema(minimum = 0, maximum = 1)]
    pub boundary_ratio: Option<f64>,
    /// How far the steps are shifted towards high noise.
    #[schema(minimum = 0.01, maximum = 100)]
    pub flow_shift: Option<f64>,
    /// Whose jobs go first.
    pub priority: Option<Class>,
    /// What may give way when memory runs short.
    pub quality: Option<Quality>,
    /// Seconds from now by which the video should be there: the earliest deadline of a class goes first.
    #[schema(minimum = 0, maximum = 604800)]
    pub deadline_s: Option<f64>,
    /// A URL that is told when the video is there or has failed: signed as Standard Webhooks says.
    #[schema(max_length = 2048, example = "https://example.org/done")]
    pub webhook: Option<String>,
}

impl CreateVideo {
    /// The names of all fields.
    pub const FIELDS: [&'static str; 17] = [
        "prompt",
        "model",
        "seconds",
        "size",
        "num_frames",
        "fps",
        "seed",
        "num_inference_steps",
        "negative_prompt",
        "guidance_scale",
        "guidance_scale_2",
        "boundary_ratio",
        "flow_shift",
        "priority",
        "quality",
        "deadline_s",
        "webhook",
    ];
}

/// A video, or the job that makes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Video {
    /// Its name.
    pub id: String,
    /// `video`.
    #[schema(example = "video")]
    pub object: String,
    /// The model that makes it.
    pub model: String,
    /// Where it stands.
    pub status: Status,
    /// How much is done, in percent; 100 only when the video is there.
    pub progress: u8,
    /// When it was asked for, in seconds since 1970.
    pub created_at: i64,
    /// When its video was there.
    pub completed_at: Option<i64>,
    /// When it will be removed with its files.
    pub expires_at: Option<i64>,
    /// What it should show.
    pub prompt: String,
    /// Width and height.
    pub size: String,
    /// Length in seconds, as asked for.
    pub seconds: String,
    /// Always null: videos are made from text only.
    pub remixed_from_video_id: Option<String>,
    /// Why there is no video.
    pub error: Option<Failure>,
    /// Frames.
    pub num_frames: usize,
    /// Frames per second.
    pub fps: u32,
    /// Seed of the initial noise.
    pub seed: u64,
    /// Denoising steps.
    pub num_inference_steps: usize,
    /// What it should not show.
    pub negative_prompt: String,
    /// Guidance of the high-noise expert.
    pub guidance_scale: f64,
    /// Guidance of the low-noise expert.
    pub guidance_scale_2: f64,
    /// Where the experts meet.
    pub boundary_ratio: f64,
    /// Shift of the noise schedule.
    pub flow_shift: f64,
    /// Its class.
    pub priority: Class,
    /// What may give way.
    pub quality: Quality,
    /// When it should be there, in seconds after `created_at`.
    pub deadline_s: Option<f64>,
    /// What it is doing.
    pub phase: Phase,
    /// Denoising steps done.
    pub step: usize,
    /// Denoising steps in all.
    pub total_steps: usize,
    /// Seconds until its video is there, if nothing else comes; null until some job has been timed.
    pub eta_s: Option<f64>,
    /// Its place among the jobs that wait, from 1.
    pub queue_position: Option<usize>,
    /// What gave way for lack of memory, in the order in which it did; `other_weights`: weights are held otherwise than when it was accepted.
    pub degradations: Vec<String>,
    /// What it holds in memory; once it has ended, what it held.
    pub memory: Option<JobMemory>,
    /// Who is told when it ends, and what became of that.
    pub webhook: Option<WebhookState>,
}

/// What became of a webhook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WebhookState {
    /// Where to.
    pub url: String,
    /// Where it stands.
    pub status: WebhookStatus,
    /// Attempts made.
    pub attempts: i64,
    /// What the last attempt said, such as `answered 200`.
    pub last_attempt: Option<String>,
    /// When the next one is made, in seconds since 1970; null before the job has ended.
    pub next_attempt_at: Option<i64>,
    /// When it arrived, in seconds since 1970.
    pub delivered_at: Option<i64>,
}

/// Where a webhook stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WebhookStatus {
    /// It has not arrived yet.
    Pending,
    /// It arrived: the answer was of the kind 2xx.
    Delivered,
    /// It never arrived, and is not tried any more.
    GivenUp,
}

impl WebhookState {
    fn new(webhook: &Webhook, is_over: bool) -> Self {
        let status = match (webhook.delivered, webhook.due) {
            (Some(_), _) => WebhookStatus::Delivered,
            (None, Some(_)) => WebhookStatus::Pending,
            (None, None) => WebhookStatus::GivenUp,
        };
        Self {
            url: webhook.url.clone(),
            status,
            attempts: webhook.attempts,
            last_attempt: webhook.said.clone(),
            // Before its first attempt it is due at once.
            next_attempt_at: webhook.due.filter(|at| is_over && at.0 > 0).map(UnixMs::seconds),
            delivered_at: webhook.delivered.map(UnixMs::seconds),
        }
    }
}

impl Video {
    /// The object for a job and what it is doing.
    #[must_use]
    pub fn new(job: &Job, live: Option<&Live>) -> Self {
        let order = &job.order;
        let live = live.filter(|_| !job.status.is_over()).copied();
        let now = live.unwrap_or_default();
        let (phase, step, progress) = match job.status {
            Status::Completed => (Phase::Ended, order.steps, 100),
            Status::Failed => (Phase::Ended, 0, 0),
            Status::Queued | Status::InProgress => (now.phase, now.step, now.progress),
        };
        Self {
            id: job.id.to_string(),
            object: "video".to_owned(),
            model: order.model.clone(),
            status: job.status,
            progress,
            created_at: job.created.seconds(),
            completed_at: job.ended.filter(|_| job.status == Status::Completed).map(|at| at.seconds()),
            expires_at: job.expires.map(|at| at.seconds()),
            prompt: order.prompt.clone(),
            size: format!("{}x{}", order.width, order.height),
            seconds: order.seconds.clone(),
            remixed_from_video_id: None,
            error: job.failure.clone(),
            num_frames: order.frames,
            fps: order.fps,
            seed: order.seed,
            num_inference_steps: order.steps,
            negative_prompt: order.negative_prompt.clone(),
            guidance_scale: order.guidance_high,
            guidance_scale_2: order.guidance_low,
            boundary_ratio: order.boundary,
            flow_shift: order.shift,
            priority: order.class,
            quality: order.quality,
            deadline_s: order.deadline_s,
            phase,
            step,
            total_steps: order.steps,
            eta_s: now.eta_s,
            queue_position: now.queue_position,
            degradations: job.degradations.clone(),
            memory: now.memory.or(job.memory),
            webhook: job.webhook.as_ref().map(|webhook| WebhookState::new(webhook, job.status.is_over())),
        }
    }
}

/// One page of videos.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VideoList {
    /// `list`.
    #[schema(example = "list")]
    pub object: String,
    /// The videos.
    pub data: Vec<Video>,
    /// The first one's name.
    pub first_id: Option<String>,
    /// The last one's name: the next page comes `after` it.
    pub last_id: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
}

/// Says that a video is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeletedVideo {
    /// Its name.
    pub id: String,
    /// `video.deleted`.
    #[schema(example = "video.deleted")]
    pub object: String,
    /// True.
    pub deleted: bool,
}

impl DeletedVideo {
    /// Says so of this one.
    #[must_use]
    pub fn new(id: &VideoId) -> Self {
        Self { id: id.to_string(), object: "video.deleted".to_owned(), deleted: true }
    }
}

/// A model that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServedModel {
    /// Its name in requests.
    pub id: String,
    /// `model`.
    #[schema(example = "model")]
    pub object: String,
    /// When it was opened, in seconds since 1970.
    pub created: i64,
    /// `evanesce`.
    pub owned_by: String,
}

/// All models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelList {
    /// `list`.
    #[schema(example = "list")]
    pub object: String,
    /// The models.
    pub data: Vec<ServedModel>,
}

/// What is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What is wrong.
    pub error: ErrorObject,
}

/// One sentence for people, and words for programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorObject {
    /// What is wrong and what would be right.
    pub message: String,
    /// The kind of error.
    #[serde(rename = "type")]
    pub kind: String,
    /// The field that is wrong.
    pub param: Option<String>,
    /// The error itself.
    pub code: Option<String>,
}

/// What the cache holds and what has become of entries, from its own counters: what events `memory` say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemoryNow {
    /// By tier.
    pub tiers: BTreeMap<String, TierNow>,
    /// Bytes by tier and kind; kinds that hold nothing are left out.
    pub kinds: BTreeMap<String, BTreeMap<String, u64>>,
    /// Reads and ends by kind since the service started; kinds of which there were none are left out.
    pub life: BTreeMap<String, KindLife>,
    /// How short memory is: `calm`, `watch`, `high` or `critical`.
    pub pressure: String,
}

/// Reads and ends of entries of one kind since the service started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KindLife {
    /// Reads that found their entry.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Entries that fell out of their window.
    pub pruned: u64,
    /// Entries that were dropped to make room.
    pub evicted: u64,
}

/// One tier's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TierNow {
    /// What it may hold.
    pub budget_bytes: u64,
    /// What it holds.
    pub used_bytes: u64,
    /// The most it has held.
    pub peak_bytes: u64,
    /// Promised to work under way, scratch included.
    pub reserved_bytes: u64,
    /// Freed buffers that it keeps for reuse: not in use, and given back to the machine once nothing has been done for a while.
    pub idle_bytes: u64,
}

impl KindLife {
    fn new(counted: &KindCounters) -> Self {
        let &KindCounters { hits, misses, pruned, evicted, .. } = counted;
        Self { hits, misses, pruned, evicted }
    }
}

impl MemoryNow {
    /// Reads the counters.
    #[must_use]
    pub fn new(counters: &Counters, level: Level) -> Self {
        let tiers = Tier::ALL.map(|tier| {
            let counted = counters.tier(tier);
            let now = TierNow {
                budget_bytes: counted.budget_bytes,
                used_bytes: counted.used_bytes,
                peak_bytes: counted.peak_bytes,
                reserved_bytes: counted.reserved_bytes,
                idle_bytes: counted.free_listed_bytes,
            };
            (tier.as_str().to_owned(), now)
        });
        let kinds = Tier::ALL.map(|tier| {
            let held = Kind::ALL.into_iter().map(|kind| (kind, counters.kind(kind).bytes[tier]));
            let held = held.filter(|(_, bytes)| *bytes > 0);
            (tier.as_str().to_owned(), held.map(|(kind, bytes)| (kind.as_str().to_owned(), bytes)).collect())
        });
        let life = Kind::ALL.map(|kind| (kind.as_str().to_owned(), KindLife::new(counters.kind(kind))));
        let life = life.into_iter().filter(|(_, life)| *life != KindLife::default()).collect();
        Self { tiers: tiers.into(), kinds: kinds.into(), life, pressure: level.as_str().to_owned() }
    }
}
