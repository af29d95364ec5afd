//! SCRAM-SHA-256 as a server says it (RFC 5802, RFC 7677), against verifiers in PostgreSQL's form. The router knows no password.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{digest, hmac};

/// What a client may choose to bind the exchange to: the hash of the server's certificate.
pub(crate) const PLUS: &str = "SCRAM-SHA-256-PLUS";
/// Without binding.
pub(crate) const PLAIN: &str = "SCRAM-SHA-256";
/// Bytes of one message of the exchange.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4096;
/// Iterations of a verifier: fewer are weak, more would let one login hold a core of the client for minutes.
const ITERATIONS: std::ops::RangeInclusive<u32> = 4096..=10_000_000;
const KEY_BYTES: usize = 32;

/// What is kept of a password: enough to check it, too little to use it elsewhere.
#[derive(Clone)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: [u8; KEY_BYTES],
    server_key: [u8; KEY_BYTES],
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier(...)")
    }
}

impl Verifier {
    /// Reads `SCRAM-SHA-256$4096:<salt>$<stored key>:<server key>`, as `pg_authid.rolpassword` has it.
    /// # Errors
    /// In words that repeat nothing of the text.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const SHAPE: &str = "is no SCRAM-SHA-256 verifier as pg_authid.rolpassword has it (not shown: it is a secret)";
        let rest = text.strip_prefix("SCRAM-SHA-256$").ok_or(SHAPE)?;
        let (salted, keys) = rest.split_once('$').ok_or(SHAPE)?;
        let (iterations, salt) = salted.split_once(':').ok_or(SHAPE)?;
        let (stored, server) = keys.split_once(':').ok_or(SHAPE)?;
        let iterations: u32 = iterations.parse().map_err(|_| SHAPE)?;
        if !ITERATIONS.contains(&iterations) {
            return Err("has fewer than 4096 or more than 10000000 iterations");
        }
        let key = |text: &str| -> Result<[u8; KEY_BYTES], &'static str> {
            STANDARD.decode(text).map_err(|_| SHAPE)?.try_into().map_err(|_| SHAPE)
        };
        let salt = STANDARD.decode(salt).map_err(|_| SHAPE)?;
        if salt.is_empty() || salt.len() > 64 {
            return Err(SHAPE);
        }
        Ok(Self { iterations, salt, stored_key: key(stored)?, server_key: key(server)? })
    }

    /// The verifier of a password, with the salt given.
    #[must_use]
    pub fn of_password(password: &str, salt: &[u8], iterations: u32) -> Self {
        let iterations_set = std::num::NonZeroU32::new(iterations.max(1)).expect("at least 1");
        let mut salted = [0; KEY_BYTES];
        ring::pbkdf2::derive(
            ring::pbkdf2::PBKDF2_HMAC_SHA256,
            iterations_set,
            salt,
            password.as_bytes(),
            &mut salted,
        );
        let client_key = sign(&salted, b"Client Key");
        let stored = digest::digest(&digest::SHA256, &client_key);
        Self {
            iterations,
            salt: salt.to_vec(),
            stored_key: stored.as_ref().try_into().expect("SHA-256 has 32 bytes"),
            server_key: sign(&salted, b"Server Key"),
        }
    }

    /// The form that the configuration and PostgreSQL take.
    #[must_use]
    pub fn to_text(&self) -> String {
        format!(
            "SCRAM-SHA-256${}:{}${}:{}",
            self.iterations,
            STANDARD.encode(&self.salt),
            STANDARD.encode(self.stored_key),
            STANDARD.encode(self.server_key)
        )
    }

    /// A verifier that nothing matches, the same each time for one name: who guesses names learns nothing.
    pub(crate) fn decoy(secret: &[u8], user: &str) -> Self {
        let salt = sign(secret, user.as_bytes());
        let no_key = sign(secret, b"no password has this key");
        Self { iterations: 4096, salt: salt[..16].to_vec(), stored_key: no_key, server_key: no_key }
    }
}

fn sign(key: &[u8], message: &[u8]) -> [u8; KEY_BYTES] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    tag.as_ref().try_into().expect("HMAC-SHA-256 has 32 bytes")
}

/// An exchange that has sent its first answer and waits for the proof.
pub(crate) struct Exchange {
    verifier: Verifier,
    client_first_bare: String,
    server_first: String,
    nonce: String,
    /// What `c=` must carry: the client's header, and the binding where it chose one.
    bound: Vec<u8>,
}

/// Why an exchange failed. A client is told no more than that its login failed; this is for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failed {
    #[error("the message is malformed")]
    Malformed,
    #[error("the channel binding does not fit this connection")]
    Binding,
    #[error("the proof does not fit the password")]
    Proof,
}

