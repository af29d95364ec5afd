//! Lives beside a participant, as library or sidecar, and makes every branch operation take effect once.

mod barrier_store;
mod handler;
mod participant;
mod resource;

pub use barrier_store::{BARRIER_SQL, install};
pub use handler::{Asked, Handler, Reply, ask};
pub use participant::{Answer, BadGid, Call, Gid, LocalTransaction, Op, Participant};
pub use resource::{Counts, Limits, PostgresResource};
