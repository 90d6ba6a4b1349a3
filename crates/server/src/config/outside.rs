//! What leaves the service, and by which way: its log, webhooks, traces and video files.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Config, ConfigError};
use crate::encoder::Encoder;
use crate::webhooks::{Secret, Target};

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for programs.
    Json,
}

impl LogFormat {
    /// The format of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [("text", Self::Text), ("json", Self::Json)]
            .into_iter()
            .find(|(known, _)| *known == name)
            .map(|f| f.1)
    }
}

/// What makes video files.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EncoderConfig {
    /// A program that speaks ffmpeg's options; left out: the encoder that is built in.
    pub ffmpeg: Option<PathBuf>,
    /// What it is told between its input and its output.
    pub arguments: Vec<String>,
    /// Threads that encode while the engine computes; each video of a program has one of its own instead.
    pub threads: usize,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        // Without frames that look ahead, `evanesce compare` can read it as well.
        let arguments =
            ["-c:v", "libx264", "-bf", "0", "-crf", "16", "-pix_fmt", "yuv420p", "-movflags", "+faststart"];
        Self { ffmpeg: None, arguments: arguments.map(str::to_owned).to_vec(), threads: 1 }
    }
}

impl EncoderConfig {
    /// The encoder that is meant.
    #[must_use]
    pub fn encoder(&self) -> Encoder {
        let arguments = self.arguments.clone();
        self.ffmpeg.clone().map_or(Encoder::BuiltIn, |program| Encoder::Ffmpeg { program, arguments })
    }
}

/// Telling a collector where time went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TraceConfig {
    /// Where it takes OTLP over HTTP.
    pub endpoint: Option<String>,
}

/// Telling others that a video is there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebhookConfig {
    /// Signs what goes out for requests that need no key; drawn at the first start when left out.
    pub secret: Option<String>,
    /// Whether it may go to private addresses.
    pub private_addresses: bool,
    /// Attempts before a delivery is given up.
    pub attempts_max: u32,
    /// Certificates (PEM) of authorities that are believed besides those of browsers.
    pub certificates: Option<PathBuf>,
}

impl Default for WebhookConfig {
    fn default() -> Self {
        Self { secret: None, private_addresses: false, attempts_max: 10, certificates: None }
    }
}

pub(super) fn check_secret(what: &str, secret: Option<&String>) -> Result<(), ConfigError> {
    let Some(text) = secret else { return Ok(()) };
    Secret::parse(text).map(drop).map_err(|sentence| ConfigError(format!("{what}: {sentence}")))
}

impl Config {
    /// Checks secrets, addresses and origins.
    pub(super) fn check_outside(&self) -> Result<(), ConfigError> {
        let refuse = |sentence: String| Err(ConfigError(sentence));
        if !(1..=20).contains(&self.webhooks.attempts_max) {
            let n = self.webhooks.attempts_max;
            return refuse(format!("attempts_max of [webhooks] is {n}; it lies between 1 and 20"));
        }
        if !(1..=64).contains(&self.encoder.threads) {
            let n = self.encoder.threads;
            return refuse(format!("threads of [encoder] is {n}; it lies between 1 and 64"));
        }
        check_secret("secret of [webhooks]", self.webhooks.secret.as_ref())?;
        if let Some(url) = self.traces.endpoint.as_ref().filter(|url| Target::parse(url, true).is_err()) {
            return refuse(format!(
                "endpoint of [traces] is {url:?}; it is a URL such as \"http://127.0.0.1:4318\""
            ));
        }
        for origin in &self.cors_origins {
            let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            if host.is_none_or(|host| host.is_empty() || host.contains(['/', '*', ' '])) {
                return refuse(format!(
                    "cors_origins has {origin:?}; an origin is written as browsers do, such as \"https://example.org\""
                ));
            }
        }
        Ok(())
    }
}
