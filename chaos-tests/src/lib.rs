//! Faults, checkers and end-to-end stories over real processes.
//!
//! The stories are in `tests/`, a file each; what they share is here, a file a thing. Everything is real: the `holdfast` program,
//! PostgreSQL servers that sync, sockets, signals. Nothing waits for luck: a story waits for a condition, at most so long.
//!
//! - [`Cluster`]: three coordinators and a bank process for each shard, killed, stopped and started again at will.
//! - [`Process`], [`Postgres`], [`Agent`], [`Service`]: one program each; a service is an application beside an agent whose answers
//!   the story gives.
//! - [`router_diff`]: random statements through a router and on one PostgreSQL, compared.
//! - [`Demo`]: the demo, and whether it leaves anything behind.
//! - [`Sharded`]: coordinators, two databases, and routers in front of them.
//! - [`Secure`]: coordinators and a bank that speak mutual TLS, behind proxies.
//! - [`Load`]: transfers that are pursued until their fate is known; [`checker`]: what that history is held against.
//! - [`Collector`]: takes the spans of every process.
//! - [`matrix`]: kill points, one after the other, under load.
//! - [`ports`]: free ones, for programs that are started.
//! - [`proxy`]: spoils what passes between two programs.
//! - [`fuzzed`]: every reader of foreign bytes, for a fuzzer and for the corpus that every build replays; [`fuzzed_router`]: those of
//!   a router.
//! - [`http`]: one request over a bare socket, right or wrong. - [`journal`]: what the books say of each gid, by plain SQL.
//!
//! With `HOLDFAST_KEEP=1` the folders with logs, data and configuration stay.

mod agent;
mod binary;
pub mod checker;
mod cluster;
pub mod collector;
pub mod demo;
mod folder;
pub mod fuzzed;
pub mod fuzzed_router;
pub mod http;
pub mod journal;
mod load;
pub mod matrix;
pub mod ports;
mod postgres;
mod process;
pub mod proxy;
pub mod router_diff;
mod secure;
mod service;
mod sharded;
mod until;

pub use agent::Agent;
pub use binary::holdfast;
pub use cluster::{Bank, Cluster, Node, Operator, PATIENT, Shape, transfer};
pub use collector::Collector;
pub use demo::Demo;
pub use folder::Folder;
pub use load::{Load, Running};
pub use postgres::Postgres;
pub use process::{Process, Program};
pub use secure::Secure;
pub use service::{Asked, Service};
pub use sharded::{ROUTERS, RULES, Sharded, texts};
pub use until::{SOON, until};
