//! `mod`: the key's integer value, modulo 1,024.

use crate::{Key, SLOTS, Slot};

pub(super) const DOMAIN: &str = "a non-negative integer in decimal digits";

/// The last one is beyond 128 bits: a key's length is bounded in bytes, not by a machine word.
pub(super) const TEST_VECTORS: &[(&str, u16)] = &[
    ("0", 0),
    ("1", 1),
    ("1023", 1023),
    ("1024", 0),
    ("0001025", 1),
    ("9223372036854775807", 1023),
    ("18446744073709551616", 0),
    ("680564733841876926926749214863536422911", 1023),
];

pub(super) fn slot(key: Key<'_>) -> Option<Slot> {
    let remainder = key.as_str().chars().try_fold(0, |remainder: u32, digit| {
        Some((remainder * 10 + digit.to_digit(10)?) % u32::from(SLOTS))
    })?;
    Some(Slot::of_hash(remainder))
}
