//! Compares the books with what clients were told, by plain SQL straight from the databases; the coordinators are not asked.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;

use anyhow::Context;
use futures::TryStreamExt;
use futures::future::try_join_all;
use tokio_postgres::Client;

use super::driver::{Record, Told, number_of};
use super::postgres::{DATABASE, Server};
use super::report::{Money, amount};
use super::saga::{Ending, Played, Rounds};
use super::workload::Bank;

/// Named in a sentence about many.
const EXAMPLES_MAX: usize = 3;

const JOURNAL: &str = "
    SELECT gid, account, kind, balance_delta, (extract(epoch FROM at) * 1000000)::bigint
    FROM bank.journal WHERE kind <> 'opening' AND balance_delta <> 0";

/// What the books say.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) money: Money,
    pub(crate) holds_left: u64,
    pub(crate) prepared_left: u64,
    pub(crate) journal_ok: bool,
    /// Transfers told committed that are not in the journals.
    pub(crate) lost: u64,
    /// Transfers that are there otherwise than once with both legs, or though nobody was told.
    pub(crate) doubled: u64,
    /// A sentence each.
    pub(crate) problems: Vec<String>,
    /// In the order of the bank's accounts.
    pub(crate) balances: Vec<i64>,
}

/// All that clients know of a run.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) seed: u64,
    /// Of every transfer that was submitted, by number.
    pub(crate) records: Vec<Record>,
    pub(crate) rounds: Rounds,
}

/// One change of a balance by a transfer: number, place of the account, by how much.
type Leg = (u64, usize, i64);

