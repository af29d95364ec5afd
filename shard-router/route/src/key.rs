//! A business key: the text whose slot is asked for.

use crate::limit::KEY_BYTES_MAX;

/// The value of a group's key column as text: 1 to 256 bytes of UTF-8. Compared and hashed byte by byte, never normalized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key<'t>(&'t str);

/// A text that is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "HF3022 a key has 1 to {KEY_BYTES_MAX} bytes; this one has {length}. Give the value of the group's key column"
)]
pub struct BadKey {
    length: usize,
}

impl<'t> Key<'t> {
    /// Checks and takes `text`.
    /// # Errors
    /// [`BadKey`] for an empty text and for one beyond 256 bytes.
    pub fn parse(text: &'t str) -> Result<Self, BadKey> {
        if text.is_empty() || text.len() > KEY_BYTES_MAX {
            return Err(BadKey { length: text.len() });
        }
        Ok(Self(text))
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(self) -> &'t str {
        self.0
    }
}
