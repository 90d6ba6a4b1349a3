//! Who is asking. Keys are compared by digest, in constant time; without keys only pages and programs of this machine are served.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use blake3::Hash;

use super::App;
use super::error::ApiError;
use crate::clock::{Stopwatch, UnixMs};
use crate::config::{ConfigError, KeyConfig};
use crate::job::Class;

/// Who asks where no key is needed.
pub(crate) const LOCAL: &str = "local";

/// Somebody with jobs of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tenant {
    pub(crate) name: String,
    /// The best class they may ask for.
    pub(crate) ceiling: Class,
    /// Jobs that they may have waiting or running, if that is not as for everybody.
    pub(crate) jobs_max: Option<i64>,
}

/// Who may use the service.
#[derive(Debug)]
pub(crate) struct Access {
    keys: Vec<Key>,
    /// Sites whose pages may use the service.
    origins: Vec<String>,
}

#[derive(Debug)]
struct Key {
    digest: Hash,
    tenant: Tenant,
    expires: Option<UnixMs>,
    rate: Option<Mutex<Bucket>>,
}

/// Requests that may come at once: they are used up one by one, and come back evenly.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    per_minute: f64,
    left: f64,
    filled: Stopwatch,
}

impl Bucket {
    fn new(per_minute: u32) -> Self {
        let per_minute = f64::from(per_minute);
        Self { per_minute, left: per_minute, filled: Stopwatch::start() }
    }

    /// Uses one up, or says how long until there is one.
    fn take(&mut self, since: Duration) -> Result<(), Duration> {
        self.left = (self.left + since.as_secs_f64() * self.per_minute / 60.0).min(self.per_minute);
        self.filled = Stopwatch::start();
        if self.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.left) * 60.0 / self.per_minute));
        }
        self.left -= 1.0;
        Ok(())
    }
}

impl Access {
    pub(crate) fn new(keys: &[KeyConfig], origins: &[String]) -> Result<Self, ConfigError> {
        let known = keys.iter().map(|key| {
            let tenant = Tenant { name: key.tenant.clone(), ceiling: key.class, jobs_max: key.jobs_max };
            let digest = Hash::from_hex(&key.blake3).map_err(|error| ConfigError(error.to_string()))?;
            let rate = key.requests_per_minute.map(|per_minute| Mutex::new(Bucket::new(per_minute)));
            Ok(Key { digest, tenant, expires: key.expires_at()?, rate })
        });
        Ok(Self { keys: known.collect::<Result<_, ConfigError>>()?, origins: origins.to_vec() })
    }

    /// Whether pages of this site may use the service.
    pub(super) fn allows_origin(&self, origin: &str) -> bool {
        self.origins.iter().any(|allowed| allowed == origin)
    }

    fn tenant(&self, headers: &HeaderMap, now: UnixMs) -> Result<Tenant, ApiError> {
        if self.keys.is_empty() {
            self.check_is_local(headers)?;
            return Ok(Tenant { name: LOCAL.to_owned(), ceiling: Class::Interactive, jobs_max: None });
        }
        let refuse = |sentence: &str| ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", sentence);
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let text = given
            .and_then(|value| value.split_once(' '))
            // Names of schemes are written in either case (RFC 9110, 11.1).
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("Bearer"))
            .map(|(_, key)| key)
            .ok_or_else(|| refuse("this service needs a key; send it as `Authorization: Bearer KEY`"))?;
        let digest = blake3::hash(text.trim().as_bytes());
        // Every key is compared, each in constant time.
        let mut found = None;
        for key in &self.keys {
            if key.digest == digest {
                found = Some(key);
            }
        }
        let key = found.ok_or_else(|| refuse("this key is not known here"))?;
        if let Some(at) = key.expires.filter(|at| *at <= now) {
            return Err(refuse(&format!("this key has expired: it was valid until {}", at.rfc3339()))
                .with_code("expired_api_key"));
        }
        key.take_one()?;
        Ok(key.tenant.clone())
    }

    /// Without keys, whoever reaches the loopback address is served, so pages of other sites must not reach it: neither under a name
    /// of theirs that points here, nor by sending a form here.
    fn check_is_local(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text(header::HOST).unwrap_or_default();
        let name = host
            .rsplit_once(':')
            .map_or(host, |(name, port)| if port.bytes().all(|b| b.is_ascii_digit()) { name } else { host });
        let is_address = |name: &str| name.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback());
        let forbidden = |sentence: &str| Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", sentence));
        // Names of hosts are written in either case (RFC 9110, 4.2.3).
        if !(name.eq_ignore_ascii_case("localhost") || name == "[::1]" || is_address(name)) {
            return forbidden(
                "without keys this service is for its own machine: ask for it as localhost or 127.0.0.1",
            );
        }
        let is_own =
            |origin: &str| origin.strip_prefix("http://").is_some_and(|site| site.eq_ignore_ascii_case(host));
        match text(header::ORIGIN) {
            Some(origin) if !is_own(origin) && !self.allows_origin(origin) => {
                forbidden("pages of other sites may not use this service")
            }
            _ => Ok(()),
        }
    }
}

