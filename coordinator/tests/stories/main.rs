//! A coordinator over real sockets and a real log, with agents that do as the story says.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

mod agent;
mod budget;
mod cluster;
mod crowd;
mod failover;
mod groups;
mod mixed_versions;
mod saga;
mod scenarios;
mod sessions;
mod tcc;
mod xa;
