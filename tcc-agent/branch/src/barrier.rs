//! The verdict table: what the rows of a branch say about one more call.

use std::{collections::BTreeMap, fmt};

use crate::Op;

/// How an operation ended, as its row keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect, or there was nothing to do.
    Done,
    /// It was refused for a business reason and left no effect. Kept for try and action alone.
    Refused {
        /// The participant's code, for people.
        code: String,
        /// The participant's words, for people.
        message: String,
    },
    /// It is under way at the participant, which is to be asked again.
    Working,
}

impl Outcome {
    /// The name, as in barrier rows.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused { .. } => "refused",
            Self::Working => "working",
        }
    }
}

/// One row of the barrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The operation that the row stands for.
    pub op: Op,
    /// The operation that wrote it. Where it is another one, the row blocks `op` for good.
    pub by: Op,
    /// How it ended.
    pub outcome: Outcome,
}

/// The rows of one (gid, branch) that were there before the call at hand claimed its own; at most one an operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    rows: BTreeMap<Op, Row>,
}

impl Record {
    /// The row of that operation.
    #[must_use]
    pub fn row(&self, op: Op) -> Option<&Row> {
        self.rows.get(&op)
    }

    /// Puts a row in place of the one its operation had.
    pub fn put(&mut self, row: Row) {
        self.rows.insert(row.op, row);
    }

    /// Takes the row of that operation away.
    pub fn remove(&mut self, op: Op) {
        self.rows.remove(&op);
    }

    /// All rows, by the operation's name.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    /// The row that the operation wrote itself, unless another one blocks it.
    fn own(&self, op: Op) -> Option<&Row> {
        self.row(op).filter(|row| row.by == op)
    }
}

impl FromIterator<Row> for Record {
    fn from_iter<T: IntoIterator<Item = Row>>(rows: T) -> Self {
        Self { rows: rows.into_iter().map(|row| (row.op, row)).collect() }
    }
}

/// What the barrier says about a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The participant carries it out: for the first time, or again because it was under way.
    Proceed,
    /// It ended before: the same answer again, without the participant.
    Repeat(Outcome),
    /// An undo of what never took effect: recorded, answered done, without the participant.
    Empty,
    /// A try or action behind its undo: refused with [`LATE_CODE`], without the participant, never answered done.
    Late,
    /// A call that no coordinator makes: answered unknown, never done. People must look.
    Disorder(Disorder),
}

/// The code of a late try or action.
pub const LATE_CODE: &str = "HF4101";

/// What a late try or action is told.
pub const LATE_MESSAGE: &str = "late_try: this branch was cancelled or compensated before; nothing was done. Begin a new global transaction.";

/// Why a call makes no sense after what was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Disorder {
    /// Confirm, but no try is recorded (or its local transaction has not ended yet).
    ConfirmWithoutTry,
    /// Confirm, but the try was refused.
    ConfirmOfRefused,
    /// Confirm, but the try is still under way.
    ConfirmOfWorking,
    /// Confirm, but the branch was cancelled.
    ConfirmAfterCancel,
    /// Cancel, but the branch was confirmed.
    CancelAfterConfirm,
    /// A try of a branch that has a confirm but no try.
    TryMissing,
    /// A verb of TCC for a branch of a Saga, or the other way round, or one of XA, which has no barrier.
    OtherMode,
}

impl Disorder {
    /// Every disorder.
    pub const ALL: [Self; 7] = [
        Self::ConfirmWithoutTry,
        Self::ConfirmOfRefused,
        Self::ConfirmOfWorking,
        Self::ConfirmAfterCancel,
        Self::CancelAfterConfirm,
        Self::TryMissing,
        Self::OtherMode,
    ];

    /// The code, for people.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::ConfirmWithoutTry | Self::ConfirmOfRefused | Self::ConfirmOfWorking => "HF4102",
            Self::ConfirmAfterCancel => "HF4103",
            Self::CancelAfterConfirm => "HF4104",
            Self::TryMissing => "HF4105",
            Self::OtherMode => "HF4106",
        }
    }
}

impl fmt::Display for Disorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConfirmWithoutTry => "confirm without a try",
            Self::ConfirmOfRefused => "confirm of a try that was refused",
            Self::ConfirmOfWorking => "confirm of a try that is still under way",
            Self::ConfirmAfterCancel => "confirm of a branch that was cancelled",
            Self::CancelAfterConfirm => "cancel of a branch that was confirmed",
            Self::TryMissing => "a confirm is recorded without its try",
            Self::OtherMode => "the branch was called with the verbs of the other mode",
        })
    }
}

/// The rows that a call of `op` tries to write, by name; each says `by = op` and, until settled, done.
#[must_use]
pub const fn claims(op: Op) -> &'static [Op] {
    match op {
        Op::Try => &[Op::Try],
        Op::Confirm => &[Op::Confirm],
        Op::Cancel => &[Op::Cancel, Op::Confirm, Op::Try],
        Op::Action => &[Op::Action],
        Op::Compensate => &[Op::Action, Op::Compensate],
        Op::Prepare | Op::Commit | Op::Rollback => &[],
    }
}

