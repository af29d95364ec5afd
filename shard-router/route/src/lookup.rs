//! Lookups: from another unique value of a row, a phone or card number, to the key of the row's owner.
//!
//! An entry is a row (lookup, value, owner's key) of the table `holdfast.lookup`. It lies where the *value* says: on the shard that has the
//! value's slot in the owner's group, so that one source can say that a value is taken. What writes owners, writes their entries.

use std::sync::Arc;

use crate::{Algorithm, GroupName, Key, Shard, ShardId, Slot, SourceIndex, TableName, Topology};

/// One lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    pub(crate) table: TableName,
    pub(crate) column: Arc<str>,
    pub(crate) key: Arc<str>,
    pub(crate) group: GroupName,
}

/// Where the entry of a value lies, if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPlace {
    /// Of the value.
    pub slot: Slot,
    /// The shard that has this slot in the owner's group.
    pub shard: ShardId,
    /// Its source.
    pub source: SourceIndex,
}

/// As people name what it leads from: `customer.phone`.
impl std::fmt::Display for Lookup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.table, self.column)
    }
}

impl Lookup {
    /// The table whose rows own the values.
    #[must_use]
    pub fn table(&self) -> &TableName {
        &self.table
    }

    /// Its column that is looked up by; NULL has no entry.
    #[must_use]
    pub fn column(&self) -> &str {
        &self.column
    }

    /// Its column that holds the key of its group.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The group of the owners.
    #[must_use]
    pub fn group(&self) -> &GroupName {
        &self.group
    }
}

impl Topology {
    /// The lookups, by name.
    #[must_use]
    pub fn lookups(&self) -> &std::collections::BTreeMap<GroupName, Lookup> {
        &self.lookups
    }

    /// Where the entry of `value` lies; `None` if there is no such lookup, or the value can have no entry: it is empty, or beyond 256 bytes.
    #[must_use]
    pub fn entry_place(&self, lookup: &str, value: &str) -> Option<EntryPlace> {
        let lookup = self.lookups.get(lookup)?;
        let slot = Algorithm::Crc32c.slot(Key::parse(value).ok()?).ok()?;
        let shard = self.groups[&lookup.group].shard_of(slot);
        let source = self.index_of(Shard::source(&self.shards[shard]))?;
        Some(EntryPlace { slot, shard: shard.clone(), source })
    }

    /// What sees to the entries of a lookup at each source: the name of the trigger that notes changes.
    #[must_use]
    pub fn lookup_trigger(lookup: &GroupName) -> String {
        format!("holdfast_lookup_{lookup}")
    }

    /// Whether the rows of `table` own values of a lookup.
    pub(crate) fn owns_values(&self, table: &str) -> bool {
        self.lookups.values().any(|lookup| lookup.table.as_str() == table)
    }

    /// What a DBA runs once at every source, so that writes of owners note what becomes of their values: tables, a function, triggers. Empty
    /// without lookups.
    ///
    /// A trigger notes for whoever has said that it carries the notes to the entries, which a router does; it refuses everybody else, so that
    /// no entry is lost by a cascade, a function, or a session past the router.
    #[must_use]
    pub fn lookup_sql(&self) -> String {
        if self.lookups.is_empty() {
            return String::new();
        }
        let mut sql = LOOKUP_TABLES.to_owned();
        for (name, lookup) in &self.lookups {
            let table = quoted_table(lookup.table.as_str());
            let trigger = Self::lookup_trigger(name);
            let arguments =
                [name.as_str(), &lookup.column, &lookup.key].map(|text| text.replace('\'', "''"));
            sql += &format!(
                "\nCREATE OR REPLACE TRIGGER {} AFTER INSERT OR UPDATE OR DELETE ON {table}\n  \
                 FOR EACH ROW EXECUTE FUNCTION holdfast.note_lookup('{}');\n\
                 CREATE OR REPLACE TRIGGER {} BEFORE TRUNCATE ON {table}\n  \
                 FOR EACH STATEMENT EXECUTE FUNCTION holdfast.keep_lookup('{}');\n",
                quoted(&trigger),
                arguments.join("', '"),
                quoted(&format!("{trigger}{TRUNCATE}")),
                arguments[0],
            );
        }
        sql
    }
}

