//! The closed list of slot functions, each with its domain and its test vectors.
//!
//! A function's answers are a format on disk: rows lie where it said. So its test vectors never change, and another answer for
//! the same key is another function with another name.

mod crc32c;
mod date;
mod interval;
mod list;
mod modulo;
mod part;
mod pg_hash;
mod range;

pub use date::Period;
pub(crate) use interval::{Interval, Side};
pub use list::Listed;
pub use part::Part;
pub use range::Bounds;

use crate::{Key, KeyType, SLOTS, Slot};

/// A slot function: key -> slot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// The number of the day, week, month or year since 1970, modulo 1,024.
    Date(Period),
    /// How many bounds are at or below the key.
    Range(Bounds),
    /// The place of the key in a list.
    List(Listed),
}

/// A key that the group's slot function has no answer for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{function} takes {domain}, not {key:?}")]
pub struct OutsideDomain {
    function: &'static str,
    domain: &'static str,
    key: String,
}

/// A text that is no slot function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BadFunction {
    /// There is none of this name.
    Unknown,
    /// There is, but not with what stands between its parentheses: why.
    Arguments(String),
}

impl Algorithm {
    /// Every slot function there is; those that take something stand with the example of their test vectors.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all = vec![
            Self::Crc32c,
            Self::Modulo,
            Self::PgHashInt8,
            Self::PgHashText,
            Self::Digits(Part { first: 3, last: 6 }),
            Self::Substr(Part { first: 3, last: 6 }),
        ];
        let written = ["date(month)", "range(0, 1000, 50000)", "list(DE AT, FR, 'San Marino' IT)"];
        all.extend(written.into_iter().filter_map(Self::named));
        all
    }

    /// The function that the rules call `name`, such as `crc32c` or `digits(15..18)`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::parse(name).ok()
    }

    /// As [`Algorithm::named`], with the reason why there is none.
    pub(crate) fn parse(name: &str) -> Result<Self, BadFunction> {
        let (word, arguments) = match name.split_once('(') {
            None => (name, None),
            Some((word, rest)) => {
                let arguments = rest.strip_suffix(')').ok_or_else(|| {
                    BadFunction::Arguments("its parenthesis is not closed".to_owned())
                })?;
                (word, Some(arguments))
            }
        };
        let part = |text| {
            let why =
                "it takes (a..b), the first and the last character, counted from 1, up to 255";
            Part::parse(text).ok_or_else(|| BadFunction::Arguments(why.to_owned()))
        };
        match (word, arguments) {
            ("crc32c", None) => Ok(Self::Crc32c),
            ("mod", None) => Ok(Self::Modulo),
            ("pg_hash_int8", None) => Ok(Self::PgHashInt8),
            ("pg_hash_text", None) => Ok(Self::PgHashText),
            ("digits", Some(text)) => part(text).map(Self::Digits),
            ("substr", Some(text)) => part(text).map(Self::Substr),
            ("date", Some(text)) => Period::named(text).map(Self::Date).ok_or_else(|| {
                BadFunction::Arguments("it takes (day), (week), (month) or (year)".to_owned())
            }),
            ("range", Some(text)) => {
                Bounds::parse(text).map(Self::Range).map_err(BadFunction::Arguments)
            }
            ("list", Some(text)) => {
                Listed::parse(text).map(Self::List).map_err(BadFunction::Arguments)
            }
            _ => Err(BadFunction::Unknown),
        }
    }

    /// The type of key that it is made for, which a group has unless its rules say otherwise.
    #[must_use]
    pub fn key_type(&self) -> KeyType {
        match self {
            Self::Modulo | Self::PgHashInt8 => KeyType::Integer,
            Self::Crc32c | Self::PgHashText | Self::Digits(_) | Self::Substr(_) | Self::List(_) => {
                KeyType::Text
            }
            Self::Date(_) => KeyType::Date,
            Self::Range(bounds) => bounds.key_type(),
        }
    }

    /// Why keys of `key_type` have no slot by this function, if that is sure of all or some of them by their type alone.
    pub(crate) fn unfit(&self, key_type: KeyType) -> Option<String> {
        let made_for = self.key_type();
        match self {
            Self::Date(_) | Self::Range(Bounds::Integers(_) | Bounds::Dates(_))
                if key_type != made_for =>
            {
                Some(format!("takes keys of type {}", made_for.name()))
            }
            Self::Range(Bounds::Texts(_))
                if !matches!(key_type, KeyType::Text | KeyType::Varchar | KeyType::Char) =>
            {
                Some("takes keys of type text, varchar or char".to_owned())
            }
            Self::List(listed) => listed
                .keys()
                .find(|key| !key_type.writes(key))
                .map(|key| format!("names {key:?}, as which no key of its type is written")),
            Self::Crc32c
            | Self::Modulo
            | Self::PgHashInt8
            | Self::PgHashText
            | Self::Digits(_)
            | Self::Substr(_)
            | Self::Date(_)
            | Self::Range(_) => None,
        }
    }

    /// Its name in the rules, without what it takes.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Crc32c => "crc32c",
            Self::Modulo => "mod",
            Self::PgHashInt8 => "pg_hash_int8",
            Self::PgHashText => "pg_hash_text",
            Self::Digits(_) => "digits",
            Self::Substr(_) => "substr",
            Self::Date(_) => "date",
            Self::Range(_) => "range",
            Self::List(_) => "list",
        }
    }

    /// As the rules write it, with what it takes.
    #[must_use]
    pub fn written(&self) -> String {
        let arguments = match self {
            Self::Digits(part) | Self::Substr(part) => format!("{}..{}", part.first, part.last),
            Self::Date(period) => period.name().to_owned(),
            Self::Range(bounds) => bounds.written(),
            Self::List(listed) => listed.written(),
            Self::Crc32c | Self::Modulo | Self::PgHashInt8 | Self::PgHashText => {
                return self.name().to_owned();
            }
        };
        format!("{}({arguments})", self.name())
    }

    /// As [`Algorithm::written`], in 60 characters at most, for people.
    #[must_use]
    pub fn shown(&self) -> String {
        let written = self.written();
        match written.char_indices().nth(60) {
            None => written,
            Some(_) => format!("{}...)", written.chars().take(56).collect::<String>()),
        }
    }

    /// The keys it has an answer for, in words.
    #[must_use]
    pub fn domain(&self) -> &'static str {
        match self {
            Self::Crc32c => crc32c::DOMAIN,
            Self::Modulo => modulo::DOMAIN,
            Self::PgHashInt8 => pg_hash::INTEGER_DOMAIN,
            Self::PgHashText => pg_hash::TEXT_DOMAIN,
            Self::Digits(_) => part::DIGITS_DOMAIN,
            Self::Substr(_) => part::SUBSTR_DOMAIN,
            Self::Date(_) => date::DOMAIN,
            Self::Range(bounds) => bounds.domain(),
            Self::List(_) => list::DOMAIN,
        }
    }

    /// Keys with their slots, for those who write the function in another language. They never change.
    #[must_use]
    pub fn test_vectors(&self) -> &'static [(&'static str, u16)] {
        match self {
            Self::Crc32c => crc32c::TEST_VECTORS,
            Self::Modulo => modulo::TEST_VECTORS,
            Self::PgHashInt8 => pg_hash::INTEGER_TEST_VECTORS,
            Self::PgHashText => pg_hash::TEXT_TEST_VECTORS,
            Self::Digits(_) => part::DIGITS_TEST_VECTORS,
            Self::Substr(_) => part::SUBSTR_TEST_VECTORS,
            Self::Date(_) => date::TEST_VECTORS,
            Self::Range(_) => range::TEST_VECTORS,
            Self::List(_) => list::TEST_VECTORS,
        }
    }

    /// The slot of `key`: the same one on every machine, in every version.
    /// # Errors
    /// [`OutsideDomain`] when the function has no answer for this key. It never guesses.
    pub fn slot(&self, key: Key<'_>) -> Result<Slot, OutsideDomain> {
        let slot = match self {
            Self::Crc32c => Some(crc32c::slot(key)),
            Self::Modulo => modulo::slot(key),
            Self::PgHashInt8 => pg_hash::integer_slot(key),
            Self::PgHashText => Some(pg_hash::text_slot(key)),
            Self::Digits(part) => part.digits_slot(key),
            Self::Substr(part) => part.substr_slot(key),
            Self::Date(period) => period.slot(key),
            Self::Range(bounds) => bounds.slot(key),
            Self::List(listed) => listed.slot(key),
        };
        slot.ok_or_else(|| OutsideDomain {
            function: self.name(),
            domain: self.domain(),
            key: key.as_str().chars().take(40).collect(),
        })
    }
}

