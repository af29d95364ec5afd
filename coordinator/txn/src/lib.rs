//! The transaction machine: a mind that decides the fate of global transactions.
//!
//! It is told everything (commands, time, ids) and touches nothing. [`Machine::apply`] is total and deterministic: the same
//! commands in the same order give the same state, and the same [`Machine::state_hash`], on every node. [`Machine::due`] and
//! [`Machine::owed`] say what the world is owed, from state alone, so there is no recovery code: a leader asks, makes the
//! calls and proposes reports of the answers; a new leader just asks.
//!
//! # The modes
//!
//! Two phases, and a decision between them that never changes. What is not drawn never happens ([`Status::may_become`]
//! is asserted at every move, also in release).
//!
//! ```text
//! TCC   begin --> trying ------------ all done ----------> committing ---> committed
//!                 |  ^                                     confirm all
//!                 |  submit
//!       begin --> |  active
//!                 |  |
//!                 refused, deadline, rollback, given up -> rolling back -> rolled back
//!                                                          cancel ALL
//!
//! Saga  begin --> running ----------- all done --------------------------> committed
//!                 |  ^
//!                 |  submit
//!       begin --> |  active
//!                 |  |
//!                 refused, deadline, rollback, given up -> compensating -> rolled back
//!                                                          last first
//!
//! XA    begin --> committing (the caller has prepared every branch: begin and decision are one entry) ---> committed
//!                                                                                               commit all
//!       otherwise as TCC, with the verbs prepare, commit and roll back
//!
//! needs attention: from any of them, when a branch can never finish by itself; back to where it was by a retry.
//! ```
//!
//! *Declared* transactions begin with all their branches; *enlisted* ones are *active* until they are submitted, and
//! their first-phase operations are called as they are added. With [`TriedBy::Caller`] the coordinator makes no tries:
//! the submit is the caller's word that all holds are placed, and decides. The submit of an enlisted TCC transaction may say what
//! the confirm of a branch carries in place of what its try carried ([`Captures`]): that less is captured than is held. XA knows that word for declared transactions too
//! ([`mode`]: `xa.rs`): the begin decides.
//!
//! **TCC** cancels every branch, also one that refused or was never called: a delayed duplicate of its try must find an
//! empty cancel. **Saga** compensates what is done and what may have been done, in the reverse of the order that
//! [`BranchSpec::after`] and [`Options::order`] make. It leaves alone what did nothing: a branch that refused, and
//! branches that can never have been called because they come behind a refused one or behind a pivot that is not reached.
//!
//! The **pivot** of a Saga is the step behind which there is only forward. It is called only after the log says that it
//! is reached ([`GlobalTransaction::pivot_reached`], [`Next::Record`]): otherwise a leader that knows nothing of the call
//! could let the deadline compensate around a pivot that ran. From then on neither deadline nor rollback ends the
//! transaction; only the pivot's own refusal opens the way back. With [`Recovery::Forward`] the deadline never counts and
//! a refusal calls people, who may still roll back by hand. So an enlisted forward Saga that is never submitted stays
//! open until somebody does.
//!
//! **Needs attention** keeps the decision, the evidence and the way on: a refused or given-up second phase, and a first
//! phase that can go neither on nor back. It owes no calls and has no deadline. Answers that still come in are written
//! down; only [`Command::Retry`] (or a rollback, if nothing is decided) moves it, or two people: what can lose money, to mark a
//! branch done or refused and to abandon ([`Remedy`]), is proposed by one operator and approved by another.
//!
//! # The books
//!
//! Beside transactions the machine keeps [`Books`]: the shard rules with their epoch, open proposals, and the audit trail, in
//! which each record bears the hash of the one before. They are replicated because they must outlive every node and be the same
//! everywhere; the machine decides nothing about a transaction from them but who may approve.
//!
//! # Progress is volatile, on purpose
//!
//! That a try is done is worth nothing to anybody until it makes a decision. So a leader keeps answers in memory, hands
//! them to [`Machine::owed`], and proposes a [`Command::Report`] of all of them only when they are worth a durable write:
//! a decision, an end, a call for people, a pivot. A two-branch transaction costs three entries: begin, decision, end.
//!
//! This is safe because nothing is concluded from an answer that is *not* in the log. A new leader knows less and asks
//! again: the participant's barrier answers a repeat from its row. A rollback treats a branch without an answer as one
//! that may have run. And a leader foresees by the very rules that `apply` uses, on a view of the same transaction, so
//! what it foresees is what happens when its report is applied, unless another command came first; then the report is
//! late and changes nothing.
//!
//! Three duties are the caller's: report all that was heard, in the order in which it was heard; forget it once it is
//! applied, and when a retry is applied; and ask `owed` again after every command that touches a transaction.
//!
//! ```
//! use holdfast_txn::{
//!     Answer, BranchId, BranchSpec, Command, Gid, Machine, Mode, Next, Op, Options, Participant,
//!     Report, Status, Timestamp,
//! };
//!
//! let gid = Gid::parse("rent-2024-05").unwrap();
//! let branch = |name| BranchSpec {
//!     participant: Participant::parse(name).unwrap(),
//!     payload: "50.00 EUR".into(),
//!     after: None,
//!     pivot: false,
//! };
//! let mut machine = Machine::new();
//! let begin = Command::Begin {
//!     gid: gid.clone(),
//!     mode: Mode::Tcc,
//!     options: Options::of(Mode::Tcc),
//!     branches: vec![branch("debit@shard-1"), branch("credit@shard-2")],
//!     enlisted: false,
//!     content: None,
//! };
//! machine.apply(Timestamp(0), begin).unwrap();
//!
//! // A leader hears both answers; the first alone is worth no entry.
//! let done = |branch| Report { branch: BranchId(branch), op: Op::Try, answer: Answer::Done };
//! let mut heard = vec![done(1)];
//! assert_eq!(machine.owed(&gid, &heard), Next::Call(vec![(BranchId(2), Op::Try)]));
//! heard.push(done(2));
//! assert!(matches!(machine.owed(&gid, &heard), Next::Become(Status::Committing, _)));
//! machine.apply(Timestamp(5), Command::Report { gid: gid.clone(), reports: heard }).unwrap();
//! assert_eq!(machine.get(&gid).unwrap().status, Status::Committing);
//! ```
//!
//! # Cost
//!
//! A command and an `owed` cost by the branches of one transaction; `due`, `census` and `next_deadline` by their answer.
//! An open transaction of two branches takes about 800 bytes beside its payloads (`cargo bench -p holdfast-txn`).
//! [`limit`] bounds everything; a finished transaction gives up its payloads and stays as long as the window of
//! idempotent gids lasts.
//!
//! # What is deliberately absent
//!
//! - No clock: a deadline is judged by the time of log entries, and `due` by the time it is given.
//! - No pacing: when to ask again, breakers and backoff are a leader's memory. The machine only hears that it gave up.
//! - No *failed*: an answer is done, refused or unknown, and unknown never decides for commit.
//! - No look into payloads, headers or words: nothing is decided from text.
//! - No way to drop a transaction, and none for one person to end one by hand.
//! - No look into shard rules: whoever proposes them checks them.
//! - No encoding: how entries and snapshots look on disk is the shell's; the canonical encoding here is hashed only.

