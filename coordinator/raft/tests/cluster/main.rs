//! Replicas over real sockets and real files, as a coordinator uses them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

mod harness;

mod alone;
mod compaction;
mod doors;
mod failover;
mod groups;
mod lagging;
mod members;
