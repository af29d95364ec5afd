//! The coordinator process: doors, proposer, replica and dispatcher around the transaction machine.
//!
//! How a command travels:
//!
//! ```text
//! caller -> http/, rpc/transactions -> desk -> Coordinator::propose
//!                                                   |
//!        proposer    bounded queue; stamps the time; whatever waits goes as one entry, a few entries under way
//!                                                   |
//!        holdfast-raft   durable on a majority
//!                                                   |
//!        replica     on every node: decodes the entry, Machine::apply, one result for each command
//!                     |                             |
//!        waiters (a caller that waits)       dispatcher (leader only): Machine::owed
//!                                             |              ^
//!                                   rpc/participants: calls, answers, in batches
//!                                             |              |
//!                                            agents of the participants
//! ```
//!
//! 1. A caller's command waits in the [proposer](Coordinator::propose)'s queue, together with others, for the next log
//!    entry. The proposer stamps the entry with the time: the machine never reads a clock.
//! 2. When the log has it on a majority, every node's replica applies it. The caller has its answer; who waits for the
//!    decision or the end is woken by the move itself.
//! 3. On the leader, the dispatcher asks the machine what the transaction is owed, makes the calls over the agents'
//!    sessions, and proposes a report of the answers when they are worth a record. A call without an answer is *unknown*
//!    and is asked again; it is never taken for a failure.
//! 4. A report that leads to an end has nobody waiting for it, and rides along with other commands.
//!
//! What is acknowledged is in the log; everything else that a node knows (who waits, which calls are under way, how long
//! to pause) is memory of the leader and may be lost at any time: the next leader asks the machine what is due, and goes
//! on. So there is no recovery code. Deliberately absent: a second way to decide, a route to any service (agents dial in),
//! and any decision taken from words in an answer.

mod attendance;
pub mod backup;
mod branch_call;
mod clock;
pub mod config;
mod coordinator;
mod dispatcher;
mod endpoints;
mod fault;
mod fields;
#[doc(hidden)]
pub mod fuzzing;
mod group;
mod history;
mod hold;
pub mod http;
mod leaders;
mod listing;
pub mod live;
mod meters;
mod proposer;
mod record;
pub mod registry;
mod replica;
mod rights;
pub mod rpc;
mod serve;
mod services_seen;
mod state_hash;
mod thaw;
mod waiters;
mod watchers;
mod written;

pub use config::Config;
pub use coordinator::{Applied, Coordinator, Freshness, NodeStatus, WaitEnd, WaitUntil, Waited};
pub use fault::{ProposeError, ServeError, StartError};
pub use state_hash::StateHash;
pub use written::{Written, read_written};
