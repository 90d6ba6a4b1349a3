//! The service's configuration: one file, every key with its default in [`TEMPLATE`], unknown keys refused by name.

mod keys;
mod outside;
mod pages;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use evanesce_engine::HeldWeights;
use evanesce_engine::snapshot::Rhythm;
use serde::Deserialize;

use crate::job::Class;
use crate::nearest::nearest;

use keys::check_keys;

pub use keys::KeyConfig;
pub use outside::{EncoderConfig, LogFormat, TraceConfig, WebhookConfig};
pub(crate) use pages::Pages;
pub use pages::PagesConfig;

/// Every key, commented: what `evanesce serve --print-config` prints.
pub const TEMPLATE: &str = include_str!("evanesce.toml");

/// Threads for arithmetic, at most.
const THREADS_MAX: usize = 1024;

/// Why a configuration was refused: one sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// All of it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address and port.
    pub listen: SocketAddr,
    /// Where jobs and videos are kept.
    pub data: PathBuf,
    /// The checkpoint.
    pub model: Option<PathBuf>,
    /// How the experts' matrices are held in memory.
    pub weights: HeldWeights,
    /// Budget of the Device tier, as people write sizes.
    pub device_memory: Option<String>,
    /// Budget of the Host tier.
    pub host_memory: Option<String>,
    /// Directory and size of the Disk tier, as people write them; left out: there is none.
    pub disk_cache: Option<String>,
    /// Threads for arithmetic.
    pub threads: Option<usize>,
    /// How long ended jobs are kept.
    pub retention_hours: f64,
    /// Sites whose pages may use the service, as browsers write them: `https://example.org`.
    pub cors_origins: Vec<String>,
    /// How the log is written.
    pub log_format: LogFormat,
    /// The queue.
    pub queue: QueueConfig,
    /// What a request may ask for.
    pub limits: Limits,
    /// How pages of keys and values are stored.
    pub pages: PagesConfig,
    /// What each class may count on.
    pub classes: ClassesConfig,
    /// Snapshots of jobs under way.
    pub snapshots: SnapshotConfig,
    /// When memory counts as short.
    pub pressure: PressureConfig,
    /// Telling others that a video is there.
    pub webhooks: WebhookConfig,
    /// Telling a collector where time went.
    pub traces: TraceConfig,
    /// What makes video files.
    pub encoder: EncoderConfig,
    /// Who may use the service.
    pub keys: Vec<KeyConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            data: PathBuf::from("evanesce-data"),
            model: None,
            weights: HeldWeights::Bf16,
            device_memory: None,
            host_memory: None,
            disk_cache: None,
            threads: None,
            retention_hours: 168.0,
            cors_origins: Vec::new(),
            log_format: LogFormat::default(),
            queue: QueueConfig::default(),
            limits: Limits::default(),
            pages: PagesConfig::default(),
            classes: ClassesConfig::default(),
            snapshots: SnapshotConfig::default(),
            pressure: PressureConfig::default(),
            webhooks: WebhookConfig::default(),
            traces: TraceConfig::default(),
            encoder: EncoderConfig::default(),
            keys: Vec::new(),
        }
    }
}

/// Quotas of the three classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClassesConfig {
    /// Of `interactive`.
    pub interactive: ClassConfig,
    /// Of `standard`.
    pub standard: ClassConfig,
    /// Of `background`.
    pub background: ClassConfig,
}

impl ClassesConfig {
    /// By class, in the order of [`Class::ALL`](crate::job::Class::ALL).
    #[must_use]
    pub fn all(&self) -> [ClassConfig; 3] {
        [self.interactive, self.standard, self.background]
    }
}

/// What one class may count on, and what it may not pass: shares of a tier's budget.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClassConfig {
    /// Of the device, never taken away for other classes.
    pub device_guarantee: f64,
    /// Of the device, never passed.
    pub device_limit: f64,
    /// Of the host.
    pub host_guarantee: f64,
    /// Of the host.
    pub host_limit: f64,
    /// Of the disk that snapshots may have.
    pub disk_guarantee: f64,
    /// Of the disk that snapshots may have.
    pub disk_limit: f64,
}

impl Default for ClassConfig {
    fn default() -> Self {
        Self {
            device_guarantee: 0.0,
            device_limit: 1.0,
            host_guarantee: 0.0,
            host_limit: 1.0,
            disk_guarantee: 0.0,
            disk_limit: 1.0,
        }
    }
}

