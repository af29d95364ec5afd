//! A global transaction as plain data: what was asked for, and how far it is.

use std::fmt;

use bytes::Bytes;

use crate::{
    BranchId, BranchState, Captures, Decision, Digest, Gid, Headers, Labels, Mode, Next, Op,
    Participant, Refusal, Report, Status, Timestamp,
    mode::{View, position},
};

/// Everything the machine knows of one global transaction. Plain data: the shell reads it and records it whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalTransaction {
    /// Its id.
    pub gid: Gid,
    /// Its rules.
    pub mode: Mode,
    /// What the caller chose, with defaults filled in.
    pub options: Options,
    /// Hash of the content that began it: a repeat must match.
    pub content: Digest,
    /// Begun in the enlisted style: branches come one by one until submit.
    pub enlisted: bool,
    /// Where it is.
    pub status: Status,
    /// While it needs attention: where it was, and goes on from when told to retry.
    pub interrupted: Option<Status>,
    /// Its branches, numbered from 1 in this order.
    pub branches: Vec<Branch>,
    /// What confirms carry in place of what their tries carried; said by the submit, emptied at the end.
    pub captures: Captures,
    /// When it began, by the log's time.
    pub begun_at: Timestamp,
    /// When it is rolled back if it is not decided.
    pub deadline: Timestamp,
    /// Which way it goes, once known; never changes.
    pub decision: Option<Decision>,
    /// When that was decided.
    pub decided_at: Option<Timestamp>,
    /// When the last branch finished.
    pub finished_at: Option<Timestamp>,
    /// Saga: its pivot may have been called. From then on neither the deadline nor a rollback ends it, unless the pivot
    /// itself refuses.
    pub pivot_reached: bool,
    /// Why it rolls back, needed attention or was retried, for people; newest first, at most
    /// [`crate::limit::REASON_BYTES_MAX`] bytes.
    pub reason: Option<String>,
}

/// One participant's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// What was asked for. The payload is emptied at the end of the transaction.
    pub spec: BranchSpec,
    /// How far it is.
    pub state: BranchState,
    /// The participant's words, if it refused. Beside *pending* and *done*, the refusal is one that waits for people, and
    /// that a retry forgets.
    pub refusal: Option<Box<Refusal>>,
}

/// What a caller asks of one participant.
#[derive(Clone, PartialEq, Eq)]
pub struct BranchSpec {
    /// Who serves it.
    pub participant: Participant,
    /// Handed to the participant as it is; never looked into.
    pub payload: Bytes,
    /// Branches that must be done before this one starts. `None`: as [`Options::order`] says.
    pub after: Option<Vec<BranchId>>,
    /// Saga: once this step is reached, the deadline no longer ends the transaction; once it is done, only forward.
    pub pivot: bool,
}

/// Leaves the payload out: what a log line prints by mistake is no customer's data.
impl fmt::Debug for BranchSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BranchSpec")
            .field("participant", &self.participant)
            .field("payload_bytes", &self.payload.len())
            .field("after", &self.after)
            .field("pivot", &self.pivot)
            .finish()
    }
}

/// What the caller chose for the whole transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// From begin to decision, ms, 1 to [`crate::limit::TIMEOUT_MS_MAX`].
    pub timeout_ms: u64,
    /// For one call to a participant, ms, 1 to `timeout_ms`.
    pub call_timeout_ms: u64,
    /// Pauses between calls that are asked again. Pacing itself is the leader's memory, never replicated.
    pub retry: RetryPolicy,
    /// Whether branches wait for each other, where they do not say so themselves.
    pub order: Order,
    /// Where a Saga goes when a step cannot be done.
    pub recovery: Recovery,
    /// Who makes the first-phase calls.
    pub tried_by: TriedBy,
    /// Carried by every branch call, also after failover.
    pub headers: Headers,
    /// Business tags to search by.
    pub tags: Labels,
    /// XA: for so long after the decision the second phase is left to the caller, who says [`crate::Command::Finish`]; then
    /// the coordinator makes the calls. Pacing, as `retry`. ms, 0 to [`crate::limit::SECOND_PHASE_GRACE_MS_MAX`].
    pub second_phase_grace_ms: u64,
}

