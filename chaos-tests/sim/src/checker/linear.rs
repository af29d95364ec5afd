//! Linearizability per gid, as a second opinion: a search for one order of operations that explains every answer.
//!
//! A global transaction is a register that is written once: `Submit` begins it where it is new, and answers its fate or *unknown*;
//! `Read` answers the same. An operation takes effect at one instant between its call and its answer; one that was told
//! *unknown*, or nothing, may take effect at any time from its call on, or never.
//!
//! The search is Wing and Gong's, made short by what such a register is: it only moves on, from absent to open to a fate. What agrees
//! with the state as it is can be put into the order at once, since it changes nothing and a later place would suit nobody
//! better; so only the moves are guessed, and the cost is that of a few passes over the history, however much of it is concurrent.

use std::collections::BTreeMap;

use holdfast_txn::{Decision, Gid, Status};

use super::replay::{self, Exchange};

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
    /// It is there.
    Known,
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
}

/// What an answer says of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sees {
    NotAbsent,
    Exactly(State),
}

impl Sees {
    fn agrees(self, state: State) -> bool {
        match self {
            Self::NotAbsent => state != State::Absent,
            Self::Exactly(seen) => seen == state,
        }
    }
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
    sees: Option<Sees>,
    /// Whether it may never happen.
    optional: bool,
}

