//! `holdfast rules check --sources`: whether each source has what the rules send there, told before they are applied.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use futures::future::join_all;
use holdfast_route::{Placement, SourceId, Topology};
use holdfast_shard_router::config::SourceConfig;
use holdfast_tcc_agent::Database;
use serde::Serialize;
use tokio::time::timeout;

use crate::{
    config::{self, ConfigArgs, RouterRole},
    exit,
    output::{self, Output},
    router, rules,
};

/// For one source to let in and answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Every column of these tables; one that is named without a schema may be in any.
const COLUMNS: &str = "SELECT t.name, a.attname || ' ' || pg_catalog.format_type(a.atttypid, a.atttypmod), a.attname::text \
    FROM pg_catalog.unnest($1::text[]) AS t (name), pg_catalog.pg_class c \
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
    WHERE t.name IN (c.relname::text, n.nspname || '.' || c.relname) AND c.relkind IN ('r', 'p', 'f')";
const PREPARED: &str = "SELECT pg_catalog.current_setting('max_prepared_transactions')";

/// What a source lacks.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    code: &'static str,
    source: String,
    text: String,
}

/// What was found at a source.
#[derive(Debug, Default)]
struct Found {
    tables: BTreeMap<String, Columns>,
    /// None can be prepared there.
    prepares_none: bool,
}

#[derive(Debug, Default)]
struct Columns {
    names: BTreeSet<String>,
    /// Each with its type.
    typed: BTreeSet<String>,
}

/// Tables that must be there, each with columns that it must have.
type Needs<'t> = BTreeMap<&'t str, BTreeSet<&'t str>>;

/// Checks the rules in `file`, and each source that they name by the accounts in a router's configuration.
/// # Errors
/// A file cannot be read or is mistaken.
pub(crate) async fn check(file: &Path, config: &Path, output: Output) -> anyhow::Result<ExitCode> {
    let Ok(topology) = rules::load(file)? else { return rules::check(file, output) };
    let args = ConfigArgs { config: Some(config.to_owned()), ..ConfigArgs::default() };
    let loaded = config::load::<RouterRole>(&args.inputs(Vec::new()))?;
    let router = &loaded.config.router;
    let configured = &router.sources;
    let looks = topology.sources().keys().map(async |source| {
        let config = configured.iter().find(|known| *known.name == *source.as_str());
        let needs = needs(&topology, source);
        let found = look(config, &needs, ANSWER_MAX).await;
        (source.as_str(), needs, found)
    });
    let findings = judge(&join_all(looks).await, router.coordinator.is_some());
    match output {
        Output::Json => output::print_json(&serde_json::json!({
            "file": file.display().to_string(),
            "sources": topology.sources().len(),
            "findings": findings,
        }))?,
        Output::Table if findings.is_empty() => output::print(&format!(
            "{}: each of {} sources has what the rules need.",
            file.display(),
            topology.sources().len()
        ))?,
        Output::Table => {
            for Finding { code, source, text } in &findings {
                exit::tell(&format!("{code} source {source}: {text}"));
            }
        }
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILED) })
}

/// What the rules need at `source`.
fn needs<'t>(topology: &'t Topology, source: &SourceId) -> Needs<'t> {
    let bears = |group: &holdfast_route::Group| {
        let mut shards = topology.shards().iter().filter(|(_, shard)| shard.source() == source);
        shards.any(|(shard, _)| !group.slots_of(shard).is_empty())
    };
    let mut needs = Needs::new();
    for (table, placement) in topology.tables() {
        let columns = match placement {
            Placement::Sharded(sharded) if bears(&topology.groups()[&sharded.group]) => {
                let keys = sharded.columns.iter().map(|column| &*column.name);
                keys.chain(sharded.order.iter().map(|column| &**column)).collect()
            }
            Placement::Single(only) if only == source => BTreeSet::new(),
            Placement::Reference => BTreeSet::new(),
            Placement::Sharded(_) | Placement::Single(_) => continue,
        };
        needs.insert(table.as_str(), columns);
    }
    needs
}