/// How much a snapshot keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotKeeps {
    /// Everything that saves time when a job goes on.
    #[default]
    Full,
    /// Only what cannot be computed again.
    Compact,
    /// There are none: a restart begins anew.
    Off,
}

/// When a job under way is kept on disk.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotConfig {
    /// How much.
    pub mode: SnapshotKeeps,
    /// After so many units of work.
    pub every_units: u32,
    /// After so many seconds.
    pub every_seconds: f64,
    /// The largest share of the time that snapshots may take.
    pub share_max: f64,
    /// Bytes of disk that all snapshots may have; left out: what there is.
    pub disk_bytes_max: Option<u64>,
    /// Bytes of prompts' embeddings that are kept over restarts.
    pub embeddings_bytes_max: u64,
}

impl SnapshotConfig {
    /// When one is due.
    pub(crate) fn rhythm(&self) -> Rhythm {
        let Self { every_units, every_seconds, share_max, .. } = *self;
        Rhythm { every_units, every_seconds, share_max }
    }
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        let Rhythm { every_units, every_seconds, share_max } = Rhythm::default();
        Self {
            mode: SnapshotKeeps::Full,
            every_units,
            every_seconds,
            share_max,
            disk_bytes_max: None,
            embeddings_bytes_max: 256 << 20,
        }
    }
}

/// When memory counts as short: shares of a budget, or of what the process may have.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PressureConfig {
    /// From here on what can be computed again and what is read last make room.
    pub watch: f64,
    /// From here on new pages are smaller and windows shorter, where a job's quality allows it.
    pub high: f64,
    /// From here on background jobs are parked, and drafts begin smaller.
    pub critical: f64,
    /// How far below a mark it must fall for that to end.
    pub hysteresis: f64,
    /// Bytes that the process may have; left out: what its control group or the machine has.
    pub process_bytes_max: Option<u64>,
}

impl Default for PressureConfig {
    fn default() -> Self {
        Self { watch: 0.70, high: 0.85, critical: 0.95, hysteresis: 0.05, process_bytes_max: None }
    }
}

/// How many jobs, and how they take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueueConfig {
    /// Jobs that may wait or run.
    pub jobs_max: i64,
    /// Of one tenant.
    pub jobs_per_tenant_max: i64,
    /// Jobs under way at once.
    pub under_way_max: usize,
    /// Units after which a class that was passed over gets one.
    pub ageing_units: u32,
    /// Starts without an end after which a job counts as failed.
    pub starts_max: i64,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self { jobs_max: 100, jobs_per_tenant_max: 50, under_way_max: 4, ageing_units: 32, starts_max: 20 }
    }
}

/// What a request may ask for, and what a client may take.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of a body.
    pub body_bytes_max: usize,
    /// Characters of a prompt.
    pub prompt_chars_max: usize,
    /// Pixels of a frame.
    pub pixels_max: usize,
    /// Frames of a video.
    pub frames_max: usize,
    /// Denoising steps.
    pub steps_max: usize,
    /// Connections at once.
    pub connections_max: usize,
    /// Bytes of a request's headers.
    pub header_bytes_max: usize,
    /// Seconds without progress after which a client is left.
    pub client_seconds_max: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 1 << 20,
            prompt_chars_max: 10_000,
            pixels_max: 1920 * 1088,
            frames_max: 1025,
            steps_max: 200,
            connections_max: 1024,
            header_bytes_max: 32 << 10,
            client_seconds_max: 30.0,
        }
    }
}

const TOP: &[&str] = &[
    "listen",
    "data",
    "model",
    "weights",
    "device_memory",
    "host_memory",
    "disk_cache",
    "threads",
    "retention_hours",
    "cors_origins",
    "log_format",
    "queue",
    "limits",
    "pages",
    "classes",
    "snapshots",
    "pressure",
    "webhooks",
    "traces",
    "encoder",
    "keys",
];
const PAGES: &[&str] = &["codec", "window", "sink"];
const CLASSES: &[&str] = &["interactive", "standard", "background"];
const CLASS: &[&str] =
    &["device_guarantee", "device_limit", "host_guarantee", "host_limit", "disk_guarantee", "disk_limit"];