impl Operation {
    fn instants(&self) -> Vec<Instant> {
        let unknown = self.answer == Answer::Unknown;
        let to = if unknown { u64::MAX } else { self.told_at };
        let sees = match self.answer {
            Answer::Unknown => None,
            Answer::Known => Some(Sees::NotAbsent),
            Answer::Absent => Some(Sees::Exactly(State::Absent)),
            Answer::Open => Some(Sees::Exactly(State::Open)),
            Answer::Committed => Some(Sees::Exactly(State::Committed)),
            Answer::RolledBack => Some(Sees::Exactly(State::RolledBack)),
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

/// The histories of the gids in `exchanges`, as this checker sees them. Answers that say nothing of a fate are left out, unless what
/// was asked for may have begun it.
#[must_use]
pub fn histories(exchanges: &[Exchange]) -> BTreeMap<&Gid, Vec<Operation>> {
    let mut histories: BTreeMap<&Gid, Vec<Operation>> = BTreeMap::new();
    for exchange in exchanges {
        let asked = match exchange.asked {
            // A fence begins it, too, where it is not there: as what is rolled back.
            replay::Asked::Begin(_) | replay::Asked::Fence => Asked::Submit,
            replay::Asked::Change | replay::Asked::Look => Asked::Read,
        };
        let answer = match exchange.told {
            replay::Told::Known => Answer::Known,
            replay::Told::Absent => Answer::Absent,
            replay::Told::Decided(Decision::Commit)
            | replay::Told::Status(Status::Committing | Status::Committed) => Answer::Committed,
            replay::Told::Decided(Decision::RollBack)
            | replay::Told::Status(
                Status::RollingBack | Status::Compensating | Status::RolledBack,
            ) => Answer::RolledBack,
            replay::Told::Status(Status::Active | Status::Trying | Status::Running) => Answer::Open,
            replay::Told::Status(Status::NeedsAttention) => Answer::Known,
            replay::Told::Nothing | replay::Told::Refused { .. } => Answer::Unknown,
        };
        let history = histories.entry(&exchange.gid).or_default();
        if asked == Asked::Submit || answer != Answer::Unknown {
            let Exchange { asked_at, told_at, .. } = *exchange;
            history.push(Operation { asked_at, told_at, asked, answer });
        }
    }
    histories
}

/// Searches for an order.
#[must_use]
pub fn judge(operations: &[Operation]) -> Verdict {
    let left: Vec<Instant> = operations.iter().flat_map(Operation::instants).collect();
    if has_order(left, State::Absent) { Verdict::Linearizable } else { Verdict::Broken }
}

/// Whether what is left has an order from `state` on.
fn has_order(mut left: Vec<Instant>, state: State) -> bool {
    loop {
        let before = left.len();
        let first_told = first_told(&left);
        let agrees = |instant: &Instant| match instant.sees {
            Some(seen) => seen.agrees(state),
            // Another begin of what is there changes nothing.
            None => state != State::Absent,
        };
        left.retain(|instant| instant.from > first_told || !agrees(instant));
        if left.len() == before {
            break;
        }
    }
    if left.iter().all(|instant| instant.optional) {
        return true;
    }
    let first_told = first_told(&left);
    match state {
        State::Absent => {
            let begins = left.iter().any(|instant| instant.begins && instant.from <= first_told);
            begins && has_order(left, State::Open)
        }
        // The fate of what is open is decided by itself, at any time.
        State::Open => {
            has_order(left.clone(), State::Committed) || has_order(left, State::RolledBack)
        }
        State::Committed | State::RolledBack => false,
    }
}

/// Nothing that begins behind this can stand before everything that is left.
fn first_told(left: &[Instant]) -> u64 {
    left.iter().map(|instant| instant.to).min().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use holdfast_txn::Labels;

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
    fn what_was_exchanged_is_judged_gid_by_gid() {
        use replay::Told as Says;
        let gid = |name| Gid::parse(name).unwrap();
        let exchange = |name, asked_at, told_at, told| Exchange {
            gid: gid(name),
            asked_at,
            told_at,
            asked: replay::Asked::Look,
            told,
        };
        let mut begun = exchange("a", 0, 5, Says::Known);
        let content = replay::Content { branches: Vec::new(), tags: Labels::EMPTY };
        begun.asked = replay::Asked::Begin(content);
        let committed = exchange("a", 6, 7, Says::Status(Status::Committing));
        let attended = exchange("a", 6, 9, Says::Status(Status::NeedsAttention));
        let nothing = exchange("a", 6, 8, Says::Nothing);
        let absent = exchange("b", 8, 9, Says::Absent);
        let mut all = vec![begun, committed, attended, nothing, absent];
        let found = histories(&all);
        assert_eq!(found[&gid("a")].len(), 3, "a look that was told nothing says nothing");
        assert!(found.values().all(|history| judge(history) == Verdict::Linearizable));
        drop(found);
        all.push(exchange("a", 10, 11, Says::Decided(Decision::RollBack)));
        let found = histories(&all);
        assert_eq!(judge(&found[&gid("a")]), Verdict::Broken);
        assert_eq!(judge(&found[&gid("b")]), Verdict::Linearizable);
    }

    #[test]
    fn a_long_history_all_at_once_is_judged_like_a_short_one() {
        let submit = |at: u64| operation(0, 100 + at, Asked::Submit, Answer::Committed);
        let mut history: Vec<Operation> = (0..2_000).map(submit).collect();
        history.push(operation(0, 100, Asked::Read, Answer::Open));
        assert_eq!(judge(&history), Verdict::Linearizable);
        history.push(operation(0, 100, Asked::Read, Answer::RolledBack));
        assert_eq!(judge(&history), Verdict::Broken);
    }

    /// Every order there is, of up to six operations, against the short search.
    #[test]
    fn the_short_search_says_what_trying_every_order_says() {
        let mut drawn = 7_u64;
        let mut draw = |below: u64| {
            drawn = drawn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (drawn >> 33) % below
        };
        let answers = [
            Answer::Absent,
            Answer::Known,
            Answer::Open,
            Answer::Committed,
            Answer::RolledBack,
            Answer::Unknown,
        ];
        let mut broken = 0;
        for _ in 0..4_000 {
            let history: Vec<Operation> = (0..=draw(4))
                .map(|_| {
                    let asked = if draw(2) == 0 { Asked::Submit } else { Asked::Read };
                    let asked_at = draw(8);
                    let from = u64::from(asked == Asked::Submit);
                    let answer = answers[usize::try_from(from + draw(6 - from)).unwrap()];
                    operation(asked_at, asked_at + draw(6), asked, answer)
                })
                .collect();
            let instants: Vec<Instant> = history.iter().flat_map(Operation::instants).collect();
            let every = every_order(&instants, State::Absent);
            assert_eq!(judge(&history) == Verdict::Linearizable, every, "{history:?}");
            broken += u32::from(!every);
        }
        assert!((400..3_600).contains(&broken), "{broken} of 4000 are broken");
    }

    fn every_order(left: &[Instant], state: State) -> bool {
        if left.iter().all(|instant| instant.optional) {
            return true;
        }
        if state == State::Open
            && (every_order(left, State::Committed) || every_order(left, State::RolledBack))
        {
            return true;
        }
        let first_told = first_told(left);
        (0..left.len()).any(|at| {
            let Instant { from, begins, sees, .. } = left[at];
            let fits = from <= first_told && sees.is_none_or(|seen| seen.agrees(state));
            let after = if begins && state == State::Absent { State::Open } else { state };
            let mut rest = left.to_vec();
            rest.remove(at);
            fits && every_order(&rest, after)
        })
    }
}
