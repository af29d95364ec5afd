//! The kinds of resource that a library participant can stand on.

mod database;
mod failure;
mod postgres;
mod queue;
mod suspects;
mod xa;

pub use database::Database;
pub use postgres::{Counts, Limits, PostgresResource};
pub use xa::XaResource;
