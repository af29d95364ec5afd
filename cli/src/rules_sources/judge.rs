//! What is wrong at sources by what is there: what the rules need and a source lacks, and what cannot hold where rows are spread.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_route::{Algorithm, KeyColumn, KeyType, Placement, Sharded, Topology};

use super::{
    Finding, Looked,
    look::{Column, ForeignKey, Found, Table},
};

/// A source lacks what the rules send there.
pub(super) const LACKS: &str = "HF1026";
/// What is promised at a source does not hold over several.
pub(super) const CANNOT_HOLD: &str = "HF1027";

/// What is wrong, by source. `decides`: there are coordinators.
pub(super) fn judge(looked: &[Looked<'_>], rules: &Topology, decides: bool) -> Vec<Finding> {
    let mut findings = Findings::default();
    // The first source that has a table.
    let mut first = BTreeMap::<&str, (&str, &Table)>::new();
    let mut databases = BTreeMap::<&str, &str>::new();
    let extensions = extensions(looked);
    for Looked { source, needs, found } in looked {
        let found = match found {
            Ok(found) => found,
            Err(why) => {
                findings.tell(LACKS, source, why.clone());
                continue;
            }
        };
        let other = *databases.entry(&found.database).or_insert(source);
        if other != *source {
            let text = format!(
                "it is the same database as source {other}, so rows would be read twice. Correct one of them in the router's configuration"
            );
            findings.tell(LACKS, source, text);
        }
        if decides && found.prepares_none && looked.len() > 1 {
            findings.tell(LACKS, source, "max_prepared_transactions is 0, so no transaction on several sources can commit. Set it to the router's connections at least".to_owned());
        }
        lacking_extensions(&mut findings, source, found, &extensions);
        for (table, columns) in needs {
            let Some(there) = found.tables.get(*table) else {
                let text = format!("there is no table {table}. Make it before rows are sent there");
                findings.tell(LACKS, source, text);
                continue;
            };
            for column in columns.iter().filter(|column| !there.columns.contains_key(**column)) {
                let text = format!("table {table} has no column {column}, which the rules name");
                findings.tell(LACKS, source, text);
            }
            let (other, elsewhere) = *first.entry(table).or_insert((source, there));
            if there.parts != elsewhere.parts {
                let only = |one: &Table, two: &Table| {
                    let only: Vec<_> = one.parts.difference(&two.parts).cloned().collect();
                    if only.is_empty() { "nothing".to_owned() } else { only.join(", ") }
                };
                let text = format!(
                    "table {table} is not like that of source {other}: {} here alone, {} there alone. Make them alike",
                    only(there, elsewhere),
                    only(elsewhere, there)
                );
                findings.tell(LACKS, source, text);
            }
            if let Some(placement @ Placement::Sharded(sharded)) = rules.tables().get(*table) {
                let spread = rules.spread(placement).len() > 1;
                keys(&mut findings, source, table, there, sharded, spread);
                for (key, to) in there.leads_outside.iter().filter(|_| spread) {
                    let text = format!(
                        "foreign key {key} of table {table} leads to table {to}, which the rules do not name, so a row and the one that it leads to may be on two sources. Name {to} in the rules, or drop the foreign key"
                    );
                    findings.tell(CANNOT_HOLD, source, text);
                }
            }
            for key in &there.foreign_keys {
                foreign_key(&mut findings, source, table, key, rules);
            }
            triggers(&mut findings, source, table, there, rules);
        }
    }
    findings.list
}

#[derive(Default)]
struct Findings {
    list: Vec<Finding>,
    /// What does not hold is told of one source.
    told: BTreeSet<String>,
}

impl Findings {
    fn tell(&mut self, code: &'static str, source: &str, text: String) {
        if code != CANNOT_HOLD || self.told.insert(text.clone()) {
            self.list.push(Finding { code, source: source.to_owned(), text });
        }
    }
}

/// Of each extension the first source that has it, and its version there.
fn extensions<'t>(looked: &'t [Looked<'_>]) -> BTreeMap<&'t str, (&'t str, &'t str)> {
    let mut extensions = BTreeMap::new();
    for Looked { source, found, .. } in looked {
        for (name, version) in found.iter().flat_map(|found| &found.extensions) {
            extensions.entry(&**name).or_insert((*source, &**version));
        }
    }
    extensions
}

fn lacking_extensions(
    findings: &mut Findings,
    source: &str,
    found: &Found,
    extensions: &BTreeMap<&str, (&str, &str)>,
) {
    for (name, (other, version)) in extensions {
        let text = match found.extensions.get(*name) {
            None => format!(
                "there is no extension {name}, and source {other} has {version}. CREATE EXTENSION {name}, or drop it there"
            ),
            Some(here) if here != version => format!(
                "extension {name} is {here}, and {version} at source {other}. ALTER EXTENSION {name} UPDATE where it is older"
            ),
            Some(_) => continue,
        };
        findings.tell(LACKS, source, text);
    }
}

/// Whether a table's shard keys are as the rules have them, and make its rows unique.
fn keys(
    findings: &mut Findings,
    source: &str,
    table: &str,
    there: &Table,
    sharded: &Sharded,
    spread: bool,
) {
    let known = |column: &KeyColumn| there.columns.get(&*column.name);
    for column in &sharded.columns {
        let Some(found) = known(column) else { continue };
        let name = &column.name;
        let is_gene = matches!(column.function, Algorithm::Digits(_));
        if !is_of_type(column, found, is_gene) {
            let text = format!(
                "column {name} of table {table} is {}, and the rules say {}. Give the group the type of its column",
                found.kind,
                column.key_type.name()
            );
            findings.tell(LACKS, source, text);
        }
        if !found.not_null && !is_gene {
            let text = format!(
                "column {name} of table {table} may be NULL, and a row without its key is found by nobody. ALTER TABLE {table} ALTER COLUMN {name} SET NOT NULL"
            );
            findings.tell(LACKS, source, text);
        }
    }
    let named: BTreeSet<&str> = sharded.columns.iter().map(|column| &*column.name).collect();
    let holds = |key: &BTreeSet<String>| key.iter().any(|column| named.contains(&**column));
    let all_there = sharded.columns.iter().all(|column| known(column).is_some());
    if spread && all_there && !there.keys.iter().any(holds) {
        let named: Vec<&str> = named.into_iter().collect();
        let text = format!(
            "no unique key of table {table} holds {}, so two sources may each have a row that is one by its key. Put it into the primary key",
            named.join(" or ")
        );
        findings.tell(CANNOT_HOLD, source, text);
    }
}

/// Whether the values of a column are written as the rules say. A gene is digits in any text.
fn is_of_type(column: &KeyColumn, found: &Column, is_gene: bool) -> bool {
    match (column.key_type, &*found.kind) {
        (KeyType::Integer, "smallint" | "integer" | "bigint")
        | (KeyType::Text, "text" | "character varying")
        | (KeyType::Varchar, "character varying")
        | (KeyType::Char, "character")
        | (KeyType::Uuid, "uuid")
        | (KeyType::Date, "date") => true,
        (_, kind) => is_gene && kind == "character",
    }
}

fn foreign_key(
    findings: &mut Findings,
    source: &str,
    table: &str,
    key: &ForeignKey,
    rules: &Topology,
) {
    let tables = rules.tables();
    let (Some(from), Some(to)) = (tables.get(table), tables.get(&*key.to)) else { return };
    if let Err(why) = rules.leads_within_a_source(from, to, &key.columns) {
        let ForeignKey { name, to, .. } = key;
        let text = format!(
            "foreign key {name} of table {table} leads to table {to}, {why}. Drop it, put the shard key of both into it, or make {to} a reference table"
        );
        findings.tell(CANNOT_HOLD, source, text);
    }
}

/// Whether somebody keeps the entries of the lookups whose values the table owns.
fn triggers(findings: &mut Findings, source: &str, table: &str, there: &Table, rules: &Topology) {
    let owned = rules.lookups().iter().filter(|(_, lookup)| lookup.table().as_str() == table);
    for (lookup, _) in owned {
        let trigger = Topology::lookup_trigger(lookup);
        if !there.triggers.contains(&trigger) {
            let text = format!(
                "table {table} has no trigger {trigger}, so entries of lookup {lookup} would not be kept. Run there what holdfast rules lookups prints"
            );
            findings.tell(LACKS, source, text);
        }
    }
}
