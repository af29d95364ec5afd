//! The kinds of resource that a library participant can stand on.

mod postgres;
mod queue;
mod suspects;

pub use postgres::{Counts, Limits, PostgresResource};
