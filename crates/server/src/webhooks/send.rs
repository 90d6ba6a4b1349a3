//! One POST to somebody else's server: the name is resolved once, what it resolves to is checked, and that address is connected to.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::http::uri::Authority;
use axum::http::{Request, Uri, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::address::{is_local_name, is_public, literal};
use super::tls::Trust;

/// All of it, from the name to the status, may take this long.
const PATIENCE: Duration = Duration::from_secs(15);
const URL_CHARS_MAX: usize = 2048;
const AGENT: &str = concat!("evanesce/", env!("CARGO_PKG_VERSION"));
const PRIVATE: &str = "webhook leads to an address that is not of the public internet; private_addresses of [webhooks] would allow it";

/// Where a request may go, and who is believed there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reach<'a> {
    pub(crate) private_addresses: bool,
    pub(crate) trust: &'a Trust,
}

/// A place that takes webhooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    uri: Uri,
    /// Without the brackets of an address of version 6.
    host: String,
    port: u16,
    is_https: bool,
}

/// Why there was no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unsent {
    /// One sentence.
    pub(super) sentence: String,
    /// Whether there will be none another time either.
    pub(super) is_final: bool,
}

impl Unsent {
    fn for_good(sentence: impl Into<String>) -> Self {
        Self { sentence: sentence.into(), is_final: true }
    }
}

impl From<String> for Unsent {
    /// What may be better another time.
    fn from(sentence: String) -> Self {
        Self { sentence, is_final: false }
    }
}

impl Target {
    /// Reads a URL.
    ///
    /// # Errors
    /// One sentence that says what would be right.
    pub(crate) fn parse(url: &str, private_addresses: bool) -> Result<Self, String> {
        Self::read(url, private_addresses).map_err(|unsent| unsent.sentence)
    }

    /// As [`Self::parse`].
    ///
    /// # Errors
    /// As [`Self::parse`]; final unless another program could send to this URL.
    pub(super) fn read(url: &str, private_addresses: bool) -> Result<Self, Unsent> {
        let wrong = || Unsent::for_good("webhook is a URL such as \"https://example.org/done\"");
        if url.len() > URL_CHARS_MAX {
            let sentence = format!("webhook has {} characters; at most {URL_CHARS_MAX} are taken", url.len());
            return Err(Unsent::for_good(sentence));
        }
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let is_https = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong()),
        };
        if is_https && !super::tls::IS_THERE {
            let sentence = "webhook begins with https, and this program was built without it; use http";
            return Err(Unsent::from(sentence.to_owned()));
        }
        let authority = uri.authority().ok_or_else(wrong)?;
        if authority.as_str().contains('@') {
            let sentence = "webhook has a name or password in it; send it to a URL that needs none";
            return Err(Unsent::for_good(sentence));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(wrong());
        }
        if is_local_name(&host) && !private_addresses {
            return Err(Unsent::for_good(PRIVATE));
        }
        if let Some(address) = literal(&host) {
            check(address, private_addresses)?;
        }
        let port = port(authority, if is_https { 443 } else { 80 })?;
        Ok(Self { uri, host, port, is_https })
    }

    /// The addresses of the host, if all of them may be connected to.
    async fn addresses(&self, private_addresses: bool) -> Result<Vec<SocketAddr>, Unsent> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let found: Vec<_> = found.map_err(|error| format!("its host cannot be found: {error}"))?.collect();
        for address in &found {
            check(address.ip(), private_addresses)?;
        }
        if found.is_empty() { Err("its host has no address".to_owned().into()) } else { Ok(found) }
    }
}

/// The host of a URL, as it is counted how much goes to one; all of the URL if it has none.
pub(super) fn host_of(url: &str) -> String {
    let uri = url.parse::<Uri>().ok();
    uri.as_ref().and_then(Uri::host).unwrap_or(url).to_ascii_lowercase()
}

/// The port that a URL names. `Authority::port_u16` gives none for one that is too large, as if none were named.
fn port(authority: &Authority, otherwise: u16) -> Result<u16, Unsent> {
    let rest = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
    let digits = rest.strip_prefix(':').unwrap_or_default();
    if digits.is_empty() {
        return Ok(otherwise);
    }
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse::<u16>().ok().filter(|port| *port > 0 && is_number).ok_or_else(|| {
        Unsent::for_good(format!("webhook has the port {digits}; a port lies between 1 and {}", u16::MAX))
    })
}

fn check(address: std::net::IpAddr, private_addresses: bool) -> Result<(), Unsent> {
    if private_addresses || is_public(address) { Ok(()) } else { Err(Unsent::for_good(PRIVATE)) }
}

