//! The closed list of slot functions, each with its domain and its test vectors.
//!
//! A function's answers are a format on disk: rows lie where it said. So its test vectors never change, and another answer for
//! the same key is another function with another name.

mod crc32c;
mod modulo;
mod part;
mod pg_hash;

pub use part::Part;

use crate::{Key, KeyType, Slot};

/// A slot function: key -> slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// CRC-32C of the key's text, modulo 1,024.
    Crc32c,
    /// The key's integer value, modulo 1,024.
    Modulo,
    /// PostgreSQL's partition hash of a 64-bit integer, modulo 1,024.
    PgHashInt8,
    /// PostgreSQL's partition hash of a text, modulo 1,024.
    PgHashText,
    /// The number in some of the key's characters, modulo 1,024.
    Digits(Part),
    /// CRC-32C of some of the key's characters, modulo 1,024.
    Substr(Part),
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
    /// Every slot function there is; those that take a part stand with one.
    pub const ALL: [Self; 6] = [
        Self::Crc32c,
        Self::Modulo,
        Self::PgHashInt8,
        Self::PgHashText,
        Self::Digits(Part { first: 3, last: 6 }),
        Self::Substr(Part { first: 3, last: 6 }),
    ];

    /// The function that the rules call `name`, such as `crc32c` or `digits(15..18)`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let part = |name: &str, word: &str| {
            Part::parse(name.strip_prefix(word)?.strip_prefix('(')?.strip_suffix(')')?)
        };
        match name {
            "crc32c" => Some(Self::Crc32c),
            "mod" => Some(Self::Modulo),
            "pg_hash_int8" => Some(Self::PgHashInt8),
            "pg_hash_text" => Some(Self::PgHashText),
            _ => part(name, "digits")
                .map(Self::Digits)
                .or_else(|| part(name, "substr").map(Self::Substr)),
        }
    }

    /// The type of key that it is made for, which a group has unless its rules say otherwise.
    #[must_use]
    pub fn key_type(self) -> KeyType {
        match self {
            Self::Modulo | Self::PgHashInt8 => KeyType::Integer,
            Self::Crc32c | Self::PgHashText | Self::Digits(_) | Self::Substr(_) => KeyType::Text,
        }
    }

    /// Its name in the rules, without the part that it takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Crc32c => "crc32c",
            Self::Modulo => "mod",
            Self::PgHashInt8 => "pg_hash_int8",
            Self::PgHashText => "pg_hash_text",
            Self::Digits(_) => "digits",
            Self::Substr(_) => "substr",
        }
    }

    /// As the rules write it, its part included.
    #[must_use]
    pub fn written(self) -> String {
        match self {
            Self::Digits(part) | Self::Substr(part) => {
                format!("{}({}..{})", self.name(), part.first, part.last)
            }
            Self::Crc32c | Self::Modulo | Self::PgHashInt8 | Self::PgHashText => {
                self.name().to_owned()
            }
        }
    }

    /// The keys it has an answer for, in words.
    #[must_use]
    pub fn domain(self) -> &'static str {
        match self {
            Self::Crc32c => crc32c::DOMAIN,
            Self::Modulo => modulo::DOMAIN,
            Self::PgHashInt8 => pg_hash::INTEGER_DOMAIN,
            Self::PgHashText => pg_hash::TEXT_DOMAIN,
            Self::Digits(_) => part::DIGITS_DOMAIN,
            Self::Substr(_) => part::SUBSTR_DOMAIN,
        }
    }

    /// Keys with their slots, for those who write the function in another language. They never change.
    #[must_use]
    pub fn test_vectors(self) -> &'static [(&'static str, u16)] {
        match self {
            Self::Crc32c => crc32c::TEST_VECTORS,
            Self::Modulo => modulo::TEST_VECTORS,
            Self::PgHashInt8 => pg_hash::INTEGER_TEST_VECTORS,
            Self::PgHashText => pg_hash::TEXT_TEST_VECTORS,
            Self::Digits(_) => part::DIGITS_TEST_VECTORS,
            Self::Substr(_) => part::SUBSTR_TEST_VECTORS,
        }
    }

    /// The slot of `key`: the same one on every machine, in every version.
    /// # Errors
    /// [`OutsideDomain`] when the function has no answer for this key. It never guesses.
    pub fn slot(self, key: Key<'_>) -> Result<Slot, OutsideDomain> {
        let slot = match self {
            Self::Crc32c => Some(crc32c::slot(key)),
            Self::Modulo => modulo::slot(key),
            Self::PgHashInt8 => pg_hash::integer_slot(key),
            Self::PgHashText => Some(pg_hash::text_slot(key)),
            Self::Digits(part) => part.digits_slot(key),
            Self::Substr(part) => part.substr_slot(key),
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
            assert_eq!(Algorithm::named(&algorithm.written()), Some(algorithm));
        }
        assert_eq!(Algorithm::named("CRC32C"), None);
    }
}
