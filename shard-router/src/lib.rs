//! Speaks PostgreSQL to clients and sends each statement to its shards.
//!
//! [`Router::start`] opens the door; [`Router::serve`] accepts clients and deals them to workers. A worker is a thread that shares
//! nothing on the way of a statement. A session (`session/`) reads a client's message, asks the mind where it goes, takes a server
//! from its worker's pool for one transaction, and relays the original bytes. Without rules everything goes to the only source.

mod admin;
mod backend;
mod buffer;
mod cancel;
mod classify;
pub mod config;
mod counts;
mod deadlock;
mod door;
mod follow;
mod frame;
mod frontend;
mod global_write;
mod haste;
mod health;
mod ledger;
mod meaning;
mod orphans;
mod refusal;
mod rules;
mod session;
mod shared;
mod source;
mod tokens;
mod wire;
mod worker;

pub use config::RouterConfig;
pub use door::{NoStart, Router};
pub use frontend::{Tls, Verifier};
pub use global_write::participant;
pub use refusal::Refusal;