/// What `found`, the rows that were there before, says about a call of `op`. Total: every record has a verdict.
#[must_use]
pub fn decide(op: Op, found: &Record) -> Verdict {
    if op.is_xa() || found.rows().any(|row| row.op.is_saga() != op.is_saga()) {
        return Verdict::Disorder(Disorder::OtherMode);
    }
    if let Some(refused) = kept_refusal(op, found) {
        return Verdict::Repeat(refused.clone());
    }
    match op {
        Op::Try => decide_first(found, Op::Try, Op::Cancel),
        Op::Action => decide_first(found, Op::Action, Op::Compensate),
        Op::Confirm => decide_confirm(found),
        Op::Cancel if found.own(Op::Confirm).is_some() => {
            Verdict::Disorder(Disorder::CancelAfterConfirm)
        }
        Op::Cancel => decide_undo(found, Op::Try, Op::Cancel),
        Op::Compensate => decide_undo(found, Op::Action, Op::Compensate),
        Op::Prepare | Op::Commit | Op::Rollback => Verdict::Disorder(Disorder::OtherMode),
    }
}

/// As [`decide`], for a call whose refusal waits for people: that an action was refused before is no answer, since they may have
/// removed the cause. Behind a compensate it stays what it was.
#[must_use]
pub fn decide_anew(op: Op, found: &Record) -> Verdict {
    let verdict = decide(op, found);
    let is_asked_anew = op == Op::Action
        && matches!(verdict, Verdict::Repeat(Outcome::Refused { .. }))
        && found.row(Op::Compensate).is_none();
    if is_asked_anew { Verdict::Proceed } else { verdict }
}

/// A refused try or action is refused for ever: the older truth, which stays what it was also behind a cancel.
fn kept_refusal(op: Op, found: &Record) -> Option<&Outcome> {
    let own = found.own(op).filter(|_| op.is_first_phase())?;
    matches!(own.outcome, Outcome::Refused { .. }).then_some(&own.outcome)
}

fn decide_first(found: &Record, first: Op, undo: Op) -> Verdict {
    let own = found.own(first);
    // The effect is gone or never was: "done" would be a lie, even where this try was answered done before.
    if found.row(undo).is_some() || (own.is_none() && found.row(first).is_some()) {
        return Verdict::Late;
    }
    match own.map(|row| &row.outcome) {
        Some(Outcome::Working) => Verdict::Proceed,
        Some(ended) => Verdict::Repeat(ended.clone()),
        None if found.row(Op::Confirm).is_some() => Verdict::Disorder(Disorder::TryMissing),
        None => Verdict::Proceed,
    }
}

fn decide_confirm(found: &Record) -> Verdict {
    if let Some(own) = found.own(Op::Confirm) {
        return match own.outcome {
            Outcome::Working => Verdict::Proceed,
            Outcome::Done | Outcome::Refused { .. } => Verdict::Repeat(own.outcome.clone()),
        };
    }
    if found.row(Op::Confirm).is_some() || found.row(Op::Cancel).is_some() {
        return Verdict::Disorder(Disorder::ConfirmAfterCancel);
    }
    match found.row(Op::Try) {
        None => Verdict::Disorder(Disorder::ConfirmWithoutTry),
        Some(row) if row.by != Op::Try => Verdict::Disorder(Disorder::ConfirmAfterCancel),
        Some(Row { outcome: Outcome::Done, .. }) => Verdict::Proceed,
        Some(Row { outcome: Outcome::Refused { .. }, .. }) => {
            Verdict::Disorder(Disorder::ConfirmOfRefused)
        }
        Some(Row { outcome: Outcome::Working, .. }) => {
            Verdict::Disorder(Disorder::ConfirmOfWorking)
        }
    }
}

fn decide_undo(found: &Record, first: Op, undo: Op) -> Verdict {
    match found.row(undo).map(|row| &row.outcome) {
        Some(Outcome::Working) => return Verdict::Proceed,
        Some(ended) => return Verdict::Repeat(ended.clone()),
        None => {}
    }
    match found.own(first).map(|row| &row.outcome) {
        Some(Outcome::Done | Outcome::Working) => Verdict::Proceed,
        Some(Outcome::Refused { .. }) | None => Verdict::Empty,
    }
}

/// What becomes of the rows of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// The claimed rows stay as they are.
    Keep,
    /// The row of the operation itself says this now.
    Write(Outcome),
    /// The rows that this very call has written are taken back, as if it had never come.
    Withdraw,
}

/// What becomes of the rows of a call of `op` that `found` these rows and was given `verdict`. `answered` is what the participant
/// said where it was called: an outcome, or nothing when it could not tell.
///
/// The refusal of a confirm, a cancel or a compensate is passed on but not kept: it left no effect, the decision stands, and when
/// people have removed its cause the same call shall go through.
#[must_use]
pub fn settle(op: Op, found: &Record, verdict: &Verdict, answered: Option<&Outcome>) -> Settlement {
    match verdict {
        Verdict::Empty => Settlement::Keep,
        Verdict::Repeat(_) | Verdict::Late | Verdict::Disorder(_) => Settlement::Withdraw,
        Verdict::Proceed => match answered {
            None => Settlement::Withdraw,
            Some(Outcome::Refused { .. }) if !op.is_first_phase() => Settlement::Withdraw,
            Some(Outcome::Done) if found.row(op).is_none() => Settlement::Keep,
            Some(outcome) => Settlement::Write(outcome.clone()),
        },
    }
}
