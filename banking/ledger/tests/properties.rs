//! What no sequence of instructions can do.

use std::collections::BTreeMap;

use holdfast_ledger::{
    Account, AccountId, Amount, Book, BranchKey, Currency, Direction, Hold, Instruction, Kind,
    Money, Posting, Resolution, decide, decimal,
};
use proptest::prelude::*;

const ACCOUNTS: [&str; 4] = ["a", "b", "c", "nobody"];

fn eur() -> Currency {
    Currency::parse("EUR").expect("the test's own constants are right")
}

fn id(index: usize) -> AccountId {
    AccountId::parse(ACCOUNTS[index]).expect("the test's own constants are right")
}

fn money() -> impl Strategy<Value = Money> {
    let minor = prop_oneof![8 => 1_i64..120, 1 => Just(holdfast_ledger::AMOUNT_MINOR_MAX)];
    let currency = prop_oneof![9 => Just("EUR"), 1 => Just("USD")];
    (minor, currency).prop_map(|(minor, currency)| Money {
        amount: Amount::new(minor).expect("the test's own constants are right"),
        currency: Currency::parse(currency).expect("the test's own constants are right"),
    })
}

fn account() -> impl Strategy<Value = AccountId> {
    (0..ACCOUNTS.len()).prop_map(id)
}

fn instruction() -> impl Strategy<Value = Instruction> {
    let direction = prop_oneof![Just(Direction::Out), Just(Direction::In)];
    prop_oneof![
        6 => (direction, account(), money()).prop_map(|(direction, account, money)| {
            Instruction::PlaceHold { direction, account, money }
        }),
        3 => Just(Instruction::Capture { amount: None }),
        2 => (1_i64..120).prop_map(|minor| {
            Instruction::Capture { amount: Some(Amount::new(minor).expect("the test's own constants are right")) }
        }),
        3 => Just(Instruction::Release),
        1 => (account(), money()).prop_map(|(account, money)| Instruction::Debit { account, money }),
        1 => (account(), money()).prop_map(|(account, money)| Instruction::Credit { account, money }),
        2 => (account(), account(), money())
            .prop_map(|(from, to, money)| Instruction::Transfer { from, to, money }),
        1 => (account(), money())
            .prop_map(|(account, money)| Instruction::ReverseDebit { account, money }),
        1 => (account(), money())
            .prop_map(|(account, money)| Instruction::ReverseCredit { account, money }),
        1 => (account(), account(), money())
            .prop_map(|(from, to, money)| Instruction::ReverseTransfer { from, to, money }),
    ]
}

fn bank(balances: [i64; 3]) -> (Book, Vec<Posting>) {
    let mut book = Book::default();
    let mut journal = Vec::new();
    for (index, minor) in balances.into_iter().enumerate() {
        let balance = Money {
            amount: Amount::new(minor).expect("the test's own constants are right"),
            currency: eur(),
        };
        let (account, opening) = Account::open(id(index), balance);
        book.add_account(account);
        journal.push(opening);
    }
    (book, journal)
}

