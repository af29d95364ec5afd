//! `pg_hash_int8` and `pg_hash_text`: PostgreSQL's own hash, as its hash partitions use it, modulo 1,024.
//!
//! A table that is hash-partitioned by 1,024 on one server has its rows in the partitions of the same numbers.
//! The hash is Bob Jenkins' lookup3 (public domain) in the 64-bit form of `hash_any_extended`.

use crate::{Key, SLOTS, Slot};

pub(super) const INTEGER_DOMAIN: &str = "a 64-bit integer in decimal digits";
pub(super) const TEXT_DOMAIN: &str = "any text of 1 to 256 bytes";

/// By `satisfies_hash_partition` of PostgreSQL 15.
pub(super) const INTEGER_TEST_VECTORS: &[(&str, u16)] = &[
    ("0", 432),
    ("1", 952),
    ("-1", 933),
    ("42", 610),
    ("9223372036854775807", 630),
    ("-9223372036854775808", 383),
];
/// By `satisfies_hash_partition` of PostgreSQL 15.
pub(super) const TEXT_TEST_VECTORS: &[(&str, u16)] = &[
    ("a", 862),
    ("A-1", 504),
    ("000123", 287),
    ("DE89370400440532013000", 544),
    ("zürich", 115),
    ("a text that is longer than twelve bytes, and than twice twelve", 580),
];

const PARTITION_SEED: u64 = 0x7A5B_2236_7996_DCFD;

pub(super) fn integer_slot(key: Key<'_>) -> Option<Slot> {
    let value: i64 = key.as_str().parse().ok()?;
    let [b0, b1, b2, b3, b4, b5, b6, b7] = value.to_le_bytes();
    let low = u32::from_le_bytes([b0, b1, b2, b3]);
    let high = u32::from_le_bytes([b4, b5, b6, b7]);
    // So that an int4 has the hash of the equal int8.
    let folded = low ^ if value >= 0 { high } else { !high };
    Some(slot_of(hash_word(folded)))
}

pub(super) fn text_slot(key: Key<'_>) -> Slot {
    slot_of(hash_bytes(key.as_str().as_bytes()))
}

/// A partition's hash begins with nothing and takes in one column.
fn slot_of(hash: u64) -> Slot {
    let number = hash.wrapping_add(0x49A0_F4DD_15E5_A8E3) % u64::from(SLOTS);
    Slot::new(u16::try_from(number).expect("a remainder of 1,024 fits 16 bits"))
        .expect("a remainder of 1,024 is a slot")
}

/// The three words in which lookup3 mixes.
struct State {
    a: u32,
    b: u32,
    c: u32,
}

impl State {
    fn seeded(length: usize) -> Self {
        let length = u32::try_from(length).expect("a key is short");
        let start = 0x9e37_79b9_u32.wrapping_add(length).wrapping_add(3_923_095);
        let mut state = Self { a: start, b: start, c: start };
        let high = u32::try_from(PARTITION_SEED >> 32).expect("32 bits");
        let low = u32::try_from(PARTITION_SEED & 0xffff_ffff).expect("32 bits");
        state.a = state.a.wrapping_add(high);
        state.b = state.b.wrapping_add(low);
        state.mix();
        state
    }

    fn mix(&mut self) {
        let Self { mut a, mut b, mut c } = *self;
        a = a.wrapping_sub(c) ^ c.rotate_left(4);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(6);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(8);
        b = b.wrapping_add(a);
        a = a.wrapping_sub(c) ^ c.rotate_left(16);
        c = c.wrapping_add(b);
        b = b.wrapping_sub(a) ^ a.rotate_left(19);
        a = a.wrapping_add(c);
        c = c.wrapping_sub(b) ^ b.rotate_left(4);
        b = b.wrapping_add(a);
        *self = Self { a, b, c };
    }

    fn finish(self) -> u64 {
        let Self { mut a, mut b, mut c } = self;
        c = (c ^ b).wrapping_sub(b.rotate_left(14));
        a = (a ^ c).wrapping_sub(c.rotate_left(11));
        b = (b ^ a).wrapping_sub(a.rotate_left(25));
        c = (c ^ b).wrapping_sub(b.rotate_left(16));
        a = (a ^ c).wrapping_sub(c.rotate_left(4));
        b = (b ^ a).wrapping_sub(a.rotate_left(14));
        c = (c ^ b).wrapping_sub(b.rotate_left(24));
        (u64::from(b) << 32) | u64::from(c)
    }
}

fn hash_word(word: u32) -> u64 {
    let mut state = State::seeded(4);
    state.a = state.a.wrapping_add(word);
    state.finish()
}

fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut state = State::seeded(bytes.len());
    let word = |bytes: &[u8]| {
        let mut four = [0; 4];
        four[..bytes.len()].copy_from_slice(bytes);
        u32::from_le_bytes(four)
    };
    let mut chunks = bytes.chunks_exact(12);
    for chunk in &mut chunks {
        state.a = state.a.wrapping_add(word(&chunk[..4]));
        state.b = state.b.wrapping_add(word(&chunk[4..8]));
        state.c = state.c.wrapping_add(word(&chunk[8..]));
        state.mix();
    }
    let rest = chunks.remainder();
    state.a = state.a.wrapping_add(word(&rest[..rest.len().min(4)]));
    state.b = state.b.wrapping_add(word(rest.get(4..rest.len().min(8)).unwrap_or_default()));
    // The lowest byte of the third word is kept for the length.
    state.c = state.c.wrapping_add(word(rest.get(8..).unwrap_or_default()) << 8);
    state.finish()
}
