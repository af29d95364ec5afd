//! Reads a bank and its transfers from an AMLSim folder, exactly: amounts are decimal text and never pass through a float.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use csv::{Reader, ReaderBuilder, StringRecord, Trim};
use holdfast_ledger::{Amount, BadAmount, Currency};

use super::args::TRANSFERS_MAX;

/// The accounts in one folder: twice what the demo opens by itself at most.
const ACCOUNTS_MAX: usize = 2_000_000;

/// A bank as AMLSim describes it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Replay {
    /// Account numbers with their opening balances in minor units, by number.
    pub(crate) accounts: BTreeMap<u64, i64>,
    /// In file order.
    pub(crate) transfers: Vec<ReplayedTransfer>,
}

/// One line of `transactions.csv`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReplayedTransfer {
    /// Pays.
    pub(crate) from: u64,
    /// Is paid.
    pub(crate) to: u64,
    /// How much.
    pub(crate) amount: Amount,
}

/// Reads `nodes.csv` and `transactions.csv` below `folder`.
///
/// # Errors
/// Name the file, the line and what is wrong with it: a missing column, a number that is none, more than two decimal
/// places, an account twice, or a transfer of an account that is not in `nodes.csv`.
pub(crate) fn read(folder: &Path) -> anyhow::Result<Replay> {
    let mut accounts = BTreeMap::new();
    let mut nodes = Table::open(&folder.join("nodes.csv"), &["nodeid", "init_balance"])?;
    while let Some(row) = nodes.next()? {
        let balance_minor = row.balance(1)?;
        row.check(accounts.len() < ACCOUNTS_MAX, || format!("more than {ACCOUNTS_MAX} accounts"))?;
        let number = row.number(0)?;
        let before = accounts.insert(number, balance_minor);
        row.check(before.is_none(), || format!("account {number} stands here a second time"))?;
    }
    ensure!(!accounts.is_empty(), "{}: no accounts", nodes.name);

    let mut transfers = Vec::new();
    let columns = ["sourceNodeId", "targetNodeId", "value"];
    let mut table = Table::open(&folder.join("transactions.csv"), &columns)?;
    while let Some(row) = table.next()? {
        let transfer =
            ReplayedTransfer { from: row.number(0)?, to: row.number(1)?, amount: row.amount(2)? };
        for account in [transfer.from, transfer.to] {
            row.check(accounts.contains_key(&account), || {
                format!("account {account} is not in nodes.csv")
            })?;
        }
        row.check((transfers.len() as u64) < TRANSFERS_MAX, || {
            format!("more than {TRANSFERS_MAX} transfers")
        })?;
        transfers.push(transfer);
    }
    ensure!(!transfers.is_empty(), "{}: no transfers", table.name);
    Ok(Replay { accounts, transfers })
}

/// A CSV file of which some columns are of interest.
struct Table {
    name: String,
    reader: Reader<File>,
    columns: Vec<(&'static str, usize)>,
    record: StringRecord,
}

impl Table {
    fn open(path: &Path, wanted: &[&'static str]) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path)
            .with_context(|| format!("{name} cannot be opened; --replay wants an AMLSim folder"))?;
        let mut reader = ReaderBuilder::new().trim(Trim::All).from_reader(file);
        let header = reader.headers().with_context(|| format!("{name}, line 1"))?.clone();
        let columns = wanted
            .iter()
            .map(|column| {
                let at = header.iter().position(|title| title == *column).with_context(|| {
                    let titles: Vec<&str> = header.iter().collect();
                    format!("{name}, line 1: no column {column}; it has {}", titles.join(", "))
                })?;
                Ok((*column, at))
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { name, reader, columns, record: StringRecord::new() })
    }

    fn next(&mut self) -> anyhow::Result<Option<Row<'_>>> {
        let more = self.reader.read_record(&mut self.record).with_context(|| self.name.clone())?;
        Ok(more.then_some(Row { table: self }))
    }
}

struct Row<'a> {
    table: &'a Table,
}

impl Row<'_> {
    fn field(&self, column: usize) -> (&'static str, &str) {
        let (title, at) = self.table.columns[column];
        (title, self.table.record.get(at).expect("the reader refuses rows shorter than the header"))
    }

    fn number(&self, column: usize) -> anyhow::Result<u64> {
        let (title, text) = self.field(column);
        text.parse()
            .ok()
            .with_context(|| self.complaint(&format!("{title} = {text:?} is no account number")))
    }

    fn balance(&self, column: usize) -> anyhow::Result<i64> {
        let (title, text) = self.field(column);
        balance_minor(text).map_err(|error| anyhow!(self.complaint(&format!("{title}: {error}"))))
    }