/// The changes of balances that the journals hold.
#[derive(Debug, Default)]
struct Journals {
    /// Of transfers, sorted.
    legs: Vec<Leg>,
    /// Of Sagas, by gid.
    sagas: HashMap<String, Vec<SagaRow>>,
    /// Ids that nobody submitted.
    strangers: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct SagaRow {
    place: usize,
    kind: String,
    delta: i64,
    /// When its local transaction began, microseconds since the epoch.
    at_us: i64,
}

/// Audits the four databases against what clients were told.
/// # Errors
/// A database that cannot be read. What is wrong with the books is no error but among the problems.
pub(crate) async fn audit(
    servers: &[Server],
    bank: &Bank,
    memory: &Memory,
) -> anyhow::Result<Findings> {
    let clients = try_join_all(servers.iter().map(|server| server.connect(DATABASE))).await?;
    let mut sources: Vec<(String, Client)> = bank.shards.iter().cloned().zip(clients).collect();
    let books = holdfast_banking::audit_all(&mut sources, |_| {}).await?;
    let totals = books.totals().get(bank.currency.code()).copied().unwrap_or_default();
    let money = Money {
        opening_minor: i64::try_from(totals.opening)
            .context("the opening balances are beyond 64 bits")?,
        closing_minor: i64::try_from(totals.balance).context("the balances are beyond 64 bits")?,
        conserved: totals.opening == totals.balance
            && totals.opening == i128::from(bank.opening_minor()?),
    };
    let mut problems = books.findings();
    if !money.conserved && problems.is_empty() {
        let (opened, found) = (bank.opening_minor()?, money.opening_minor);
        let [opened, found] = [opened, found].map(|minor| amount(minor, bank.currency));
        problems.push(format!("accounts were opened with {opened}, the journals say {found}"));
    }
    // Open holds and prepared transactions have figures of their own in the report.
    let sum = |figure: fn(&holdfast_banking::SourceAudit) -> u64| -> u64 {
        books.sources.iter().map(|(_, source)| figure(source)).sum()
    };
    let (holds_left, prepared_left) =
        (sum(|source| source.holds_open), sum(|source| source.prepared));
    let wrong = sum(|source| {
        source.fold_mismatches
            + source.hold_mismatches
            + source.ends_wrong
            + source.branches_with_more_holds
            + source.negative
    });

    let places: HashMap<&str, usize> = bank
        .accounts
        .iter()
        .enumerate()
        .map(|(place, account)| (account.id.as_str(), place))
        .collect();
    let journals = read_journals(&sources, &places, memory).await?;
    let compared = compare_transfers(bank, &memory.records, &journals.legs);
    let (lost, doubled) =
        (compared.lost.len() as u64, (compared.wrong.len() + compared.ghosts.len()) as u64);
    let mut told = compared.sentences();
    told.extend(compare_sagas(&memory.rounds.played, &journals.sagas));
    told.extend(sentence(&journals.strangers, "ids in the journals were submitted by nobody"));
    let (balances, more) = compare_balances(&sources, &places, bank, memory).await?;
    told.extend(more);

    let journal_ok = wrong == 0
        && books.gids_unbalanced == 0
        && totals.debits == totals.credits
        && told.is_empty();
    problems.extend(told);
    Ok(Findings { money, holds_left, prepared_left, journal_ok, lost, doubled, problems, balances })
}

async fn read_journals(
    sources: &[(String, Client)],
    places: &HashMap<&str, usize>,
    memory: &Memory,
) -> anyhow::Result<Journals> {
    let mut journals = Journals::default();
    let submitted: u64 = memory.records.last().map_or(0, |record| record.number + 1);
    for (name, client) in sources {
        let rows = client.query_raw(JOURNAL, &[] as &[&str]).await;
        let mut rows = pin!(rows.with_context(|| format!("reading the journal of {name}"))?);
        while let Some(row) = rows.try_next().await? {
            let (gid, account): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
            let delta: i64 = row.try_get(3)?;
            let Some(place) = places.get(account).copied() else {
                journals.strangers.push(format!("{gid} (account {account})"));
                continue;
            };
            match number_of(memory.seed, gid) {
                Some(number) if number < submitted => journals.legs.push((number, place, delta)),
                _ if memory.rounds.knows(gid) => {
                    let row =
                        SagaRow { place, kind: row.try_get(2)?, delta, at_us: row.try_get(4)? };
                    journals.sagas.entry(gid.to_owned()).or_default().push(row);
                }
                _ => journals.strangers.push(gid.to_owned()),
            }
        }
    }
    journals.legs.sort_unstable();
    Ok(journals)
}

/// Every transfer told committed has both its legs, once, and no other; every other one has none.
fn compare_transfers(bank: &Bank, records: &[Record], legs: &[Leg]) -> Compared {
    let Compared { mut lost, mut wrong, mut ghosts } = Compared::default();
    let mut rest = legs;
    for record in records {
        let before = rest.partition_point(|leg| leg.0 < record.number);
        // Legs of a number without a record: submitted, and its client's word was lost.
        ghosts.extend(rest[..before].iter().map(|leg| format!("transfer {}", leg.0)));
        let until = rest.partition_point(|leg| leg.0 <= record.number);
        let found = &rest[before..until];
        rest = &rest[until..];
        let name = || format!("transfer {}", record.number);
        match record.told {
            Told::Committed => {
                let transfer = bank.transfer(record.number).expect("it was submitted");
                let minor = transfer.amount.minor();
                let mut expected =
                    [(record.number, transfer.from, -minor), (record.number, transfer.to, minor)];
                expected.sort_unstable();
                if found.is_empty() {
                    lost.push(name());
                } else if found != expected {
                    wrong.push(name());
                }
            }
            Told::RolledBack | Told::TurnedAway(_) if !found.is_empty() => ghosts.push(name()),
            Told::RolledBack | Told::TurnedAway(_) | Told::Nothing => {}
        }
    }
    ghosts.extend(rest.iter().map(|leg| format!("transfer {}", leg.0)));
    Compared { lost, wrong, ghosts }
}

/// Transfers whose journal rows do not say what was told.
#[derive(Debug, Default)]
struct Compared {
    lost: Vec<String>,
    wrong: Vec<String>,
    ghosts: Vec<String>,
}

impl Compared {
    fn sentences(&self) -> Vec<String> {
        let mut problems = Vec::new();
        problems.extend(sentence(&self.lost, "were told committed and are not in the journals"));
        problems.extend(sentence(
            &self.wrong,
            "were told committed and are in the journals otherwise than once with both legs",
        ));
        problems.extend(sentence(&self.ghosts, "were not told committed and have moved money"));
        problems
    }
}

fn compare_sagas(played: &[Played], found: &HashMap<String, Vec<SagaRow>>) -> Vec<String> {
    let mut wrong = Vec::new();
    let none = Vec::new();
    for saga in played {
        if let Err(why) = compare_saga(saga, found.get(&saga.gid).unwrap_or(&none)) {
            wrong.push(format!("{} ({why})", saga.gid));
        }
    }
    sentence(&wrong, "Sagas are in the journals otherwise than they ended").into_iter().collect()
}

fn compare_saga(saga: &Played, rows: &[SagaRow]) -> Result<(), String> {
    let kind = |delta: i64| if delta < 0 { "debit" } else { "credit" };
    let mut expected: Vec<(usize, String, i64)> = Vec::new();
    for (step, (place, delta)) in saga.steps.into_iter().enumerate() {
        let refused = saga.ending == Ending::Compensated && step + 1 == saga.steps.len();
        if !refused {
            expected.push((place, kind(delta).to_owned(), delta));
        }
        if saga.ending == Ending::Compensated && !refused {
            expected.push((place, format!("{}_reversed", kind(delta)), -delta));
        }
    }
    let mut stands: Vec<(usize, String, i64)> =
        rows.iter().map(|row| (row.place, row.kind.clone(), row.delta)).collect();
    expected.sort_unstable();
    stands.sort_unstable();
    if stands != expected {
        return Err(format!("{} rows, {} expected", stands.len(), expected.len()));
    }
    let undone_at = |step: usize| {
        let place = saga.steps[step].0;
        rows.iter()
            .find(|row| row.place == place && row.kind.ends_with("_reversed"))
            .map(|row| row.at_us)
    };
    // All servers run by the clock of one machine.
    if saga.ending == Ending::Compensated && undone_at(1) > undone_at(0) {
        return Err("the first step was undone before the second".to_owned());
    }
    Ok(())
}

/// Each account is on its shard, once, with its opening balance and the effect of all that was told committed.
async fn compare_balances(
    sources: &[(String, Client)],
    places: &HashMap<&str, usize>,
    bank: &Bank,
    memory: &Memory,
) -> anyhow::Result<(Vec<i64>, Vec<String>)> {
    let mut found: Vec<Option<i64>> = vec![None; bank.accounts.len()];
    let mut misplaced = Vec::new();
    for (shard, (name, client)) in sources.iter().enumerate() {
        let rows = client.query("SELECT id, balance_minor FROM bank.account", &[]).await;
        for row in rows.with_context(|| format!("reading the accounts of {name}"))? {
            let (id, balance): (&str, i64) = (row.try_get(0)?, row.try_get(1)?);
            match places.get(id) {
                Some(place) if bank.accounts[*place].shard == shard && found[*place].is_none() => {
                    found[*place] = Some(balance);
                }
                _ => misplaced.push(format!("{id} on {name}")),
            }
        }
    }
    let expected = expected_balances(bank, memory);
    let wrong: Vec<String> = bank
        .accounts
        .iter()
        .zip(found.iter().zip(&expected))
        .filter(|(_, (found, expected))| **found != Some(**expected))
        .map(|(account, (found, expected))| {
            let found = found.map_or("none".to_owned(), |minor| amount(minor, bank.currency));
            format!(
                "{} (has {found}, should have {})",
                account.id,
                amount(*expected, bank.currency)
            )
        })
        .collect();
    let mut problems = Vec::new();
    problems.extend(sentence(&misplaced, "accounts are where they do not belong"));
    problems.extend(sentence(&wrong, "accounts have another balance than their clients were told"));
    Ok((found.into_iter().map(Option::unwrap_or_default).collect(), problems))
}

fn expected_balances(bank: &Bank, memory: &Memory) -> Vec<i64> {
    let mut balances: Vec<i64> =
        bank.accounts.iter().map(|account| account.opening_minor).collect();
    for record in memory.records.iter().filter(|record| record.told == Told::Committed) {
        let transfer = bank.transfer(record.number).expect("it was submitted");
        balances[transfer.from] -= transfer.amount.minor();
        balances[transfer.to] += transfer.amount.minor();
    }
    let effects: BTreeMap<usize, i64> = memory.rounds.effects();
    for (place, delta) in effects {
        balances[place] += delta;
    }
    balances
}

/// `12 were lost: transfer 3, transfer 7, transfer 9, ...`; nothing where there is nothing.
fn sentence(names: &[String], what: &str) -> Option<String> {
    let examples =
        names.iter().take(EXAMPLES_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if names.len() > EXAMPLES_MAX { ", ..." } else { "" };
    (!names.is_empty()).then(|| format!("{} {what}: {examples}{more}", names.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_route::Topology;

    fn bank() -> Bank {
        let topology = Topology::parse(include_str!("../../../config/shards.toml")).unwrap();
        Bank::random(100, 7, &topology).unwrap()
    }

    fn record(number: u64, told: Told) -> Record {
        Record { number, told }
    }

    fn legs_of(bank: &Bank, number: u64) -> [Leg; 2] {
        let transfer = bank.transfer(number).unwrap();
        let mut legs = [
            (number, transfer.from, -transfer.amount.minor()),
            (number, transfer.to, transfer.amount.minor()),
        ];
        legs.sort_unstable();
        legs
    }

    #[test]
    fn books_that_say_what_was_told_are_right() {
        let bank = bank();
        let records = [
            record(0, Told::Committed),
            record(1, Told::RolledBack),
            record(2, Told::Committed),
            record(3, Told::Nothing),
        ];
        let mut legs = [legs_of(&bank, 0), legs_of(&bank, 2), legs_of(&bank, 3)].concat();
        assert_eq!(compare_transfers(&bank, &records, &legs).sentences(), [] as [String; 0]);
        legs.truncate(4);
        assert_eq!(compare_transfers(&bank, &records, &legs).sentences(), [] as [String; 0]);
    }

    #[test]
    fn every_way_to_lose_or_make_money_is_seen() {
        let bank = bank();
        let both = legs_of(&bank, 5);
        let committed = [record(5, Told::Committed)];
        let seen = |records: &[Record], legs: &[Leg]| {
            compare_transfers(&bank, records, legs).sentences().join("; ")
        };
        assert!(seen(&committed, &[]).contains("1 were told committed and are not in"));
        assert!(seen(&committed, &both[..1]).contains("otherwise than once"));
        let twice = [both[0], both[0], both[1], both[1]];
        assert!(seen(&committed, &twice).contains("otherwise than once"));
        let other = [(5, both[0].1, both[0].2 + 1), both[1]];
        assert!(seen(&committed, &other).contains("otherwise than once"));
        for told in [Told::RolledBack, Told::TurnedAway("no".to_owned())] {
            assert!(seen(&[record(5, told)], &both).contains("have moved money: transfer 5"));
        }
        assert!(seen(&[], &both).contains("have moved money"));
        assert!(seen(&[record(6, Told::RolledBack)], &both).contains("have moved money"));
    }

    #[test]
    fn a_saga_must_be_undone_step_by_step_and_in_reverse() {
        let saga = Played {
            gid: "s".to_owned(),
            ending: Ending::Compensated,
            steps: [(1, -500), (2, 500), (3, -9)],
        };
        let row = |place, kind: &str, delta, at_us| SagaRow {
            place,
            kind: kind.to_owned(),
            delta,
            at_us,
        };
        let mut rows = vec![
            row(1, "debit", -500, 10),
            row(2, "credit", 500, 20),
            row(2, "credit_reversed", -500, 30),
            row(1, "debit_reversed", 500, 40),
        ];
        assert_eq!(compare_saga(&saga, &rows), Ok(()));
        rows[3].at_us = 25;
        assert!(compare_saga(&saga, &rows).unwrap_err().contains("before the second"));
        rows.pop();
        assert!(compare_saga(&saga, &rows).unwrap_err().contains("3 rows, 4 expected"));
        let committed = Played { ending: Ending::Committed, ..saga };
        let rows = [row(1, "debit", -500, 1), row(2, "credit", 500, 2), row(3, "debit", -9, 3)];
        assert_eq!(compare_saga(&committed, &rows), Ok(()));
        assert!(compare_saga(&committed, &rows[..2]).is_err());
    }

    #[test]
    fn balances_follow_from_what_was_told() {
        let bank = bank();
        let records = vec![record(0, Told::Committed), record(1, Told::RolledBack)];
        let memory = Memory { seed: 7, records, rounds: Rounds::default() };
        let transfer = bank.transfer(0).unwrap();
        let balances = expected_balances(&bank, &memory);
        assert_eq!(balances[transfer.from], 100_000 - transfer.amount.minor());
        assert_eq!(balances[transfer.to], 100_000 + transfer.amount.minor());
        assert_eq!(balances.iter().sum::<i64>(), bank.opening_minor().unwrap());
    }
}
