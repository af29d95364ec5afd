//! Decides one instruction against the accounts and holds in memory: all of it, or a refusal and nothing.

use std::collections::BTreeMap;

use crate::{
    Account, AccountId, AccountState, Amount, BranchKey, Direction, Hold, Kind, Money, Posting,
    Refusal, Resolution,
};

/// What a branch asks of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// Sets money aside; all business checks are made now.
    PlaceHold {
        /// Whether it is to leave or to arrive.
        direction: Direction,
        /// The account.
        account: AccountId,
        /// How much.
        money: Money,
    },
    /// Moves what the branch's hold set aside: all of it, or the amount that is given and lets the rest go.
    Capture {
        /// `None` = all of it.
        amount: Option<Amount>,
    },
    /// Lets go what the branch's hold set aside.
    Release,
    /// Takes money at once.
    Debit {
        /// The account that pays.
        account: AccountId,
        /// How much.
        money: Money,
    },
    /// Gives money at once.
    Credit {
        /// The account that receives.
        account: AccountId,
        /// How much.
        money: Money,
    },
    /// Moves money between two accounts at once.
    Transfer {
        /// The account that pays.
        from: AccountId,
        /// The account that receives.
        to: AccountId,
        /// How much.
        money: Money,
    },
    /// Undoes this branch's debit: the money comes back, also to an account that was closed since.
    ReverseDebit {
        /// The account that paid.
        account: AccountId,
        /// How much.
        money: Money,
    },
    /// Undoes this branch's credit, if the money is still there.
    ReverseCredit {
        /// The account that received.
        account: AccountId,
        /// How much.
        money: Money,
    },
    /// Undoes this branch's transfer, if the money is still there.
    ReverseTransfer {
        /// The account that paid.
        from: AccountId,
        /// The account that received.
        to: AccountId,
        /// How much.
        money: Money,
    },
}

/// The accounts and holds that a batch of instructions concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    accounts: BTreeMap<AccountId, Account>,
    holds: BTreeMap<BranchKey, Hold>,
}

impl Book {
    /// Adds an account, as it was stored. A second one of the same id takes the first one's place.
    pub fn add_account(&mut self, account: Account) {
        self.accounts.insert(account.id.clone(), account);
    }

    /// Adds a hold, as it was stored.
    pub fn add_hold(&mut self, branch: BranchKey, hold: Hold) {
        self.holds.insert(branch, hold);
    }

    /// The account of this id, as all instructions so far have left it.
    #[must_use]
    pub fn account(&self, id: &AccountId) -> Option<&Account> {
        self.accounts.get(id)
    }

    /// All accounts, in the order of their ids.
    pub fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.accounts.values()
    }

    /// The hold of this branch, as all instructions so far have left it.
    #[must_use]
    pub fn hold(&self, branch: &BranchKey) -> Option<&Hold> {
        self.holds.get(branch)
    }
}

/// Carries out `instruction` for `branch`.
/// # Errors
/// A [`Refusal`], and the book is as it was before. Of a capture and a release that follow a hold in this book, none is refused.
pub fn decide(
    book: &mut Book,
    branch: &BranchKey,
    instruction: &Instruction,
) -> Result<Vec<Posting>, Refusal> {
    let decision = judge(book, branch, instruction)?;
    // Every account's new counters are known to be lawful before the first one is written.
    let mut after = Vec::with_capacity(decision.postings.len());
    for posting in &decision.postings {
        let account = known(book, &posting.account)?;
        let counters = account.counters.after(posting).ok_or_else(|| Refusal::Inconsistent {
            account: account.id.clone(),
            detail: format!("{account}; {} of {branch} would break it", posting.kind.name()),
        })?;
        after.push(counters);
    }
    for (posting, counters) in decision.postings.iter().zip(after) {
        let account = book.accounts.get_mut(&posting.account);
        account.expect("it was found a moment ago").counters = counters;
    }
    if let Some(hold) = decision.hold {
        book.holds.insert(branch.clone(), hold);
    }
    Ok(decision.postings)
}

