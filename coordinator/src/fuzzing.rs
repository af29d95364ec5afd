//! What a fuzzer throws at the readers of this crate, and what must hold of whatever comes out; no part of the public interface.
//!
//! Each function panics when a promise is broken. Everything else that bytes can do is refused by the readers themselves.

use axum::http::Uri;
use bytes::Bytes;
use holdfast_proto::v1;
use prost::Message as _;

use crate::{
    config,
    history::check_search,
    http::fuzzed,
    record::{EncodedCommand, decode_entry, decode_snapshot, encode_entry, encode_snapshot},
    rpc::{
        check::{Act, check},
        check_list::check_list,
    },
};

/// Bytes as an entry of the log: what is read is read again from what it is written as.
pub fn entry(bytes: &[u8]) {
    let Ok(read) = decode_entry(&Bytes::copy_from_slice(bytes)) else { return };
    let commands: Vec<EncodedCommand> = read.1.iter().map(EncodedCommand::of).collect();
    let written = encode_entry(read.0, commands.iter());
    assert_eq!(decode_entry(&written).ok(), Some(read), "an entry changes by being written");
}

/// Bytes as the state of a machine in a snapshot.
pub fn state(bytes: &[u8]) {
    let Ok((snapshot, applied_index)) = decode_snapshot(bytes) else { return };
    let written = encode_snapshot(&snapshot, applied_index, || ());
    let again = decode_snapshot(&written).ok();
    assert_eq!(again, Some((snapshot, applied_index)), "a state changes by being written");
}

/// Bytes as a request on a caller's stream: what passes the checks can be written into the log, and read there.
pub fn request(bytes: &[u8]) {
    let Ok(message) = v1::ExchangeRequest::decode(bytes) else { return };
    let Some(request) = message.request else { return };
    take_in(request);
}

fn take_in(mut request: v1::exchange_request::Request) {
    let Ok(checked) = check(&mut request, &config::Timeouts::default()) else { return };
    let Act::Propose(command, _) = checked.act else { return };
    let encoded = [EncodedCommand::of(&command)];
    let written = encode_entry(holdfast_txn::Timestamp(1), encoded.iter());
    let read = decode_entry(&written).map(|(_, commands)| commands);
    assert_eq!(read.ok(), Some(vec![command]), "a command changes in the log");
}

/// Bytes as a JSON body of each route that takes one.
pub fn json(bytes: &[u8]) {
    for request in fuzzed::bodies(bytes) {
        take_in(request);
    }
}

/// Bytes as a filter: of the list, of the history, and as a query in a URL.
pub fn filter(bytes: &[u8]) {
    if let Ok(request) = v1::ListRequest::decode(bytes)
        && let Ok(listing) = check_list(&request)
    {
        assert!(listing.limit > 0, "a page of nothing");
    }
    if let Ok(request) = v1::SearchHistoryRequest::decode(bytes) {
        drop(check_search(&request));
    }
    let Ok(words) = std::str::from_utf8(bytes) else { return };
    if let Ok(uri) = format!("/v1/history?{words}").parse::<Uri>() {
        fuzzed::query(&uri);
    }
}
