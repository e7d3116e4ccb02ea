//! TLS for those who look from elsewhere.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// A certificate with its chain, and its key: files in PEM.
#[derive(Debug, Clone)]
pub struct HttpTls {
    /// The certificate, then those that have signed it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl HttpTls {
    /// What takes connections with it.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, String> {
        let wrong =
            |what: &str, path: &Path, reason: String| format!("{what} {} cannot be used: {reason}", path.display());
        let certificate =
            |error: rustls::pki_types::pem::Error| wrong("the certificate", &self.certificate, error.to_string());
        let chain = CertificateDer::pem_file_iter(&self.certificate)
            .map_err(certificate)?
            .collect::<Result<Vec<_>, _>>()
            .map_err(certificate)?;
        if chain.is_empty() {
            return Err(wrong("the certificate", &self.certificate, "there is none in it".into()));
        }
        let key =
            PrivateKeyDer::from_pem_file(&self.key).map_err(|error| wrong("the key", &self.key, error.to_string()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| wrong("the certificate", &self.certificate, error.to_string()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
