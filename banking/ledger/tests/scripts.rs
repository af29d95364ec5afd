//! Runs the golden scripts: a bank's days, told at the counter.

use std::{error::Error, fmt::Write as _, path::Path};

use goldenscript::{ArgumentConsumer, Command, Context, Runner};
use holdfast_ledger::{
    Account, AccountId, AccountState, Amount, Book, BranchKey, Counters, Currency, Direction,
    Instruction, Money, Posting, decide, decimal,
};

type Failure = Box<dyn Error>;

#[derive(Default)]
struct Bank {
    book: Book,
    journal: Vec<Posting>,
}

impl Runner for Bank {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Failure> {
        let mut args = command.consume_args();
        let mut output = String::new();
        match command.name.as_str() {
            // open ACCOUNT AMOUNT CURRENCY [closed]
            "open" => {
                let id = account(&mut args)?;
                let (amount, currency) = (word(&mut args)?, Currency::parse(word(&mut args)?)?);
                let closed = args.next_pos() == Some("closed");
                let balance = match amount {
                    "0" => 0,
                    "max" => i64::MAX,
                    text => Amount::parse_decimal(text, currency)?.minor(),
                };
                let state = if closed { AccountState::Closed } else { AccountState::Open };
                let counters = Counters { balance, ..Counters::default() };
                let account = Account::restore(id, currency, state, counters)?;
                writeln!(output, "{account}")?;
                self.book.add_account(account);
            }
            // restore ACCOUNT BALANCE HELD_OUT HELD_IN, in minor units of EUR: what a damaged store may hold.
            "restore" => {
                let id = account(&mut args)?;
                let mut number = || -> Result<i64, Failure> { Ok(word(&mut args)?.parse()?) };
                let counters =
                    Counters { balance: number()?, held_out: number()?, held_in: number()? };
                let eur = Currency::parse("EUR")?;
                match Account::restore(id, eur, AccountState::Open, counters) {
                    Ok(account) => {
                        writeln!(output, "{account}")?;
                        self.book.add_account(account);
                    }
                    Err(damage) => writeln!(output, "{damage}")?,
                }
            }
            "show" => {
                for account in self.book.accounts() {
                    writeln!(output, "{account}")?;
                }
            }
            // GID/BRANCH does something: hold, capture, release, debit, credit, transfer, reverse-...
            branch => {
                let (gid, number) = branch.split_once('/').ok_or("GID/BRANCH comes first")?;
                let branch = BranchKey::new(gid, number.parse()?);
                let instruction = instruction(&mut args)?;
                let before = self.book.clone();
                match decide(&mut self.book, &branch, &instruction) {
                    Ok(postings) => {
                        for posting in &postings {
                            show(&mut output, &self.book, posting)?;
                        }
                        self.journal.extend(postings);
                    }
                    Err(refusal) => {
                        assert_eq!(before, self.book, "a refusal changed the book");
                        writeln!(output, "refused {}: {refusal}", refusal.code())?;
                    }
                }
            }
        }
        args.reject_next()?;
        Ok(output)
    }
}

fn word<'a>(args: &mut ArgumentConsumer<'a>) -> Result<&'a str, Failure> {
    args.next_pos().ok_or_else(|| "a word is missing".into())
}

fn account(args: &mut ArgumentConsumer<'_>) -> Result<AccountId, Failure> {
    Ok(AccountId::parse(word(args)?)?)
}

fn money(args: &mut ArgumentConsumer<'_>) -> Result<Money, Failure> {
    Ok(Money::parse(word(args)?, word(args)?)?)
}

fn instruction(args: &mut ArgumentConsumer<'_>) -> Result<Instruction, Failure> {
    Ok(match word(args)? {
        "hold-out" => Instruction::PlaceHold {
            direction: Direction::Out,
            account: account(args)?,
            money: money(args)?,
        },
        "hold-in" => Instruction::PlaceHold {
            direction: Direction::In,
            account: account(args)?,
            money: money(args)?,
        },
        "capture" => Instruction::Capture {
            amount: args
                .next_pos()
                .map(|text| {
                    Amount::parse_decimal(text, Currency::parse("EUR")?).map_err(Failure::from)
                })
                .transpose()?,
        },
        "release" => Instruction::Release,
        "debit" => Instruction::Debit { account: account(args)?, money: money(args)? },
        "credit" => Instruction::Credit { account: account(args)?, money: money(args)? },
        "transfer" => {
            Instruction::Transfer { from: account(args)?, to: account(args)?, money: money(args)? }
        }
        "reverse-debit" => {
            Instruction::ReverseDebit { account: account(args)?, money: money(args)? }
        }
        "reverse-credit" => {
            Instruction::ReverseCredit { account: account(args)?, money: money(args)? }
        }
        "reverse-transfer" => Instruction::ReverseTransfer {
            from: account(args)?,
            to: account(args)?,
            money: money(args)?,
        },
        other => return Err(format!("no instruction {other}").into()),
    })
}

fn show(output: &mut String, book: &Book, posting: &Posting) -> Result<(), Failure> {
    let account = book.account(&posting.account).ok_or("posted to an unknown account")?;
    write!(output, "{} {} {}", posting.branch, posting.account, posting.kind.name())?;
    for (name, delta) in [
        ("balance", posting.balance_delta),
        ("held out", posting.held_out_delta),
        ("held in", posting.held_in_delta),
    ] {
        if delta != 0 {
            let sign = if delta > 0 { "+" } else { "" };
            write!(output, ", {name} {sign}{}", decimal(delta, account.currency()))?;
        }
    }
    writeln!(output)?;
    Ok(())
}

#[test]
fn stories() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts");
    let mut scripts: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.sort();
    assert!(scripts.len() >= 14, "only {} scripts", scripts.len());
    for script in scripts {
        let mut bank = Bank::default();
        goldenscript::run(&mut bank, &script)
            .unwrap_or_else(|error| panic!("{}: {error}", script.display()));
    }
}
