//! Lives beside a participant, as library or sidecar, and makes every branch operation take effect once.

mod participant;

pub use participant::{Answer, BadGid, Call, Gid, LocalTransaction, Op, Participant};