fn sum(book: &Book) -> i128 {
    book.accounts().map(|account| i128::from(account.counters().balance)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 512, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// No balance, no available amount, no hold ever falls below zero; the journal's fold is the counters; a refusal changes
    /// nothing; a hold is resolved at most once, and is what its branch's postings tell.
    #[test]
    fn the_laws_hold_after_every_instruction(
        balances in [1_i64..300, 1_i64..300, 1_i64..300],
        script in prop::collection::vec((0_u32..12, instruction()), 1..120),
    ) {
        let (mut book, mut journal) = bank(balances);
        let mut resolved: BTreeMap<BranchKey, Resolution> = BTreeMap::new();
        for (branch, instruction) in script {
            let branch = BranchKey::new("g", branch);
            let before = book.clone();
            match decide(&mut book, &branch, &instruction) {
                Ok(postings) => {
                    prop_assert!(!postings.is_empty());
                    journal.extend(postings);
                }
                Err(refusal) => {
                    prop_assert_eq!(&before, &book);
                    prop_assert_ne!(refusal.code(), "ledger_inconsistent");
                }
            }
            for account in book.accounts() {
                let counters = account.counters();
                prop_assert!(counters.balance >= 0 && counters.held_out >= 0 && counters.held_in >= 0);
                prop_assert!(counters.available() >= 0);
                let own = journal.iter().filter(|posting| posting.account == *account.id());
                prop_assert_eq!(Posting::fold(own), Some(counters));
            }
            let told = Hold::of(journal.iter().filter(|posting| posting.branch == branch));
            prop_assert_eq!(told.as_ref(), book.hold(&branch));
            if let Some(now) = book.hold(&branch).and_then(|hold| hold.resolution) {
                let first = *resolved.entry(branch.clone()).or_insert(now);
                prop_assert_eq!(first, now, "a resolution changed");
            }
        }
        for (branch, _) in resolved {
            let rows = |kinds: [Kind; 2]| {
                journal.iter().filter(|p| p.branch == branch && kinds.contains(&p.kind)).count()
            };
            prop_assert_eq!(rows([Kind::HoldCaptured, Kind::HoldReleased]), 1);
            prop_assert_eq!(rows([Kind::HoldPlaced, Kind::HoldPlaced]), 1);
        }
    }

    /// Whatever stands between, a hold that was placed can be captured or released: nothing of business is checked again.
    #[test]
    fn a_placed_hold_can_always_be_resolved(
        balances in [1_i64..300, 1_i64..300, 1_i64..300],
        placing in (prop_oneof![Just(Direction::Out), Just(Direction::In)], 0_usize..3, 1_i64..300),
        between in prop::collection::vec((0_u32..12, instruction()), 0..60),
        capture: bool,
    ) {
        let (mut book, _) = bank(balances);
        let (direction, account, minor) = placing;
        let money = Money { amount: Amount::new(minor).unwrap(), currency: eur() };
        let hold = BranchKey::new("ours", 1);
        let place = Instruction::PlaceHold { direction, account: id(account), money };
        if decide(&mut book, &hold, &place).is_ok() {
            for (branch, instruction) in between {
                let _ = decide(&mut book, &BranchKey::new("g", branch), &instruction);
            }
            let end = if capture { Instruction::Capture { amount: None } } else { Instruction::Release };
            prop_assert!(decide(&mut book, &hold, &end).is_ok());
        }
    }

    /// Complete transfers, by holds on both sides or at once, committed, cancelled or undone, neither make nor lose money.
    #[test]
    fn debits_equal_credits_for_complete_transfers(
        balances in [1_i64..300, 1_i64..300, 1_i64..300],
        transfers in prop::collection::vec(
            (0_usize..3, 0_usize..3, 1_i64..150, any::<bool>(), any::<bool>()), 1..60),
    ) {
        let (mut book, mut journal) = bank(balances);
        let before = sum(&book);
        for (index, (from, to, minor, at_once, commit)) in transfers.into_iter().enumerate() {
            let gid = format!("g{index}");
            let money = Money { amount: Amount::new(minor).unwrap(), currency: eur() };
            let (debit, credit) = (BranchKey::new(&gid, 1), BranchKey::new(&gid, 2));
            let (from, to) = (id(from), id(to));
            if at_once {
                let go = Instruction::Transfer { from: from.clone(), to: to.clone(), money };
                let back = Instruction::ReverseTransfer { from, to, money };
                if let Ok(postings) = decide(&mut book, &debit, &go) {
                    journal.extend(postings);
                    if !commit && let Ok(postings) = decide(&mut book, &debit, &back) {
                        journal.extend(postings);
                    }
                }
            } else {
                let place = |direction, account| Instruction::PlaceHold { direction, account, money };
                let tries = [
                    (&debit, decide(&mut book, &debit, &place(Direction::Out, from))),
                    (&credit, decide(&mut book, &credit, &place(Direction::In, to))),
                ];
                let commit = commit && tries.iter().all(|(_, result)| result.is_ok());
                let end = if commit { Instruction::Capture { amount: None } } else { Instruction::Release };
                for (branch, result) in tries {
                    if let Ok(postings) = result {
                        journal.extend(postings);
                        journal.extend(decide(&mut book, branch, &end).unwrap());
                    }
                }
            }
        }
        prop_assert_eq!(sum(&book), before);
        for account in book.accounts() {
            prop_assert_eq!((account.counters().held_out, account.counters().held_in), (0, 0));
        }
        let moved = |sign: i64| -> i128 {
            journal
                .iter()
                .filter(|p| p.kind != Kind::Opening && p.balance_delta.signum() == sign)
                .map(|p| i128::from(p.balance_delta))
                .sum()
        };
        prop_assert_eq!(moved(1), -moved(-1));
    }

    /// What is shown is what was meant: text -> minor units -> text.
    #[test]
    fn decimals_come_back_as_they_went(minor in 1_i64..=holdfast_ledger::AMOUNT_MINOR_MAX) {
        for code in ["EUR", "JPY", "KWD", "CLF"] {
            let currency = Currency::parse(code).unwrap();
            let text = decimal(minor, currency);
            prop_assert_eq!(Amount::parse_decimal(&text, currency).unwrap().minor(), minor);
        }
        prop_assert_eq!(Amount::parse_minor(&minor.to_string()).unwrap().minor(), minor);
    }
}
