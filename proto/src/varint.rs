//! Numbers as every message has them.

/// Bytes of the longest.
const BYTES_MAX: usize = 10;

/// Appends `value` as a varint: seven bits a byte, the lowest first. As prost writes it, but room is looked for once and not for each byte.
#[inline]
pub fn write_varint(value: u64, to: &mut Vec<u8>) {
    if value < 0x80 {
        to.push(value as u8);
    } else if value < 0x4000 {
        to.extend_from_slice(&[value as u8 | 0x80, (value >> 7) as u8]);
    } else {
        write_long(value, to);
    }
}

fn write_long(value: u64, to: &mut Vec<u8>) {
    if value < 1 << VARINT_WORD_BITS {
        let (word, length) = varint_word(value);
        write_word(word, length, to);
        return;
    }
    let (mut bytes, mut last, mut left) = ([0; BYTES_MAX], 0, value);
    while left >= 0x80 {
        bytes[last] = left as u8 | 0x80;
        (left, last) = (left >> 7, last + 1);
    }
    bytes[last] = left as u8;
    to.extend_from_slice(&bytes[..=last]);
}

/// Appends the first `length` bytes of `word`, at most 8. All are copied, which is cheaper than to copy as many as are meant.
#[inline]
pub fn write_word(word: u64, length: usize, to: &mut Vec<u8>) {
    let until = to.len() + length;
    to.extend_from_slice(&word.to_le_bytes());
    to.truncate(until);
}

/// Bits of the largest number that [`varint_word`] takes.
pub const VARINT_WORD_BITS: u32 = 56;

/// `value`, of at most [`VARINT_WORD_BITS`], as a varint: its bytes, the first one lowest, and how many they are. Without a loop, since a time in
/// ms has six of them.
#[inline]
#[must_use]
pub fn varint_word(value: u64) -> (u64, usize) {
    debug_assert!(value < 1 << VARINT_WORD_BITS, "it fits into eight bytes");
    // Halves, quarters and eighths move apart, until seven bits lie in each byte.
    let halves = value & 0x0fff_ffff | (value & 0x00ff_ffff_f000_0000) << 4;
    let quarters = halves & 0x0000_3fff_0000_3fff | (halves & 0x0fff_c000_0fff_c000) << 2;
    let eighths = quarters & 0x007f_007f_007f_007f | (quarters & 0x3f80_3f80_3f80_3f80) << 1;
    let length = (value | 1).ilog2() / 7 + 1;
    let goes_on = 0x8080_8080_8080_8080 & ((1 << (8 * (length - 1))) - 1);
    (eighths | goes_on, length as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_any_length_is_written_as_prost_writes_it() {
        let powers = (0..64).map(|bit| 1_u64 << bit);
        for value in powers.flat_map(|power| [power - 1, power, power | 1, !power]) {
            let (mut written, mut expected) = (vec![7], vec![7]);
            write_varint(value, &mut written);
            prost::encoding::encode_varint(value, &mut expected);
            assert_eq!(written, expected, "{value}");
        }
    }
}
