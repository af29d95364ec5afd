//! What a fuzzer throws at the readers of this crate, and what must hold of whatever comes out; no part of the public interface.
//!
//! Each function panics when a promise is broken. Everything else that bytes can do is refused by the readers themselves.

use holdfast_proto::v1;
use prost::Message as _;

use crate::{
    consensus::Payload,
    convert::{
        ballot_from_proto, ballot_to_proto, entry_from_proto, entry_to_proto,
        stored_membership_from_proto, stored_membership_to_proto,
    },
    network::server::append_from_proto,
    parse_snapshot,
    store::record::{self, HEAD_BYTES, Place, Record, record_bytes},
};

/// Bytes of an entry that a peer may send, here.
const ENTRY_BYTES_MAX: usize = 64 * 1024;

/// Bytes as a record of the log: as they are, and once more with the mark and the checksum that make them whole. What is read is
/// read again from what it is written as.
pub fn record(bytes: &[u8]) {
    let place = Place { life: 7, offset: 64 };
    read_record(bytes, place);
    let mut whole = bytes.to_vec();
    if whole.len() < HEAD_BYTES {
        return;
    }
    let room = whole.len() - HEAD_BYTES;
    let length = u32::try_from(room & !7).unwrap_or(0);
    whole[8..12].copy_from_slice(&length.to_le_bytes());
    record::seal(&mut whole, place);
    read_record(&whole, place);
}

fn read_record(bytes: &[u8], place: Place) {
    let Ok(read) = record::decode(bytes, place) else { return };
    assert!(record_bytes(read.payload.len()) <= bytes.len(), "a record longer than its bytes");
    let mut written = Vec::new();
    record::encode(&mut written, place, Record { ..read });
    assert_eq!(record::decode(&written, place), Ok(read), "a record changes by being written");
    let elsewhere = Place { offset: place.offset + 8, ..place };
    assert!(record::decode(&written, elsewhere).is_err(), "a record is read at another place");
}

/// Bytes as the file of a snapshot.
pub fn snapshot(bytes: &[u8]) {
    if let Ok(read) = parse_snapshot(bytes) {
        assert!(read.state.len() < bytes.len(), "a state longer than its file");
    }
    // With a right checksum, so that what is behind it is read as well.
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(bytes);
    let whole = [bytes, &hasher.finalize().to_le_bytes()].concat();
    if let Ok(read) = parse_snapshot(&whole) {
        assert!(read.state.len() < whole.len(), "a state longer than its file");
    }
}

/// Bytes as what a peer sends: the first says which message.
pub fn rpc(bytes: &[u8]) {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    match kind % 4 {
        0 => append(bytes),
        1 => {
            let Ok(message) = v1::RaftBallot::decode(bytes) else { return };
            let Ok(ballot) = ballot_from_proto(Some(message)) else { return };
            let again = ballot_from_proto(Some(ballot_to_proto(&ballot)));
            assert!(again.is_ok_and(|again| again == ballot), "a ballot changes on the wire");
        }
        2 => {
            let Ok(message) = v1::RaftStoredMembership::decode(bytes) else { return };
            let Ok(stored) = stored_membership_from_proto(message) else { return };
            let again = stored_membership_from_proto(stored_membership_to_proto(&stored));
            assert!(again.is_ok_and(|again| again == stored), "a membership changes on the wire");
        }
        _ => {
            let Ok(message) = v1::RaftEntry::decode(bytes) else { return };
            entry(message);
        }
    }
}

fn append(bytes: &[u8]) {
    let Ok(message) = v1::RaftAppendRequest::decode(bytes) else { return };
    let count = message.entries.len();
    message.entries.iter().cloned().for_each(entry);
    if let Ok(request) = append_from_proto(message, ENTRY_BYTES_MAX) {
        assert_eq!(request.entries.len(), count, "an append lost entries");
    }
}

fn entry(message: v1::RaftEntry) {
    let Ok(entry) = entry_from_proto(message, ENTRY_BYTES_MAX) else { return };
    if let Payload::Normal(content) = &entry.payload {
        assert!(content.0.len() <= ENTRY_BYTES_MAX, "an entry past its limit");
    }
    let again = entry_from_proto(entry_to_proto(&entry), ENTRY_BYTES_MAX);
    assert!(again.is_ok_and(|again| again == entry), "an entry changes on the wire");
}
