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

/// As many bytes are copied as the longest has, which is cheaper than to copy as many as this one has.
fn write_long(value: u64, to: &mut Vec<u8>) {
    let (mut bytes, mut last, mut left) = ([0; BYTES_MAX], 0, value);
    while left >= 0x80 {
        bytes[last] = left as u8 | 0x80;
        (left, last) = (left >> 7, last + 1);
    }
    bytes[last] = left as u8;
    to.extend_from_slice(&bytes);
    to.truncate(to.len() - BYTES_MAX + last + 1);
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
