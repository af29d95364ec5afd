//! What the machine can be told, and what it answers.

use crate::{
    BranchId, BranchSpec, Captures, Decision, Deed, Digest, Gid, Mode, Op, Options, Remedy, Status,
    digest,
};

/// A command, as the log holds it. Ids are made and times stamped by whoever proposes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Begins a transaction. Declared style: all branches, nothing more to come. Enlisted style: no branches yet.
    Begin {
        /// Its id, which is the idempotency key.
        gid: Gid,
        /// Its rules.
        mode: Mode,
        /// With defaults filled in.
        options: Options,
        /// Declared: at least one. Enlisted: empty.
        branches: Vec<BranchSpec>,
        /// Whether branches come later.
        enlisted: bool,
        /// Hash of all this but the gid, by which a repeat is known, as [`Command::hashed`] makes it; without it, it is made where the
        /// command is applied.
        content: Option<Digest>,
    },
    /// Adds a branch to an active transaction.
    AddBranch {
        /// The transaction.
        gid: Gid,
        /// The number the caller expects it to get; a repeat is known by it.
        branch: BranchId,
        /// What is asked for.
        spec: BranchSpec,
    },
    /// Adds a branch on behalf of another one whose first-phase call is under way, also to a transaction that is declared or
    /// submitted: a participant that needs others nests them. It answers its own call only behind this.
    Nest {
        /// The transaction.
        gid: Gid,
        /// The branch that is being called.
        parent: BranchId,
        /// The number the new one is expected to get; a repeat is known by it.
        branch: BranchId,
        /// What is asked for.
        spec: BranchSpec,
    },
    /// Closes an active transaction: it shall commit if every branch can.
    Submit {
        /// The transaction.
        gid: Gid,
        /// TCC: what confirms carry in place of what their tries carried.
        captures: Captures,
    },
    /// Asks for rollback.
    RollBack {
        /// The transaction.
        gid: Gid,
        /// Why, for people.
        reason: String,
    },
    /// What participants answered. A report that is repeated, late or from an old leader changes nothing.
    Report {
        /// The transaction.
        gid: Gid,
        /// In the order in which they were heard.
        reports: Vec<Report>,
    },
    /// The deadline seems to have passed; judged by the time of the entry.
    Expire {
        /// The transaction.
        gid: Gid,
    },
    /// An operator's word to a transaction that needs attention: go on from where it was interrupted.
    Retry {
        /// The transaction.
        gid: Gid,
        /// Why, for people.
        reason: String,
    },
    /// Asks for rollback as [`Command::RollBack`] does, and of a gid that nobody knows: it is recorded as rolled back, so that it
    /// can never be begun (while it is remembered, as every finished one is). The proof that something prepared under this
    /// gid, which no coordinator knows, may be rolled back.
    Fence {
        /// The transaction.
        gid: Gid,
        /// Why, for people.
        reason: String,
    },
    /// The caller's word that it has carried out the second phase of an XA transaction at these branches. Repeats change
    /// nothing.
    Finish {
        /// The transaction.
        gid: Gid,
        /// Which; empty: every branch.
        branches: Vec<BranchId>,
        /// What it did to them: it must be what was decided.
        decision: Decision,
    },
    /// An operator's act, written into the audit trail if it does anything.
    Operate {
        /// The transaction.
        gid: Gid,
        /// What is to be done.
        act: Act,
        /// Who does it, as the door knows it. Whether two acts come of one person is decided by this text alone.
        by: String,
        /// Why, for people.
        reason: String,
    },
    /// Puts shard rules into force that the proposer has checked.
    SetRules {
        /// The rules, as their file has them.
        text: String,
        /// The epoch of the rules that they follow; 0: there are none. Otherwise nothing is done.
        expected: u64,
        /// Who does it.
        by: String,
        /// Why, for people.
        reason: String,
    },
    /// Writes into the audit trail what somebody did elsewhere than in this machine, or was refused.
    Note {
        /// What was done.
        deed: Deed,
    },
}

/// What an operator does to a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// As [`Command::Retry`].
    Retry,
    /// As [`Command::RollBack`].
    RollBack,
    /// What can lose money is proposed, and waits for another person.
    Propose(Remedy),
    /// Another person's yes: what was proposed is done.
    Approve,
}

impl Command {
    /// The same, with the hash of its content: made once where it is proposed, it need not be made wherever it is applied.
    #[must_use]
    pub fn hashed(mut self) -> Self {
        if let Self::Begin { gid: _, mode, options, branches, enlisted, content } = &mut self {
            *content = Some(digest::of_content(*mode, options, branches, *enlisted));
        }
        self
    }

    /// The transaction that it is about, if it is about one.
    #[must_use]
    pub fn gid(&self) -> Option<&Gid> {
        match self {
            Self::SetRules { .. } | Self::Note { .. } => None,
            Self::Begin { gid, .. }
            | Self::AddBranch { gid, .. }
            | Self::Nest { gid, .. }
            | Self::Submit { gid, .. }
            | Self::RollBack { gid, .. }
            | Self::Report { gid, .. }
            | Self::Expire { gid }
            | Self::Retry { gid, .. }
            | Self::Fence { gid, .. }
            | Self::Finish { gid, .. }
            | Self::Operate { gid, .. } => Some(gid),
        }
    }
}