    fn amount(&self, column: usize) -> anyhow::Result<Amount> {
        let (title, text) = self.field(column);
        let amount = Amount::parse_decimal(text, currency());
        amount.map_err(|error| anyhow!(self.complaint(&format!("{title}: {error}"))))
    }

    fn check(&self, holds: bool, cause: impl FnOnce() -> String) -> anyhow::Result<()> {
        if holds {
            return Ok(());
        }
        bail!(self.complaint(&cause()))
    }

    fn complaint(&self, cause: &str) -> String {
        let line = self.table.record.position().map_or(0, csv::Position::line);
        format!("{}, line {line}: {cause}", self.table.name)
    }
}

/// A balance may be zero, which an amount to move may not.
fn balance_minor(text: &str) -> Result<i64, BadAmount> {
    if !text.is_empty() && text.trim_matches('0').chars().all(|c| c == '.') && text.contains('0') {
        return Ok(0);
    }
    Amount::parse_decimal(text, currency()).map(Amount::minor)
}

/// AMLSim counts in dollars.
pub(crate) fn currency() -> Currency {
    Currency::parse("USD").expect("a currency of ISO 4217")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(nodes: &str, transactions: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("nodes.csv"), nodes).unwrap();
        std::fs::write(folder.path().join("transactions.csv"), transactions).unwrap();
        folder
    }

    const NODES: &str = "nodeid,isFraud,init_balance,fraudStep\n0,0,184.44,-1\n17,1,175.8,3\n";
    const TRANSACTIONS: &str = "sourceNodeId,targetNodeId,value,time\n0,17,147.8,1\n17,17,9,2\n";

    #[test]
    fn balances_are_read_exactly_and_may_be_zero() {
        for (text, minor) in [("184.44", 18_444), ("9", 900), ("0", 0), ("0.00", 0), ("1.15", 115)]
        {
            assert_eq!(balance_minor(text), Ok(minor), "{text}");
        }
        // A float would not know the last digit.
        assert_eq!(balance_minor("9007199254740993.01"), Ok(900_719_925_474_099_301));
        for bad in
            ["", ".", "-1", "1.234", "1e3", "1,5", "+1", "NaN", "0.0.0x", "99999999999999999999"]
        {
            assert!(balance_minor(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn a_folder_is_read_in_file_order() {
        let folder = folder(NODES, TRANSACTIONS);
        assert_eq!(
            read(folder.path()).unwrap(),
            Replay {
                accounts: BTreeMap::from([(0, 18_444), (17, 17_580)]),
                transfers: vec![
                    ReplayedTransfer { from: 0, to: 17, amount: Amount::new(14_780).unwrap() },
                    ReplayedTransfer { from: 17, to: 17, amount: Amount::new(900).unwrap() },
                ],
            }
        );
    }

    #[test]
    fn mistakes_name_file_line_and_cause() {
        let cases = [
            ("nodeid,isFraud\n0,0\n", TRANSACTIONS, "nodes.csv, line 1: no column init_balance"),
            (
                "nodeid,init_balance\n0,1\nzero,1\n",
                TRANSACTIONS,
                "nodes.csv, line 3: nodeid = \"zero\"",
            ),
            (
                "nodeid,init_balance\n0,1.005\n",
                TRANSACTIONS,
                "nodes.csv, line 2: init_balance: \"1.005\" has more",
            ),
            ("nodeid,init_balance\n0,-1\n", TRANSACTIONS, "nodes.csv, line 2: init_balance"),
            (
                "nodeid,init_balance\n0,1\n0,1\n",
                TRANSACTIONS,
                "line 3: account 0 stands here a second time",
            ),
            ("nodeid,init_balance\n", TRANSACTIONS, "nodes.csv: no accounts"),
            (
                NODES,
                "sourceNodeId,targetNodeId,value\n0,17,5\n0,18,5\n",
                "transactions.csv, line 3: account 18",
            ),
            (
                NODES,
                "sourceNodeId,targetNodeId,value\n0,17,0\n",
                "transactions.csv, line 2: value: amount 0",
            ),
            (NODES, "sourceNodeId,targetNodeId,value\n0,17\n", "transactions.csv"),
            (NODES, "sourceNodeId,targetNodeId,value\n", "transactions.csv: no transfers"),
        ];
        for (nodes, transactions, words) in cases {
            let error = format!("{:#}", read(folder(nodes, transactions).path()).unwrap_err());
            assert!(error.contains(words), "{error:?} does not say {words:?}");
        }
        let nothing = tempfile::tempdir().unwrap();
        let error = format!("{:#}", read(nothing.path()).unwrap_err());
        assert!(error.contains("nodes.csv cannot be opened"), "{error}");
    }
}
