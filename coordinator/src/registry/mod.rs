//! Services: what operators decided about them, kept on every node, and the parts by which the dispatcher obeys.
//!
//! A decision is taken by the leader, written to its disk, and sent to every other node; it is acknowledged with the number of
//! nodes that hold it. The document with the greater (term, revision) wins everywhere, so that a new leader that missed one
//! learns it from the first node that has it. It is not in the replicated log, since nothing that a transaction becomes
//! depends on it: it only says when and where calls are made (docs/adr).

pub(crate) mod breaker;
pub(crate) mod bucket;
pub(crate) mod callers;
pub mod policy;
pub(crate) mod spread;
pub(crate) mod store;
