//! Syslog over TLS (RFC 5425): this node's certificate, and whose certificates it takes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a sender may take until both have agreed.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Files in PEM. Read for each connection, so that a new certificate needs nothing but to be put in its place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Certificates {
    /// This node's, then those that have signed it.
    pub(crate) cert: PathBuf,
    /// Its private key.
    pub(crate) key: PathBuf,
    /// The authority that senders need a certificate of; without one anybody may send.
    pub(crate) client_ca: Option<PathBuf>,
}

impl Certificates {
    /// What takes connections with them.
    ///
    /// # Errors
    /// A sentence that names the file that cannot be used.
    pub(super) fn acceptor(&self) -> Result<TlsAcceptor, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key =
            PrivateKeyDer::from_pem_file(&self.key).map_err(|error| wrong("the key", &self.key, &error.to_string()))?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let unusable = |reason: String| wrong("the authority", path, &reason);
                let mut authorities = RootCertStore::empty();
                for certificate in chain("the authority", path)? {
                    authorities.add(certificate).map_err(|error| unusable(error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| unusable(error.to_string()))?)
            }
        };
        let config = builder.with_single_cert(chain("the certificate", &self.cert)?, key);
        config
            .map(|config| TlsAcceptor::from(Arc::new(config)))
            .map_err(|error| wrong("the certificate", &self.cert, &error.to_string()))
    }

    /// Takes a connection.
    pub(super) async fn accept(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
        let from = stream.peer_addr().map_or_else(|_| "a sender".to_owned(), |address| address.to_string());
        match timeout(HANDSHAKE_MAX, self.acceptor()?.accept(stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(format!("{from} was sent away: {error}")),
            Err(_) => Err(format!("{from} was sent away: it took more than {} s to agree", HANDSHAKE_MAX.as_secs())),
        }
    }
}

fn wrong(what: &str, path: &Path, reason: &str) -> String {
    format!("{what} {} cannot be used: {reason}", path.display())
}

fn chain(what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unreadable = |error: pem::Error| wrong(what, path, &error.to_string());
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect::<Result<_, _>>().map_err(unreadable)?;
    if chain.is_empty() { Err(wrong(what, path, "there is no certificate in it")) } else { Ok(chain) }
}
