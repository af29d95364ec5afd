//! Reads where a table lies: in a group, on every source, or on one.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Reader, Reference, declared, excerpt, suggest};
use crate::{
    Algorithm, GroupName, KeyColumn, KeyType, Placement, Scatter, Sharded, SourceId, TableName,
    topology::Group,
};

/// The types of keys, by name.
pub(super) const KEY_TYPES: [(&str, KeyType); 6] = [
    ("integer", KeyType::Integer),
    ("text", KeyType::Text),
    ("varchar", KeyType::Varchar),
    ("char", KeyType::Char),
    ("uuid", KeyType::Uuid),
    ("date", KeyType::Date),
];
/// What may go to several sources, by name.
pub(super) const SCATTERS: [(&str, Scatter); 3] =
    [("refuse", Scatter::Refuse), ("read", Scatter::Read), ("write", Scatter::Write)];

/// A table whose group or source is not yet known to exist.
pub(super) enum TableDraft {
    Sharded {
        group: Reference<GroupName>,
        /// The key's name in this table, if it has one of its own there.
        key: Option<Arc<str>>,
        /// Columns that carry the slot.
        genes: Vec<(Arc<str>, Algorithm)>,
        order: Vec<Arc<str>>,
        scatter: Option<Scatter>,
    },
    Reference,
    Single(Reference<SourceId>),
}

impl TableDraft {
    /// The table's place, its group being known by now.
    pub(super) fn placed(self, groups: &BTreeMap<GroupName, Group>) -> Placement {
        match self {
            Self::Reference => Placement::Reference,
            Self::Single((source, _)) => Placement::Single(source),
            Self::Sharded { group: (name, _), key, genes, order, scatter } => {
                let group = &groups[&name];
                let own = KeyColumn {
                    name: key.unwrap_or_else(|| group.key.clone()),
                    function: group.function.clone(),
                    key_type: group.key_type,
                };
                // With a gene under the key's own name, the gene is the only way.
                let replaced = genes.iter().any(|(column, _)| *column == own.name);
                let genes = genes.into_iter().map(|(name, function)| KeyColumn {
                    name,
                    function,
                    key_type: KeyType::Text,
                });
                let columns = (!replaced).then_some(own).into_iter().chain(genes).collect();
                let scatter = scatter.unwrap_or(group.scatter);
                Placement::Sharded(Sharded { group: name, columns, order, scatter })
            }
        }
    }
}

impl Reader {
    pub(super) fn tables(&mut self, document: &DeTable<'_>) -> BTreeMap<TableName, TableDraft> {
        let mut tables = BTreeMap::new();
        if !document.contains_key("table") {
            return tables;
        }
        for (key, table, place) in self.named(document, "table") {
            let name = self.name(TableName::parse(key), &place);
            self.can_be_meant(key, &place);
            let subject = format!("[table.{key}]");
            let allowed = ["group", "key", "genes", "columns", "scatter", "reference", "single"];
            self.only(&subject, table, &allowed);
            let draft = self.table(&subject, table, &place);
            if let (Some(name), Some(draft)) = (name, draft) {
                tables.insert(name, draft);
            }
        }
        tables
    }

    fn table(
        &mut self,
        subject: &str,
        table: &DeTable<'_>,
        place: &Range<usize>,
    ) -> Option<TableDraft> {
        let ways: Vec<&str> = ["group", "reference", "single"]
            .into_iter()
            .filter(|way| table.contains_key(*way))
            .collect();
        if ways.len() > 1 {
            let cause = format!("{subject} has {}", ways.join(" and "));
            self.mistake("HF3012", place, cause, "Keep one: a table lies in one way only");
            return None;
        }
        match ways.first().copied() {
            Some("reference") => match table.get("reference").map(Spanned::get_ref) {
                Some(DeValue::Boolean(true)) => Some(TableDraft::Reference),
                _ => {
                    let value = table.get("reference")?;
                    self.wrong(&format!("reference in {subject}"), "true, or leave it out", value);
                    None
                }
            },
            Some("single") => self
                .reference(subject, table, "single", place, SourceId::parse)
                .map(TableDraft::Single),
            _ => {
                let group = self.reference(subject, table, "group", place, GroupName::parse)?;
                let key = self.optional_string(subject, table, "key").map(Arc::from);
                let genes = self.genes(subject, table);
                let order = self.strings(subject, table, "columns");
                let scatter = self.choice(subject, table, "scatter", &SCATTERS).flatten();
                Some(TableDraft::Sharded { group, key, genes, order, scatter })
            }
        }
    }

