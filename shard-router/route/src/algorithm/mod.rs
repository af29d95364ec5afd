//! The closed list of slot functions, each with its domain and its test vectors.
//!
//! A function's answers are a format on disk: rows lie where it said. So its test vectors never change, and another answer for
//! the same key is another function with another name.

mod crc32c;
mod modulo;

use crate::{Key, Slot};

/// A slot function: key -> slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// CRC-32C of the key's text, modulo 1,024.
    Crc32c,
    /// The key's integer value, modulo 1,024.
    Modulo,
}

/// A key that the group's slot function has no answer for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{function} takes {domain}, not {key:?}")]
pub struct OutsideDomain {
    function: &'static str,
    domain: &'static str,
    key: String,
}

impl Algorithm {
    /// Every slot function there is.
    pub const ALL: [Self; 2] = [Self::Crc32c, Self::Modulo];

    /// The function that the rules call `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// Its name in the rules.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Crc32c => "crc32c",
            Self::Modulo => "mod",
        }
    }

    /// The keys it has an answer for, in words.
    #[must_use]
    pub fn domain(self) -> &'static str {
        match self {
            Self::Crc32c => crc32c::DOMAIN,
            Self::Modulo => modulo::DOMAIN,
        }
    }

    /// Keys with their slots, for those who write the function in another language. They never change.
    #[must_use]
    pub fn test_vectors(self) -> &'static [(&'static str, u16)] {
        match self {
            Self::Crc32c => crc32c::TEST_VECTORS,
            Self::Modulo => modulo::TEST_VECTORS,
        }
    }

    /// The slot of `key`: the same one on every machine, in every version.
    /// # Errors
    /// [`OutsideDomain`] when the function has no answer for this key. It never guesses.
    pub fn slot(self, key: Key<'_>) -> Result<Slot, OutsideDomain> {
        let slot = match self {
            Self::Crc32c => Some(crc32c::slot(key)),
            Self::Modulo => modulo::slot(key),
        };
        slot.ok_or_else(|| OutsideDomain {
            function: self.name(),
            domain: self.domain(),
            key: key.as_str().chars().take(40).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_gives_its_test_vectors() {
        for algorithm in Algorithm::ALL {
            assert!(algorithm.test_vectors().len() >= 5, "{} needs test vectors", algorithm.name());
            for (key, slot) in algorithm.test_vectors() {
                let answer = algorithm.slot(Key::parse(key).unwrap()).unwrap();
                assert_eq!(answer.number(), *slot, "{} of {key:?}", algorithm.name());
            }
        }
    }

    #[test]
    fn every_function_is_found_by_its_own_name_alone() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::named(algorithm.name()), Some(algorithm));
        }
        assert_eq!(Algorithm::named("CRC32C"), None);
    }
}
