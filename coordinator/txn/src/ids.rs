//! Identifiers and instants: each its own type, each checked where it enters.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

/// A global transaction's id: 1 to 35 characters of `[A-Za-z0-9-]` (ISO 20022 ids are `Max35Text`). Chosen by the caller, or a ULID.
///
/// Kept in place and not behind a pointer: maps compare gids at every step of every look-up, and a copy costs no count.
#[derive(Clone, PartialEq, Eq)]
pub struct Gid {
    /// Filled up with zeros, which come before every allowed character: so gids sort as their texts do.
    bytes: [u8; Self::LENGTH_MAX],
    length: u8,
}

/// A text that is no gid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a gid has 1 to 35 characters of A-Z, a-z, 0-9 and '-'; this one has {length} bytes{detail}"
)]
pub struct BadGid {
    length: usize,
    detail: String,
}

impl Gid {
    /// The longest gid, in characters.
    pub const LENGTH_MAX: usize = 35;

    /// Checks and takes `text`.
    /// # Errors
    /// [`BadGid`] names the first character that is not allowed, or the length.
    pub fn parse(text: &str) -> Result<Self, BadGid> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if text.is_empty() || text.len() > Self::LENGTH_MAX || !text.bytes().all(allowed) {
            let stranger = text.chars().find(|c| !(c.is_ascii_alphanumeric() || *c == '-'));
            let detail = stranger.map(|c| format!(" and holds {c:?}")).unwrap_or_default();
            return Err(BadGid { length: text.len(), detail });
        }
        let mut bytes = [0; Self::LENGTH_MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        let length = u8::try_from(text.len()).expect("it is at most LENGTH_MAX");
        Ok(Self { bytes, length })
    }

    /// The gid as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        str::from_utf8(self.text()).expect("a gid is ASCII")
    }

    /// The Raft group in which the transaction lives, of `groups` (at least 1): FNV-1a of the text in 64 bits, modulo `groups`. A client
    /// computes the same, so it never changes; docs/reference/groups.md has test vectors.
    #[must_use]
    pub fn group(&self, groups: u32) -> u32 {
        const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let hash = self
            .text()
            .iter()
            .fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME));
        u32::try_from(hash % u64::from(groups.max(1))).expect("it is below the number of groups")
    }

    /// Its characters, without a look at whether they are a text.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// By the text alone, so that a short gid costs little.
impl Hash for Gid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.text());
    }
}

/// As texts sort, eight characters at a time: the machine's maps compare gids more often than they do all else, and a call to compare
/// bytes costs more than most comparisons.
impl Ord for Gid {
    fn cmp(&self, other: &Self) -> Ordering {
        let (words, rest) = self.bytes.as_chunks::<8>();
        let (other_words, other_rest) = other.bytes.as_chunks::<8>();
        for (word, other) in words.iter().zip(other_words) {
            if word != other {
                return u64::from_be_bytes(*word).cmp(&u64::from_be_bytes(*other));
            }
        }
        rest.cmp(other_rest)
    }
}

impl PartialOrd for Gid {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The service that serves a branch, as agents announce it: 1 to 64 characters of `[a-z0-9.@-]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Participant(Arc<str>);

/// A text that names no participant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a participant's name has 1 to 64 characters of a-z, 0-9, '.', '@' and '-'; this one is {0:?}"
)]
pub struct BadName(String);

impl Participant {
    /// The longest name, in characters.
    pub const LENGTH_MAX: usize = 64;

    /// Checks and takes `text`.
    /// # Errors
    /// [`BadName`] shows at most the first 64 characters of what was given.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".@-".contains(c);
        if text.is_empty() || text.len() > Self::LENGTH_MAX || !text.chars().all(allowed) {
            return Err(BadName(text.chars().take(Self::LENGTH_MAX).collect()));
        }
        Ok(Self(text.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Participant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Participant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A branch's number within its global transaction, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchId(pub u32);

impl fmt::Display for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{}", self.0)
    }
}

impl fmt::Debug for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b{}", self.0)
    }
}

/// An instant, ms since the Unix epoch, UTC. Stamped by the proposer; the machine never reads a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The instant `ms` later; the end of time instead of an overflow.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// A SHA-256 hash: of a transaction's content, or of a machine's state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn gids_sort_as_their_texts_do(one in "[AZa0-]{1,35}", other in "[AZa0-]{1,35}", same in 0..=35_usize) {
            let other = format!("{}{other}", &one[..same.min(one.len())]);
            let other = &other[..other.len().min(Gid::LENGTH_MAX)];
            let (gid, other_gid) = (Gid::parse(&one).unwrap(), Gid::parse(other).unwrap());
            prop_assert_eq!(gid.cmp(&other_gid), one.as_str().cmp(other));
            prop_assert_eq!(gid == other_gid, one == other);
        }
    }
}
