//! Encryption towards PostgreSQL servers: as PostgreSQL's `sslmode` names it, `require` or `verify-full`. There is no `prefer`: what is asked for is had, or
//! there is no connection.

use std::{io, path::Path, sync::Arc};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{self, CryptoProvider},
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    },
};

use crate::binding::end_point_hash;

/// An encrypted connection to a server.
pub type ServerTlsStream<S> = tokio_rustls::client::TlsStream<S>;

/// How connections to the servers of a source are encrypted.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ClientConfig>,
}

impl PartialEq for ServerTls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config)
    }
}

impl Eq for ServerTls {}

impl ServerTls {
    /// Whoever listens there may be anybody: against those who only look on. With SCRAM and its binding to the certificate (`SCRAM-SHA-256-PLUS`)
    /// the server proves nevertheless that it knows the password.
    #[must_use]
    pub fn require() -> Self {
        let provider = Arc::new(crypto::ring::default_provider());
        let anybody = Arc::new(Anybody(Arc::clone(&provider)));
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .dangerous()
            .with_custom_certificate_verifier(anybody)
            .with_no_client_auth();
        Self { config: Arc::new(config) }
    }

    /// The server's certificate is signed by an authority of this file (PEM), and names the host that was dialed.
    /// # Errors
    /// In words.
    pub fn verify_full(authorities: &Path) -> Result<Self, String> {
        let shown = authorities.display();
        let pem = std::fs::read(authorities)
            .map_err(|error| format!("{shown} cannot be read: {error}"))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|_| format!("{shown} holds no certificate"))?;
            roots.add(certificate).map_err(|error| format!("{shown}: {error}"))?;
        }
        if roots.is_empty() {
            return Err(format!("{shown} holds no certificate"));
        }
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { config: Arc::new(config) })
    }

    /// Encrypts a connection to `host`, whose server has agreed to it.
    /// # Errors
    /// The server is not who it should be, or the connection is gone.
    pub async fn encrypt<S>(&self, host: &str, stream: S) -> io::Result<ServerTlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        TlsConnector::from(Arc::clone(&self.config)).connect(name, stream).await
    }

    /// What SCRAM binds to on such a connection.
    #[must_use]
    pub fn binding<S>(stream: &ServerTlsStream<S>) -> Option<Vec<u8>> {
        let certificates = stream.get_ref().1.peer_certificates()?;
        Some(end_point_hash(certificates.first()?))
    }
}

/// Takes every certificate; the handshake must still be signed by its key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, tokio_rustls::rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, tokio_rustls::rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, tokio_rustls::rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
