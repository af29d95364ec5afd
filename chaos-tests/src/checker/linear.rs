//! Linearizability per gid, as a second opinion: a search for one order of operations that explains every answer.
//!
//! A global transaction is a register that is written once: `Submit` begins it where it is new, and answers its fate or *unknown*;
//! `Read` answers the same. An operation takes effect at one instant between its call and its answer; one that was told
//! *unknown*, or nothing, may take effect at any time from its call on, or never. The search is Wing and Gong's with the
//! states already tried remembered; histories of one gid are short, and longer ones than [`OPERATIONS_MAX`] are said to be unjudged.

use std::collections::BTreeSet;

/// Operations of one gid that are searched through.
pub const OPERATIONS_MAX: usize = 24;

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Begin it, if it is not there.
    Submit,
    /// Say its fate.
    Read,
}

/// What was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is not there.
    Absent,
    /// It is there, and open.
    Open,
    /// It committed.
    Committed,
    /// It rolled back.
    RolledBack,
    /// Nothing that can be relied on.
    Unknown,
}

/// One operation, by a clock that all share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// When it was asked.
    pub asked_at: u64,
    /// When it was answered; for an unknown one, never.
    pub told_at: u64,
    /// What was asked.
    pub asked: Asked,
    /// What was told.
    pub answer: Answer,
}

/// What the search says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none.
    Broken,
    /// There are too many operations to search through; the caller must not take this for a pass.
    Unjudged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Absent,
    Open,
    Committed,
    RolledBack,
}

/// One instant of an operation: a submit that was answered has two, its beginning and the fate that it was told.
#[derive(Clone, Copy, Debug)]
struct Instant {
    from: u64,
    to: u64,
    begins: bool,
    sees: Option<State>,
    /// Whether it may never happen.
    optional: bool,
}

impl Operation {
    fn instants(&self) -> Vec<Instant> {
        let unknown = self.answer == Answer::Unknown;
        let to = if unknown { u64::MAX } else { self.told_at };
        let sees = match self.answer {
            Answer::Unknown => None,
            Answer::Absent => Some(State::Absent),
            Answer::Open => Some(State::Open),
            Answer::Committed => Some(State::Committed),
            Answer::RolledBack => Some(State::RolledBack),
        };
        let instant =
            |begins, sees| Instant { from: self.asked_at, to, begins, sees, optional: unknown };
        let mut instants = Vec::new();
        if self.asked == Asked::Submit {
            instants.push(instant(true, None));
        }
        if sees.is_some() {
            instants.push(instant(false, sees));
        }
        instants
    }
}

/// Searches for an order.
#[must_use]
pub fn judge(operations: &[Operation]) -> Verdict {
    if operations.len() > OPERATIONS_MAX {
        return Verdict::Unjudged;
    }
    let instants: Vec<Instant> = operations.iter().flat_map(Operation::instants).collect();
    if search(&instants, 0, State::Absent, &mut BTreeSet::new()) {
        Verdict::Linearizable
    } else {
        Verdict::Broken
    }
}

fn search(
    instants: &[Instant],
    done: u64,
    state: State,
    tried: &mut BTreeSet<(u64, State)>,
) -> bool {
    if !tried.insert((done, state)) {
        return false;
    }
    let left = || (0..instants.len()).filter(|&at| done & (1 << at) == 0);
    if left().all(|at| instants[at].optional) {
        return true;
    }
    // The fate of what is open is decided by itself, at any time.
    if state == State::Open
        && (search(instants, done, State::Committed, tried)
            || search(instants, done, State::RolledBack, tried))
    {
        return true;
    }
    let first_told = left().map(|at| instants[at].to).min().unwrap_or(u64::MAX);
    let next: Vec<usize> = left().filter(|&at| instants[at].from <= first_told).collect();
    next.into_iter().any(|at| {
        let Instant { begins, sees, .. } = instants[at];
        let after = if begins && state == State::Absent { State::Open } else { state };
        sees.is_none_or(|seen| seen == state) && search(instants, done | (1 << at), after, tried)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(asked_at: u64, told_at: u64, asked: Asked, answer: Answer) -> Operation {
        Operation { asked_at, told_at, asked, answer }
    }

    #[test]
    fn a_fate_that_is_told_again_is_linearizable() {
        use {Answer::*, Asked::*};
        for history in [
            vec![],
            vec![operation(0, 9, Submit, Committed), operation(10, 11, Read, Committed)],
            vec![operation(0, 5, Submit, Unknown), operation(6, 9, Submit, Committed)],
            vec![operation(0, 5, Submit, Unknown), operation(6, 9, Read, Absent)],
            vec![operation(0, 9, Submit, RolledBack), operation(1, 2, Read, Open)],
            // The unknown submit takes effect between two reads.
            vec![
                operation(0, 1, Submit, Unknown),
                operation(2, 3, Read, Absent),
                operation(4, 5, Read, Open),
                operation(6, 7, Read, Committed),
            ],
        ] {
            assert_eq!(judge(&history), Verdict::Linearizable, "{history:?}");
        }
    }

    #[test]
    fn every_planted_bug_is_found() {
        use {Answer::*, Asked::*};
        for (bug, history) in [
            (
                "a fate that changes",
                vec![operation(0, 1, Submit, Committed), operation(2, 3, Read, RolledBack)],
            ),
            ("a stale read", vec![operation(0, 1, Submit, Committed), operation(2, 3, Read, Open)]),
            (
                "a lost beginning",
                vec![operation(0, 1, Submit, Committed), operation(2, 3, Read, Absent)],
            ),
            (
                "two fates at once",
                vec![operation(0, 5, Submit, Committed), operation(1, 6, Submit, RolledBack)],
            ),
            ("a fate out of nothing", vec![operation(0, 1, Read, Committed)]),
            (
                "there, and gone again",
                vec![
                    operation(0, 1, Submit, Unknown),
                    operation(2, 3, Read, Open),
                    operation(4, 5, Read, Absent),
                ],
            ),
        ] {
            assert_eq!(judge(&history), Verdict::Broken, "{bug}");
        }
    }

    #[test]
    fn a_history_at_the_limit_is_judged_and_one_more_is_not() {
        let read = operation(0, 100, Asked::Read, Answer::Absent);
        assert_eq!(judge(&vec![read; OPERATIONS_MAX]), Verdict::Linearizable);
        assert_eq!(judge(&vec![read; OPERATIONS_MAX + 1]), Verdict::Unjudged);
    }
}
