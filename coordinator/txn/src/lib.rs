//! The transaction machine: a mind that decides the fate of global transactions.
//!
//! It is told everything (commands, time, ids) and touches nothing. [`Machine::apply`] is total and deterministic:
//! the same commands in the same order give the same state, and the same [`Machine::state_hash`], on every node.
//! [`Machine::due`] says what the world is owed, from state alone, so there is no recovery code: a leader asks `due`,
//! makes the calls and proposes reports of the answers; a new leader just asks `due`.

#![warn(clippy::wildcard_enum_match_arm)]

mod command;
mod digest;
mod ids;
mod machine;
pub mod mode;
mod status;
mod transaction;

pub use command::{Answer, Command, Moved, Outcome, Refusal, Rejection, Report};
pub use ids::{BadGid, BadName, BranchId, Digest, Gid, Participant, Timestamp};
pub use machine::{Due, Machine, Snapshot};
pub use mode::{Mode, Next};
pub use status::{BranchState, Decision, Op, Status};
pub use transaction::{
    Branch, BranchSpec, GlobalTransaction, Options, Order, Recovery, RetryPolicy, TriedBy,
};

/// The most that a transaction, an entry and a machine may hold. Each is tested at the limit and one past it.
pub mod limit {
    /// Branches in one global transaction.
    pub const BRANCHES_MAX: usize = 128;
    /// Bytes of one branch's payload.
    pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
    /// Bytes of all payloads of one transaction.
    pub const PAYLOADS_BYTES_MAX: usize = 1024 * 1024;
    /// Headers, and tags, of one transaction.
    pub const LABELS_MAX: usize = 32;
    /// Bytes of one header's or tag's name and value together.
    pub const LABEL_BYTES_MAX: usize = 1024;
    /// Bytes of a reason or a refusal's words; longer ones are cut at a character.
    pub const REASON_BYTES_MAX: usize = 1024;
    /// From begin to decision, ms.
    pub const TIMEOUT_MS_MAX: u64 = 86_400_000;
    /// Open transactions; one more begin is rejected.
    pub const OPEN_MAX: usize = 2_000_000;
    /// Finished transactions that the machine remembers, oldest forgotten first: the window of idempotent gids.
    pub const FINISHED_MAX: usize = 200_000;
}
