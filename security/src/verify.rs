//! How a client knows a node: its chain leads to the cluster's authority, and the name in it is a node of the cluster.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, PeerIncompatible, RootCertStore,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use crate::{Subject, certificate};

/// Which node a client expects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expected {
    /// The cluster; `None` for a client without a certificate of its own, which takes any cluster of its authority.
    pub(crate) cluster: Option<String>,
    /// The node; `None`: any.
    pub(crate) node: Option<u64>,
}

/// Judges a node's certificate by its name instead of its address.
#[derive(Debug)]
pub(crate) struct NodeVerifier {
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) expected: Expected,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotThatNode(String);

fn other(text: String) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(NotThatNode(text)))))
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        let name = certificate::read(end_entity).map_err(|error| other(error.to_string()))?.name;
        let Subject::Node(node) = name.subject else {
            return Err(other(format!("{name} is no node, and only a node answers")));
        };
        if self.expected.cluster.as_ref().is_some_and(|cluster| *cluster != name.cluster) {
            return Err(other(format!("{name} is of another cluster")));
        }
        match self.expected.node {
            Some(wanted) if wanted != node => {
                Err(other(format!("{name} answers where node {wanted} was expected")))
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
