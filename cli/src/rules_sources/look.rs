//! What is at one source: its tables with all that must be alike, its extensions, and how many rows lie where they do not belong.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use holdfast_shard_router::config::SourceConfig;
use tokio_postgres::Transaction;

use super::{
    Ask,
    rows::{self, Rows},
};
use crate::source::{self, within};

/// One table for each name; one that is named without a schema may be in any, first where the account looks.
const TABLES: &str = "SELECT DISTINCT ON (t.name) t.name, c.oid, pg_catalog.format('%I.%I', n.nspname, c.relname) \
    FROM pg_catalog.unnest($1::text[]) AS t (name), pg_catalog.pg_class c \
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE t.name IN (c.relname::text, n.nspname || '.' || c.relname) AND c.relkind IN ('r', 'p', 'f') \
    ORDER BY t.name, pg_catalog.pg_table_is_visible(c.oid) DESC, n.nspname <> 'public', n.nspname";
/// Each column; the type of one of a domain is told as well by what is below it.
const COLUMNS: &str = "SELECT a.attrelid, a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull, \
    pg_catalog.format_type(CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END, NULL) \
    FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
    WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped";
/// What is unique: as it is told, and by which columns, if it is by columns and of all rows.
const KEYS: &str = "SELECT i.indrelid, CASE WHEN i.indisprimary THEN 'PRIMARY KEY ' ELSE 'UNIQUE ' END \
      || pg_catalog.substring(pg_catalog.pg_get_indexdef(i.indexrelid), ' USING [a-z]+ (.*)$'), \
    CASE WHEN i.indpred IS NULL THEN ARRAY (SELECT a.attname::text FROM pg_catalog.pg_attribute a \
      WHERE a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])) ELSE '{}' END \
    FROM pg_catalog.pg_index i WHERE i.indrelid = ANY ($1) AND i.indisunique AND i.indisvalid";
/// What else must hold; of a foreign key also where it leads, and by which columns.
const CONSTRAINTS: &str = "SELECT c.conrelid, pg_catalog.pg_get_constraintdef(c.oid), c.conname::text, c.condeferrable, \
    CASE WHEN c.contype = 'f' THEN c.confrelid END, \
    ARRAY (SELECT a.attname::text FROM pg_catalog.unnest(c.conkey) WITH ORDINALITY AS k (number, n) \
      JOIN pg_catalog.pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.number ORDER BY k.n), \
    ARRAY (SELECT a.attname::text FROM pg_catalog.unnest(c.confkey) WITH ORDINALITY AS k (number, n) \
      JOIN pg_catalog.pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.number ORDER BY k.n), \
    c.confrelid::pg_catalog.regclass::text \
    FROM pg_catalog.pg_constraint c \
    WHERE c.conrelid = ANY ($1) AND c.contype IN ('c', 'f', 'x') AND c.conparentid = 0 ORDER BY c.conrelid, c.conname";
const EXTENSIONS: &str =
    "SELECT extname::text, extversion FROM pg_catalog.pg_extension WHERE extname <> 'plpgsql'";
const TRIGGERS: &str = "SELECT t.tgrelid, t.tgname::text FROM pg_catalog.pg_trigger t \
    WHERE t.tgrelid = ANY ($1) AND NOT t.tgisinternal AND t.tgenabled <> 'D'";
/// A copy of a server, such as a promoted replica, has its identifier too; it was not started at the same microsecond.
const SERVER: &str = "SELECT pg_catalog.current_setting('max_prepared_transactions'), \
    s.system_identifier::text || pg_catalog.to_char(pg_catalog.pg_postmaster_start_time(), ' J SSSS.US ') || pg_catalog.current_database() \
    FROM pg_catalog.pg_control_system() s";

/// What was found at a source.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// By their names in the rules.
    pub(super) tables: BTreeMap<String, Table>,
    /// Each with its version.
    pub(super) extensions: BTreeMap<String, String>,
    /// Which it is, of all databases that there are.
    pub(super) database: String,
    /// None can be prepared there.
    pub(super) prepares_none: bool,
    pub(super) rows: Rows,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    /// As a statement names it.
    pub(super) name: String,
    pub(super) columns: BTreeMap<String, Column>,
    /// Columns with their types, keys and constraints, as PostgreSQL writes them: what must be the same everywhere.
    pub(super) parts: BTreeSet<String>,
    /// The columns of each key that makes rows unique.
    pub(super) keys: Vec<BTreeSet<String>>,
    pub(super) foreign_keys: Vec<ForeignKey>,
    /// Foreign keys to tables that the rules do not name, and these tables.
    pub(super) leads_outside: Vec<(String, String)>,
    /// Those that are carried out.
    pub(super) triggers: BTreeSet<String>,
}