/// What is at a source.
/// # Errors
/// Why nobody can look, for people.
async fn look(
    config: Option<&SourceConfig>,
    needs: &Needs<'_>,
    limit: Duration,
) -> Result<Found, String> {
    let config = config
        .ok_or("the router does not know it. Add it to its configuration as [[sources.source]]")?;
    let account = router::account(config).ok_or(
        "it has no account of its own there. Give it user and dbname in the router's configuration",
    )?;
    let tables: Vec<&str> = needs.keys().copied().collect();
    let asked = async {
        let (client, _ends_with_it) = Database::new(account, config.tls.clone()).connect().await?;
        let rows = client.query(COLUMNS, &[&tables]).await?;
        let prepared: String = client.query_one(PREPARED, &[]).await?.get(0);
        Ok::<_, tokio_postgres::Error>((rows, prepared))
    };
    let told = timeout(limit, asked).await.map_err(|_| {
        format!("no answer within {} ms. Check that PostgreSQL runs there", limit.as_millis())
    })?;
    let (rows, prepared) = told.map_err(|error| {
        let cause =
            error.as_db_error().map_or_else(|| error.to_string(), |db| db.message().to_owned());
        format!("{cause}. Check that PostgreSQL runs there and lets the router in")
    })?;
    let mut found = Found { prepares_none: prepared == "0", ..Found::default() };
    for row in rows {
        let columns = found.tables.entry(row.get(0)).or_default();
        columns.typed.insert(row.get(1));
        columns.names.insert(row.get(2));
    }
    Ok(found)
}

/// What is wrong, by source, from what the rules need and what is there. `decides`: there are coordinators.
fn judge(looked: &[(&str, Needs<'_>, Result<Found, String>)], decides: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    // The first source that has a table, with its columns.
    let mut first = BTreeMap::<&str, (&str, &Columns)>::new();
    for (source, needs, found) in looked {
        let mut tell = |text: String| {
            findings.push(Finding { code: "HF1026", source: (*source).to_owned(), text });
        };
        let found = match found {
            Ok(found) => found,
            Err(why) => {
                tell(why.clone());
                continue;
            }
        };
        if decides && found.prepares_none && looked.len() > 1 {
            tell("max_prepared_transactions is 0, so no transaction on several sources can commit. Set it to the router's connections at least".to_owned());
        }
        for (table, columns) in needs {
            let Some(there) = found.tables.get(*table) else {
                tell(format!("there is no table {table}. Make it before rows are sent there"));
                continue;
            };
            for column in columns.iter().filter(|column| !there.names.contains(**column)) {
                tell(format!("table {table} has no column {column}, which the rules name"));
            }
            let (other, elsewhere) = *first.entry(table).or_insert((source, there));
            let only = |one: &Columns, two: &Columns| {
                let only: Vec<_> = one.typed.difference(&two.typed).cloned().collect();
                if only.is_empty() { "nothing".to_owned() } else { only.join(", ") }
            };
            if there.typed != elsewhere.typed {
                tell(format!(
                    "table {table} is not like that of source {other}: {} here alone, {} there alone. Make them alike",
                    only(there, elsewhere),
                    only(elsewhere, there)
                ));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use holdfast_shard_router::config::Endpoint;

    use super::*;

    #[tokio::test]
    async fn a_source_that_says_nothing_is_told_of_after_the_limit() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = silent.local_addr().expect("it has one").to_string();
        let config = SourceConfig {
            name: "pg-1".into(),
            addresses: vec![Endpoint::parse(&address)],
            database: Some("bank".to_owned()),
            user: Some("holdfast".to_owned()),
            password: None,
            weak_authentication: false,
            tls: None,
        };
        let limit = Duration::from_millis(20);
        let told = look(Some(&config), &Needs::new(), limit).await.expect_err("nobody answers");
        assert!(told.starts_with("no answer within 20 ms"), "{told}");
    }
}
