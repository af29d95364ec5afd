//! Begins global transactions from a Rust program: finds the leader, follows it, asks again by gid.
