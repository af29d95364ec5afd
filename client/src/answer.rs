//! What a program is told: an outcome of three, and the transaction as it is known.

use std::{collections::BTreeMap, fmt};

use holdfast_proto::Pairs;

use crate::wire;

/// The fate of a global transaction, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Decided: all branches take effect.
    Committed,
    /// Decided: no branch takes effect.
    RolledBack {
        /// Why, for people.
        reason: String,
    },
    /// Not decided, or not known here. Never a failure: ask again with the gid.
    Unknown,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The transaction.
    pub gid: String,
    /// Its fate.
    pub outcome: Outcome,
    /// The same request was carried out before; nothing was done twice.
    pub repeated: bool,
    /// As the coordinator knows it; `None` where no coordinator could be asked in time.
    pub transaction: Option<Transaction>,
    /// What an operator proposed to end it by hand, while it waits for a second person.
    pub proposal: Option<wire::OpenProposal>,
}

/// A page of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In gid order.
    pub transactions: Vec<Transaction>,
    /// There are more behind this gid.
    pub next_after: Option<String>,
}

/// Which rules a transaction lives by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Try, confirm, cancel.
    Tcc,
    /// Actions, compensated in reverse.
    Saga,
    /// Prepare, commit, roll back.
    Xa,
}

impl Mode {
    /// The mode on the wire.
    #[must_use]
    pub fn to_wire(self) -> wire::Mode {
        match self {
            Self::Tcc => wire::Mode::Tcc,
            Self::Saga => wire::Mode::Saga,
            Self::Xa => wire::Mode::Xa,
        }
    }
}

/// Where a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Begun, open for branches.
    Active,
    /// Every branch is asked to place its hold.
    Trying,
    /// Actions run.
    Running,
    /// Decided: every branch is told to confirm.
    Committing,
    /// Decided: every branch is told to cancel.
    RollingBack,
    /// Decided: what was done is compensated.
    Compensating,
    /// The end: every branch took effect.
    Committed,
    /// The end: no branch has an effect.
    RolledBack,
    /// A branch can never finish by itself; people must look.
    NeedsAttention,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 9] = [
        Self::Active,
        Self::Trying,
        Self::Running,
        Self::Committing,
        Self::RollingBack,
        Self::Compensating,
        Self::Committed,
        Self::RolledBack,
        Self::NeedsAttention,
    ];

    /// The word in JSON and in filters, for example `rolling_back`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Trying => "trying",
            Self::Running => "running",
            Self::Committing => "committing",
            Self::RollingBack => "rolling_back",
            Self::Compensating => "compensating",
            Self::Committed => "committed",
            Self::RolledBack => "rolled_back",
            Self::NeedsAttention => "needs_attention",
        }
    }

    /// Nothing is owed any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Committed | Self::RolledBack)
    }

    /// The status on the wire.
    #[must_use]
    pub fn to_wire(self) -> wire::Status {
        match self {
            Self::Active => wire::Status::Active,
            Self::Trying => wire::Status::Trying,
            Self::Running => wire::Status::Running,
            Self::Committing => wire::Status::Committing,
            Self::RollingBack => wire::Status::RollingBack,
            Self::Compensating => wire::Status::Compensating,
            Self::Committed => wire::Status::Committed,
            Self::RolledBack => wire::Status::RolledBack,
            Self::NeedsAttention => wire::Status::NeedsAttention,
        }
    }

    /// The status named on the wire; `None` for one that this program does not know.
    #[must_use]
    pub fn from_wire(status: wire::Status) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.to_wire() == status)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A global transaction as the coordinator knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Its id.
    pub gid: String,
    /// Its rules; `None` for a mode that this program does not know.
    pub mode: Option<Mode>,
    /// Where it is; `None` for a status that this program does not know.
    pub status: Option<Status>,
    /// Numbered from 1 in this order.
    pub branches: Vec<Branch>,
    /// ms since epoch, UTC.
    pub begun_at_ms: u64,
    /// When it is rolled back if it is not decided, ms since epoch, UTC.
    pub deadline_ms: u64,
    /// ms since epoch, UTC.
    pub decided_at_ms: Option<u64>,
    /// ms since epoch, UTC.
    pub finished_at_ms: Option<u64>,
    /// Why it rolls back or needs attention; empty otherwise.
    pub reason: String,
    /// Business tags.
    pub tags: BTreeMap<String, String>,
}

/// One participant's part, as the coordinator knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// From 1.
    pub branch: u32,
    /// Who serves it.
    pub participant: String,
    /// pending, done, refused, confirmed, undone.
    pub state: String,
    /// The participant's code, if it refused.
    pub refusal_code: String,
    /// The participant's words, if it refused.
    pub refusal_message: String,
}

impl From<wire::Transaction> for Transaction {
    fn from(wire: wire::Transaction) -> Self {
        let mode = match wire.mode() {
            wire::Mode::Tcc => Some(Mode::Tcc),
            wire::Mode::Saga => Some(Mode::Saga),
            wire::Mode::Xa => Some(Mode::Xa),
            wire::Mode::Unspecified => None,
        };
        Self {
            mode,
            status: Status::from_wire(wire.status()),
            branches: wire.branches.into_iter().map(Branch::from).collect(),
            begun_at_ms: wire.begun_at_ms,
            deadline_ms: wire.deadline_ms,
            decided_at_ms: Some(wire.decided_at_ms).filter(|ms| *ms > 0),
            finished_at_ms: Some(wire.finished_at_ms).filter(|ms| *ms > 0),
            reason: wire.reason,
            tags: Pairs::from(wire.tags).owned().collect(),
            gid: wire.gid,
        }
    }
}

impl From<wire::Branch> for Branch {
    fn from(wire: wire::Branch) -> Self {
        Self {
            branch: wire.branch,
            participant: wire.participant,
            state: wire.state,
            refusal_code: wire.refusal_code,
            refusal_message: wire.refusal_message,
        }
    }
}

impl Answer {
    /// From a reply about `gid`. An outcome that this program does not know is unknown.
    pub(crate) fn of(gid: String, reply: wire::TransactionReply) -> Self {
        let outcome = reply.outcome();
        let (transaction, proposal) = (reply.transaction.map(Transaction::from), reply.proposal);
        let outcome = match outcome {
            wire::Outcome::Committed => Outcome::Committed,
            wire::Outcome::RolledBack => Outcome::RolledBack {
                reason: transaction.as_ref().map(|known| known.reason.clone()).unwrap_or_default(),
            },
            wire::Outcome::Unspecified | wire::Outcome::Unknown => Outcome::Unknown,
        };
        Self { gid, outcome, repeated: reply.repeated, transaction, proposal }
    }

    /// Nobody could be asked in time.
    pub(crate) fn unknown(gid: String) -> Self {
        Self { gid, outcome: Outcome::Unknown, repeated: false, transaction: None, proposal: None }
    }

    /// All branches take effect.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        self.outcome == Outcome::Committed
    }

    /// Where the transaction is, if known.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        self.transaction.as_ref().and_then(|known| known.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_that_is_not_known_is_never_a_failure() {
        for outcome in [0, 3, 77] {
            let reply = wire::TransactionReply { outcome, ..Default::default() };
            assert_eq!(Answer::of("g".into(), reply).outcome, Outcome::Unknown, "{outcome}");
        }
    }

    #[test]
    fn every_status_has_its_number_and_its_word() {
        for status in Status::ALL {
            assert_eq!(Status::from_wire(status.to_wire()), Some(status));
            assert!(!status.as_str().contains(' '));
        }
        assert_eq!(Status::from_wire(wire::Status::Unspecified), None);
    }
}