    /// Refuses a name that no statement's table has, as it is looked for in the rules.
    fn can_be_meant(&mut self, name: &str, place: &Range<usize>) {
        let (schema, table) = name.split_once('.').unwrap_or(("", name));
        let (cause, remedy) = match schema {
            "public" => (
                "a table of schema public has no schema in its name here",
                format!("Write [table.{table}]"),
            ),
            "pg_catalog" | "information_schema" | "pg_toast" => {
                ("every source has a catalog of its own", "Leave it out".to_owned())
            }
            _ => return,
        };
        let cause = format!("no statement means [table.{name:?}]: {cause}");
        self.mistake("HF3007", place, cause, &remedy);
    }

    fn genes(&mut self, subject: &str, table: &DeTable<'_>) -> Vec<(Arc<str>, Algorithm)> {
        let Some(value) = table.get("genes") else { return Vec::new() };
        let DeValue::Table(genes) = value.get_ref() else {
            self.wrong(&format!("genes in {subject}"), "{ column = \"digits(a..b)\" }", value);
            return Vec::new();
        };
        let mut found = Vec::new();
        for (column, value) in genes {
            let DeValue::String(name) = value.get_ref() else {
                self.wrong(&format!("a gene in {subject}"), "a string", value);
                continue;
            };
            let place = value.span();
            let Some(function) = self.function_named(name, &place) else { continue };
            if !matches!(function, Algorithm::Digits(_)) {
                let cause = format!("gene {:?} in {subject} is no digits(a..b)", excerpt(name));
                let remedy = "A gene is the slot itself, written in digits";
                self.mistake("HF3005", &place, cause, remedy);
                continue;
            }
            found.push((Arc::from(&**column.get_ref()), function));
        }
        found
    }

    /// Refuses a table whose group or source is not declared, rightly or wrongly.
    pub(super) fn known_placement(
        &mut self,
        name: &TableName,
        draft: &TableDraft,
        document: &DeTable<'_>,
    ) {
        match draft {
            TableDraft::Reference => {}
            TableDraft::Sharded { group: (group, place), .. } => {
                let declared = declared(document, "group");
                self.known(&format!("table {name} joins group"), group.as_str(), place, &declared);
            }
            TableDraft::Single((source, place)) => {
                let declared = declared(document, "source");
                let subject = format!("table {name} is on source");
                self.known(&subject, source.as_str(), place, &declared);
            }
        }
    }

    /// Whether `[router] collation = "C"` is said.
    pub(super) fn collation(&mut self, document: &DeTable<'_>) -> bool {
        let Some(value) = document.get("router") else { return false };
        let DeValue::Table(router) = value.get_ref() else {
            self.wrong("router", "a table", value);
            return false;
        };
        self.only("[router]", router, &["collation"]);
        let collations = [("C", true), ("other", false)];
        self.choice("[router]", router, "collation", &collations).flatten().unwrap_or(false)
    }

    /// A word out of a closed list. Outer `None`: not there. Inner `None`: a mistake.
    pub(super) fn choice<T: Copy>(
        &mut self,
        subject: &str,
        table: &DeTable<'_>,
        key: &str,
        words: &[(&str, T)],
    ) -> Option<Option<T>> {
        let value = table.get(key)?;
        let DeValue::String(word) = value.get_ref() else {
            self.wrong(&format!("{key} in {subject}"), "a string", value);
            return Some(None);
        };
        let found = words.iter().find(|(known, _)| *known == &**word);
        if found.is_none() {
            let cause = format!("{key} = {:?} in {subject} is not known", excerpt(word));
            let remedy = suggest(word, words.iter().map(|(known, _)| *known));
            self.mistake("HF3013", &value.span(), cause, &remedy);
        }
        Some(found.map(|(_, meaning)| *meaning))
    }

    fn optional_string<'v>(
        &mut self,
        subject: &str,
        table: &'v DeTable<'_>,
        key: &str,
    ) -> Option<&'v str> {
        table.contains_key(key).then_some(())?;
        self.string(subject, table, key, &(0..0)).map(|(text, _)| text)
    }

    fn strings(&mut self, subject: &str, table: &DeTable<'_>, key: &str) -> Vec<Arc<str>> {
        let Some(value) = table.get(key) else { return Vec::new() };
        let DeValue::Array(entries) = value.get_ref() else {
            self.wrong(&format!("{key} in {subject}"), "an array of strings", value);
            return Vec::new();
        };
        let mut found = Vec::new();
        for entry in entries.iter() {
            match entry.get_ref() {
                DeValue::String(text) => found.push(Arc::from(&**text)),
                DeValue::Integer(_)
                | DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_)
                | DeValue::Array(_)
                | DeValue::Table(_) => {
                    self.wrong(&format!("an entry of {key} in {subject}"), "a string", entry);
                }
            }
        }
        found
    }
}
