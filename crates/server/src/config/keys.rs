//! Who may use the service, until when, and how much.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::value::{Datetime, Offset};

use super::ConfigError;
use super::outside::check_secret;
use crate::clock::UnixMs;
use crate::job::Class;

/// A key, by its digest.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// Whose jobs it opens.
    pub tenant: String,
    /// The BLAKE3 digest of the key, in hexadecimal.
    pub blake3: String,
    /// The best class it may ask for.
    #[serde(default = "best_class")]
    pub class: Class,
    /// From when on it opens nothing.
    pub expires: Option<Datetime>,
    /// Requests within a minute.
    pub requests_per_minute: Option<u32>,
    /// Jobs of its tenant that may wait or run; instead of `queue.jobs_per_tenant_max`.
    pub jobs_max: Option<i64>,
    /// Jobs of its tenant that may have begun and not ended.
    pub under_way_max: Option<usize>,
    /// Signs the webhooks of its tenant.
    pub webhook_secret: Option<String>,
}

impl KeyConfig {
    /// A key without limits of its own.
    #[must_use]
    pub fn new(tenant: &str, key: &str, class: Class) -> Self {
        Self {
            tenant: tenant.to_owned(),
            blake3: crate::key_digest(key),
            class,
            expires: None,
            requests_per_minute: None,
            jobs_max: None,
            under_way_max: None,
            webhook_secret: None,
        }
    }

    /// Checks what no type can say.
    fn check(&self) -> Result<(), ConfigError> {
        let name = &self.tenant;
        let refuse = |sentence: &str| Err(ConfigError(format!("the key of tenant {name:?} {sentence}")));
        if name.is_empty() || blake3::Hash::from_hex(&self.blake3).is_err() {
            return refuse("needs a name and a digest of 64 hexadecimal digits");
        }
        let is_none = self.requests_per_minute == Some(0) || self.under_way_max == Some(0);
        if is_none || self.jobs_max.is_some_and(|jobs| jobs < 1) {
            return refuse(
                "has requests_per_minute, jobs_max or under_way_max below 1; leave out what should not be limited",
            );
        }
        self.expires_at()?;
        check_secret(&format!("webhook_secret of tenant {name:?}"), self.webhook_secret.as_ref())
    }

    /// The moment from which on it opens nothing; a time without an offset is UTC.
    ///
    /// # Errors
    /// One sentence if `expires` has no date.
    pub fn expires_at(&self) -> Result<Option<UnixMs>, ConfigError> {
        let Some(moment) = &self.expires else { return Ok(None) };
        let Some(date) = moment.date else {
            let sentence = format!(
                "expires of tenant {:?} is {moment}; it needs a date, such as 2030-01-31",
                self.tenant
            );
            return Err(ConfigError(sentence));
        };
        let midnight = UnixMs::of_date(date.year.into(), date.month.into(), date.day.into());
        let time_ms = moment.time.map_or(0, |time| {
            let second = i64::from(time.second.unwrap_or(0));
            (i64::from(time.hour) * 3600 + i64::from(time.minute) * 60 + second) * 1000
        });
        let offset_ms = match moment.offset {
            Some(Offset::Custom { minutes }) => i64::from(minutes) * 60_000,
            Some(Offset::Z) | None => 0,
        };
        Ok(Some(UnixMs(midnight.0 + time_ms - offset_ms)))
    }
}

/// Checks each, and that no two of them are opened by the same key: only one tenant would be.
pub(super) fn check_keys(keys: &[KeyConfig]) -> Result<(), ConfigError> {
    let mut tenants = BTreeMap::new();
    for key in keys {
        key.check()?;
        let (tenant, digest) = (&key.tenant, key.blake3.to_ascii_lowercase());
        if let Some(other) = tenants.insert(digest, tenant) {
            return Err(ConfigError(format!(
                "two [[keys]], of tenants {other:?} and {tenant:?}, have the same blake3; draw a key for each with `evanesce serve --new-key TENANT`"
            )));
        }
    }
    Ok(())
}

fn best_class() -> Class {
    Class::Interactive
}
