//! What TLS shows to clients.

use std::{path::Path, sync::Arc};

use holdfast_security::binding::end_point_hash;
use tokio_rustls::rustls::{
    ServerConfig, crypto,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

/// What TLS shows to clients.
#[derive(Clone, Debug)]
pub struct Tls {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) certificate_hash: Vec<u8>,
}

impl Tls {
    /// `certificate` is the first of the chain that `config` shows to everybody.
    #[must_use]
    pub fn new(config: Arc<ServerConfig>, certificate: &CertificateDer<'_>) -> Self {
        Self { config, certificate_hash: end_point_hash(certificate) }
    }

    /// Reads a certificate chain and its key, both PEM.
    /// # Errors
    /// In words; a key is never shown.
    pub fn from_pem_files(certificate: &Path, key: &Path) -> Result<Self, String> {
        let read = |file: &Path| {
            std::fs::read(file)
                .map_err(|error| format!("{} cannot be read: {error}", file.display()))
        };
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(&read(certificate)?).collect();
        let chain = chain.map_err(|_| format!("{} holds no certificate", certificate.display()))?;
        let first = chain.first().cloned();
        let first =
            first.ok_or_else(|| format!("{} holds no certificate", certificate.display()))?;
        let key_der = PrivateKeyDer::from_pem_slice(&read(key)?)
            .map_err(|_| format!("{} holds no private key", key.display()))?;
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_no_client_auth()
            .with_single_cert(chain, key_der)
            .map_err(|error| format!("certificate and key do not fit: {error}"))?;
        Ok(Self::new(Arc::new(config), &first))
    }
}