impl Exchange {
    /// Takes the client's first message. `binding` is the certificate's hash where the connection is TLS. Returns what to answer.
    pub(crate) fn begin(
        verifier: Verifier,
        mechanism: &str,
        binding: Option<&[u8]>,
        message: &[u8],
        server_nonce: &[u8],
    ) -> Result<(Self, String), Failed> {
        let message = std::str::from_utf8(message).map_err(|_| Failed::Malformed)?;
        let (flag, rest) = message.split_once(',').ok_or(Failed::Malformed)?;
        let (authzid, bare) = rest.split_once(',').ok_or(Failed::Malformed)?;
        let mut bound = format!("{flag},{authzid},").into_bytes();
        match (mechanism, flag, binding) {
            // "y": the client could bind and thinks that we cannot. If we can, somebody has hidden it.
            (PLAIN, "y", Some(_)) => return Err(Failed::Binding),
            (PLAIN, "n" | "y", _) => {}
            (PLUS, "p=tls-server-end-point", Some(hash)) => bound.extend_from_slice(hash),
            _ => return Err(Failed::Binding),
        }
        if !authzid.is_empty() && !authzid.starts_with("a=") {
            return Err(Failed::Malformed);
        }
        let client_nonce = bare
            .split(',')
            .find_map(|part| part.strip_prefix("r="))
            .filter(|nonce| !nonce.is_empty())
            .ok_or(Failed::Malformed)?;
        // "m=" asks for an extension that nobody has defined; the name in "n=" is not used, the start-up message has it.
        if bare.starts_with("m=") {
            return Err(Failed::Malformed);
        }
        let nonce = format!("{client_nonce}{}", STANDARD.encode(server_nonce));
        let salt = STANDARD.encode(&verifier.salt);
        let server_first = format!("r={nonce},s={salt},i={}", verifier.iterations);
        let exchange = Self {
            verifier,
            client_first_bare: bare.to_owned(),
            server_first: server_first.clone(),
            nonce,
            bound,
        };
        Ok((exchange, server_first))
    }

    /// Takes the client's proof. Returns what proves that we know the verifier.
    pub(crate) fn finish(self, message: &[u8]) -> Result<String, Failed> {
        let message = std::str::from_utf8(message).map_err(|_| Failed::Malformed)?;
        let (without_proof, proof) = message.rsplit_once(",p=").ok_or(Failed::Malformed)?;
        let mut parts = without_proof.split(',');
        let bound = parts.next().and_then(|part| part.strip_prefix("c="));
        let bound = STANDARD.decode(bound.ok_or(Failed::Malformed)?);
        let nonce = parts.next().and_then(|part| part.strip_prefix("r="));
        if nonce != Some(self.nonce.as_str()) {
            return Err(Failed::Malformed);
        }
        if bound.map_err(|_| Failed::Malformed)? != self.bound {
            return Err(Failed::Binding);
        }
        let proof: [u8; KEY_BYTES] = STANDARD
            .decode(proof)
            .ok()
            .and_then(|proof| proof.try_into().ok())
            .ok_or(Failed::Malformed)?;
        let said = format!("{},{},{without_proof}", self.client_first_bare, self.server_first);
        let mut client_key = sign(&self.verifier.stored_key, said.as_bytes());
        for (byte, proof) in client_key.iter_mut().zip(proof) {
            *byte ^= proof;
        }
        let stored = digest::digest(&digest::SHA256, &client_key);
        // Hashes of secrets: comparing them in variable time tells nothing of the key itself.
        if stored.as_ref() != self.verifier.stored_key {
            return Err(Failed::Proof);
        }
        let signature = sign(&self.verifier.server_key, said.as_bytes());
        Ok(format!("v={}", STANDARD.encode(signature)))
    }
}

#[cfg(test)]
mod tests {
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

    use super::*;

    fn run(password: &str, given: &str, binding: Option<&[u8]>, plus: bool) -> Result<(), Failed> {
        let verifier = Verifier::of_password(password, b"0123456789abcdef", 4096);
        let verifier = Verifier::parse(&verifier.to_text()).expect("it was written so");
        let theirs = match (binding, plus) {
            (Some(hash), true) => ChannelBinding::tls_server_end_point(hash.to_vec()),
            (_, false) if binding.is_some() => ChannelBinding::unrequested(),
            _ => ChannelBinding::unsupported(),
        };
        let mut client = ScramSha256::new(given.as_bytes(), theirs);
        let mechanism = if plus { PLUS } else { PLAIN };
        let (exchange, answer) =
            Exchange::begin(verifier, mechanism, binding, client.message(), b"nonce")?;
        client.update(answer.as_bytes()).expect("our first answer is right");
        let last = exchange.finish(client.message())?;
        client.finish(last.as_bytes()).expect("our signature is right");
        Ok(())
    }

    #[test]
    fn the_right_password_is_taken_and_a_wrong_one_is_not() {
        assert_eq!(run("sesame", "sesame", None, false), Ok(()));
        assert_eq!(run("sesame", "Sesame", None, false), Err(Failed::Proof));
    }

    #[test]
    fn a_bound_exchange_fits_its_certificate_only() {
        assert_eq!(run("sesame", "sesame", Some(b"hash"), true), Ok(()));
        // The client could bind and was told that we cannot: somebody stands between.
        assert_eq!(run("sesame", "sesame", Some(b"hash"), false), Err(Failed::Binding));
        let verifier = Verifier::of_password("p", b"salt", 4096);
        let begun = Exchange::begin(verifier, PLUS, None, b"p=tls-server-end-point,,n=,r=x", b"n");
        assert_eq!(begun.err(), Some(Failed::Binding));
    }

    #[test]
    fn malformed_messages_are_refused() {
        for message in
            [&b""[..], b"n", b"n,,", b"n,,n=,r=", b"n,x,n=,r=abc", b"n,,m=x,r=a", b"\xff,,r=a"]
        {
            let verifier = Verifier::of_password("p", b"salt", 4096);
            let begun = Exchange::begin(verifier, PLAIN, None, message, b"nonce");
            assert!(begun.is_err(), "{message:?}");
        }
        for text in ["", "SCRAM-SHA-256$1:AA==$AA==:AA==", "md5abc", "SCRAM-SHA-256$4096:$x:y"] {
            assert!(Verifier::parse(text).is_err(), "{text}");
        }
    }
}
