//! The kinds of resource that a library participant can stand on.

mod database;
mod failure;
mod login;
mod postgres;
mod queue;
mod suspects;
mod xa;

pub use database::Database;
pub use failure::words;
pub use login::WeakLogin;
pub use postgres::{Counts, Limits, PostgresResource};
pub use xa::XaResource;
