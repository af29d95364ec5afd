//! Fields of a message, written into bytes from where their values are: for what is written so often that a message in between costs more than
//! its bytes. As every writer of proto3 does it, a number that is 0 and a text that is empty are left out.

use holdfast_proto::{VARINT_WORD_BITS, varint_word, write_varint, write_word};
use prost::encoding::WireType;

/// Bytes of the longest length.
const VARINT_MAX: usize = 10;

/// Which field it is, and how its value is written.
fn key(field: u32, wire: WireType) -> u64 {
    u64::from(field << 3 | wire as u32)
}

/// A key, and a number behind it: both at once, where they are short.
#[inline(always)]
fn keyed(key: u64, value: u64, to: &mut Vec<u8>) {
    if key < 0x80 && value < 0x80 {
        to.extend_from_slice(&[key as u8, value as u8]);
    } else {
        keyed_long(key, value, to);
    }
}

#[inline(never)]
fn keyed_long(key: u64, value: u64, to: &mut Vec<u8>) {
    if key < 0x80 && value < 1 << (VARINT_WORD_BITS - 7) {
        let (word, length) = varint_word(value);
        write_word(word << 8 | key, length + 1, to);
    } else {
        write_varint(key, to);
        write_varint(value, to);
    }
}

/// A number: of the kinds `bool`, `enum`, `uint32` and `uint64`.
#[inline]
pub(crate) fn number(field: u32, value: u64, to: &mut Vec<u8>) {
    if value != 0 {
        any_number(field, value, to);
    }
}

/// A number, also where it is 0: of a field that may be absent.
#[inline]
pub(crate) fn any_number(field: u32, value: u64, to: &mut Vec<u8>) {
    keyed(key(field, WireType::Varint), value, to);
}

/// A list of numbers, packed.
pub(crate) fn numbers(field: u32, values: impl Iterator<Item = u32>, to: &mut Vec<u8>) {
    let mut values = values.peekable();
    if values.peek().is_some() {
        message(field, to, |to| values.for_each(|value| write_varint(value.into(), to)));
    }
}

/// Bytes.
#[inline]
pub(crate) fn bytes(field: u32, value: &[u8], to: &mut Vec<u8>) {
    if !value.is_empty() {
        any_bytes(field, value, to);
    }
}

/// Bytes, also where there are none: of a list.
#[inline]
pub(crate) fn any_bytes(field: u32, value: &[u8], to: &mut Vec<u8>) {
    keyed(key(field, WireType::LengthDelimited), value.len() as u64, to);
    to.extend_from_slice(value);
}

/// A text.
#[inline]
pub(crate) fn text(field: u32, value: &str, to: &mut Vec<u8>) {
    if !value.is_empty() {
        any_text(field, value, to);
    }
}

/// An entry of a map of texts, which has both, also where they are empty.
pub(crate) fn entry(field: u32, (name, value): (&str, &str), to: &mut Vec<u8>) {
    message(field, to, |to| {
        any_text(1, name, to);
        any_text(2, value, to);
    });
}

/// A text, also where it is empty.
#[inline]
pub(crate) fn any_text(field: u32, value: &str, to: &mut Vec<u8>) {
    any_bytes(field, value.as_bytes(), to);
}

/// A message, whose fields `write` appends; one that is empty is there nevertheless.
#[inline]
pub(crate) fn message(field: u32, to: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    // Its length is not known yet, and one byte holds that of most.
    keyed(key(field, WireType::LengthDelimited), 0, to);
    let at = to.len() - 1;
    write(to);
    let written = at + 1..to.len();
    let length = written.len();
    if length < 0x80 {
        to[at] = length as u8;
        return;
    }
    // Where it does not, what was written makes room.
    write_varint(length as u64, to);
    let more = to.len() - written.end - 1;
    let mut prefix = [0; VARINT_MAX];
    prefix[..=more].copy_from_slice(&to[written.end..]);
    to.truncate(written.end + more);
    to.copy_within(written.clone(), at + 1 + more);
    to[at..=at + more].copy_from_slice(&prefix[..=more]);
}

#[cfg(test)]
mod tests {
    use holdfast_proto::v1::{Attempt, HistoryRecord, Transaction};
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_message_is_written_as_prost_writes_it_however_long_its_length_is() {
        for length in [0, 1, 120, 127, 128, 200, 16_383, 16_384, 70_000] {
            let reason = "r".repeat(length);
            let transaction = Transaction { reason: reason.clone(), ..Transaction::default() };
            let record = HistoryRecord { transaction: Some(transaction), ..Default::default() };
            let mut written = vec![7];
            message(1, &mut written, |to| text(9, &reason, to));
            assert_eq!(written[1..], record.encode_to_vec(), "{length}");
        }
    }

    #[test]
    fn numbers_and_texts_are_written_as_prost_writes_them() {
        for value in [0, 1, 127, 128, u64::MAX] {
            let attempt = Attempt {
                branch: value as u32,
                took_ms: value,
                instance: "i".repeat((value % 3) as usize),
                ..Attempt::default()
            };
            let mut written = Vec::new();
            number(1, attempt.branch.into(), &mut written);
            number(5, attempt.took_ms, &mut written);
            text(7, &attempt.instance, &mut written);
            assert_eq!(written, attempt.encode_to_vec());
        }
    }
}
