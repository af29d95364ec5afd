//! One table of a move: what the catalog says of it, and every statement by which its rows are noted, copied, compared and moved.
//!
//! A row travels as PostgreSQL writes it (`t::text`), so that each type is its own affair. Names come from the catalog and are quoted; values
//! never stand in a statement.

use std::collections::BTreeSet;

use holdfast_route::{Placement, Topology};
use tokio_postgres::Client;

use crate::{
    rules_sources::ENTRIES,
    source::{Failed, row_hash},
};

/// The schema of what a move needs at a source: notes, staged rows, functions.
pub(super) const SCHEMA: &str = "holdfast_move";
/// A row as a whole, in statements: no column is called so.
const ROW: &str = "\"~\"";
/// Notes that are taken up at once.
pub(super) const NOTES_MAX: usize = 1_000;

/// What is asked of the catalog: name, kind, whether others inherit, whether rows are hidden from the account, whether it may change the table,
/// columns in their order with their types, those that are not generated, and those of the primary key.
const LOOK: &str = "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), c.relkind::text, c.relhassubclass AND c.relkind = 'r', \
    pg_catalog.row_security_active(c.oid), pg_catalog.pg_has_role(c.relowner, 'USAGE'), \
    ARRAY (SELECT pg_catalog.format('%I', a.attname) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum), \
    ARRAY (SELECT pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum), \
    ARRAY (SELECT pg_catalog.format('%I', a.attname) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum), \
    ARRAY (SELECT pg_catalog.format('%I', a.attname) FROM pg_catalog.pg_index i, pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k (number, n), pg_catalog.pg_attribute a \
      WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid AND a.attnum = k.number AND k.n <= i.indnkeyatts ORDER BY k.n), \
    c.oid \
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE $1 IN (c.relname::text, n.nspname || '.' || c.relname) AND c.relkind IN ('r', 'p', 'f') \
    ORDER BY pg_catalog.pg_table_is_visible(c.oid) DESC, n.nspname <> 'public', n.nspname LIMIT 1";
/// Foreign keys between tables that move and tables that do not and are no copies: their checks do not run where rows are moved.
const FOREIGN_KEYS: &str = "SELECT c.conname::text, c.conrelid::regclass::text, c.confrelid::regclass::text \
    FROM pg_catalog.pg_constraint c WHERE c.contype = 'f' AND c.conparentid = 0 \
    AND (c.confrelid = ANY ($1) AND c.conrelid <> ALL ($1) OR c.conrelid = ANY ($1) AND c.confrelid <> ALL ($1) AND c.confrelid <> ALL ($2))";

/// A table of which rows move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Relation {
    /// By which notes and staged rows are named.
    number: usize,
    /// As the rules have it.
    pub(super) table: String,
    /// As a statement names it, quoted.
    name: String,
    columns: Vec<String>,
    types: Vec<String>,
    written: Vec<String>,
    key: Vec<String>,
    /// The columns that lead to a row's slot, quoted.
    leads: Vec<String>,
}

/// The tables that have rows in the slots of `groups`, by their names in the rules; the entries of lookups are one.
pub(super) fn tables(rules: &Topology, groups: &BTreeSet<&str>) -> Vec<String> {
    let tables = rules.tables().iter().filter(|(_, placement)| match placement {
        Placement::Sharded(sharded) => groups.contains(sharded.group.as_str()),
        Placement::Reference | Placement::Single(_) => false,
    });
    let mut tables: Vec<String> = tables.map(|(name, _)| name.to_string()).collect();
    if rules.lookups().values().any(|lookup| groups.contains(lookup.group().as_str())) {
        tables.push(ENTRIES.to_owned());
    }
    tables
}