/// Behind the name of a lookup's trigger: that of the one that refuses TRUNCATE.
const TRUNCATE: &str = "_truncate";
/// Bytes of a lookup's name: PostgreSQL cuts the name of a trigger off behind 63, and two would be one.
pub(crate) const NAME_BYTES_MAX: usize = 63 - "holdfast_lookup_".len() - TRUNCATE.len();

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `public.t` for a table without a schema.
fn quoted_table(table: &str) -> String {
    match table.split_once('.') {
        Some((schema, table)) => format!("{}.{}", quoted(schema), quoted(table)),
        None => format!("public.{}", quoted(table)),
    }
}

const LOOKUP_TABLES: &str = "\
CREATE SCHEMA IF NOT EXISTS holdfast;
-- Which owner a value belongs to; an entry lies on the shard that has the value's slot.
CREATE TABLE IF NOT EXISTS holdfast.lookup (
  name text COLLATE \"C\" NOT NULL, value text COLLATE \"C\" NOT NULL, owner text COLLATE \"C\" NOT NULL,
  PRIMARY KEY (name, value));
-- What a statement did to values, until the router has carried it to the entries, in the same transaction; otherwise empty.
CREATE TABLE IF NOT EXISTS holdfast.lookup_note (
  xact xid8 NOT NULL DEFAULT pg_current_xact_id(), name text NOT NULL, value text NOT NULL, owner text NOT NULL, added boolean NOT NULL);
CREATE OR REPLACE FUNCTION holdfast.note_lookup() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  was jsonb := CASE WHEN TG_OP = 'INSERT' THEN '{}' ELSE to_jsonb(OLD) END;
  now jsonb := CASE WHEN TG_OP = 'DELETE' THEN '{}' ELSE to_jsonb(NEW) END;
BEGIN
  IF was->>TG_ARGV[1] IS NOT DISTINCT FROM now->>TG_ARGV[1] AND was->>TG_ARGV[2] IS NOT DISTINCT FROM now->>TG_ARGV[2] THEN
    RETURN NULL;
  END IF;
  IF coalesce(current_setting('holdfast.carries_lookups', true), '') <> 'on' THEN
    RAISE EXCEPTION 'lookup % of %.% is kept by the router: write % through it, by a statement on this table',
      TG_ARGV[0], TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_ARGV[1] USING ERRCODE = 'object_not_in_prerequisite_state';
  END IF;
  IF was->>TG_ARGV[1] IS NOT NULL THEN
    INSERT INTO holdfast.lookup_note (name, value, owner, added) VALUES (TG_ARGV[0], was->>TG_ARGV[1], was->>TG_ARGV[2], false);
  END IF;
  IF now->>TG_ARGV[1] IS NOT NULL THEN
    INSERT INTO holdfast.lookup_note (name, value, owner, added) VALUES (TG_ARGV[0], now->>TG_ARGV[1], now->>TG_ARGV[2], true);
  END IF;
  RETURN NULL;
END $$;
CREATE OR REPLACE FUNCTION holdfast.keep_lookup() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'lookup % of %.% would keep entries without owners: DELETE the rows instead',
    TG_ARGV[0], TG_TABLE_SCHEMA, TG_TABLE_NAME USING ERRCODE = 'object_not_in_prerequisite_state';
