//! Who is asking. Keys are compared by digest, in constant time; without keys only pages and programs of this machine are served.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use blake3::Hash;

use super::App;
use super::error::ApiError;
use crate::config::KeyConfig;
use crate::job::Class;

/// Somebody with jobs of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tenant {
    pub(crate) name: String,
    /// The best class they may ask for.
    pub(crate) ceiling: Class,
}

/// Who may use the service.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    keys: Vec<(Hash, Tenant)>,
}

impl Access {
    pub(crate) fn new(keys: &[KeyConfig]) -> Self {
        let known = keys.iter().filter_map(|key| {
            let tenant = Tenant { name: key.tenant.clone(), ceiling: key.class };
            Some((Hash::from_hex(&key.blake3).ok()?, tenant))
        });
        Self { keys: known.collect() }
    }

    fn tenant(&self, headers: &HeaderMap) -> Result<Tenant, ApiError> {
        if self.keys.is_empty() {
            check_is_local(headers)?;
            return Ok(Tenant { name: "local".to_owned(), ceiling: Class::Interactive });
        }
        let refuse = |sentence: &str| ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", sentence);
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = given
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(|| refuse("this service needs a key; send it as `Authorization: Bearer KEY`"))?;
        let digest = blake3::hash(key.trim().as_bytes());
        // Every key is compared, each in constant time.
        let mut found = None;
        for (known, tenant) in &self.keys {
            if *known == digest {
                found = Some(tenant.clone());
            }
        }
        found.ok_or_else(|| refuse("this key is not known here"))
    }
}

/// Without keys, whoever reaches the loopback address is served, so pages of other sites must not reach it: neither under a name
/// of theirs that points here, nor by sending a form here.
fn check_is_local(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    let name = host
        .rsplit_once(':')
        .map_or(host, |(name, port)| if port.bytes().all(|b| b.is_ascii_digit()) { name } else { host });
    let is_address = |name: &str| name.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback());
    let forbidden = |sentence: &str| Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", sentence));
    if !(matches!(name, "localhost" | "[::1]") || is_address(name)) {
        return forbidden(
            "without keys this service is for its own machine: ask for it as localhost or 127.0.0.1",
        );
    }
    match text(header::ORIGIN) {
        Some(origin) if origin.strip_prefix("http://") != Some(host) => {
            forbidden("pages of other sites may not use this service")
        }
        _ => Ok(()),
    }
}

/// Lets a request pass with its tenant, or refuses it.
pub(crate) async fn require(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let tenant = app.access.tenant(request.headers())?;
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
    fn a_key_opens_its_own_tenant_and_nothing_else() {
        let key = |tenant: &str, key: &str, class| KeyConfig {
            tenant: tenant.to_owned(),
            blake3: blake3::hash(key.as_bytes()).to_string(),
            class,
        };
        let access = Access::new(&[key("a", "one", Class::Standard), key("b", "two", Class::Interactive)]);
        let tenant = |value: &str| access.tenant(&headers(&[("authorization", value)]));
        assert_eq!(tenant("Bearer one").unwrap(), Tenant { name: "a".to_owned(), ceiling: Class::Standard });
        assert_eq!(tenant("Bearer two").unwrap().name, "b");
        for wrong in ["Bearer three", "one", "Basic one", "Bearer ", "bearer"] {
            assert!(tenant(wrong).is_err(), "{wrong}");
        }
        assert!(access.tenant(&headers(&[("host", "localhost")])).is_err());
    }

    #[test]
    fn without_keys_only_this_machine_is_served() {
        let access = Access::new(&[]);
        let served = |pairs: &[(&'static str, &str)]| access.tenant(&headers(pairs)).is_ok();
        for host in ["localhost", "localhost:8080", "127.0.0.1:8080", "127.0.0.1", "[::1]:8080", "[::1]"] {
            assert!(served(&[("host", host)]), "{host}");
        }
        for host in ["example.org", "example.org:8080", "127.0.0.1.example.org:80", "", "10.0.0.1"] {
            assert!(!served(&[("host", host)]), "{host}");
        }
        assert!(served(&[("host", "localhost:80"), ("origin", "http://localhost:80")]));
        assert!(!served(&[("host", "localhost:80"), ("origin", "http://example.org")]));
        assert!(!served(&[("host", "localhost:80"), ("origin", "null")]));
    }
}
