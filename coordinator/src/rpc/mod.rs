//! The gRPC doors, a file per service, and the desk that they share with HTTP.

pub mod admin;
pub mod audit;
mod bulk;
pub(crate) mod check;
pub(crate) mod check_list;
mod defaults;
mod desk;
pub(crate) mod fault;
mod forward;
pub mod history;
mod hold;
pub mod participants;
mod read_rules;
mod reload;
mod routers;
pub mod services;
pub mod shards;
pub(crate) mod show;
pub(crate) mod traced;
pub mod transactions;

pub use desk::Desk;
pub(crate) use desk::{Hop, Told};
