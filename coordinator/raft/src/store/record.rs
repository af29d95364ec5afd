//! One record of the log on disk: a head of 40 bytes, a payload, and a checksum that knows where the record stands.
//!
//! ```text
//!  0  mark     u32  a function of the segment's life: finds records in a damaged file
//!  4  crc      u32  CRC-32 of the life, the offset in the file, and every byte from 8 to the end of the padding
//!  8  length   u32  bytes of the payload, at most 8 MiB
//! 12  group    u32  offset of the first record that was written together with this one
//! 16  kind     u8
//! 17  log      u8   the Raft group whose log this is of, and six zero bytes
//! 24  term     u64
//! 32  index    u64
//! 40  payload, then zero bytes up to a multiple of 8
//! ```
//!
//! Numbers are little-endian. Since life and offset are in the checksum, neither a record of a former life of a
//! recycled file nor one that the disk put in the wrong place is ever taken for a record.

use crc32fast::Hasher;

/// Bytes before the payload.
pub(crate) const HEAD_BYTES: usize = 40;
/// Records begin at multiples of this.
pub(crate) const ALIGNMENT: usize = 8;
/// The largest payload. A longer announced length is damage, and nothing is allocated for it.
pub(crate) const ENTRY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// An entry without content; a leader begins its term with one.
    Blank = 1,
    /// An opaque entry.
    Normal = 2,
    /// An entry that sets the membership; the payload is a `RaftMembership`.
    Membership = 3,
    /// The vote: term, the node voted for as index, and one byte: granted by a quorum.
    Vote = 4,
    /// Entries after this one are gone. One byte: 1, or 0 if every entry is gone.
    Truncate = 5,
    /// Entries up to this one are in a snapshot and may be dropped.
    Purge = 6,
    /// Entries up to this one are on a quorum. One byte: 1, or 0 for none. A hint, written with other records.
    Committed = 7,
    /// The first record of a segment: what was true before it. The payload is a `RaftSegmentBase`.
    Base = 8,
    /// The last record of a segment; its term is the life of the next.
    Seal = 9,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Blank,
            2 => Self::Normal,
            3 => Self::Membership,
            4 => Self::Vote,
            5 => Self::Truncate,
            6 => Self::Purge,
            7 => Self::Committed,
            8 => Self::Base,
            9 => Self::Seal,
            _ => return None,
        })
    }
}

/// Where a record stands: the life of its segment and the offset in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) life: u64,
    pub(crate) offset: u32,
}

/// A record, its payload still in the buffer that it was read into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) kind: Kind,
    /// The Raft group.
    pub(crate) log: u8,
    /// What was written together.
    pub(crate) group: u32,
    pub(crate) term: u64,
    pub(crate) index: u64,
    pub(crate) payload: &'a [u8],
}

/// Why some bytes are not a record of this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Flaw {
    #[error("no record begins here")]
    NoMark,
    #[error("the file ends within a record")]
    Cut,
    #[error("a record announces {0} bytes, more than the limit of {ENTRY_BYTES_MAX}")]
    TooLong(u32),
    #[error("the checksum of a record does not match")]
    Checksum,
    #[error("a record is of unknown kind {0}; was it written by a newer version?")]
    UnknownKind(u8),
}

/// Bytes that a record with such a payload takes.
pub(crate) fn record_bytes(payload_bytes: usize) -> usize {
    (HEAD_BYTES + payload_bytes).next_multiple_of(ALIGNMENT)
}

/// The mark of every record of one life.
pub(crate) fn mark(life: u64) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(b"holdfast record");
    hasher.update(&life.to_le_bytes());
    // Never zero: a zero-filled file must not be full of marks.
    hasher.finalize().max(1)
}

fn checksum(place: Place, covered: &[u8]) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(&place.life.to_le_bytes());
    hasher.update(&place.offset.to_le_bytes());
    hasher.update(covered);
    hasher.finalize()
}

