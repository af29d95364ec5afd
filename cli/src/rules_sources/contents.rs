//! Whether what stands at several sources agrees: the copies of a reference table, and values of owners with the entries of their lookups.

use std::{collections::BTreeMap, time::Duration};

use futures::future::{join_all, try_join_all};
use holdfast_route::{Placement, Topology};
use holdfast_shard_router::config::SourceConfig;
use tokio::time::sleep;
use tokio_postgres::Client;

use super::{
    ANSWER_MAX, ASTRAY, Finding, Looked, Read,
    look::{Found, Table},
    lookups, rows,
};
use crate::source::{self, ALIKE, Failed, row_hash, within};

/// What is being written differs for a moment: so often it is looked at, and so far apart.
const LOOKS: usize = 3;
const PAUSE: Duration = Duration::from_millis(500);

/// A source that was found, and a connection to it.
pub(super) struct Open<'l> {
    pub(super) source: &'l str,
    pub(super) found: &'l Found,
    pub(super) client: Client,
}

/// What a copy holds, as far as it was read: how many rows, and the sum of their hashes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Copy {
    rows: u64,
    sum: String,
}

/// What differs between sources, and how much was read to know. Nothing is compared where a source was not found: that is told already.
pub(super) async fn compare(
    looked: &[Looked<'_>],
    configs: &[SourceConfig],
    rules: &Topology,
    rows_max: u64,
) -> (Vec<Finding>, Vec<Read>) {
    if rows_max == 0 || looked.len() < 2 || looked.iter().any(|one| one.found.is_err()) {
        return (Vec::new(), Vec::new());
    }
    let opened = looked.iter().filter_map(|Looked { source, found, .. }| {
        let found = found.as_ref().ok()?;
        let config = configs.iter().find(|known| *known.name == **source)?;
        Some(open(source, config, found))
    });
    let mut sources = match try_join_all(opened).await {
        Ok(sources) => sources,
        Err(lost) => return (vec![lost], Vec::new()),
    };
    let mut told = (Vec::new(), Vec::new());
    for look in 0..LOOKS {
        if look > 0 {
            sleep(PAUSE).await;
        }
        told = copies(&sources, rules, rows_max).await;
        told.0.extend(lookups::compare(&mut sources, rules, rows_max).await);
        if told.0.is_empty() {
            break;
        }
    }
    told
}

async fn open<'l>(
    source: &'l str,
    config: &SourceConfig,
    found: &'l Found,
) -> Result<Open<'l>, Finding> {
    let told = |text| Finding { code: ASTRAY, source: source.to_owned(), text };
    let (client, _ends_with_it) = source::connect(config, ANSWER_MAX).await.map_err(told)?;
    let settings = format!("{ALIKE}; SET statement_timeout = {}", ANSWER_MAX.as_millis());
    let set = within(ANSWER_MAX, client.batch_execute(&settings)).await;
    set.map_err(|failed| told(failed.told(config)))?;
    Ok(Open { source, found, client })
}

/// Copies that are not as most of them are.
async fn copies(
    sources: &[Open<'_>],
    rules: &Topology,
    rows_max: u64,
) -> (Vec<Finding>, Vec<Read>) {
    let (mut findings, mut read) = (Vec::new(), Vec::new());
    let tables = rules.tables().iter().filter(|(_, placement)| **placement == Placement::Reference);
    for (table, _) in tables {
        let table = table.as_str();
        let there: Option<Vec<&Table>> =
            sources.iter().map(|one| one.found.tables.get(table)).collect();
        let Some(there) = there else { continue };
        let columns = |table: &Table| table.columns.keys().cloned().collect::<Vec<_>>();
        if there.iter().any(|one| columns(one) != columns(there[0])) {
            continue;
        }
        let asked =
            sources.iter().zip(&there).map(|(one, table)| copy(&one.client, table, rows_max));
        let mut known = Vec::new();
        for (one, copy) in sources.iter().zip(join_all(asked).await) {
            match copy {
                Ok(copy) => {
                    let (rows, all) = (copy.rows.min(rows_max), copy.rows <= rows_max);
                    let read_here = rows::Read { table: table.to_owned(), rows, all };
                    read.push(Read { source: one.source.to_owned(), read: read_here });
                    known.push((one.source, copy));
                }
                Err(failed) => {
                    let text = rows::unread(table, &failed);
                    findings.push(Finding { code: ASTRAY, source: one.source.to_owned(), text });
                }
            }
        }
        if known.iter().all(|(_, copy)| copy.rows <= rows_max) {
            findings.extend(differing(table, &known));
        }
    }
    (findings, read)
}

async fn copy(client: &Client, table: &Table, rows_max: u64) -> Result<Copy, Failed> {
    // In the order of their names: two sources may have been given the same columns one behind the other in another order.
    let columns = table.columns.keys().map(|name| format!("t.\"{}\"", name.replace('"', "\"\"")));
    let row = format!("ROW({})", columns.collect::<Vec<_>>().join(", "));
    let sql = format!(
        "SELECT pg_catalog.count(*), coalesce(pg_catalog.sum(h), 0)::text FROM (SELECT {} FROM {} AS t LIMIT {}) AS s (h)",
        row_hash(&row),
        table.name,
        rows_max + 1
    );
    let row = within(ANSWER_MAX, client.query_one(&sql, &[])).await?;
    Ok(Copy { rows: u64::try_from(row.get::<_, i64>(0)).unwrap_or_default(), sum: row.get(1) })
}

/// Those that are not as most are, or as the first of those that are as many.
fn differing(table: &str, known: &[(&str, Copy)]) -> Vec<Finding> {
    let mut alike = BTreeMap::<&Copy, usize>::new();
    for (_, copy) in known {
        *alike.entry(copy).or_default() += 1;
    }
    let most = alike.values().max().copied().unwrap_or_default();
    let Some((like, usual)) = known.iter().find(|(_, copy)| alike[copy] == most) else {
        return Vec::new();
    };
    let others = known.iter().filter(|(_, copy)| copy != usual);
    others
        .map(|(source, copy)| {
            let what = match copy.rows == usual.rows {
                true => format!("{} rows at both, and some differ", copy.rows),
                false => format!("{} rows here, {} there", copy.rows, usual.rows),
            };
            let text = format!(
                "table {table} is a copy, and not as that of source {like}: {what}. Make them alike; whoever reads it is told by any source"
            );
            Finding { code: ASTRAY, source: (*source).to_owned(), text }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_that_is_not_as_most_are_is_told_of() {
        let copy = |rows, sum: &str| Copy { rows, sum: sum.to_owned() };
        let known = [("a", copy(3, "7")), ("b", copy(4, "8")), ("c", copy(4, "8"))];
        let told = differing("currency", &known);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].source, "a");
        assert!(told[0].text.contains("not as that of source b: 3 rows here, 4 there"), "{told:?}");
        let known = [("a", copy(3, "7")), ("b", copy(3, "8"))];
        let told = differing("currency", &known);
        assert!(told[0].text.contains("source a: 3 rows at both, and some differ"), "{told:?}");
        assert!(differing("currency", &known[..1]).is_empty());
    }
}
