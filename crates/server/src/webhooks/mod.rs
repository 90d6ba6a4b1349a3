//! Telling somebody's server that a video is there, or never will be: signed as Standard Webhooks says, tried again with growing
//! pauses, and written in the store before and after, so that a restart loses nothing and the job shows what became of it.
//!
//! A delivery begins with its job: whoever ends the job, in whatever way, need not know of it. What came of an attempt waits here
//! while the store cannot take it.

mod address;
mod deliver;
mod secret;
mod send;
mod tls;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

pub(crate) use deliver::deliver;
pub use secret::Secret;
pub(crate) use send::{Reach, Target, post};
use send::{Unsent, try_post};
pub(crate) use tls::Trust;

use crate::clock::UnixMs;
use crate::config::{Config, ConfigError};
use crate::job::{Job, Status};
use crate::store::Attempt;

/// Pauses after each attempt that failed; the last is taken again and again.
const PAUSES_S: [u64; 9] = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400];

/// Whose secret signs, and where deliveries may go.
#[derive(Clone, Debug)]
pub(crate) struct Courier {
    secrets: BTreeMap<String, Secret>,
    pub(crate) private_addresses: bool,
    attempts_max: u32,
    trust: Trust,
}

impl Courier {
    /// `local`: who asks without a key, and the secret that signs for it.
    pub(crate) fn new(config: &Config, local: (&str, Secret)) -> Result<Self, ConfigError> {
        let mut secrets = BTreeMap::from([(local.0.to_owned(), local.1)]);
        for key in &config.keys {
            if let Some(text) = &key.webhook_secret {
                secrets.insert(key.tenant.clone(), Secret::parse(text).map_err(ConfigError)?);
            }
        }
        let crate::config::WebhookConfig { private_addresses, attempts_max, .. } = config.webhooks;
        let trust = Trust::new(config.webhooks.certificates.as_deref()).map_err(ConfigError)?;
        Ok(Self { secrets, private_addresses, attempts_max, trust })
    }

    /// Whether webhooks of this tenant can be signed.
    pub(crate) fn can_sign_for(&self, tenant: &str) -> bool {
        self.secrets.contains_key(tenant)
    }

    /// Tries once; says what came of it and what happens next.
    async fn attempt(&self, job: &Job) -> Option<Attempt> {
        let webhook = job.webhook.as_ref()?;
        let now = UnixMs::now();
        let outcome = match self.secrets.get(&job.tenant) {
            None => Err(Unsent::from("there is no secret to sign with any more".to_owned())),
            Some(secret) => self.post(job, secret, &webhook.url, &webhook.message_id, now).await,
        };
        let (said, is_delivered, is_final) = match outcome {
            Ok(status) => (format!("answered {status}"), (200..300).contains(&status), false),
            Err(Unsent { sentence, is_final }) => (sentence, false, is_final),
        };
        let n_before = usize::try_from(webhook.attempts).unwrap_or(0);
        let is_last = is_final || n_before + 1 >= self.attempts_max as usize;
        let pause = Duration::from_secs(PAUSES_S[n_before.min(PAUSES_S.len() - 1)]);
        let due = (!is_delivered && !is_last).then(|| UnixMs::now().after(pause));
        Some(Attempt { said, delivered: is_delivered.then_some(now), due })
    }

    async fn post(
        &self,
        job: &Job,
        secret: &Secret,
        url: &str,
        id: &str,
        now: UnixMs,
    ) -> Result<u16, Unsent> {
        let target = Target::read(url, self.private_addresses)?;
        let body = payload(job);
        let signature = secret.sign(id, now.seconds(), &body);
        let headers = [
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", now.seconds().to_string()),
            ("webhook-signature", signature),
        ];
        let reach = Reach { private_addresses: self.private_addresses, trust: &self.trust };
        try_post(&target, reach, &headers, body).await
    }
}

/// The event, in the shape of OpenAI's.
fn payload(job: &Job) -> String {
    let kind = if job.status == Status::Completed { "video.completed" } else { "video.failed" };
    let id = job.webhook.as_ref().map_or("", |webhook| webhook.message_id.as_str());
    let created_at = job.ended.unwrap_or(job.created).seconds();
    let data = json!({"id": job.id.as_str(), "error": job.failure});
    json!({"id": id, "object": "event", "created_at": created_at, "type": kind, "data": data}).to_string()
}