/// Posts `body`; gives the status. Redirects are not followed: they lead to addresses that nobody checked.
///
/// # Errors
/// One sentence when there was no answer.
pub(crate) async fn post(
    target: &Target,
    reach: Reach<'_>,
    headers: &[(&'static str, String)],
    body: String,
) -> Result<u16, String> {
    try_post(target, reach, headers, body).await.map_err(|unsent| unsent.sentence)
}

/// As [`post`].
///
/// # Errors
/// As [`post`]; final when it leads to where it may not go.
pub(super) async fn try_post(
    target: &Target,
    reach: Reach<'_>,
    headers: &[(&'static str, String)],
    body: String,
) -> Result<u16, Unsent> {
    let whole = connect_and_exchange(target, reach, headers, body);
    tokio::time::timeout(PATIENCE, whole)
        .await
        .unwrap_or_else(|_elapsed| Err(format!("no answer within {} s", PATIENCE.as_secs()).into()))
}

async fn connect_and_exchange(
    target: &Target,
    Reach { private_addresses, trust }: Reach<'_>,
    headers: &[(&'static str, String)],
    body: String,
) -> Result<u16, Unsent> {
    let addresses = target.addresses(private_addresses).await?;
    let stream = TcpStream::connect(&*addresses).await.map_err(|error| format!("cannot connect: {error}"))?;
    let status = if target.is_https {
        exchange(trust.wrap(stream, &target.host).await?, target, headers, body).await?
    } else {
        exchange(stream, target, headers, body).await?
    };
    Ok(status)
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    target: &Target,
    headers: &[(&'static str, String)],
    body: String,
) -> Result<u16, String> {
    let path = target.uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = target.uri.authority().map_or("", |authority| authority.as_str());
    let mut request = Request::post(path)
        .header(header::HOST, authority)
        .header(header::USER_AGENT, AGENT)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONTENT_LENGTH, body.len())
        .header(header::CONNECTION, "close");
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let request = request.body(Body::from(body)).map_err(|error| format!("cannot be asked: {error}"))?;
    let broken = |error: hyper::Error| format!("no answer: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(broken);
    // The status is all that counts; a body without end is not waited for.
    driver.abort();
    Ok(answer?.status().as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_private_ones_are_refused_unless_allowed() {
        let refused = |url: &str| Target::parse(url, false).unwrap_err();
        for url in [
            "",
            "x",
            "example.org/x",
            "ftp://example.org",
            "http://",
            "http:///x",
            "/only/path",
            "http://exa mple.org",
        ] {
            assert!(refused(url).contains("webhook is a URL"), "{url}: {}", refused(url));
        }
        assert!(refused("http://me:pw@example.org/").contains("password"));
        assert!(refused(&format!("http://example.org/{}", "x".repeat(3000))).contains("at most 2048"));
        for url in [
            "http://127.0.0.1:9/",
            "http://[::1]/",
            "http://169.254.169.254/latest",
            "http://[::ffff:10.0.0.1]:80/x",
            "http://localhost/",
            "http://LOCALHOST.:8080/",
            "http://x.localhost/",
            "http://127.1/",
            "http://2130706433:9/",
            "http://0x7f.1/",
        ] {
            assert!(refused(url).contains("public internet"), "{url}");
            assert!(Target::parse(url, true).is_ok(), "{url}");
        }
        for url in ["http://example.org:0/", "http://example.org:99999/", "http://[2606:4700::1111]:65536"] {
            assert!(refused(url).contains("between 1 and 65535"), "{url}: {}", refused(url));
        }
        for (url, host, port) in [
            ("http://example.org/a?b=c", "example.org", 80),
            ("http://example.org:/", "example.org", 80),
            ("http://example.org:65535", "example.org", 65535),
            ("http://[2606:4700::1111]:81/x", "2606:4700::1111", 81),
        ] {
            let target = Target::parse(url, false).unwrap();
            assert_eq!((target.host.as_str(), target.port), (host, port), "{url}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_to_a_private_address_is_refused_for_good_when_it_is_resolved() {
        // Read where private addresses are allowed, as if only resolving showed what it is.
        for host in ["localhost", "2130706433", "127.1"] {
            let target = Target::parse(&format!("http://{host}:9/"), true).unwrap();
            let trust = Trust::new(None).unwrap();
            let reach = Reach { private_addresses: false, trust: &trust };
            let refused = try_post(&target, reach, &[], String::new()).await.unwrap_err();
            assert!(refused.is_final && refused.sentence.contains("public internet"), "{host}: {refused:?}");
        }
    }
}