/// At most one posting for each account, and the branch's hold if it is placed or resolved.
struct Decision {
    postings: Vec<Posting>,
    hold: Option<Hold>,
}

impl Decision {
    const fn posted(postings: Vec<Posting>) -> Self {
        Self { postings, hold: None }
    }
}

fn judge(book: &Book, branch: &BranchKey, instruction: &Instruction) -> Result<Decision, Refusal> {
    match instruction {
        Instruction::PlaceHold { direction, account, money } => {
            place(book, branch, *direction, account, *money)
        }
        Instruction::Capture { amount } => capture(book, branch, *amount),
        Instruction::Release => release(book, branch),
        Instruction::Debit { account, money } => {
            can_pay(in_business(book, account, *money)?, *money)?;
            Ok(Decision::posted(vec![moved(branch, account, Kind::Debit, *money)]))
        }
        Instruction::Credit { account, money } => {
            can_take(in_business(book, account, *money)?, *money)?;
            Ok(Decision::posted(vec![moved(branch, account, Kind::Credit, *money)]))
        }
        Instruction::Transfer { from, to, money } => {
            two_accounts(from, to)?;
            let (payer, payee) = (in_business(book, from, *money)?, in_business(book, to, *money)?);
            can_pay(payer, *money)?;
            can_take(payee, *money)?;
            let debit = moved(branch, from, Kind::Debit, *money);
            Ok(Decision::posted(vec![debit, moved(branch, to, Kind::Credit, *money)]))
        }
        Instruction::ReverseDebit { account, money } => {
            can_take(in_currency(book, account, *money)?, *money)?;
            Ok(Decision::posted(vec![moved(branch, account, Kind::DebitReversed, *money)]))
        }
        Instruction::ReverseCredit { account, money } => {
            can_pay(in_currency(book, account, *money)?, *money)?;
            Ok(Decision::posted(vec![moved(branch, account, Kind::CreditReversed, *money)]))
        }
        Instruction::ReverseTransfer { from, to, money } => {
            two_accounts(from, to)?;
            let (payer, payee) = (in_currency(book, from, *money)?, in_currency(book, to, *money)?);
            can_pay(payee, *money)?;
            can_take(payer, *money)?;
            let taken = moved(branch, to, Kind::CreditReversed, *money);
            Ok(Decision::posted(vec![moved(branch, from, Kind::DebitReversed, *money), taken]))
        }
    }
}

// === Holds ===

fn place(
    book: &Book,
    branch: &BranchKey,
    direction: Direction,
    account: &AccountId,
    money: Money,
) -> Result<Decision, Refusal> {
    if book.holds.contains_key(branch) {
        return Err(Refusal::HoldExists(branch.clone()));
    }
    let kept = in_business(book, account, money)?;
    match direction {
        Direction::Out => can_pay(kept, money)?,
        Direction::In => can_take(kept, money)?,
    }
    let held = money.amount.minor();
    let posting = on_hold(branch, account, Kind::HoldPlaced, direction, held, 0);
    let hold = Hold { account: account.clone(), direction, amount: money.amount, resolution: None };
    Ok(Decision { postings: vec![posting], hold: Some(hold) })
}

fn capture(book: &Book, branch: &BranchKey, amount: Option<Amount>) -> Result<Decision, Refusal> {
    let hold = standing(book, branch)?;
    let captured = amount.unwrap_or(hold.amount);
    if captured > hold.amount {
        let currency = known(book, &hold.account)?.currency;
        return Err(Refusal::AmountOutOfRange {
            hold: branch.clone(),
            asked: Money { amount: captured, currency },
            held: Money { amount: hold.amount, currency },
        });
    }
    let let_go = negative(hold.amount);
    let moved = match hold.direction {
        Direction::Out => negative(captured),
        Direction::In => captured.minor(),
    };
    let posting = on_hold(branch, &hold.account, Kind::HoldCaptured, hold.direction, let_go, moved);
    let hold = Hold { resolution: Some(Resolution::Captured(captured)), ..hold.clone() };
    Ok(Decision { postings: vec![posting], hold: Some(hold) })
}

