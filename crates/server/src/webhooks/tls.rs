//! TLS for webhooks, with the certificates that browsers trust; in programs built with the feature `https`.

use tokio::net::TcpStream;

#[cfg(feature = "https")]
mod there {
    use std::sync::Arc;

    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;
    use tokio_rustls::rustls::pki_types::ServerName;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

    use super::TcpStream;

    pub(crate) const IS_THERE: bool = true;

    /// A stream to the host of this name, and to nobody else.
    pub(crate) async fn wrap(stream: TcpStream, host: &str) -> Result<TlsStream<TcpStream>, String> {
        let name =
            ServerName::try_from(host.to_owned()).map_err(|_| "its host has no name for TLS".to_owned())?;
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS is not to be had: {error}"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        connected.map_err(|error| format!("TLS failed: {error}"))
    }
}

#[cfg(not(feature = "https"))]
mod there {
    use super::TcpStream;

    pub(crate) const IS_THERE: bool = false;

    pub(crate) async fn wrap(_stream: TcpStream, _host: &str) -> Result<TcpStream, String> {
        Err("this program was built without https".to_owned())
    }
}

pub(crate) use there::{IS_THERE, wrap};
