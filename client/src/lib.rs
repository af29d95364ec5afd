//! Begins global transactions from a Rust program: finds the leader, follows it, asks again by gid.
//!
//! A [`Client`] keeps one open stream to the leader and sends every request over it, thousands under way at once,
//! answered in any order. When the stream breaks or the leader changes it looks for the new leader and sends again
//! **with the same gid**: a gid is the idempotency key, so a repeat is the same transaction and never a second one.
//!
//! What a caller is told is one of three: committed, rolled back, or *unknown*. Unknown is an [`Outcome`], not an error:
//! the transaction may be decided at any moment; ask again with [`Client::wait`] and the gid. An error says either that
//! the request was refused (it will be again), that nothing happened (make it again), or that it may have happened (ask by gid).
//!
//! ```no_run
//! # async fn run() -> Result<(), holdfast_client::ClientError> {
//! use holdfast_client::{Client, ClientOptions, Outcome, Submission};
//!
//! let client = Client::connect(["127.0.0.1:7401"], ClientOptions::default()).await?;
//! let transfer = Submission::tcc()
//!     .branch("deposit@shard-1", r#"{"debit":{"account":"1","amount_minor":"500","currency":"EUR"}}"#)
//!     .branch("deposit@shard-2", r#"{"credit":{"account":"2","amount_minor":"500","currency":"EUR"}}"#);
//! let answer = client.submit(transfer).await?;
//! match answer.outcome {
//!     Outcome::Committed => { /* the money moves */ }
//!     Outcome::RolledBack { reason } => { /* it does not, and this is why */ drop(reason) }
//!     Outcome::Unknown => { /* keep answer.gid and ask again */ }
//! }
//! # Ok(())
//! # }
//! ```

mod answer;
mod client;
mod error;
mod filter;
mod groups;
mod hold;
mod leader;
mod link;
mod nested;
mod operating;
mod operator;
mod options;
mod second_phase;
mod spans;
mod submission;
mod unary;

/// Messages of `holdfast.v1`, as they go over the wire.
pub use holdfast_proto::v1 as wire;

/// What [`ClientOptions`] are told of certificates and tokens.
pub use holdfast_security::{Credentials, Files, Token};

pub use answer::{Answer, Branch, Mode, Outcome, Page, Status, Transaction};
pub use client::Client;
pub use error::{ClientError, ErrorKind};
pub use filter::Filter;
pub use groups::{LEADS_HERE, group_of};
pub use hold::Hold;
pub use link::{Bearer, FORWARD_HEADER, FORWARD_NEVER, Line, Link, Lost, OpenError, channel};
pub use operator::Change;
pub use options::ClientOptions;
pub use second_phase::Finished;
pub use submission::{BranchSpec, Order, Recovery, Submission, Terms, Wait};