fn release(book: &Book, branch: &BranchKey) -> Result<Decision, Refusal> {
    let hold = standing(book, branch)?;
    let let_go = negative(hold.amount);
    let posting = on_hold(branch, &hold.account, Kind::HoldReleased, hold.direction, let_go, 0);
    let hold = Hold { resolution: Some(Resolution::Released), ..hold.clone() };
    Ok(Decision { postings: vec![posting], hold: Some(hold) })
}

fn standing<'b>(book: &'b Book, branch: &BranchKey) -> Result<&'b Hold, Refusal> {
    let hold = book.holds.get(branch).ok_or_else(|| Refusal::HoldUnknown(branch.clone()))?;
    match hold.resolution {
        None => Ok(hold),
        Some(_) => Err(Refusal::HoldResolved(branch.clone())),
    }
}

fn on_hold(
    branch: &BranchKey,
    account: &AccountId,
    kind: Kind,
    direction: Direction,
    held_delta: i64,
    balance_delta: i64,
) -> Posting {
    let (held_out_delta, held_in_delta) = match direction {
        Direction::Out => (held_delta, 0),
        Direction::In => (0, held_delta),
    };
    let (branch, account) = (branch.clone(), account.clone());
    Posting { branch, account, kind, balance_delta, held_out_delta, held_in_delta }
}

// === Checks ===

fn known<'b>(book: &'b Book, id: &AccountId) -> Result<&'b Account, Refusal> {
    book.accounts.get(id).ok_or_else(|| Refusal::AccountUnknown(id.clone()))
}

/// The account, if it is kept in the currency of `money`.
fn in_currency<'b>(book: &'b Book, id: &AccountId, money: Money) -> Result<&'b Account, Refusal> {
    let account = known(book, id)?;
    if account.currency != money.currency {
        let (kept, given) = (account.currency, money.currency);
        return Err(Refusal::CurrencyMismatch { account: id.clone(), kept, given });
    }
    Ok(account)
}

/// The account, if it also takes new business.
fn in_business<'b>(book: &'b Book, id: &AccountId, money: Money) -> Result<&'b Account, Refusal> {
    let account = known(book, id)?;
    match account.state {
        AccountState::Open => in_currency(book, id, money),
        AccountState::Closed => Err(Refusal::AccountClosed(id.clone())),
    }
}

fn can_pay(account: &Account, needed: Money) -> Result<(), Refusal> {
    let available = account.counters.available();
    if available < needed.amount.minor() {
        return Err(Refusal::InsufficientFunds { account: account.id.clone(), available, needed });
    }
    Ok(())
}

fn can_take(account: &Account, given: Money) -> Result<(), Refusal> {
    let room = account.counters.room();
    if room < given.amount.minor() {
        return Err(Refusal::Overflow { account: account.id.clone(), given, room });
    }
    Ok(())
}

fn two_accounts(from: &AccountId, to: &AccountId) -> Result<(), Refusal> {
    if from == to { Err(Refusal::SameAccount(from.clone())) } else { Ok(()) }
}

// === Postings ===

fn moved(branch: &BranchKey, account: &AccountId, kind: Kind, money: Money) -> Posting {
    let balance_delta = match kind {
        Kind::Debit | Kind::CreditReversed => negative(money.amount),
        Kind::Credit | Kind::DebitReversed => money.amount.minor(),
        Kind::Opening | Kind::HoldPlaced | Kind::HoldCaptured | Kind::HoldReleased => {
            unreachable!("moved() is for money that moves without a hold")
        }
    };
    let (branch, account) = (branch.clone(), account.clone());
    Posting { branch, account, kind, balance_delta, held_out_delta: 0, held_in_delta: 0 }
}

fn negative(amount: Amount) -> i64 {
    amount.minor().checked_neg().expect("an amount has at most 18 digits")
}
