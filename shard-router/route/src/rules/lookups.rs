//! Reads lookups: `[lookup.phone]` with the table that owns the values and the column that holds them.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use toml::de::DeTable;

use super::{Reader, Reference, declared};
use crate::{
    GroupName, Placement, TableName,
    lookup::{Lookup, NAME_BYTES_MAX},
    topology::Group,
};

/// A lookup whose table is not yet known to exist.
pub(super) struct LookupDraft {
    table: Reference<TableName>,
    column: Arc<str>,
}

impl Reader {
    pub(super) fn lookups(&mut self, document: &DeTable<'_>) -> BTreeMap<GroupName, LookupDraft> {
        let mut lookups = BTreeMap::new();
        if !document.contains_key("lookup") {
            return lookups;
        }
        let groups = declared(document, "group");
        let tables = declared(document, "table");
        for (key, entry, place) in self.named(document, "lookup") {
            let subject = format!("[lookup.{key}]");
            self.only(&subject, entry, &["table", "column"]);
            if groups.contains(&key) {
                let cause =
                    format!("{subject} has the name of a group, and both are asked for by name");
                self.mistake("HF3015", &place, cause, "Choose another name");
            }
            if key.len() > NAME_BYTES_MAX {
                let cause = format!("the name in {subject} has {} bytes", key.len());
                let remedy = format!(
                    "Choose one of at most {NAME_BYTES_MAX}: its triggers have the name too"
                );
                self.mistake("HF3005", &place, cause, &remedy);
            }
            let name = self.name(GroupName::parse(key), &place);
            let table = self.reference(&subject, entry, "table", &place, TableName::parse);
            let column = self.string(&subject, entry, "column", &place);
            let (Some(name), Some(table), Some((column, at))) = (name, table, column) else {
                continue;
            };
            self.known(&format!("lookup {name} is of table"), table.0.as_str(), &table.1, &tables);
            if column.is_empty() || column.len() > 63 {
                let cause = format!("column in {subject} has {} bytes", column.len());
                self.mistake("HF3005", &at, cause, "Name one column, in 1 to 63 bytes");
            }
            lookups.insert(name, LookupDraft { table, column: column.into() });
        }
        lookups
    }

    /// The lookup, its table being placed by now.
    pub(super) fn owned(
        &mut self,
        name: &GroupName,
        draft: LookupDraft,
        tables: &BTreeMap<TableName, Placement>,
        groups: &BTreeMap<GroupName, Group>,
    ) -> Option<Lookup> {
        let LookupDraft { table: (table, place), column } = draft;
        let wrong = |why: &str| format!("lookup {name} is of table {table}, {why}");
        let Some(Placement::Sharded(sharded)) = tables.get(&table) else {
            let cause = wrong("which is not spread over a group");
            self.not_owned(&place, cause, "A plain unique index does for a table on one source");
            return None;
        };
        let key =
            sharded.columns.iter().find(|key| key.function == groups[&sharded.group].function);
        let Some(key) = key.filter(|key| key.name != column) else {
            let cause = wrong("whose key it would be, or which has none but a gene");
            self.not_owned(&place, cause, "A key is found without a lookup");
            return None;
        };
        Some(Lookup { table, column, key: Arc::clone(&key.name), group: sharded.group.clone() })
    }

    fn not_owned(&mut self, place: &Range<usize>, cause: String, remedy: &str) {
        self.mistake("HF3015", place, cause, remedy);
    }
}
