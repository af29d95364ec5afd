//! Which rows of one source lie where they do not belong: keys are read there, so many of each table, and the rules say of each where it belongs.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use holdfast_route::{Home, Placement, Slot, Topology};
use serde::Serialize;
use tokio_postgres::{Client, Row};

use super::{ANSWER_MAX, Ask, ENTRIES, look::Table};
use crate::source::{Failed, within};

/// Rows that are fetched at once, and are in memory.
pub(super) const FETCHED_MAX: i32 = 1_000;

/// What the rows of a source told.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) read: Vec<Read>,
    pub(super) astray: BTreeMap<Way, Astray>,
    /// Tables that could not be read, and why.
    pub(super) unread: Vec<(String, Failed)>,
}

/// How much of a table was read.
#[derive(Debug, Serialize)]
pub(super) struct Read {
    pub(super) table: String,
    pub(super) rows: u64,
    /// There are no more.
    pub(super) all: bool,
}

/// From where they are to where they belong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Way {
    /// By which of the rules that were asked.
    pub(super) rules: usize,
    pub(super) table: String,
    /// The source; `None`: nowhere.
    pub(super) to: Option<String>,
}

#[derive(Debug, Default, Clone)]
pub(super) struct Astray {
    pub(super) rows: u64,
    pub(super) slots: BTreeSet<Slot>,
    /// One of them, by the first column that leads to it.
    pub(super) first: String,
}

/// How some rules find the rows of a table.
struct View<'t> {
    rules: &'t Topology,
    number: usize,
    /// `None`: they are entries of lookups.
    placement: Option<&'t Placement>,
    columns: Vec<&'t str>,
}

/// Reads the keys of each table.
pub(super) async fn read(
    client: &mut Client,
    tables: &BTreeMap<String, Table>,
    ask: &Ask<'_>,
    limit: Duration,
) -> Rows {
    let mut rows = Rows::default();
    if ask.rows_max == 0 {
        return rows;
    }
    for (name, table) in tables {
        let views: Vec<View<'_>> = views(ask, name).collect();
        let mut columns = views.iter().flat_map(|view| &view.columns);
        // What is missing is told already.
        let whole = columns.all(|column| table.columns.contains_key(*column));
        if views.is_empty() || !whole {
            continue;
        }
        if let Err(failed) = one(client, &mut rows, (name, table), &views, ask, limit).await {
            let lost = matches!(failed, Failed::Silent(_)) || client.is_closed();
            rows.unread.push((name.clone(), failed));
            if lost {
                break;
            }
        }
    }
    rows
}

/// What is told of a table that cannot be read.
pub(super) fn unread(table: &str, failed: &Failed) -> String {
    format!(
        "rows of table {table} could not be read: {failed}. The account needs SELECT on it, and an answer within {} s",
        ANSWER_MAX.as_secs()
    )
}

/// How the rules that are asked find the rows of `table`, as far as one can be astray.
fn views<'t>(ask: &'t Ask<'_>, table: &str) -> impl Iterator<Item = View<'t>> {
    let rules = ask.rules.iter().enumerate();
    rules.filter_map(move |(number, rules)| {
        let placement = rules.tables().get(table);
        let columns = match placement {
            Some(Placement::Sharded(sharded)) => {
                sharded.columns.iter().map(|column| &*column.name).collect()
            }
            Some(Placement::Single(only)) if only.as_str() != ask.source => Vec::new(),
            None if table == ENTRIES && !rules.lookups().is_empty() => vec!["value", "name"],
            Some(Placement::Single(_) | Placement::Reference) | None => return None,
        };
        Some(View { rules, number, placement, columns })
    })
}

/// Reads the keys of one table.
async fn one(
    client: &mut Client,
    rows: &mut Rows,
    (name, table): (&str, &Table),
    views: &[View<'_>],
    ask: &Ask<'_>,
    limit: Duration,
) -> Result<(), Failed> {
    // A longer text is no key, so no more of it is fetched than shows that.
    let one_too_many = holdfast_route::limit::KEY_BYTES_MAX + 1;
    let column = |column: &&str| {
        let quoted = column.replace('"', "\"\"");
        format!("pg_catalog.left(\"{quoted}\"::pg_catalog.text, {one_too_many})")
    };
    let columns: Vec<String> = views.iter().flat_map(|view| &view.columns).map(column).collect();
    let sql =
        format!("SELECT {} FROM {} LIMIT {}", columns.join(", "), table.name, ask.rows_max + 1);
    let settings =
        format!("SET LOCAL DateStyle = 'ISO'; SET LOCAL statement_timeout = {}", limit.as_millis());
    let begun = async {
        let transaction = client.build_transaction().read_only(true).start().await?;
        transaction.batch_execute(&settings).await?;
        let portal = transaction.bind(&sql, &[]).await?;
        Ok::<_, tokio_postgres::Error>((transaction, portal))
    };
    let (transaction, portal) = within(limit, begun).await?;
    let mut read = Read { table: name.to_owned(), rows: 0, all: true };
    while read.all {
        let some = within(limit, transaction.query_portal(&portal, FETCHED_MAX)).await?;
        for row in &some {
            if read.rows == ask.rows_max {
                read.all = false;
                break;
            }
            read.rows += 1;
            judge(row, rows, name, views, ask.source);
        }
        if some.len() < FETCHED_MAX as usize {
            break;
        }
    }
    rows.read.push(read);
    Ok(())
}

/// Whether a row is astray, by each of the rules.
fn judge(row: &Row, rows: &mut Rows, table: &str, views: &[View<'_>], here: &str) {
    let mut at = 0;
    for view in views {
        let values: Vec<Option<&str>> =
            (at..at + view.columns.len()).map(|column| row.get(column)).collect();
        at += view.columns.len();
        let home = match (view.placement, &values[..]) {
            (Some(placement), _) => view.rules.home(placement, values.iter().copied()),
            (None, [Some(value), Some(lookup)]) => view.rules.home_of_entry(lookup, value),
            (None, _) => Home::Nowhere,
        };
        let (to, slot) = match home {
            Home::On(source, slot) if source.as_str() != here => (Some(source.to_string()), slot),
            Home::Nowhere => (None, None),
            Home::On(..) | Home::Everywhere => continue,
        };
        let way = Way { rules: view.number, table: table.to_owned(), to };
        let astray = rows.astray.entry(way).or_insert_with(|| {
            let first = view.columns.iter().zip(&values).next();
            let first = first.map(|(column, value)| match value {
                Some(value) => format!("{column} = '{value}'"),
                None => format!("{column} is NULL"),
            });
            Astray { first: first.unwrap_or_default(), ..Astray::default() }
        });
        astray.rows += 1;
        astray.slots.extend(slot);
    }
}