/// Appends a record to `buffer`, to be written at `place`. The payload must be within [`ENTRY_BYTES_MAX`].
pub(crate) fn encode(buffer: &mut Vec<u8>, place: Place, record: Record<'_>) {
    let length = u32::try_from(record.payload.len()).expect("a payload is within its limit");
    let start = buffer.len();
    buffer.extend_from_slice(&mark(place.life).to_le_bytes());
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&length.to_le_bytes());
    buffer.extend_from_slice(&record.group.to_le_bytes());
    buffer.extend_from_slice(&[record.kind as u8, record.log, 0, 0, 0, 0, 0, 0]);
    buffer.extend_from_slice(&record.term.to_le_bytes());
    buffer.extend_from_slice(&record.index.to_le_bytes());
    buffer.extend_from_slice(record.payload);
    buffer.resize(start + record_bytes(record.payload.len()), 0);
    let crc = checksum(place, &buffer[start + 8..]);
    buffer[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

/// Gives bytes that are as long as a record the mark and the checksum of `place`. For readers under test: nothing is written so.
pub(crate) fn seal(bytes: &mut [u8], place: Place) {
    bytes[..4].copy_from_slice(&mark(place.life).to_le_bytes());
    let end = record_bytes(u32_at(bytes, 8) as usize).min(bytes.len());
    let crc = checksum(place, &bytes[8..end]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Reads the record that begins at the start of `bytes`, which were read from `place`. Copies and allocates nothing.
pub(crate) fn decode(bytes: &[u8], place: Place) -> Result<Record<'_>, Flaw> {
    let Some(head) = bytes.get(..HEAD_BYTES) else {
        return Err(if bytes.iter().all(|&byte| byte == 0) { Flaw::NoMark } else { Flaw::Cut });
    };
    if u32_at(head, 0) != mark(place.life) {
        return Err(Flaw::NoMark);
    }
    let length = u32_at(head, 8);
    if length as usize > ENTRY_BYTES_MAX {
        return Err(Flaw::TooLong(length));
    }
    let whole = bytes.get(..record_bytes(length as usize)).ok_or(Flaw::Cut)?;
    if u32_at(head, 4) != checksum(place, &whole[8..]) {
        return Err(Flaw::Checksum);
    }
    let kind = Kind::from_byte(head[16]).ok_or(Flaw::UnknownKind(head[16]))?;
    Ok(Record {
        kind,
        log: head[17],
        group: u32_at(head, 12),
        term: u64_at(head, 24),
        index: u64_at(head, 32),
        payload: &whole[HEAD_BYTES..HEAD_BYTES + length as usize],
    })
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_kind() -> impl Strategy<Value = Kind> {
        (1u8..=9).prop_map(|byte| Kind::from_byte(byte).expect("1 to 9 are kinds"))
    }

    proptest! {
        #[test]
        fn a_record_reads_as_it_was_written(
            life: u64, offset: u32, log: u8, group: u32, term: u64, index: u64, kind in any_kind(),
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            behind in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            let place = Place { life, offset };
            let record = Record { kind, log, group, term, index, payload: &payload };
            let mut buffer = Vec::new();
            encode(&mut buffer, place, record);
            prop_assert_eq!(buffer.len(), record_bytes(payload.len()));
            buffer.extend_from_slice(&behind);
            prop_assert_eq!(decode(&buffer, place), Ok(record));
        }

        #[test]
        fn any_single_wrong_bit_is_noticed(
            life: u64, payload in proptest::collection::vec(any::<u8>(), 0..100), bit: prop::sample::Index,
        ) {
            let place = Place { life, offset: 64 };
            let mut buffer = Vec::new();
            encode(&mut buffer, place, Record { kind: Kind::Normal, log: 0, group: 64, term: 3, index: 7, payload: &payload });
            let bit = bit.index(buffer.len() * 8);
            buffer[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode(&buffer, place).is_err());
        }

        #[test]
        fn another_life_or_another_place_is_noticed(life: u64, offset in 0u32..1_000_000, other: u64, shift in 1u32..1000) {
            prop_assume!(life != other);
            let mut buffer = Vec::new();
            let record = Record { kind: Kind::Blank, log: 0, group: offset, term: 1, index: 1, payload: b"" };
            encode(&mut buffer, Place { life, offset }, record);
            let moved = Place { life, offset: offset + shift };
            let reborn = Place { life: other, offset };
            prop_assert!(decode(&buffer, reborn).is_err());
            prop_assert!(decode(&buffer, moved).is_err());
        }

        // Borrowed payloads cannot outgrow the input, so "no allocation by an announced length" holds by type; what is
        // left to show is that no input makes the decoder panic.
        #[test]
        fn arbitrary_bytes_are_never_a_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200), life: u64, with_mark: bool,
        ) {
            if with_mark && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&mark(life).to_le_bytes());
            }
            let _ = decode(&bytes, Place { life, offset: 64 });
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_read() {
        let place = Place { life: 1, offset: 64 };
        let mut bytes = vec![0; HEAD_BYTES];
        bytes[..4].copy_from_slice(&mark(1).to_le_bytes());
        bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(decode(&bytes, place), Err(Flaw::TooLong(u32::MAX)));
    }

    #[test]
    fn zeros_are_no_record() {
        assert_eq!(decode(&[0; 64], Place { life: 1, offset: 64 }), Err(Flaw::NoMark));
    }
}
