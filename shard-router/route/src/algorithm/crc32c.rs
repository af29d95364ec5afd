//! `crc32c`: the checksum of the key's UTF-8 bytes (Castagnoli polynomial, as in iSCSI), modulo 1,024.

use crate::{Key, Slot};

pub(super) const DOMAIN: &str = "any text of 1 to 256 bytes";

/// The first line is the check value of the polynomial itself: 0xE3069283, whose last ten bits are 643.
pub(super) const TEST_VECTORS: &[(&str, u16)] = &[
    ("123456789", 643),
    ("a", 816),
    ("A-1", 638),
    ("A-2", 394),
    ("1", 483),
    ("00000000000000000000", 936),
    ("DE89370400440532013000", 889),
    ("zürich", 837),
];

pub(super) fn slot(key: Key<'_>) -> Slot {
    Slot::of_hash(crc32c::crc32c(key.as_str().as_bytes()))
}
