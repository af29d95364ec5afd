//! The HTTP/JSON door: transactions, node status, health and metrics. docs/reference/api.md shows every route with curl.
//!
//! Every request about a transaction becomes the same message that gRPC carries and goes to the same [desk](crate::rpc::Desk); this
//! folder only translates. What cannot be translated is told as a problem (RFC 9457) with a code of docs/reference/errors.

mod body;
mod bulk;
mod callers;
mod documented;
mod events;
pub(crate) mod fuzzed;
mod instant;
mod openapi;
mod operating;
mod patient;
mod payload;
mod policy;
mod problem;
mod reload;
mod routes;
mod schemas;
mod serve;
mod service_view;
mod shards;
mod view;
mod whole;

pub(crate) use problem::Problem;
pub use routes::router;
pub use serve::serve;