const SNAPSHOTS: &[&str] =
    &["mode", "every_units", "every_seconds", "share_max", "disk_bytes_max", "embeddings_bytes_max"];
const PRESSURE: &[&str] = &["watch", "high", "critical", "hysteresis", "process_bytes_max"];
const QUEUE: &[&str] = &["jobs_max", "jobs_per_tenant_max", "under_way_max", "ageing_units", "starts_max"];
const LIMITS: &[&str] = &[
    "body_bytes_max",
    "prompt_chars_max",
    "pixels_max",
    "frames_max",
    "steps_max",
    "connections_max",
    "header_bytes_max",
    "client_seconds_max",
];
const WEBHOOKS: &[&str] = &["secret", "private_addresses", "attempts_max", "certificates"];
const TRACES: &[&str] = &["endpoint"];
const ENCODER: &[&str] = &["ffmpeg", "arguments", "threads"];
const KEYS: &[&str] = &[
    "tenant",
    "blake3",
    "class",
    "expires",
    "requests_per_minute",
    "jobs_max",
    "under_way_max",
    "webhook_secret",
];

impl Config {
    /// Reads a configuration whose paths are as they stand there, and checks it.
    ///
    /// # Errors
    /// One sentence: a key that is not known and the nearest that is, a value of the wrong type, or one out of range.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config = Self::read(text, Path::new(""))?;
        config.check()?;
        Ok(config)
    }

    /// Reads a configuration of which more may be said elsewhere, so that nothing but its form is checked yet. Paths that it
    /// names are taken from `directory` on.
    ///
    /// # Errors
    /// One sentence: a key that is not known and the nearest that is, or a value of the wrong type.
    pub fn read(text: &str, directory: &Path) -> Result<Self, ConfigError> {
        let table: toml::Table =
            text.parse().map_err(|error: toml::de::Error| ConfigError(one_line(text, &error)))?;
        refuse_unknown("", &table, TOP)?;
        let sections = [
            ("queue", QUEUE),
            ("limits", LIMITS),
            ("pages", PAGES),
            ("classes", CLASSES),
            ("snapshots", SNAPSHOTS),
            ("pressure", PRESSURE),
            ("webhooks", WEBHOOKS),
            ("traces", TRACES),
            ("encoder", ENCODER),
        ];
        for (section, known) in sections {
            if let Some(toml::Value::Table(inner)) = table.get(section) {
                refuse_unknown(&format!("{section}."), inner, known)?;
            }
        }
        for (class, inner) in table.get("classes").and_then(toml::Value::as_table).into_iter().flatten() {
            if let Some(inner) = inner.as_table() {
                refuse_unknown(&format!("classes.{class}."), inner, CLASS)?;
            }
        }
        if let Some(toml::Value::Array(keys)) = table.get("keys") {
            for key in keys.iter().filter_map(toml::Value::as_table) {
                refuse_unknown("keys.", key, KEYS)?;
            }
        }
        let mut config: Self = toml::from_str(text).map_err(|error| ConfigError(one_line(text, &error)))?;
        if table.contains_key("data") {
            config.data = directory.join(config.data);
        }
        config.pages.place_in(directory);
        // The size stands behind the directory. Where there is no directory, that is still to be seen.
        let place = config.disk_cache.as_mut().filter(|place| !place.starts_with(':'));
        if let Some(place) = place {
            *place = directory.join(&*place).to_string_lossy().into_owned();
        }
        // A program without a directory is looked for where programs are.
        let program = config.encoder.ffmpeg.as_mut().filter(|program| program.components().count() > 1);
        for path in
            [config.model.as_mut(), config.webhooks.certificates.as_mut(), program].into_iter().flatten()
        {
            *path = directory.join(&*path);
        }
        Ok(config)
    }

    /// Checks what no type can say. A file of codecs is read for that.
    ///
    /// # Errors
    /// One sentence with the key, its value and what would be right.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |sentence: String| Err(ConfigError(sentence));
        let QueueConfig { jobs_max, jobs_per_tenant_max, under_way_max, ageing_units, starts_max } =
            self.queue;
        let takes_no_turns = under_way_max < 1 || ageing_units < 1;
        if takes_no_turns || jobs_max < 1 || jobs_per_tenant_max < 1 || starts_max < 1 {
            return refuse(
                "jobs_max, jobs_per_tenant_max, under_way_max, ageing_units and starts_max of [queue] are at least 1"
                    .to_owned(),
            );
        }
        if let Some(threads) = self.threads.filter(|threads| !(1..=THREADS_MAX).contains(threads)) {
            return refuse(format!("threads is {threads}; it lies between 1 and {THREADS_MAX}"));
        }
        if !(0.0..=1e6).contains(&self.retention_hours) {
            return refuse(format!(
                "retention_hours is {}; it lies between 0 and 1000000",
                self.retention_hours
            ));
        }
        self.limits.check()?;
        self.pages.check()?;
        self.check_classes()?;
        self.check_memory()?;
        self.check_outside()?;
        check_keys(&self.keys)?;
        if !self.listen.ip().is_loopback() && self.keys.is_empty() {
            return refuse(format!(
                "{} can be reached by others, so it needs keys: add one that `evanesce serve --new-key TENANT` prints, or listen on 127.0.0.1",
                self.listen
            ));
        }
        Ok(())
    }
}

