//! Every reader of bytes that others wrote, under a name: what `fuzz/` throws bytes at, and what every build replays the corpus on.
//!
//! A function returns whatever the bytes are, and panics when a promise of its reader is broken: what is read is read again from what
//! it is written as, nothing is longer than its limit, and no reader panics.

use holdfast_coordinator::fuzzing as coordinator;
use holdfast_raft::fuzzing as raft;

use crate::fuzzed_router as router;

/// A reader, by the name of its target and of its folder in `fuzz/corpus`.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Reads bytes.
    pub read: fn(&[u8]),
    /// How many mutations of each file every build replays; fewer where an input costs connections.
    pub mutations: u64,
}

const fn of_bytes(name: &'static str, read: fn(&[u8])) -> Target {
    Target { name, read, mutations: 400 }
}

const fn of_connections(name: &'static str, read: fn(&[u8])) -> Target {
    Target { name, read, mutations: 30 }
}

/// Every one but the configuration's reader, which is the command's own and replays its corpus there.
pub const TARGETS: [Target; 15] = [
    of_bytes("log_record", raft::record),
    of_bytes("raft_snapshot", raft::snapshot),
    of_bytes("raft_rpc", raft::rpc),
    of_bytes("entry", coordinator::entry),
    of_bytes("state", coordinator::state),
    of_bytes("request", coordinator::request),
    of_bytes("json", coordinator::json),
    of_bytes("filter", coordinator::filter),
    of_bytes("token", token),
    of_bytes("sql", router::sql),
    of_bytes("rules", router::rules),
    of_bytes("copy_data", router::copy_data),
    of_connections("router_before_login", router::before_login),
    of_connections("router_after_login", router::after_login),
    of_connections("router_server", router::server),
];

/// The target of that name, which must be one of [`TARGETS`].
#[must_use]
pub fn of(name: &str) -> Target {
    let found = TARGETS.into_iter().find(|target| target.name == name);
    found.unwrap_or_else(|| panic!("no target is called {name}"))
}

/// Bytes as the words that a caller shows: a token, its hash, the name in a certificate, and a certificate itself.
pub fn token(bytes: &[u8]) {
    drop(holdfast_security::certificate::read(&bytes.into()));
    let Ok(words) = std::str::from_utf8(bytes) else { return };
    if let Ok(token) = holdfast_security::Token::parse(words) {
        assert_eq!(token.reveal(), words, "a token changes by being read");
        assert!(token.hash().matches(&token.hash()), "a token is not its own");
        assert!(words.contains(token.id()), "an id that is not in its token");
    }
    if let Ok(name) = holdfast_security::Name::parse(words) {
        let again = holdfast_security::Name::parse(&name.to_string());
        assert_eq!(again.ok(), Some(name), "a name changes by being shown");
    }
}
