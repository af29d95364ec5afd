//! One shard's database: the real ledger's book, the journal, and the real barrier's rows, changed by local transactions alone.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use holdfast_branch::{
    Outcome, Record, Row, Settlement, Verdict, claims, decide, decide_anew, settle,
};
use holdfast_ledger::{
    Account, AccountId, AccountState, Amount, Book, BranchKey, Counters, Currency, Direction,
    Instruction, Money, Posting,
};
use holdfast_txn::Op;

use crate::{mutant::Mutant, workload::CAPTURE};

/// What lies on one shard.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    pub(crate) book: Book,
    pub(crate) journal: Vec<Posting>,
    pub(crate) rows: BTreeMap<BranchKey, Record>,
}

/// A call as it reaches a participant.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) key: BranchKey,
    pub(crate) op: Op,
    pub(crate) payload: Bytes,
    /// A refusal leaves the transaction to people, so that one on record is no answer.
    pub(crate) refusal_waits: bool,
}

impl Call {
    /// One that a mutant makes before its time.
    pub(crate) fn early(key: &BranchKey, op: Op) -> Self {
        Self { key: key.clone(), op, payload: "".into(), refusal_waits: false }
    }
}

/// What a participant says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Done,
    Refused(String),
    Working,
    Unknown,
}

/// How the participant of this run behaves beside the rules of money.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mood {
    pub(crate) is_working: bool,
    pub(crate) refuses: bool,
}

/// One call within a local transaction, as the invariants see it.
#[derive(Clone, Debug)]
pub(crate) struct Carried {
    pub(crate) call: Call,
    pub(crate) verdict: Verdict,
    pub(crate) said: Said,
    pub(crate) postings: Vec<Posting>,
}

/// The branch mind's word for an operation.
pub(crate) fn barrier_op(op: Op) -> holdfast_branch::Op {
    match op {
        Op::Try => holdfast_branch::Op::Try,
        Op::Confirm => holdfast_branch::Op::Confirm,
        Op::Cancel => holdfast_branch::Op::Cancel,
        Op::Action => holdfast_branch::Op::Action,
        Op::Compensate => holdfast_branch::Op::Compensate,
        Op::Prepare => holdfast_branch::Op::Prepare,
        Op::Commit => holdfast_branch::Op::Commit,
        Op::RollBack => holdfast_branch::Op::Rollback,
    }
}

fn euros() -> Currency {
    Currency::parse("EUR").expect("the euro is a currency")
}

impl Database {
    /// A database with these accounts; the last so many of them closed.
    pub(crate) fn open(accounts: &[AccountId], balance_minor: u64, closed: usize) -> Self {
        let mut database =
            Self { book: Book::default(), journal: Vec::new(), rows: BTreeMap::new() };
        for (position, id) in accounts.iter().enumerate() {
            let (account, opening) = Account::open(id.clone(), money(balance_minor));
            let is_closed = position + closed >= accounts.len();
            let state = if is_closed { AccountState::Closed } else { AccountState::Open };
            let account =
                Account::restore(id.clone(), account.currency(), state, account.counters());
            database.book.add_account(account.expect("an account just opened is lawful"));
            database.journal.push(opening);
        }
        database
    }

    /// People open a closed account again.
    pub(crate) fn reopen(&mut self, id: &AccountId) {
        if let Some(account) = self.book.account(id) {
            let counters: Counters = account.counters();
            let open = Account::restore(id.clone(), euros(), AccountState::Open, counters);
            self.book.add_account(open.expect("its counters are as they were"));
        }
    }

    /// One call within a local transaction: barrier, participant, settlement, as the agent does it.
    ///
    /// Stricter than the agent in one thing: calls of a batch are judged one after another, each with the rows of those
    /// before it; the agent claims all rows of a batch at once and has a later call of the same branch find them.
    pub(crate) fn carry(&mut self, call: &Call, mood: Mood, mutant: Option<Mutant>) -> Carried {
        let op = barrier_op(call.op);
        let found = self.rows.get(&call.key).cloned().unwrap_or_default();
        let decides = if call.refusal_waits { decide_anew } else { decide };
        let mut verdict = decides(op, &found);
        if mutant == Some(Mutant::LateTryAccepted) && verdict == Verdict::Late {
            verdict = Verdict::Proceed;
        }
        if mutant == Some(Mutant::RepeatCarriedOut) && matches!(verdict, Verdict::Repeat(_)) {
            verdict = Verdict::Proceed;
        }
        let mut postings = Vec::new();
        let said = match &verdict {
            Verdict::Proceed => self.participate(call, &found, mood, mutant, &mut postings),
            Verdict::Repeat(outcome) => match outcome {
                Outcome::Done => Said::Done,
                Outcome::Refused { code, .. } => Said::Refused(code.clone()),
                Outcome::Working => Said::Working,
            },
            Verdict::Empty => Said::Done,
            Verdict::Late if mutant == Some(Mutant::LateAsDone) => Said::Done,
            Verdict::Late => Said::Refused(holdfast_branch::LATE_CODE.to_owned()),
            Verdict::Disorder(_) => Said::Unknown,
        };
        let answered = match (&verdict, &said) {
            (Verdict::Proceed, Said::Done) => Some(Outcome::Done),
            (Verdict::Proceed, Said::Refused(code)) => {
                Some(Outcome::Refused { code: code.clone(), message: String::new() })
            }
            (Verdict::Proceed, Said::Working) => Some(Outcome::Working),
            _ => None,
        };
        let settlement = settle(op, &found, &verdict, answered.as_ref());
        let unrecorded = mutant == Some(Mutant::EmptyCancelUnrecorded) && verdict == Verdict::Empty;
        if settlement != Settlement::Withdraw && !unrecorded {
            let record = self.rows.entry(call.key.clone()).or_default();
            for &claimed in claims(op) {
                if found.row(claimed).is_none() {
                    record.put(Row { op: claimed, by: op, outcome: Outcome::Done });
                }
            }
            if let Settlement::Write(outcome) = settlement {
                let by = found.row(op).map_or(op, |row| row.by);
                record.put(Row { op, by, outcome });
            }
        }
        if mutant == Some(Mutant::PostingWrittenTwice) {
            postings.extend_from_within(..);
        }
        self.journal.extend(postings.iter().cloned());
        Carried { call: call.clone(), verdict, said, postings }
    }