impl Limits {
    /// Checks that something is left to ask for.
    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |sentence: String| Err(ConfigError(sentence));
        if !(0.1..=3600.0).contains(&self.client_seconds_max) {
            let seconds = self.client_seconds_max;
            return refuse(format!("client_seconds_max is {seconds}; it lies between 0.1 and 3600"));
        }
        if self.header_bytes_max < 8192 || self.connections_max < 1 {
            return refuse("header_bytes_max is at least 8192, and connections_max at least 1".to_owned());
        }
        let Self { body_bytes_max, prompt_chars_max, pixels_max, frames_max, steps_max, .. } = *self;
        if [body_bytes_max, prompt_chars_max, pixels_max, frames_max, steps_max].contains(&0) {
            return refuse(
                "body_bytes_max, prompt_chars_max, pixels_max, frames_max and steps_max of [limits] are at least 1"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

impl Config {
    /// Checks shares.
    fn check_classes(&self) -> Result<(), ConfigError> {
        let refuse = |sentence: String| Err(ConfigError(sentence));
        let classes = self.classes.all();
        let shares = classes.iter().flat_map(|class| {
            let device = [class.device_guarantee, class.device_limit];
            device.into_iter().chain([
                class.host_guarantee,
                class.host_limit,
                class.disk_guarantee,
                class.disk_limit,
            ])
        });
        if let Some(share) = shares.into_iter().find(|share| !(0.0..=1.0).contains(share)) {
            return refuse(format!("a share of [classes] is {share}; it lies between 0 and 1"));
        }
        let sum = |share: fn(&ClassConfig) -> f64| classes.iter().map(share).sum::<f64>() > 1.0;
        if sum(|class| class.device_guarantee)
            || sum(|class| class.host_guarantee)
            || sum(|class| class.disk_guarantee)
        {
            return refuse("the guarantees of [classes] add up to more than 1 in one tier".to_owned());
        }
        for (class, shares) in Class::ALL.into_iter().zip(classes) {
            let tiers = [
                ("device", shares.device_guarantee, shares.device_limit),
                ("host", shares.host_guarantee, shares.host_limit),
                ("disk", shares.disk_guarantee, shares.disk_limit),
            ];
            if let Some((tier, guarantee, limit)) = tiers.into_iter().find(|(_, least, most)| least > most) {
                let class = class.as_str();
                return refuse(format!(
                    "{tier}_guarantee of [classes.{class}] is {guarantee}, above its {tier}_limit, which is {limit}; a class cannot count on more than it may have"
                ));
            }
        }
        Ok(())
    }

    /// Checks when snapshots are taken, and marks.
    fn check_memory(&self) -> Result<(), ConfigError> {
        let refuse = |sentence: String| Err(ConfigError(sentence));
        let SnapshotConfig { every_units, every_seconds, share_max, .. } = self.snapshots;
        let is_never = every_seconds.is_nan() || every_seconds <= 0.0;
        if every_units < 1 || is_never || !(0.001..=1.0).contains(&share_max) {
            return refuse(
                "every_units of [snapshots] is at least 1, every_seconds above 0, share_max between 0.001 and 1"
                    .to_owned(),
            );
        }
        let PressureConfig { watch, high, critical, hysteresis, process_bytes_max } = self.pressure;
        if process_bytes_max == Some(0) {
            return refuse(
                "process_bytes_max of [pressure] is 0; leave it out where the process may have what there is"
                    .to_owned(),
            );
        }
        if !(0.0 < watch
            && watch < high
            && high < critical
            && critical <= 1.0
            && (0.0..watch).contains(&hysteresis))
        {
            return refuse(
                "the marks of [pressure] rise: 0 < watch < high < critical <= 1, and hysteresis is below watch"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

fn refuse_unknown(section: &str, table: &toml::Table, known: &[&str]) -> Result<(), ConfigError> {
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => {
            let near = nearest(key, known);
            Err(ConfigError(format!("there is no key {section}{key}; the nearest is {section}{near}")))
        }
    }
}

/// An error with its line, and with the key where one is meant.
fn one_line(text: &str, error: &toml::de::Error) -> String {
    // Without the text it names the key, and shows no excerpt of several lines.
    let mut bare = error.clone();
    bare.set_input(None);
    let sentence = bare.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let before = error.span().and_then(|span| text.get(..span.start));
    match before.map(|before| before.matches('\n').count() + 1) {
        Some(line) => format!("line {line}: {sentence}"),
        None => sentence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMs;

    #[test]
    fn paths_of_a_file_are_relative_to_it_and_defaults_are_not() {
        let read = |text: &str| Config::read(text, Path::new("/etc/evanesce")).unwrap();
        assert_eq!(read("").data, Config::default().data);
        let named = read(
            "data = \"jobs\"\nmodel = \"/models/wan\"\n[webhooks]\ncertificates = \"authority.pem\"\n[encoder]\nffmpeg = \"ffmpeg\"",
        );
        assert_eq!(named.data, Path::new("/etc/evanesce/jobs"));
        assert_eq!(named.model.as_deref(), Some(Path::new("/models/wan")));
        assert_eq!(named.webhooks.certificates.as_deref(), Some(Path::new("/etc/evanesce/authority.pem")));
        assert_eq!(named.encoder.ffmpeg.as_deref(), Some(Path::new("ffmpeg")));
        let disk = |text: &str| read(&format!("disk_cache = \"{text}\"")).disk_cache.unwrap();
        assert_eq!(disk("cache:2GiB"), "/etc/evanesce/cache:2GiB");
        assert_eq!([disk("/ssd:2GiB"), disk(":2GiB")], ["/ssd:2GiB", ":2GiB"]);
        let codec = |text: &str| read(&format!("[pages]\ncodec = \"{text}\"")).pages.codec.unwrap();
        assert_eq!([codec("int8"), codec("c.json")], ["int8", "/etc/evanesce/c.json"]);
        let beside = read("[encoder]\nffmpeg = \"bin/ffmpeg\"").encoder.ffmpeg;
        assert_eq!(beside.as_deref(), Some(Path::new("/etc/evanesce/bin/ffmpeg")));
        // What flags may still change is not refused yet.
        assert!(read("listen = \"0.0.0.0:80\"").check().is_err());
    }

    #[test]
    fn the_printed_configuration_is_the_default_one_and_names_every_key() {
        assert_eq!(Config::parse(TEMPLATE).unwrap(), Config::default());
        assert_eq!(Config::parse("").unwrap(), Config::default());
        let sections = [QUEUE, LIMITS, PAGES, CLASSES, CLASS, SNAPSHOTS, PRESSURE, WEBHOOKS, TRACES, ENCODER];
        for key in [TOP, KEYS].into_iter().chain(sections).flatten() {
            let line = |line: &str| {
                let name = line.trim_start_matches(['#', ' ', '[']);
                name.trim_start_matches("classes.").starts_with(key) || name.starts_with(key)
            };
            assert!(TEMPLATE.lines().any(line), "{key} is not in the printed configuration");
        }
    }

    #[test]
    fn mistakes_get_one_sentence_with_what_would_be_right() {
        let refused = |text: &str| Config::parse(text).unwrap_err().to_string();
        assert_eq!(refused("lisen = 'x'"), "there is no key lisen; the nearest is listen");
        assert!(refused("[queue]\njob_max = 3").contains("queue.jobs_max"));
        assert!(refused("[limits]\nframes = 3").contains("limits.frames_max"));
        assert!(refused("[[keys]]\nname = 'x'").contains("the nearest is keys."));
        assert!(refused("[pages]\ncodecs = 'int8'").contains("pages.codec"));
        assert!(
            refused("[pages]\nwindow = 0").contains("window of [pages] is 0; it lies between 1 and 1024")
        );
        assert!(refused("[pages]\nsink = 1025").contains("between 0 and 1024"));
        assert!(refused("listen = '0.0.0.0:80'").contains("needs keys"));
        assert!(refused("[queue]\njobs_max = 0").contains("at least 1"));
        assert!(refused("retention_hours = -1.0").contains("retention_hours"));
        assert!(refused("[[keys]]\ntenant = 'a'\nblake3 = 'zz'").contains("64 hexadecimal digits"));
        assert!(refused("log_format = 'xml'").contains("text"));
        assert!(refused("weights = 'f32'").contains("`bf16` or `stored`"));
        assert!(refused("cors_origins = ['*']").contains("https://example.org"));
        assert!(refused("[webhooks]\nsecret = 'short'").contains("whsec_"));
        assert!(refused("[traces]\nendpoint = 'x'").contains("127.0.0.1:4318"));
        assert!(refused("[webhooks]\nattempts = 3").contains("webhooks.attempts_max"));
        assert_eq!(
            refused("listen = 7"),
            "line 1: invalid type: integer `7`, expected socket address in `listen`"
        );
        let nested = refused("\n[limits]\n# of a frame\npixels_max = 'many'");
        assert!(nested.starts_with("line 4: ") && nested.ends_with("in `limits.pixels_max`"), "{nested}");
        assert!(refused("threads = 1\nthreads = 2").starts_with("line 2: duplicate key"));
        assert!(refused("[classes.standart]").contains("the nearest is classes.standard"));
        assert!(refused("[classes.standard]\ndevice = 1").contains("classes.standard.device_"));
        assert!(refused("[classes.standard]\ndevice_limit = 2.0").contains("between 0 and 1"));
        assert!(refused("[snapshots]\nevery_units = 0").contains("at least 1"));
        assert!(refused("[pressure]\nwatch = 0.9").contains("rise"));
        for threads in [0, 1025] {
            let sentence = format!("threads is {threads}; it lies between 1 and 1024");
            assert_eq!(refused(&format!("threads = {threads}")), sentence);
        }
        for seconds in ["nan", "0.0", "-1.0"] {
            assert!(refused(&format!("[snapshots]\nevery_seconds = {seconds}")).contains("above 0"));
        }
        for key in ["body_bytes_max", "prompt_chars_max", "pixels_max", "frames_max", "steps_max"] {
            assert!(refused(&format!("[limits]\n{key} = 0")).contains("at least 1"), "{key}");
        }
        assert!(refused("[queue]\nageing_units = 0").contains("at least 1"));
        assert!(refused("[pressure]\nprocess_bytes_max = 0").contains("leave it out"));
        for tier in ["device", "host", "disk"] {
            let shares = format!("{tier}_guarantee = 0.6\n{tier}_limit = 0.5");
            let refusal = refused(&format!("[classes.standard]\n{shares}"));
            assert!(refusal.contains(&format!("above its {tier}_limit")), "{refusal}");
        }
        let key = blake3::hash(b"k").to_hex();
        let shouted = key.to_ascii_uppercase();
        let twice =
            format!("[[keys]]\ntenant = 'a'\nblake3 = '{key}'\n[[keys]]\ntenant = 'b'\nblake3 = '{shouted}'");
        assert!(refused(&twice).contains("have the same blake3"));
        let open = format!("listen = '0.0.0.0:80'\n[[keys]]\ntenant = 'a'\nblake3 = '{key}'");
        assert_eq!(Config::parse(&open).unwrap().keys[0].class, Class::Interactive);
        let expires =
            |text: &str| Config::parse(&format!("{open}\nexpires = {text}")).unwrap().keys[0].expires_at();
        assert_eq!(expires("2024-02-29").unwrap(), Some(UnixMs(1_709_164_800_000)));
        assert_eq!(expires("2024-02-29T02:00:01+02:00").unwrap(), Some(UnixMs(1_709_164_801_000)));
        assert!(refused(&format!("{open}\nexpires = 07:32:00")).contains("needs a date"));
        assert!(refused(&format!("{open}\njobs_max = 0")).contains("below 1"));
    }
}
