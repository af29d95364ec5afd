//! A transaction as it would stand if some answers were in the log: what the rules look at, cheap to make and to drop.

use std::fmt;

use crate::{
    Answer, BranchId, BranchState, Decision, GlobalTransaction, Next, Op, Refusal, Report, Status,
};

/// A transaction and what was heard of it. Copies at most one byte a branch, and nothing while nothing is heard.
#[derive(Debug)]
pub struct View<'a> {
    transaction: &'a GlobalTransaction,
    /// `None`: as the transaction has them.
    states: Option<Vec<BranchState>>,
    /// Words of refusals that were heard and are worth keeping, by position.
    words: Vec<(usize, &'a Refusal)>,
    trouble: Option<Trouble<'a>>,
}

/// The first answer, among those that were heard, that is not *done*.
#[derive(Clone, Copy, Debug)]
pub struct Trouble<'a> {
    /// Which branch.
    pub branch: BranchId,
    /// What it was asked for.
    pub op: Op,
    /// The refusal, or that the leader gave up.
    pub answer: &'a Answer,
}

/// What a view has that its transaction has not.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) states: Vec<(usize, BranchState)>,
    pub(crate) words: Vec<(usize, Refusal)>,
    pub(crate) reason: Option<String>,
}

impl<'a> View<'a> {
    /// The transaction as it is in the log.
    #[must_use]
    pub fn of(transaction: &'a GlobalTransaction) -> Self {
        Self { transaction, states: None, words: Vec::new(), trouble: None }
    }

    /// The transaction as it would be after `reports`.
    #[must_use]
    pub fn hearing(transaction: &'a GlobalTransaction, reports: &'a [Report]) -> Self {
        let mut view = Self::of(transaction);
        reports.iter().for_each(|report| view.hear(report));
        view
    }

    /// What the transaction needs next.
    #[must_use]
    pub fn next(&self) -> Next {
        self.transaction.mode.rules().next(self)
    }

    /// The transaction below, as it is in the log.
    #[must_use]
    pub fn transaction(&self) -> &'a GlobalTransaction {
        self.transaction
    }

    /// How many branches there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.transaction.branches.len()
    }

    /// How far the branch at `index` is.
    #[must_use]
    pub fn state(&self, index: usize) -> BranchState {
        match &self.states {
            Some(states) => states[index],
            None => self.transaction.branches[index].state,
        }
    }

    /// Whether the branch's first-phase operation is done.
    #[must_use]
    pub fn is_done(&self, index: usize) -> bool {
        self.state(index) == BranchState::Done
    }

    /// Whether every branch is in `state`.
    #[must_use]
    pub fn all(&self, state: BranchState) -> bool {
        (0..self.count()).all(|index| self.state(index) == state)
    }

    /// Whether a branch is in `state`.
    #[must_use]
    pub fn any(&self, state: BranchState) -> bool {
        (0..self.count()).any(|index| self.state(index) == state)
    }

    /// The first answer heard that is not *done*.
    #[must_use]
    pub fn trouble(&self) -> Option<&Trouble<'a>> {
        self.trouble.as_ref()
    }

    /// The calls of `op` to those branches that `callable` lets through; [`Next::Wait`] if there are none.
    #[must_use]
    pub fn call(&self, op: Op, callable: impl Fn(usize) -> bool) -> Next {
        let calls: Vec<_> =
            (0..self.count()).filter(|&index| callable(index)).map(|i| (number(i), op)).collect();
        if calls.is_empty() { Next::Wait } else { Next::Call(calls) }
    }

    /// Takes one answer in. What does not fit the phase, or is no first answer, changes nothing.
    fn hear(&mut self, report: &'a Report) {
        let transaction = self.transaction;
        let rules = transaction.mode.rules();
        let Some(index) = position(report.branch).filter(|&index| index < self.count()) else {
            return;
        };
        if rules.op(transaction, transaction.phase()) != Some(report.op)
            || self.holds_refusal(index)
            || !rules.awaits(self, index, report.op)
        {
            return;
        }
        match &report.answer {
            Answer::Done => {
                self.set(index, report.op.when_done());
                return;
            }
            Answer::Refused(words) => {
                // The words of a refused try stay, also when its cancel is refused: the reason has the newer ones.
                if self.state(index) != BranchState::Refused {
                    self.words.push((index, words));
                }
                if report.op.is_forward_phase() && rules.refusal_turns_back(self, index) {
                    self.set(index, BranchState::Refused);
                }
            }
            Answer::GivenUp { .. } => {}
        }
        let Report { branch, op, ref answer } = *report;
        self.trouble.get_or_insert(Trouble { branch, op, answer });
    }

    /// Whether this phase's operation was refused before, and people have not looked yet.
    fn holds_refusal(&self, index: usize) -> bool {
        self.state(index).may_hold_refusal()
            && (self.transaction.branches[index].refusal.is_some()
                || self.words.iter().any(|(refused, _)| *refused == index))
    }

    pub(crate) fn set(&mut self, index: usize, state: BranchState) {
        let transaction = self.transaction;
        let states = self.states.get_or_insert_with(|| {
            transaction.branches.iter().map(|branch| branch.state).collect()
        });
        states[index] = state;
    }

    /// What is to be written down, if this view becomes the truth.
    pub(crate) fn into_heard(self) -> Heard {
        let branches = &self.transaction.branches;
        let states = self.states.unwrap_or_default();
        Heard {
            states: (0..states.len())
                .filter(|&index| states[index] != branches[index].state)
                .map(|index| (index, states[index]))
                .collect(),
            words: self.words.into_iter().map(|(index, words)| (index, words.clone())).collect(),
            reason: self.trouble.map(|trouble| trouble.to_string()),
        }
    }
}

impl Heard {
    /// Nothing was heard that the log has not.
    pub(crate) fn is_empty(&self) -> bool {
        self.states.is_empty() && self.words.is_empty()
    }
}

impl Trouble<'_> {
    /// Whether the leader asked in vain, so that nobody knows what the participant did.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        match self.answer {
            Answer::GivenUp { .. } => true,
            Answer::Done | Answer::Refused(_) => false,
        }
    }

    /// The move to *needs attention*, which keeps the decision as it is.
    #[must_use]
    pub fn needs_attention() -> Next {
        Next::Become(Status::NeedsAttention, None::<Decision>)
    }
}

/// The reason that people read.
impl fmt::Display for Trouble<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { branch, op, answer } = self;
        match answer {
            Answer::Done => write!(f, "{branch} did {op}"),
            Answer::Refused(Refusal { code, message }) => {
                write!(f, "{branch} refused {op}")?;
                [code, message]
                    .iter()
                    .filter(|words| !words.is_empty())
                    .try_for_each(|words| write!(f, ": {words}"))
            }
            Answer::GivenUp { attempts, last } => {
                write!(f, "{branch} did not answer {op} in {attempts} attempts; the last: {last}")
            }
        }
    }
}

/// The position of the branch with this number.
pub(crate) fn position(branch: BranchId) -> Option<usize> {
    (branch.0 as usize).checked_sub(1)
}

/// The number of the branch at this position.
pub(crate) fn number(index: usize) -> BranchId {
    BranchId(u32::try_from(index + 1).expect("a transaction has at most BRANCHES_MAX branches"))
}
