//! TLS for webhooks, with the certificates that browsers trust and those that the configuration adds; in programs built with the
//! feature `https`.

use std::path::Path;

use tokio::net::TcpStream;

#[cfg(feature = "https")]
mod there {
    use std::sync::Arc;

    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

    use super::{Path, TcpStream};

    pub(crate) const IS_THERE: bool = true;

    /// Who is believed.
    #[derive(Clone, Debug)]
    pub(crate) struct Trust(Arc<ClientConfig>);

    impl Trust {
        /// Those whom browsers believe, and those in a file of certificates.
        ///
        /// # Errors
        /// One sentence when the file cannot be used.
        pub(crate) fn new(more: Option<&Path>) -> Result<Self, String> {
            let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
            if let Some(path) = more {
                let unusable = |error: String| {
                    format!("certificates of [webhooks], {}, cannot be used: {error}", path.display())
                };
                let found =
                    CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))?;
                let before = roots.len();
                for certificate in found {
                    let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
                    roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
                }
                if roots.len() == before {
                    return Err(unusable("it has none in PEM".to_owned()));
                }
            }
            let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(|error| format!("TLS is not to be had: {error}"))?
                .with_root_certificates(roots)
                .with_no_client_auth();
            Ok(Self(Arc::new(config)))
        }

        /// A stream to the host of this name, and to nobody else.
        pub(crate) async fn wrap(
            &self,
            stream: TcpStream,
            host: &str,
        ) -> Result<TlsStream<TcpStream>, String> {
            let name = ServerName::try_from(host.to_owned())
                .map_err(|_| "its host has no name for TLS".to_owned())?;
            let connected = TlsConnector::from(Arc::clone(&self.0)).connect(name, stream).await;
            connected.map_err(|error| format!("TLS failed: {error}"))
        }
    }
}

#[cfg(not(feature = "https"))]
mod there {
    use super::{Path, TcpStream};

    pub(crate) const IS_THERE: bool = false;

    /// Nobody.
    #[derive(Clone, Debug)]
    pub(crate) struct Trust;

    impl Trust {
        pub(crate) fn new(more: Option<&Path>) -> Result<Self, String> {
            match more {
                Some(_) => {
                    Err("certificates of [webhooks] needs a program that was built with https".to_owned())
                }
                None => Ok(Self),
            }
        }

        pub(crate) async fn wrap(&self, _stream: TcpStream, _host: &str) -> Result<TcpStream, String> {
            Err("this program was built without https".to_owned())
        }
    }
}

pub(crate) use there::{IS_THERE, Trust};
