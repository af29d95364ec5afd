//! A barrier in memory, one call at a time, as the database's locks make it: claim, decide, carry out, settle.

use holdfast_branch::{Op, Outcome, Record, Row, Settlement, Verdict, claims, decide, settle};

/// The rows of one branch, and what its participant has done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Branch {
    pub(crate) record: Record,
    /// Every operation that took effect, in order.
    pub(crate) effects: Vec<Op>,
}

impl Branch {
    /// Makes one call; `say` is what the participant answers if it is called (`None`: it cannot tell).
    pub(crate) fn call(&mut self, op: Op, say: Option<&Outcome>) -> (Verdict, Option<Outcome>) {
        self.judged_by(decide, op, say)
    }

    /// As [`Self::call`], as the barrier's judge `decides`.
    pub(crate) fn judged_by(
        &mut self,
        decides: fn(Op, &Record) -> Verdict,
        op: Op,
        say: Option<&Outcome>,
    ) -> (Verdict, Option<Outcome>) {
        let found = self.record.clone();
        let fresh: Vec<Op> =
            claims(op).iter().copied().filter(|&claimed| found.row(claimed).is_none()).collect();
        for &claimed in &fresh {
            self.record.put(Row { op: claimed, by: op, outcome: Outcome::Done });
        }
        let verdict = decides(op, &found);
        let mut answered = None;
        let answer = match &verdict {
            Verdict::Proceed => {
                answered = say;
                if answered == Some(&Outcome::Done) {
                    self.effects.push(op);
                }
                say.cloned()
            }
            Verdict::Repeat(outcome) => Some(outcome.clone()),
            Verdict::Empty => Some(Outcome::Done),
            Verdict::Late => Some(Outcome::Refused {
                code: holdfast_branch::LATE_CODE.into(),
                message: holdfast_branch::LATE_MESSAGE.into(),
            }),
            Verdict::Disorder(_) => None,
        };
        match settle(op, &found, &verdict, answered) {
            Settlement::Keep => {}
            Settlement::Write(outcome) => self.record.put(Row { op, by: op, outcome }),
            Settlement::Withdraw => fresh.iter().for_each(|&claimed| self.record.remove(claimed)),
        }
        (verdict, answer)
    }
}
