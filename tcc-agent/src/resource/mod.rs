//! The kinds of resource that a library participant can stand on.

mod counts;
mod database;
mod failure;
mod login;
mod postgres;
mod queue;
mod suspects;
mod xa;

pub use counts::Counts;
pub use database::Database;
pub use failure::words;
pub use login::WeakLogin;
pub use postgres::{Limits, PostgresResource};
pub use xa::XaResource;
