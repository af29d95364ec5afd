//! What a certificate says: the one name in it, and when it ends.

use rustls::pki_types::CertificateDer;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

use crate::name::{Name, SCHEME};

/// What is read of a certificate whose chain rustls has verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    /// Who its holder is.
    pub name: Name,
    /// The last second in which it is valid, since epoch.
    pub ends_at_s: i64,
}

/// Why a certificate names nobody here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unnamed(String);

/// When a certificate ends, whoever it names: the last second in which it is valid, since epoch.
/// # Errors
/// [`Unnamed`]: it cannot be read.
pub(crate) fn ends_at_s(der: &CertificateDer<'_>) -> Result<i64, Unnamed> {
    let (_, certificate) = X509Certificate::from_der(der.as_ref())
        .map_err(|error| Unnamed(format!("the certificate cannot be read ({error})")))?;
    Ok(certificate.validity().not_after.timestamp())
}

/// Reads a certificate. Exactly one of its URIs must be a name of ours: with two it would be somebody else to somebody else.
/// # Errors
/// [`Unnamed`], with the cause.
pub fn read(der: &CertificateDer<'_>) -> Result<Certified, Unnamed> {
    let (rest, certificate) = X509Certificate::from_der(der.as_ref())
        .map_err(|error| Unnamed(format!("the certificate cannot be read ({error})")))?;
    if !rest.is_empty() {
        return Err(Unnamed("bytes follow the certificate".to_owned()));
    }
    let alternatives = certificate
        .subject_alternative_name()
        .map_err(|error| Unnamed(format!("its alternative names cannot be read ({error})")))?;
    let mut names = alternatives
        .into_iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
            _ => None,
        });
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(Unnamed(format!(
            "the certificate must have exactly one URI that begins with {SCHEME} among its alternative names"
        )));
    };
    let name =
        Name::parse(name).map_err(|error| Unnamed(format!("the certificate's name: {error}")))?;
    Ok(Certified { name, ends_at_s: certificate.validity().not_after.timestamp() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn with(uris: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().expect("ASCII")));
        }
        let key = KeyPair::generate().expect("ring makes keys");
        params.self_signed(&key).expect("it signs").der().clone()
    }

    #[test]
    fn the_one_name_is_read() {
        let read = read(&with(&["https://elsewhere/", "holdfast://bank/node/7"])).unwrap();
        assert_eq!(read.name.to_string(), "holdfast://bank/node/7");
        assert!(read.ends_at_s > 0);
    }

    #[test]
    fn none_two_or_a_wrong_name_is_nobody() {
        for uris in [
            &[][..],
            &["https://elsewhere/"],
            &["holdfast://bank/node/1", "holdfast://bank/node/2"],
            &["holdfast://bank/node/1", "holdfast://bank/node/1"],
            &["holdfast://bank/node/0"],
            &["holdfast://bank/user/eve?role=node"],
        ] {
            assert!(read(&with(uris)).is_err(), "{uris:?}");
        }
    }

    proptest! {
        #[test]
        fn flipped_bytes_bring_nothing_down(at in 0_usize..400, bit in 0_u8..8) {
            let mut der = with(&["holdfast://bank/node/7"]).to_vec();
            let at = at % der.len();
            der[at] ^= 1 << bit;
            let _any = read(&CertificateDer::from(der));
        }
    }
}
