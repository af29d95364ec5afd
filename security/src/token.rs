//! Bearer tokens: made once, shown once, kept as a hash.
//!
//! A token is `hft_ID_SECRET`: eight characters that find its entry and 43 that prove it, which are 256 bits of chance. The
//! entry holds the SHA-256 of the whole; a fast hash is enough where the secret cannot be guessed.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::{TryRngCore as _, rngs::OsRng};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// What every token begins with, so that scanners of repositories find one that was leaked.
pub const PREFIX: &str = "hft_";
/// Characters of the id.
const ID_LEN: usize = 8;
/// Characters of the secret: 32 bytes in base64url.
const SECRET_LEN: usize = 43;

/// A whole token. Its `Debug` and its errors never show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// A text that has not the shape of a token. What it was is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a token of the form hft_ID_SECRET")]
pub struct NoToken;

impl Token {
    /// A new one.
    /// # Errors
    /// The machine's source of chance fails.
    pub fn new() -> Result<Self, rand::rand_core::OsError> {
        let (mut id, mut secret) = ([0_u8; ID_LEN], [0_u8; 32]);
        OsRng.try_fill_bytes(&mut id)?;
        OsRng.try_fill_bytes(&mut secret)?;
        let letters = b"abcdefghijklmnopqrstuvwxyz234567";
        let id: String = id.iter().map(|b| char::from(letters[usize::from(b % 32)])).collect();
        Ok(Self(format!("{PREFIX}{id}_{}", URL_SAFE_NO_PAD.encode(secret))))
    }

    /// Reads one.
    /// # Errors
    /// [`NoToken`].
    pub fn parse(text: &str) -> Result<Self, NoToken> {
        let rest = text.strip_prefix(PREFIX).ok_or(NoToken)?;
        let (id, secret) = rest.split_once('_').ok_or(NoToken)?;
        let id_fits = id.len() == ID_LEN && is_id(id);
        let secret_fits = secret.len() == SECRET_LEN
            && secret.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        if id_fits && secret_fits { Ok(Self(text.to_owned())) } else { Err(NoToken) }
    }

    /// The part that finds its entry. No secret.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0[PREFIX.len()..PREFIX.len() + ID_LEN]
    }

    /// The hash that its entry keeps.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0.as_bytes()).into())
    }

    /// The token itself, to be shown once or sent.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// Whether `text` is the id of a token.
#[must_use]
pub fn is_id(text: &str) -> bool {
    text.len() == ID_LEN
        && text.bytes().all(|b| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b))
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({PREFIX}{}_...)", self.id())
    }
}

/// The SHA-256 of a token.
#[derive(Clone, Copy)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Reads 64 hexadecimal digits.
    #[must_use]
    pub fn parse(hex: &str) -> Option<Self> {
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            return None;
        }
        let mut hash = [0_u8; 32];
        for (n, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).ok()?;
        }
        Some(Self(hash))
    }

    /// Whether both are the same, in a time that does not tell where they differ.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_new_token_is_read_again_and_matches_its_hash_alone() {
        let (one, other) = (Token::new().unwrap(), Token::new().unwrap());
        assert_ne!(one, other);
        assert_eq!(Token::parse(one.reveal()), Ok(one.clone()));
        let kept = TokenHash::parse(&one.hash().to_string()).unwrap();
        assert!(kept.matches(&one.hash()));
        assert!(!kept.matches(&other.hash()));
    }

    #[test]
    fn debug_shows_no_secret() {
        let token = Token::new().unwrap();
        let secret = token.reveal().rsplit_once(token.id()).unwrap().1;
        for shown in [format!("{token:?}"), format!("{:?}", token.hash())] {
            assert!(
                !shown.contains(secret) && !shown.contains(&token.hash().to_string()),
                "{shown}"
            );
        }
    }

    #[test]
    fn a_token_that_is_a_little_wrong_is_none() {
        let good = Token::new().unwrap().reveal().to_owned();
        for bad in [
            String::new(),
            good[1..].to_owned(),
            good[..good.len() - 1].to_owned(),
            format!("{good}A"),
            format!(" {good}"),
            good.replace("hft_", "hfx_"),
            good.to_uppercase(),
            "hft_________________".to_owned(),
        ] {
            assert_eq!(Token::parse(&bad), Err(NoToken), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_brings_it_down(text in ".{0,80}") {
            if let Ok(token) = Token::parse(&text) {
                prop_assert_eq!(token.reveal(), text.as_str());
                prop_assert!(is_id(token.id()));
            }
        }

        #[test]
        fn text_near_a_token_is_judged_without_fault(text in "hft_[a-z2-7]{6,9}_[A-Za-z0-9_-]{41,45}") {
            let fits = text.len() == PREFIX.len() + ID_LEN + 1 + SECRET_LEN && text.as_bytes()[12] == b'_';
            prop_assert_eq!(Token::parse(&text).is_ok(), fits && is_id(&text[4..12]));
        }
    }
}
