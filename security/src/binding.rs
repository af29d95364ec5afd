//! What SCRAM binds to over TLS: the hash of the certificate that the server showed (RFC 5929, tls-server-end-point).

use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// Signature algorithms, as DER encodes their object identifiers, that ask for a longer hash than SHA-256.
const LONGER: [(&[u8], Hash); 4] = [
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c], |bytes| {
        Sha384::digest(bytes).to_vec()
    }),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d], |bytes| {
        Sha512::digest(bytes).to_vec()
    }),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03], |bytes| Sha384::digest(bytes).to_vec()),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04], |bytes| Sha512::digest(bytes).to_vec()),
];

type Hash = fn(&[u8]) -> Vec<u8>;

/// The hash of `certificate` (DER) by the hash of its own signature, SHA-256 at least.
#[must_use]
pub fn end_point_hash(certificate: &[u8]) -> Vec<u8> {
    let longer = signature_algorithm(certificate)
        .and_then(|oid| LONGER.iter().find(|(known, _)| *known == oid));
    longer.map_or_else(|| Sha256::digest(certificate).to_vec(), |(_, hash)| hash(certificate))
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