/// The slot of a number: its remainder, which is never below 0.
fn narrow(number: i64) -> Slot {
    let number = number.rem_euclid(i64::from(SLOTS));
    u16::try_from(number).ok().and_then(Slot::new).expect("a remainder of 1,024 is a slot")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_gives_its_test_vectors() {
        for algorithm in Algorithm::all() {
            assert!(algorithm.test_vectors().len() >= 5, "{} needs test vectors", algorithm.name());
            for (key, slot) in algorithm.test_vectors() {
                let answer = algorithm.slot(Key::parse(key).unwrap()).unwrap();
                assert_eq!(answer.number(), *slot, "{} of {key:?}", algorithm.name());
            }
        }
    }

    /// Whoever writes a function in another language has them from there.
    #[test]
    fn every_test_vector_stands_in_the_reference() {
        let page = include_str!("../../../../docs/reference/rules.md");
        for algorithm in Algorithm::all() {
            for (key, slot) in algorithm.test_vectors() {
                let told = format!("`{key}` → {slot}");
                assert!(page.contains(&told), "{}: {told}", algorithm.written());
            }
        }
    }

    #[test]
    fn every_function_is_found_by_its_own_name_alone() {
        let all = Algorithm::all();
        assert_eq!(all.len(), 9);
        for algorithm in all {
            assert_eq!(Algorithm::named(&algorithm.written()), Some(algorithm));
        }
        for name in ["CRC32C", "mod(3)", "digits", "date(hour)", "list()", "range(3", "crc32c)"] {
            assert_eq!(Algorithm::named(name), None, "{name}");
        }
    }
}