    /// The deposit participant: reads the instruction and has the ledger decide.
    fn participate(
        &mut self,
        call: &Call,
        found: &Record,
        mood: Mood,
        mutant: Option<Mutant>,
        postings: &mut Vec<Posting>,
    ) -> Said {
        let first = barrier_op(call.op).first_of_mode();
        let was_working =
            found.row(first).is_some_and(|row| matches!(row.outcome, Outcome::Working));
        if call.op.is_forward_phase() && mood.is_working {
            return Said::Working;
        }
        if !call.op.is_forward_phase() && mood.refuses {
            return Said::Refused("maintenance".to_owned());
        }
        if barrier_op(call.op).is_undo() && was_working {
            // Nothing had happened yet, so there is nothing to undo.
            return Said::Done;
        }
        if call.op == Op::Compensate && mutant == Some(Mutant::CompensationEmpty) {
            return Said::Done;
        }
        let instruction = match instruction_of(call) {
            Instruction::Release if mutant == Some(Mutant::ReleaseCaptures) => {
                Instruction::Capture { amount: None }
            }
            Instruction::Capture { .. } if mutant == Some(Mutant::CaptureIgnored) => {
                Instruction::Capture { amount: None }
            }
            instruction => instruction,
        };
        match holdfast_ledger::decide(&mut self.book, &call.key, &instruction) {
            Ok(made) => {
                postings.extend(made);
                Said::Done
            }
            Err(refusal) => Said::Refused(refusal.code().to_owned()),
        }
    }
}

pub(crate) fn money(minor: u64) -> Money {
    let minor = i64::try_from(minor).expect("the workload moves small sums");
    Money { amount: Amount::new(minor).expect("at least one"), currency: euros() }
}

/// The words of a payload: verb, account, minor units, and the payee of a transfer.
pub(crate) fn words(payload: &[u8]) -> Vec<Arc<str>> {
    String::from_utf8_lossy(payload).split(' ').map(Arc::from).collect()
}

/// How much a confirm captures, if it says so.
fn captured(payload: &[u8]) -> Option<Amount> {
    let words = words(payload);
    (&*words[0] == CAPTURE)
        .then(|| money(words[1].parse().expect("the workload names amounts")).amount)
}

fn instruction_of(call: &Call) -> Instruction {
    match call.op {
        Op::Confirm => return Instruction::Capture { amount: captured(&call.payload) },
        Op::Cancel => return Instruction::Release,
        Op::Try | Op::Action | Op::Compensate => {}
        Op::Prepare | Op::Commit | Op::RollBack => unreachable!("the barrier admits no verb of XA"),
    }
    let words = words(&call.payload);
    let account = AccountId::parse(&words[1]).expect("the workload names accounts");
    let money = money(words[2].parse().expect("the workload names amounts"));
    match (&*words[0], call.op) {
        ("debit", Op::Try) => Instruction::PlaceHold { direction: Direction::Out, account, money },
        ("credit", Op::Try) => Instruction::PlaceHold { direction: Direction::In, account, money },
        ("debit", Op::Action) => Instruction::Debit { account, money },
        ("credit", Op::Action) => Instruction::Credit { account, money },
        ("debit", _) => Instruction::ReverseDebit { account, money },
        ("credit", _) => Instruction::ReverseCredit { account, money },
        (_, op) => {
            let (from, to) = (account, AccountId::parse(&words[3]).expect("it names a payee"));
            if op == Op::Compensate {
                Instruction::ReverseTransfer { from, to, money }
            } else {
                Instruction::Transfer { from, to, money }
            }
        }
    }
}