#[derive(Debug)]
pub(super) struct Column {
    /// Its type, without its length.
    pub(super) kind: String,
    pub(super) not_null: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ForeignKey {
    pub(super) name: String,
    /// The name in the rules of the table that it leads to.
    pub(super) to: String,
    /// Pairs: its own column, and that of the other table.
    pub(super) columns: Vec<(String, String)>,
    pub(super) deferrable: bool,
}

/// What is at a source, each answer within `limit`.
/// # Errors
/// Why nobody can look, for people.
pub(super) async fn look(
    config: Option<&SourceConfig>,
    ask: &Ask<'_>,
    limit: Duration,
) -> Result<Found, String> {
    let config = config
        .ok_or("the router does not know it. Add it to its configuration as [[sources.source]]")?;
    let (mut client, _ends_with_it) = source::connect(config, limit).await?;
    let asked = async {
        let transaction = client.build_transaction().read_only(true).start().await?;
        catalog(&transaction, ask).await
    };
    let mut found = within(limit, asked).await.map_err(|failed| failed.told(config))?;
    found.rows = rows::read(&mut client, &found.tables, ask, limit).await;
    Ok(found)
}

/// What the catalog says of the tables.
async fn catalog(
    transaction: &Transaction<'_>,
    ask: &Ask<'_>,
) -> Result<Found, tokio_postgres::Error> {
    let named = transaction.query(TABLES, &[&ask.tables]).await?;
    // Every name with its schema, whatever the account's search path is.
    transaction.batch_execute("SET LOCAL search_path = ''").await?;
    let mut by_id = BTreeMap::new();
    let mut found = Found::default();
    for row in named {
        let (name, id): (String, u32) = (row.get(0), row.get(1));
        by_id.insert(id, name.clone());
        found.tables.insert(name, Table { name: row.get(2), ..Table::default() });
    }
    let ids: Vec<u32> = by_id.keys().copied().collect();
    for row in transaction.query(COLUMNS, &[&ids]).await? {
        let Some(table) = found.tables.get_mut(&by_id[&row.get(0)]) else { continue };
        let (column, written, not_null): (String, String, bool) =
            (row.get(1), row.get(2), row.get(3));
        let end = if not_null { " NOT NULL" } else { "" };
        table.parts.insert(format!("{column} {written}{end}"));
        table.columns.insert(column, Column { kind: row.get(4), not_null });
    }
    for row in transaction.query(KEYS, &[&ids]).await? {
        let Some(table) = found.tables.get_mut(&by_id[&row.get(0)]) else { continue };
        table.parts.insert(row.get(1));
        table.keys.push(row.get::<_, Vec<String>>(2).into_iter().collect());
    }
    for row in transaction.query(CONSTRAINTS, &[&ids]).await? {
        let Some(table) = found.tables.get_mut(&by_id[&row.get(0)]) else { continue };
        table.parts.insert(row.get(1));
        let Some(to) = row.get::<_, Option<u32>>(4) else { continue };
        if let Some(to) = by_id.get(&to) {
            let (own, other): (Vec<String>, Vec<String>) = (row.get(5), row.get(6));
            table.foreign_keys.push(ForeignKey {
                name: row.get(2),
                to: to.clone(),
                columns: own.into_iter().zip(other).collect(),
                deferrable: row.get(3),
            });
        } else {
            table.leads_outside.push((row.get(2), row.get(7)));
        }
    }
    for row in transaction.query(TRIGGERS, &[&ids]).await? {
        let Some(table) = found.tables.get_mut(&by_id[&row.get(0)]) else { continue };
        table.triggers.insert(row.get(1));
    }
    let extensions = transaction.query(EXTENSIONS, &[]).await?;
    found.extensions = extensions.into_iter().map(|row| (row.get(0), row.get(1))).collect();
    let server = transaction.query_one(SERVER, &[]).await?;
    found.prepares_none = server.get::<_, &str>(0) == "0";
    found.database = server.get(1);
    Ok(found)
}