#![warn(clippy::wildcard_enum_match_arm)]

mod books;
mod captures;
mod command;
mod digest;
mod headers;
mod ids;
mod labels;
mod machine;
pub mod mode;
mod status;
mod transaction;

pub use books::{
    AuditRecord, Books, Broken, Deed, Proposal, Remedy, RulesVersion, Trail, check_chain,
};
pub use captures::Captures;
pub use command::{Act, Answer, Command, Moved, Outcome, Refusal, Rejection, Report};
pub use headers::{Headers, Traceparent, TraceparentText};
pub use ids::{BadGid, BadName, BranchId, Digest, Gid, Participant, Timestamp};
pub use labels::Labels;
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
    /// How long the second phase of an XA transaction may be left to its caller, ms.
    pub const SECOND_PHASE_GRACE_MS_MAX: u64 = 10_000;
    /// Open transactions; one more begin is rejected.
    pub const OPEN_MAX: usize = 2_000_000;
    /// Bytes of the text of the shard rules.
    pub const RULES_BYTES_MAX: usize = 512 * 1024;
    /// Versions of the shard rules that are kept, oldest forgotten first.
    pub const RULES_KEPT_MAX: usize = 8;
    /// Audit records that the machine keeps, oldest forgotten first: by then they are exported.
    pub const AUDIT_KEPT_MAX: usize = 20_000;
    /// Remedies that wait for a second person.
    pub const PROPOSALS_MAX: usize = 1_024;
    /// How long a second person may take, ms.
    pub const PROPOSAL_MS: u64 = 3_600_000;
    /// Finished transactions that the machine remembers, oldest forgotten first: the window of idempotent gids.
    pub const FINISHED_MAX: usize = 200_000;
}