END $$;
";

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(lookup: &str) -> Result<Topology, Vec<crate::RuleMistake>> {
        let text = format!(
            "[group.g]\nkey = \"id\"\nfunction = \"crc32c\"\nslots = [\n\
             {{ first = 0, last = 511, shard = \"a\" }},\n{{ first = 512, last = 1023, shard = \"b\" }},\n]\n\
             [table.customer]\ngroup = \"g\"\n[table.\"bank.card\"]\ngroup = \"g\"\nkey = \"holder\"\n[table.currency]\nreference = true\n{lookup}\n\
             [shard.a]\nsource = \"pg-1\"\n[shard.b]\nsource = \"pg-2\"\n\
             [source.pg-1]\naddress = \"127.0.0.1:1\"\n[source.pg-2]\naddress = \"127.0.0.1:2\"\n"
        );
        Topology::parse(&text)
    }

    fn phone(table: &str, column: &str) -> String {
        format!("[lookup.phone]\ntable = \"{table}\"\ncolumn = \"{column}\"")
    }

    #[test]
    fn a_value_has_one_place_and_no_entry_beyond_256_bytes() {
        let rules = rules(&phone("customer", "phone")).expect("good rules");
        let lookup = &rules.lookups()["phone"];
        assert_eq!((lookup.column(), lookup.key(), lookup.group().as_str()), ("phone", "id", "g"));
        let place = rules.entry_place("phone", "+49").expect("a place");
        assert_eq!(Ok(place.slot), Algorithm::Crc32c.slot(Key::parse("+49").expect("a key")));
        assert_eq!(place.source.0, u16::from(place.shard.as_str() == "b"));
        assert!(rules.entry_place("phone", &"9".repeat(256)).is_some());
        assert_eq!(rules.entry_place("phone", &"9".repeat(257)), None);
        assert_eq!(rules.entry_place("phone", ""), None);
        assert_eq!(rules.entry_place("fax", "+49"), None);
        let refused = rules.locate("phone", "+49").expect_err("the rules alone do not say");
        assert_eq!(refused.code(), "HF3025");
    }

    #[test]
    fn a_lookup_of_a_table_that_owns_nothing_is_a_mistake() {
        let codes = |lookup: &str| {
            let mistakes = rules(lookup).expect_err("it is none");
            mistakes.iter().map(|mistake| mistake.code).collect::<Vec<_>>()
        };
        assert_eq!(codes(&phone("currency", "code")), ["HF3015"]);
        assert_eq!(codes(&phone("customer", "id")), ["HF3015"]);
        assert_eq!(codes(&phone("nobody", "phone")), ["HF3007"]);
        assert_eq!(codes("[lookup.g]\ntable = \"customer\"\ncolumn = \"phone\""), ["HF3015"]);
        assert_eq!(codes("[lookup.x]\ntable = \"customer\""), ["HF3003"]);
    }

    /// As long as PostgreSQL keeps the names of its triggers apart.
    #[test]
    fn a_lookup_has_a_name_of_as_many_bytes_as_the_limit_and_not_one_more() {
        let named = |bytes: usize| {
            let name = "n".repeat(bytes);
            rules(&format!("[lookup.{name}]\ntable = \"customer\"\ncolumn = \"phone\""))
        };
        let sql = named(NAME_BYTES_MAX).expect("good rules").lookup_sql();
        let longest = format!("\"holdfast_lookup_{}_truncate\"", "n".repeat(NAME_BYTES_MAX));
        assert!(sql.contains(&longest) && longest.len() == 63 + 2, "{sql}");
        let mistakes = named(NAME_BYTES_MAX + 1).expect_err("one byte more");
        assert_eq!(mistakes.iter().map(|mistake| mistake.code).collect::<Vec<_>>(), ["HF3005"]);
    }

    #[test]
    fn what_a_dba_runs_names_every_table_in_its_schema() {
        let rules = rules(&format!(
            "{}\n[lookup.card]\ntable = \"bank.card\"\ncolumn = \"number\"",
            phone("customer", "phone")
        ))
        .expect("good rules");
        let sql = rules.lookup_sql();
        assert!(
            sql.contains("ON public.\"customer\"") && sql.contains("ON \"bank\".\"card\""),
            "{sql}"
        );
        assert!(sql.contains("note_lookup('card', 'number', 'holder')"), "{sql}");
    }
}