/// Looks a source's tables up.
/// # Errors
/// Outer: the source does not answer. Inner: what is in the way, in words.
pub(super) async fn look(
    client: &Client,
    rules: &Topology,
    tables: &[String],
) -> Result<Result<Vec<Relation>, String>, Failed> {
    let (mut relations, mut ids) = (Vec::new(), Vec::new());
    for (number, table) in tables.iter().enumerate() {
        let found = client.query_opt(LOOK, &[table]).await.map_err(Failed::Refused)?;
        let Some(row) = found else { return Ok(Err(format!("there is no table {table}"))) };
        let name: String = row.get(0);
        let wrong = match row.get::<_, &str>(1) {
            "f" => Some("is a foreign table; move its rows where they are"),
            _ if row.get(2) => Some("has children by inheritance; make it a partitioned table"),
            _ if row.get(3) => {
                Some("hides rows from this account by row-level security; give it BYPASSRLS")
            }
            _ if !row.get::<_, bool>(4) => Some(
                "belongs to another account; name one in the router's configuration that may act for its owner",
            ),
            _ if row.get::<_, Vec<String>>(8).is_empty() => {
                Some("has no primary key, by which its rows are told apart; give it one")
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            return Ok(Err(format!("table {name} {wrong}")));
        }
        ids.push(row.get::<_, u32>(9));
        relations.push(Relation {
            number,
            table: table.clone(),
            name,
            columns: row.get(5),
            types: row.get(6),
            written: row.get(7),
            key: row.get(8),
            leads: leads(rules, table),
        });
    }
    let mut copies = Vec::new();
    for (table, placement) in rules.tables() {
        if *placement == Placement::Reference {
            let row = client.query_opt(LOOK, &[&table.as_str()]).await.map_err(Failed::Refused)?;
            copies.extend(row.map(|row| row.get::<_, u32>(9)));
        }
    }
    let keys = client.query(FOREIGN_KEYS, &[&ids, &copies]).await.map_err(Failed::Refused)?;
    if let Some(key) = keys.first() {
        let (name, from, to): (String, String, String) = (key.get(0), key.get(1), key.get(2));
        return Ok(Err(format!(
            "foreign key {name} leads from {from} to {to}, and only one of them moves. Let both be in one group, or drop it"
        )));
    }
    Ok(Ok(relations))
}

/// The columns that lead to the slot of a table's rows, quoted.
fn leads(rules: &Topology, table: &str) -> Vec<String> {
    let columns: Vec<&str> = match rules.tables().get(table) {
        Some(Placement::Sharded(sharded)) => {
            sharded.columns.iter().map(|column| &*column.name).collect()
        }
        _ => vec!["name", "value"],
    };
    columns.into_iter().map(|column| format!("\"{}\"", column.replace('"', "\"\""))).collect()
}

impl Relation {
    /// What differs where rows must be written as they were read; `None`: nothing.
    pub(super) fn unlike(&self, other: &Self) -> Option<String> {
        let told = |one: &Self| {
            let columns = one.columns.iter().zip(&one.types);
            columns.map(|(name, kind)| format!("{name} {kind}")).collect::<Vec<_>>().join(", ")
        };
        let (here, there) = (told(self), told(other));
        let alike = here == there && self.key == other.key && self.written == other.written;
        (!alike).then(|| {
            format!(
                "table {} has columns ({here}) with key ({}), and ({there}) with key ({}) there. Make them alike, in their order too",
                self.name,
                self.key.join(", "),
                other.key.join(", ")
            )
        })
    }

    fn notes(&self) -> String {
        format!("{SCHEMA}.changed_{}", self.number)
    }

    fn staged(&self) -> String {
        format!("{SCHEMA}.rows_{}", self.number)
    }

    /// `before` each of the columns, with commas between.
    fn each(columns: &[String], before: &str) -> String {
        columns.iter().map(|column| format!("{before}{column}")).collect::<Vec<_>>().join(", ")
    }

    /// The values that lead to the slot of a row, each as text.
    fn leads_of_row(&self) -> String {
        // A longer text is no key, so no more of it is fetched than shows that.
        let one_too_many = holdfast_route::limit::KEY_BYTES_MAX + 1;
        let lead =
            |column: &String| format!("pg_catalog.left({ROW}.{column}::text, {one_too_many})");
        self.leads.iter().map(lead).collect::<Vec<_>>().join(", ")
    }

    /// How many values lead to a slot.
    pub(super) fn leads(&self) -> usize {
        self.leads.len()
    }

    /// Where rows leave: keys of rows that change are noted from here on, in the transaction that changes them.
    pub(super) fn note_sql(&self) -> String {
        let Self { number, name, key, .. } = self;
        let notes = self.notes();
        let (columns, old, new) =
            (Self::each(key, ""), Self::each(key, "OLD."), Self::each(key, "NEW."));
        format!(
            "CREATE TABLE {notes} AS SELECT {columns} FROM {name} WITH NO DATA;\n\
             CREATE FUNCTION {SCHEMA}.note_{number}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$\n\
             BEGIN\n\
             IF TG_OP <> 'INSERT' THEN INSERT INTO {notes} VALUES ({old}); END IF;\n\
             IF TG_OP = 'INSERT' OR TG_OP = 'UPDATE' AND ROW({old}) IS DISTINCT FROM ROW({new}) THEN INSERT INTO {notes} VALUES ({new}); END IF;\n\
             RETURN NULL;\n\
             END $$;\n\
             CREATE TRIGGER holdfast_move AFTER INSERT OR UPDATE OR DELETE ON {name} FOR EACH ROW EXECUTE FUNCTION {SCHEMA}.note_{number}();\n\
             CREATE TRIGGER holdfast_move_truncate BEFORE TRUNCATE ON {name} FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.keep();\n"
        )
    }

    /// Where rows arrive: a place for them that no statement of clients sees. It does not outlive a crash of its server, and need not.
    pub(super) fn stage_sql(&self) -> String {
        let staged = self.staged();
        format!(
            "CREATE UNLOGGED TABLE {staged} (place integer NOT NULL, key text COLLATE \"C\" PRIMARY KEY, body text NOT NULL);\n\
             CREATE INDEX ON {staged} (place);\n"
        )
    }

    /// All rows: what leads to the slot, the key, the row.
    pub(super) fn scan_sql(&self) -> String {
        let Self { name, key, .. } = self;
        let (leads, key) = (self.leads_of_row(), Self::each(key, &format!("{ROW}.")));
        format!("SELECT {leads}, ROW({key})::text, {ROW}::text FROM {name} AS {ROW}")
    }

    /// All rows: what leads to the slot, the hash.
    pub(super) fn hash_sql(&self) -> String {
        let leads = self.leads_of_row();
        format!("SELECT {leads}, {} FROM {} AS {ROW}", row_hash(ROW), self.name)
    }

    /// Takes some notes up: what leads to the slot of the row as it is now, the key that was noted, the key and the row, if there is one.
    pub(super) fn take_sql(&self) -> String {
        let (notes, leads) = (self.notes(), self.leads_of_row());
        let same = self.key.iter().map(|column| format!("{ROW}.{column} = g.{column}"));
        let same = same.collect::<Vec<_>>().join(" AND ");
        let (noted, now) = (Self::each(&self.key, "g."), Self::each(&self.key, &format!("{ROW}.")));
        format!(
            "WITH gone AS (DELETE FROM {notes} WHERE ctid = ANY (ARRAY (SELECT ctid FROM {notes} LIMIT {NOTES_MAX})) RETURNING *) \
             SELECT {leads}, ROW({noted})::text, ROW({now})::text, {ROW}::text FROM gone AS g LEFT JOIN {} AS {ROW} ON {same}",
            self.name
        )
    }

    /// Forgets staged rows by their keys.
    pub(super) fn forget_sql(&self) -> String {
        format!("DELETE FROM {} WHERE key = ANY ($1::text[])", self.staged())
    }

    /// Stages rows: places, keys, rows.
    pub(super) fn put_sql(&self) -> String {
        format!(
            "INSERT INTO {} (place, key, body) SELECT * FROM ROWS FROM (pg_catalog.unnest($1::integer[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[])) AS s \
             ON CONFLICT (key) DO UPDATE SET place = EXCLUDED.place, body = EXCLUDED.body",
            self.staged()
        )
    }

    /// How many staged rows each place has, and the sum of their hashes as this source writes them.
    pub(super) fn staged_sql(&self) -> String {
        let Self { name, .. } = self;
        format!(
            "SELECT s.place, pg_catalog.count(*), pg_catalog.sum({})::text FROM (SELECT place, CAST(body AS {name}) AS v FROM {} OFFSET 0) AS s GROUP BY s.place",
            row_hash("s.v"),
            self.staged()
        )
    }

    /// The keys of staged rows in some places.
    pub(super) fn keys_sql(&self) -> String {
        format!("SELECT key FROM {} WHERE place = ANY ($1::integer[])", self.staged())
    }

    /// Staged rows in some places become rows: how many, and the sum of their hashes.
    pub(super) fn insert_sql(&self) -> String {
        let Self { name, written, .. } = self;
        let (columns, values) = (Self::each(written, ""), Self::each(written, "(s.v)."));
        format!(
            "WITH s AS MATERIALIZED (SELECT CAST(body AS {name}) AS v FROM {} WHERE place = ANY ($1::integer[])), \
             put AS (INSERT INTO {name} AS {ROW} ({columns}) OVERRIDING SYSTEM VALUE SELECT {values} FROM s RETURNING {} AS h) \
             SELECT pg_catalog.count(*), coalesce(pg_catalog.sum(h), 0)::text FROM put",
            self.staged(),
            row_hash(ROW)
        )
    }

    /// Rows leave by their keys: how many, and the sum of their hashes.
    pub(super) fn delete_sql(&self) -> String {
        let Self { name, key, .. } = self;
        let same = key.iter().map(|column| format!("{ROW}.{column} = (k.v).{column}"));
        let same = same.collect::<Vec<_>>().join(" AND ");
        format!(
            "WITH k AS MATERIALIZED (SELECT CAST(x AS {}) AS v FROM pg_catalog.unnest($1::text[]) AS x), \
             gone AS (DELETE FROM {name} AS {ROW} USING k WHERE {same} RETURNING {} AS h) \
             SELECT pg_catalog.count(*), coalesce(pg_catalog.sum(h), 0)::text FROM gone",
            self.notes(),
            row_hash(ROW)
        )
    }

    /// Forgets what was staged of some places.
    pub(super) fn done_sql(&self) -> String {
        format!("DELETE FROM {} WHERE place = ANY ($1::integer[])", self.staged())
    }

    /// Waits until nobody writes to the table who began before.
    pub(super) fn lock_sql(relations: &[Self]) -> String {
        let names: Vec<&str> = relations.iter().map(|relation| &*relation.name).collect();
        format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE", names.join(", "))
    }
}
