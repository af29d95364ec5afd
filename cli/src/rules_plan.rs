//! `holdfast rules plan` and `holdfast rules simulate`: what other rules would change, before anybody applies them.

use std::{collections::BTreeMap, path::Path, process::ExitCode, sync::Arc};

use holdfast_route::{Shape, Slot, Template, Topology, Values, statements};
use serde_json::json;

use crate::{
    config,
    exit::{self, Usage},
    output::{self, Output},
    rules,
};

/// The rules in `file`.
fn read(file: &Path) -> anyhow::Result<Arc<Topology>> {
    Ok(Arc::new(rules::load(file)?.map_err(|mistakes| Usage(mistakes.to_string()))?))
}

fn text(file: &Path) -> anyhow::Result<String> {
    Ok(config::read_text(file).map_err(|mistake| Usage(mistake.to_string()))?)
}

/// Where a statement without parameters goes, in words.
fn route(sql: &str, rules: &Arc<Topology>) -> String {
    let planned = Template::of(sql).and_then(|template| {
        let shape = Shape::read(template.text(), rules)?;
        let values = Values { sql, literals: template.literals(), parameters: &[] };
        shape.plan(rules, &values)
    });
    match planned {
        Err(refused) => refused.to_string(),
        Ok(plan) => {
            let lines = plan.explain(rules);
            let lines = lines.iter().map(|line| {
                let source = line.source.as_deref().unwrap_or("any source");
                let slot = line.slot.map(|slot| format!(", slot {slot}")).unwrap_or_default();
                format!("{source}{slot}: {}", line.reason)
            });
            lines.collect::<Vec<_>>().join("; ")
        }
    }
}

/// How many slots of each group move from which source to which.
pub(crate) fn moves(
    before: &Topology,
    after: &Topology,
) -> BTreeMap<(String, String, String), u32> {
    let mut moves: BTreeMap<(String, String, String), u32> = BTreeMap::new();
    for (name, group) in before.groups() {
        let Some(other) = after.groups().get(name) else { continue };
        for slot in Slot::all() {
            let (from, to) = (source(before, group, slot), source(after, other, slot));
            if from != to {
                *moves.entry((name.to_string(), from, to)).or_default() += 1;
            }
        }
    }
    moves
}

/// Says which slots move from the rules in `old` to those in `new`, which statements would go elsewhere, and how even the keys lie.
/// # Errors
/// A file cannot be read, or rules are mistaken.
pub(crate) fn plan(
    old: &Path,
    new: &Path,
    captured: Option<&Path>,
    keys: Option<(&str, &Path)>,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let (before, after) = (read(old)?, read(new)?);
    let moves = moves(&before, &after);
    let mut changed = Vec::new();
    if let Some(file) = captured {
        let sql = text(file)?;
        for range in statements(&sql).map_err(|refused| Usage(refused.to_string()))? {
            let one = &sql[range];
            let (was, is) = (route(one, &before), route(one, &after));
            if was != is {
                changed.push((one.to_owned(), was, is));
            }
        }
    }
    let spread = keys.map(|(group, file)| evenness(&after, group, file)).transpose()?;
    match output {
        Output::Json => output::print_json(&json!({
            "moves": moves.iter().map(|((group, from, to), slots)| json!({ "group": group, "from": from, "to": to, "slots": slots })).collect::<Vec<_>>(),
            "statements": changed.iter().map(|(sql, was, is)| json!({ "sql": sql, "was": was, "is": is })).collect::<Vec<_>>(),
            "keys": spread.as_ref().map(|(counts, outside)| json!({ "by_source": counts, "outside": outside })),
        }))?,
        Output::Table => {
            let rows = moves
                .into_iter()
                .map(|((group, from, to), slots)| vec![group, slots.to_string(), from, to]);
            output::print(&output::table(&["group", "slots", "from", "to"], rows))?;
            let rows = changed.into_iter().map(|(sql, was, is)| vec![sql, was, is]);
            output::print(&output::table(&["statement", "was", "would be"], rows))?;
            if let Some((counts, outside)) = spread {
                let rows =
                    counts.into_iter().map(|(source, count)| vec![source, count.to_string()]);
                output::print(&output::table(&["source", "keys"], rows))?;
                output::print(&format!("{outside} keys have no slot"))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn source(rules: &Topology, group: &holdfast_route::Group, slot: Slot) -> String {
    rules.shards()[group.shard_of(slot)].source().to_string()
}

/// How many of the keys in `file`, a line each, lie on each source, and how many have no slot.
fn evenness(
    rules: &Topology,
    group: &str,
    file: &Path,
) -> anyhow::Result<(BTreeMap<String, u64>, u64)> {
    let mut counts: BTreeMap<String, u64> =
        rules.sources().keys().map(|source| (source.to_string(), 0)).collect();
    let mut outside = 0;
    for key in text(file)?.lines().filter(|line| !line.is_empty()) {
        match rules.locate(group, key) {
            Ok(located) => *counts.entry(located.source.to_string()).or_default() += 1,
            Err(_) => outside += 1,
        }
    }
    Ok((counts, outside))
}

/// Says where each statement in `captured` would go under the rules in `file`; exit code 3 when one is refused.
/// # Errors
/// A file cannot be read, or the rules are mistaken.
pub(crate) fn simulate(file: &Path, captured: &Path, output: Output) -> anyhow::Result<ExitCode> {
    let rules = read(file)?;
    let sql = text(captured)?;
    let ranges = statements(&sql).map_err(|refused| Usage(refused.to_string()))?;
    let told: Vec<(String, String)> = ranges
        .into_iter()
        .map(|range| (sql[range.clone()].to_owned(), route(&sql[range], &rules)))
        .collect();
    let refused = told.iter().any(|(_, route)| route.starts_with("HF"));
    match output {
        Output::Json => output::print_json(&json!(
            told.iter()
                .map(|(sql, route)| json!({ "sql": sql, "route": route }))
                .collect::<Vec<_>>()
        ))?,
        Output::Table => {
            let rows = told.into_iter().map(|(sql, route)| vec![sql, route]);
            output::print(&output::table(&["statement", "route"], rows))?;
        }
    }
    Ok(if refused { ExitCode::from(exit::REFUSED) } else { ExitCode::SUCCESS })
}
