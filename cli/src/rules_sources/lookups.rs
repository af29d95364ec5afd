//! Whether each value of an owner has its entry and each entry its owner: both are read in the order of values, from every source at
//! once, and laid side by side, so that no more than some rows of each source are in memory.

use std::collections::{BTreeMap, VecDeque};

use futures::future::try_join_all;
use holdfast_route::{Lookup, Topology};
use tokio_postgres::{Portal, Transaction};

use super::{ANSWER_MAX, ASTRAY, ENTRIES, Finding, contents::Open, rows::FETCHED_MAX};
use crate::source::{Failed, within};

/// What is wrong with a value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wrong {
    NoEntry,
    NoOwner,
    OtherOwner,
}

/// How many values of a source have that wrong, and the first of them.
type Count = BTreeMap<(String, Wrong), (u64, String)>;

/// Values in their order, each with its owner's key.
struct Feed<'t> {
    source: &'t str,
    transaction: &'t Transaction<'t>,
    portal: Portal,
    /// It is of entries, and not of owners.
    entries: bool,
    fetched: VecDeque<(String, String)>,
    rows: u64,
    over: bool,
}

/// What does not fit, of every lookup that was read to its end.
pub(super) async fn compare(
    sources: &mut [Open<'_>],
    rules: &Topology,
    rows_max: u64,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, lookup) in rules.lookups() {
        let whole = sources.iter().all(|one| {
            let tables = &one.found.tables;
            let owners = tables.get(lookup.table().as_str());
            let has = |column| owners.is_some_and(|owners| owners.columns.contains_key(column));
            tables.contains_key(ENTRIES) && has(lookup.column()) && has(lookup.key())
        });
        if !whole {
            continue;
        }
        match one(sources, name.as_str(), lookup, rows_max).await {
            Ok(count) => findings.extend(count.into_iter().map(|((source, wrong), some)| {
                let text = told(wrong, name.as_str(), lookup, &some);
                Finding { code: ASTRAY, source, text }
            })),
            Err((source, failed)) => {
                let text = format!(
                    "entries of lookup {name} could not be compared with their owners: {failed}. The account needs SELECT on both tables"
                );
                findings.push(Finding { code: ASTRAY, source, text });
            }
        }
    }
    findings
}

/// One lookup; nothing is told where there are more rows than may be read.
async fn one(
    sources: &mut [Open<'_>],
    name: &str,
    lookup: &Lookup,
    rows_max: u64,
) -> Result<Count, (String, Failed)> {
    let begun = sources.iter_mut().map(async |one| {
        let begun = one.client.build_transaction().read_only(true).start();
        let begun = within(ANSWER_MAX, begun).await;
        let table = &one.found.tables[lookup.table().as_str()].name;
        Ok((one.source, table, begun.map_err(|failed| (one.source.to_owned(), failed))?))
    });
    let begun = try_join_all(begun).await?;
    let mut feeds = Vec::new();
    for (source, table, transaction) in &begun {
        // As the trigger writes them.
        let text = |column: &str| {
            let column = column.replace('"', "\"\"");
            let bytes = holdfast_route::limit::KEY_BYTES_MAX + 1;
            format!("pg_catalog.left(pg_catalog.to_jsonb(\"{column}\") #>> '{{}}', {bytes})")
        };
        let (column, key) = (text(lookup.column()), text(lookup.key()));
        let owners = format!(
            "SELECT {column}, coalesce({key}, '') FROM {table} WHERE $1 <> '' AND \"{}\" IS NOT NULL",
            lookup.column().replace('"', "\"\"")
        );
        let entries = "SELECT value, owner FROM holdfast.lookup WHERE name = $1".to_owned();
        for (some, entries) in [(owners, false), (entries, true)] {
            let sql = format!(
                "SELECT v, o FROM ({some} LIMIT {}) AS s (v, o) ORDER BY v COLLATE \"C\"",
                rows_max + 1
            );
            let bound = async {
                let statement =
                    transaction.prepare_typed(&sql, &[tokio_postgres::types::Type::TEXT]).await?;
                transaction.bind(&statement, &[&name]).await
            };
            let portal = within(ANSWER_MAX, bound).await;
            let portal = portal.map_err(|failed| ((*source).to_owned(), failed))?;
            let fetched = VecDeque::new();
            feeds.push(Feed {
                source,
                transaction,
                portal,
                entries,
                fetched,
                rows: 0,
                over: false,
            });
        }
    }
    let mut count = Count::new();
    loop {
        try_join_all(feeds.iter_mut().map(Feed::fill)).await?;
        if feeds.iter().any(|feed| feed.rows > rows_max) {
            return Ok(Count::new());
        }
        let values = feeds.iter().filter_map(|feed| feed.fetched.front());
        let Some(value) = values.map(|(value, _)| value).min().cloned() else { return Ok(count) };
        judge(&mut count, &mut feeds, &value);
    }
}

/// Takes a value from every feed that has it next, and says what is wrong with it.
fn judge(count: &mut Count, feeds: &mut [Feed<'_>], value: &str) {
    let (mut owners, mut entries) = (Vec::new(), Vec::new());
    for feed in feeds {
        while let Some((_, owner)) = feed.fetched.pop_front_if(|(next, _)| next == value) {
            let side = if feed.entries { &mut entries } else { &mut owners };
            side.push((feed.source, owner));
        }
    }
    let mut tell = |source: &str, wrong| {
        let first = || (0, value.to_owned());
        count.entry((source.to_owned(), wrong)).or_insert_with(first).0 += 1;
    };
    for (source, owner) in &owners {
        match entries.iter().any(|(_, known)| known == owner) {
            true => {}
            false if entries.is_empty() => tell(source, Wrong::NoEntry),
            false => tell(source, Wrong::OtherOwner),
        }
    }
    if owners.is_empty() {
        entries.iter().for_each(|(source, _)| tell(source, Wrong::NoOwner));
    }
}

impl Feed<'_> {
    /// Has the next row here, if there is one. A value is told only when all rows of it may be here, so two of them are wanted.
    async fn fill(&mut self) -> Result<(), (String, Failed)> {
        if self.over || self.fetched.len() > 1 {
            return Ok(());
        }
        let asked = self.transaction.query_portal(&self.portal, FETCHED_MAX);
        let some = within(ANSWER_MAX, asked).await;
        let some = some.map_err(|failed| (self.source.to_owned(), failed))?;
        self.over = some.len() < FETCHED_MAX as usize;
        self.rows += some.len() as u64;
        self.fetched.extend(some.iter().map(|row| (row.get(0), row.get(1))));
        Ok(())
    }
}

fn told(wrong: Wrong, name: &str, lookup: &Lookup, (rows, first): &(u64, String)) -> String {
    let (table, column) = (lookup.table(), lookup.column());
    match wrong {
        Wrong::NoEntry => format!(
            "rows of table {table} whose {column} has no entry in lookup {name}: {rows}, the first {column} = '{first}'. Make the entries; nobody finds the rows by it until then"
        ),
        Wrong::OtherOwner => format!(
            "rows of table {table} whose {column} has an entry in lookup {name} that leads to another owner: {rows}, the first {column} = '{first}'. Correct the entries"
        ),
        Wrong::NoOwner => format!(
            "entries of lookup {name} without an owner: {rows}, the first value = '{first}'. Delete them; nobody else can have the value until then"
        ),
    }
}