impl Key {
    fn take_one(&self) -> Result<(), ApiError> {
        let Some(rate) = &self.rate else { return Ok(()) };
        // A bucket is whole after every statement, so a panic elsewhere cannot spoil it.
        let mut bucket = rate.lock().unwrap_or_else(PoisonError::into_inner);
        let since = bucket.filled.elapsed();
        bucket.take(since).map_err(|delay| {
            let sentence = format!("this key may ask {} times a minute; try again later", bucket.per_minute);
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", sentence).retry_after(delay)
        })
    }
}

/// Lets a request pass with its tenant, or refuses it.
pub(crate) async fn require(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let tenant = app.access.tenant(request.headers(), UnixMs::now())?;
    request.extensions_mut().insert(tenant);
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_key_opens_its_own_tenant_until_it_expires_and_nothing_else() {
        let mut keys =
            [KeyConfig::new("a", "one", Class::Standard), KeyConfig::new("b", "two", Class::Interactive)];
        keys[1].expires = Some("1970-01-02".parse().unwrap());
        let access = Access::new(&keys, &[]).unwrap();
        let at = |value: &str, now| access.tenant(&headers(&[("authorization", value)]), UnixMs(now));
        let one = Tenant { name: "a".to_owned(), ceiling: Class::Standard, jobs_max: None };
        assert_eq!(at("Bearer one", i64::MAX).unwrap(), one);
        assert_eq!(at("Bearer two", 86_399_999).unwrap().name, "b");
        assert!(at("Bearer two", 86_400_000).is_err());
        for written in ["bearer one", "BEARER one", "Bearer  one"] {
            assert_eq!(at(written, 0).unwrap(), one, "{written}");
        }
        for wrong in ["Bearer three", "one", "Basic one", "Bearer ", "bearer", "Bearerone", "bearer ONE"] {
            assert!(at(wrong, 0).is_err(), "{wrong}");
        }
        assert!(access.tenant(&headers(&[("host", "localhost")]), UnixMs(0)).is_err());
    }

    #[test]
    fn requests_of_a_minute_may_come_at_once_and_come_back_evenly() {
        let mut bucket = Bucket::new(6);
        for _ in 0..6 {
            bucket.take(Duration::ZERO).unwrap();
        }
        assert_eq!(bucket.take(Duration::ZERO), Err(Duration::from_secs(10)));
        assert_eq!(bucket.take(Duration::from_secs(4)), Err(Duration::from_secs(6)));
        bucket.take(Duration::from_secs(6)).unwrap();
        // However long nobody asks, a minute's worth is all there is.
        bucket.take(Duration::from_secs(3600)).unwrap();
        assert_eq!(bucket.left.round(), 5.0);
    }

    #[test]
    fn without_keys_only_this_machine_is_served() {
        let access = Access::new(&[], &["https://friend.example".to_owned()]).unwrap();
        let served = |pairs: &[(&'static str, &str)]| access.tenant(&headers(pairs), UnixMs(0)).is_ok();
        for host in [
            "localhost",
            "localhost:8080",
            "LOCALHOST",
            "LocalHost:8080",
            "127.0.0.1:8080",
            "127.0.0.1",
            "[::1]:8080",
            "[::1]",
        ] {
            assert!(served(&[("host", host)]), "{host}");
        }
        for host in ["example.org", "example.org:8080", "127.0.0.1.example.org:80", "", "10.0.0.1"] {
            assert!(!served(&[("host", host)]), "{host}");
        }
        assert!(served(&[("host", "localhost:80"), ("origin", "http://localhost:80")]));
        assert!(served(&[("host", "LOCALHOST:80"), ("origin", "http://localhost:80")]));
        assert!(served(&[("host", "localhost:80"), ("origin", "https://friend.example")]));
        assert!(!served(&[("host", "localhost:80"), ("origin", "http://example.org")]));
        assert!(!served(&[("host", "localhost:80"), ("origin", "null")]));
    }
}