/// How an operation with an unknown answer is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The first pause, ms.
    pub first_ms: u64,
    /// The longest pause, ms.
    pub ceiling_ms: u64,
    /// Attempts before the transaction needs attention; 0 = never give up.
    pub attempts_max: u32,
}

/// Whether branches wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Order {
    /// Each branch starts when the one before it is done; undone last first.
    Sequential,
    /// All at once.
    Concurrent,
}

/// Where a Saga goes when a step cannot be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Recovery {
    /// A refusal or the deadline compensates.
    Backward,
    /// The deadline does not end it, and a refusal needs attention.
    Forward,
}

/// Who makes the first-phase calls of a TCC or XA transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TriedBy {
    /// The coordinator.
    Coordinator,
    /// The program; its submit, or the begin of a declared XA transaction, is its word that all are tried or prepared.
    Caller,
}

impl Options {
    /// The defaults of `mode`: 30 s in all, 3 s a call, pauses 100 ms to 10 s without end; Saga sequential, the others
    /// concurrent; XA prepared by the caller.
    #[must_use]
    pub fn of(mode: Mode) -> Self {
        Self {
            timeout_ms: 30_000,
            call_timeout_ms: 3_000,
            retry: RetryPolicy { first_ms: 100, ceiling_ms: 10_000, attempts_max: 0 },
            order: match mode {
                Mode::Tcc | Mode::Xa => Order::Concurrent,
                Mode::Saga => Order::Sequential,
            },
            recovery: Recovery::Backward,
            tried_by: match mode {
                Mode::Tcc | Mode::Saga => TriedBy::Coordinator,
                Mode::Xa => TriedBy::Caller,
            },
            headers: Headers::EMPTY,
            tags: Labels::EMPTY,
            second_phase_grace_ms: 0,
        }
    }
}

impl GlobalTransaction {
    /// As [`crate::Machine::owed`], for a transaction that is at hand.
    #[must_use]
    pub fn owed(&self, heard: &[Report]) -> Next {
        View::hearing(self, heard).next()
    }

    /// The branch with this number.
    #[must_use]
    pub fn branch(&self, id: BranchId) -> Option<&Branch> {
        self.branches.get((id.0 as usize).checked_sub(1)?)
    }

    /// Whether a refusal of the branch's first-phase operation would leave the transaction to people, who can have it asked for again,
    /// and not turn it back: that of a Saga which goes forward only, or of a step beside or behind a pivot that is reached. False for a
    /// branch that is not there.
    #[must_use]
    pub fn refusal_waits(&self, id: BranchId) -> bool {
        position(id)
            .filter(|&index| index < self.branches.len())
            .is_some_and(|index| !self.mode.rules().refusal_turns_back(&View::of(self), index))
    }

    /// What a call for `op` carries to the branch with this number.
    #[must_use]
    pub fn payload(&self, id: BranchId, op: Op) -> Option<&Bytes> {
        let tried = &self.branch(id)?.spec.payload;
        match op {
            Op::Confirm => Some(self.captures.of(id).unwrap_or(tried)),
            Op::Try
            | Op::Cancel
            | Op::Action
            | Op::Compensate
            | Op::Prepare
            | Op::Commit
            | Op::RollBack => Some(tried),
        }
    }

    /// Where it is, or was before it needed attention: says which operation its branches are asked for.
    #[must_use]
    pub fn phase(&self) -> Status {
        self.interrupted.unwrap_or(self.status)
    }

    /// Every branch with its number.
    pub fn numbered(&self) -> impl Iterator<Item = (BranchId, &Branch)> {
        (1..).map(BranchId).zip(&self.branches)
    }
}
