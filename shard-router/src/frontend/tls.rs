//! What SCRAM binds to: the hash of the certificate that the server showed (RFC 5929, tls-server-end-point).

use std::{path::Path, sync::Arc};

use ring::digest;
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

/// Signature algorithms, as DER encodes their object identifiers, that ask for a longer hash than SHA-256.
const LONGER: [(&[u8], &digest::Algorithm); 4] = [
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c], &digest::SHA384),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d], &digest::SHA512),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03], &digest::SHA384),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04], &digest::SHA512),
];

/// The hash of `certificate` (DER) by the hash of its own signature, SHA-256 at least.
pub(crate) fn end_point_hash(certificate: &[u8]) -> Vec<u8> {
    let algorithm = signature_algorithm(certificate)
        .and_then(|oid| LONGER.iter().find(|(known, _)| *known == oid))
        .map_or(&digest::SHA256, |(_, algorithm)| algorithm);
    digest::digest(algorithm, certificate).as_ref().to_vec()
}

/// Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OBJECT IDENTIFIER, ... }, ... }
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (_, certificate, _) = element(certificate)?;
    let (_, _, behind_tbs) = element(certificate)?;
    let (_, algorithm, _) = element(behind_tbs)?;
    let (tag, oid, _) = element(algorithm)?;
    (tag == 0x06).then_some(oid)
}

/// Tag, content and what follows of one DER element.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if length.is_empty() || length.len() > 4 {
            return None;
        }
        (length.iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sequence around `parts`.
    fn sequence(parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let mut all = vec![0x30, u8::try_from(content.len()).expect("a short one")];
        all.extend(content);
        all
    }

    #[test]
    fn the_hash_is_that_of_the_signature_and_never_shorter_than_sha_256() {
        for (oid, length) in [(LONGER[2].0, 48), (LONGER[1].0, 64), (&[0x2a, 0x03][..], 32)] {
            let oid = [&[0x06, u8::try_from(oid.len()).expect("short")], oid].concat();
            let certificate = sequence(&[&sequence(&[&[0x02, 0x01, 0x01]]), &sequence(&[&oid])]);
            assert_eq!(end_point_hash(&certificate).len(), length);
        }
        assert_eq!(end_point_hash(b"no certificate").len(), 32);
        assert_eq!(end_point_hash(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]).len(), 32);
    }
}
