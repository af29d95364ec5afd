//! In which order tables are copied so that no foreign key is violated.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{Finding, Looked, judge::CANNOT_HOLD, look::ForeignKey};

/// The order, and whether it needs `SET CONSTRAINTS ALL DEFERRED`.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct CopyOrder {
    pub(super) tables: Vec<String>,
    pub(super) deferred: bool,
}

/// A table and a foreign key of it.
type Leads<'t> = (&'t str, &'t ForeignKey);

/// The order of `tables`, those first that others lead to. Rows of one table that lead to each other are copied by one statement.
/// # Errors
/// Foreign keys lead in a circle and none can be deferred.
pub(super) fn copy_order(
    tables: &BTreeSet<&str>,
    looked: &[Looked<'_>],
) -> Result<CopyOrder, Finding> {
    let mut leads = Vec::new();
    for Looked { found, .. } in looked {
        for (name, table) in found.iter().flat_map(|found| &found.tables) {
            leads.extend(table.foreign_keys.iter().map(|key| (&**name, key)));
        }
    }
    let mut left = tables.clone();
    let mut order = CopyOrder::default();
    while !left.is_empty() {
        // One that leads to nothing that is still to be copied; or by keys alone that can be deferred.
        let free = |table: &str, keep_all: bool| {
            let holds = |(from, key): &Leads<'_>| {
                *from == table
                    && key.to != table
                    && left.contains(&*key.to)
                    && (keep_all || !key.deferrable)
            };
            !leads.iter().any(holds)
        };
        let next = left.iter().copied().find(|table| free(table, true));
        order.deferred |= next.is_none();
        let next = next.or_else(|| left.iter().copied().find(|table| free(table, false)));
        let Some(next) = next else { return Err(circle(left, &leads, looked)) };
        left.remove(next);
        order.tables.push(next.to_owned());
    }
    Ok(order)
}

/// What is told of the circle among tables, each of which leads to another one that is left.
fn circle(mut left: BTreeSet<&str>, leads: &[Leads<'_>], looked: &[Looked<'_>]) -> Finding {
    let within = |left: &BTreeSet<&str>, (from, key): &Leads<'_>| {
        !key.deferrable && *from != key.to && left.contains(from) && left.contains(&*key.to)
    };
    // Tables that lead to the circle are not in it.
    loop {
        let led_to =
            |table: &&str| leads.iter().any(|lead| within(&left, lead) && lead.1.to == *table);
        let kept: BTreeSet<&str> = left.iter().copied().filter(led_to).collect();
        if kept.len() == left.len() {
            break;
        }
        left = kept;
    }
    let within = leads.iter().filter(|lead| within(&left, lead));
    let names: BTreeSet<String> =
        within.map(|(from, key)| format!("{} of table {from}", key.name)).collect();
    let names: Vec<String> = names.into_iter().collect();
    let source = looked.iter().find(|looked| looked.found.is_ok()).map_or("", |one| one.source);
    Finding {
        code: CANNOT_HOLD,
        source: source.to_owned(),
        text: format!(
            "foreign keys lead in a circle and none of them can be deferred, so no order of copying keeps them: {}. ALTER TABLE ... ALTER CONSTRAINT ... DEFERRABLE for one of them",
            names.join(", ")
        ),
    }
}