/// One participant's answer to one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Which branch.
    pub branch: BranchId,
    /// Which operation.
    pub op: Op,
    /// What it said.
    pub answer: Answer,
}

/// Answers worth a record. *Working* and *unknown* are asked again and stay in the leader's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done, now or before.
    Done,
    /// Final, for a business reason; nothing was done.
    Refused(Refusal),
    /// The leader has asked [`crate::RetryPolicy::attempts_max`] times without an answer.
    GivenUp {
        /// How often it asked.
        attempts: u32,
        /// The last fault, for people.
        last: String,
    },
}

/// A participant's words. Never decided upon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// For programs, for example `insufficient_funds`.
    pub code: String,
    /// For people.
    pub message: String,
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The status change, if there was one.
    pub moved: Option<Moved>,
    /// The command was known already, with the same content, or came too late to matter.
    pub repeated: bool,
}

/// A status change: from before the command to after it, by one legal move or by several (*active* to *committed* is one
/// step for a caller and two for the rules).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// From; `None` for a begin.
    pub from: Option<Status>,
    /// To.
    pub to: Status,
}

/// Why a command is refused. Deterministic: every node refuses it alike, and nothing changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// HF2001.
    #[error(
        "no global transaction {gid} is known. It was never begun, or it finished so long ago that it is forgotten; ask the history"
    )]
    UnknownGid {
        /// The gid asked for.
        gid: Gid,
    },
    /// HF2002.
    #[error(
        "gid {gid} belongs to another transaction with other content. Take a new gid, or send exactly what was sent first"
    )]
    GidTaken {
        /// The gid.
        gid: Gid,
    },
    /// HF2003.
    #[error(
        "branch {branch} of {gid} exists with other content, or leaves a gap. Number the branches from 1 without a gap; the next one is {next}"
    )]
    BranchTaken {
        /// The transaction.
        gid: Gid,
        /// The number given.
        branch: BranchId,
        /// The number that is free.
        next: BranchId,
    },
    /// HF2004.
    #[error(
        "{gid} has the status '{status}', in which {wanted} is not possible. Ask for the transaction to see how it got there"
    )]
    WrongStatus {
        /// The transaction.
        gid: Gid,
        /// Where it is.
        status: Status,
        /// What was asked.
        wanted: &'static str,
    },
    /// HF2005.
    #[error("{what} is {measured}, allowed is {allowed}. {remedy}")]
    OutOfRange {
        /// What is out of range.
        what: &'static str,
        /// What was given.
        measured: u64,
        /// Bounds in words.
        allowed: String,
        /// What to do.
        remedy: &'static str,
    },
    /// HF2006.
    #[error("{gid}: {what}")]
    Malformed {
        /// The transaction.
        gid: Gid,
        /// What does not fit together, and the remedy.
        what: String,
    },
    /// HF2007.
    #[error(
        "{open} transactions are open, which is the limit. Nothing happened; try again when some have finished"
    )]
    TooManyOpen {
        /// How many are open.
        open: usize,
    },
    /// HF2008.
    #[error(
        "{gid} was fenced: it was rolled back before it was begun, since nobody knew it. Roll back what is prepared under it, and begin anew with another gid"
    )]
    Fenced {
        /// The gid.
        gid: Gid,
    },
    /// HF2009.
    #[error(
        "the shard rules are at epoch {epoch} and were expected at {expected}: somebody changed them meanwhile. Nothing changed; read them, plan anew, and apply with the epoch that is there"
    )]
    RulesChanged {
        /// The epoch that is there.
        epoch: u64,
        /// The epoch that was expected.
        expected: u64,
    },
    /// HF2010.
    #[error(
        "{gid}: {by} proposed this and cannot approve it. Nothing changed; another person must look at it and approve"
    )]
    SecondPerson {
        /// The transaction.
        gid: Gid,
        /// Who proposed it.
        by: String,
    },
    /// HF2011.
    #[error(
        "{gid}: {what}. Nothing changed; look at the transaction, and propose what is to be done"
    )]
    Proposal {
        /// The transaction.
        gid: Gid,
        /// What is with the proposal.
        what: String,
    },
}

impl Rejection {
    /// The code, with a page in docs/reference/errors.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownGid { .. } => "HF2001",
            Self::GidTaken { .. } => "HF2002",
            Self::BranchTaken { .. } => "HF2003",
            Self::WrongStatus { .. } => "HF2004",
            Self::OutOfRange { .. } => "HF2005",
            Self::Malformed { .. } => "HF2006",
            Self::TooManyOpen { .. } => "HF2007",
            Self::Fenced { .. } => "HF2008",
            Self::RulesChanged { .. } => "HF2009",
            Self::SecondPerson { .. } => "HF2010",
            Self::Proposal { .. } => "HF2011",
        }
    }
}
