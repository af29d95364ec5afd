//! Whole numbers of a request: `5` and `5.0` are the same number in JSON, as JSON Schema sees it.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, Unexpected, Visitor},
};

/// Above it a fraction is lost in a double, so a number written with a point is taken up to here only.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// A number without a fraction that fits `T`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct Whole<T>(pub(super) T);

impl<T: JsonSchema> JsonSchema for Whole<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }

    fn inline_schema() -> bool {
        true
    }
}

impl<'de, T: TryFrom<u64>> Deserialize<'de> for Whole<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = deserializer.deserialize_u64(Number)?;
        let unfit = || D::Error::invalid_value(Unexpected::Unsigned(number), &"a smaller number");
        T::try_from(number).map(Self).map_err(|_| unfit())
    }
}

struct Number;

impl Visitor<'_> for Number {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number, 0 or more")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<u64, E> {
        Ok(number)
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range is checked"
    )]
    fn visit_f64<E: Error>(self, number: f64) -> Result<u64, E> {
        if number.fract() == 0.0 && (0.0..=EXACT_MAX).contains(&number) {
            return Ok(number as u64);
        }
        Err(E::invalid_value(Unexpected::Float(number), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: TryFrom<u64>>(json: &str) -> Result<T, String> {
        serde_json::from_str(json).map(|Whole(number)| number).map_err(|error| error.to_string())
    }

    #[test]
    fn a_point_with_nothing_behind_it_changes_no_number() {
        assert_eq!(read::<u64>("5"), Ok(5));
        assert_eq!(read::<u64>("5.0"), Ok(5));
        assert_eq!(read::<u64>("2e3"), Ok(2_000));
        assert_eq!(read::<u64>("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(read::<u64>("9007199254740992.0"), Ok(1 << 53));
    }

    #[test]
    fn what_is_no_whole_number_or_does_not_fit_is_refused() {
        for json in ["5.5", "-1", "-1.0", "9007199254740994.0", "1e300", "\"5\"", "null"] {
            assert!(read::<u64>(json).is_err(), "{json}");
        }
        assert_eq!(read::<u32>("4294967295"), Ok(u32::MAX));
        assert!(read::<u32>("4294967296").unwrap_err().contains("a smaller number"));
    }
}
