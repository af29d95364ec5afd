//! `holdfast rules plan` and `holdfast rules simulate`: what other rules would change, before anybody applies them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::ExitCode,
    sync::Arc,
};

use holdfast_route::{
    Group, Placement, Shape, Slot, SlotRange, Target, Template, Topology, Values, statements,
};
use serde_json::{Value, json};

use crate::{
    config,
    exit::{self, Usage},
    output::{self, Output},
    rules, rules_evenness,
    rules_sources::{SourcesArgs, Survey},
};

/// The rules in `file`.
fn read(file: &Path) -> anyhow::Result<Arc<Topology>> {
    Ok(Arc::new(rules::load(file)?.map_err(|mistakes| Usage(mistakes.to_string()))?))
}

/// A text that an operator names.
pub(crate) fn text(file: &Path) -> anyhow::Result<String> {
    Ok(config::read_text(file).map_err(|mistake| Usage(mistake.to_string()))?)
}

/// Where a statement goes.
struct Route {
    /// In words.
    told: String,
    /// `one`, `several`, `any`, or the class of a refusal.
    class: &'static str,
    is_refused: bool,
}

/// Where a statement without parameters goes.
fn route(sql: &str, rules: &Arc<Topology>) -> Route {
    let planned = Template::of(sql).and_then(|template| {
        let shape = Shape::read(template.text(), rules)?;
        let values = Values { sql, literals: template.literals(), parameters: &[] };
        shape.plan(rules, &values)
    });
    match planned {
        Err(refused) => {
            Route { class: refused.class.name(), told: refused.to_string(), is_refused: true }
        }
        Ok(plan) => {
            let class = match plan.target {
                Target::Any => "any",
                Target::One(_) => "one",
                Target::Several(_) => "several",
            };
            let lines = plan.explain(rules);
            let lines = lines.iter().map(|line| {
                let source = line.source.as_deref().unwrap_or("any source");
                let slot = line.slot.map(|slot| format!(", slot {slot}")).unwrap_or_default();
                format!("{source}{slot}: {}", line.reason)
            });
            let told = lines.collect::<Vec<_>>().join("; ");
            Route { told, class, is_refused: false }
        }
    }
}

/// From group, source and source to the slots that move.
type Moves = BTreeMap<(String, String, String), Vec<Slot>>;
/// Something, what it is, and what it would be.
type Change = (String, String, String);

/// What other rules would change.
#[derive(Default)]
pub(crate) struct Changes {
    moves: Moves,
    misplaced: Vec<Change>,
    others: Vec<Change>,
}

impl Changes {
    pub(crate) fn between(before: &Topology, after: &Topology) -> Self {
        Self {
            moves: moves(before, after),
            misplaced: misplaced(before, after),
            others: others(before, after),
        }
    }

    /// Puts them into the answer of a command.
    pub(crate) fn put_json(&self, answer: &mut Value) {
        let moves = self.moves.iter().map(|((group, from, to), slots)| {
            json!({
                "group": group,
                "from": from,
                "to": to,
                "slots": slots.len(),
                "ranges": SlotRange::gather(slots.iter().copied()),
            })
        });
        let list = |changes: &[Change]| -> Value {
            let one = |(what, was, is): &Change| json!({ "what": what, "was": was, "is": is });
            changes.iter().map(one).collect()
        };
        answer["moves"] = moves.collect();
        answer["misplaced"] = list(&self.misplaced);
        answer["others"] = list(&self.others);
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let list = |head: &str, changes: &[Change]| {
            let rows =
                changes.iter().map(|(what, was, is)| vec![what.clone(), was.clone(), is.clone()]);
            output::table(&[head, "is", "would be"], rows)
        };
        let mut parts = vec![match self.moves.is_empty() {
            true => "No slot moves.".to_owned(),
            false => moves_table(&self.moves),
        }];
        if !self.misplaced.is_empty() {
            parts.push(list("rows that would be looked for elsewhere", &self.misplaced));
        }
        if !self.others.is_empty() {
            parts.push(list("what else changes", &self.others));
        }
        parts.join("\n\n")
    }
}

/// Which slots of each group move from which source to which.
fn moves(before: &Topology, after: &Topology) -> Moves {
    let mut moves = Moves::new();
    for (name, group) in before.groups() {
        let Some(other) = after.groups().get(name) else { continue };
        for slot in Slot::all() {
            let (from, to) = (source(before, group, slot), source(after, other, slot));
            if from != to {
                moves.entry((name.to_string(), from, to)).or_default().push(slot);
            }
        }
    }
    moves
}

fn source(rules: &Topology, group: &Group, slot: Slot) -> String {
    rules.shards()[group.shard_of(slot)].source().to_string()
}

fn moves_table(moves: &Moves) -> String {
    let rows = moves.iter().map(|((group, from, to), slots)| {
        let which = ranges(&SlotRange::gather(slots.iter().copied()));
        vec![group.clone(), slots.len().to_string(), from.clone(), to.clone(), which]
    });
    output::table(&["group", "slots that move", "from", "to", "which"], rows)
}

/// Slots, for people: at most eight ranges.
pub(crate) fn ranges(ranges: &[SlotRange]) -> String {
    let mut shown: Vec<String> = ranges.iter().take(8).map(ToString::to_string).collect();
    if ranges.len() > shown.len() {
        shown.push(format!("and {} further ranges", ranges.len() - shown.len()));
    }
    shown.join(", ")
}

/// What lies elsewhere for another reason than a slot that moves: rows stay where they are, and the new rules look for them in another place.
fn misplaced(before: &Topology, after: &Topology) -> Vec<Change> {
    let mut found = Vec::new();
    for (name, group) in before.groups() {
        let told =
            |group: &Group| format!("{} of {}", group.function().shown(), group.key_type().name());
        match after.groups().get(name) {
            None => found.push((format!("group {name}"), told(group), "gone".to_owned())),
            Some(other)
                if (group.function(), group.key_type()) != (other.function(), other.key_type()) =>
            {
                found.push((format!("group {name}"), told(group), told(other)));
            }
            Some(_) => {}
        }
    }
    for (name, placement) in before.tables() {
        let was = rules::told(placement);
        match after.tables().get(name).map(rules::told) {
            None => found.push((format!("table {name}"), was, "gone".to_owned())),
            Some(is) if was != is => found.push((format!("table {name}"), was, is)),
            Some(_) => {}
        }
    }
    found
}

/// What changes and is about no row that there is.
fn others(before: &Topology, after: &Topology) -> Vec<Change> {
    let (was, mut is) = (facts(before), facts(after));
    let new = after.tables().iter().filter(|(name, _)| !before.tables().contains_key(*name));
    is.extend(new.map(|(name, placement)| (format!("table {name}"), rules::told(placement))));
    let names: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
    let told = |facts: &BTreeMap<String, String>, name| {
        facts.get(name).map_or("-", String::as_str).to_owned()
    };
    let both = names.into_iter().map(|name| (name.clone(), told(&was, name), told(&is, name)));
    both.filter(|(_, was, is)| was != is).collect()
}

/// What rules say beside where rows lie.
fn facts(rules: &Topology) -> BTreeMap<String, String> {
    let collation = if rules.collation_is_c() { "C" } else { "other" };
    let mut facts = BTreeMap::from([("collation".to_owned(), collation.to_owned())]);
    for (name, group) in rules.groups() {
        facts.insert(format!("scatter of group {name}"), group.scatter().name().to_owned());
    }
    for (name, placement) in rules.tables() {
        if let Placement::Sharded(table) = placement
            && table.scatter != rules.groups()[&table.group].scatter()
        {
            facts.insert(format!("scatter of table {name}"), table.scatter.name().to_owned());
        }
    }
    let lookups = rules.lookups().iter();
    facts.extend(lookups.map(|(name, lookup)| (format!("lookup {name}"), lookup.to_string())));
    let sources = rules.sources().iter();
    facts.extend(
        sources.map(|(name, source)| (format!("source {name}"), source.address().to_owned())),
    );
    facts
}

/// What becomes of captured statements.
#[derive(Default)]
struct Captured {
    count: usize,
    /// The statement, where it went, where it would go.
    changed: Vec<(String, String, String)>,
    /// Of these, those that were carried out and would be refused.
    newly_refused: usize,
}

impl Captured {
    fn compare(sql: &str, before: &Arc<Topology>, after: &Arc<Topology>) -> anyhow::Result<Self> {
        let mut captured = Self::default();
        for range in statements(sql).map_err(|refused| Usage(refused.to_string()))? {
            let one = &sql[range];
            let (was, is) = (route(one, before), route(one, after));
            captured.count += 1;
            captured.newly_refused += usize::from(!was.is_refused && is.is_refused);
            if was.told != is.told {
                captured.changed.push((one.to_owned(), was.told, is.told));
            }
        }
        Ok(captured)
    }
}

/// Says which slots and rows move from the rules in `old` to those in `new`, what sources lack for that, which statements would go elsewhere, and
/// how even the keys lie.
/// # Errors
/// A file cannot be read, or rules are mistaken.
pub(crate) async fn plan(
    old: &Path,
    new: &Path,
    captured: Option<&Path>,
    keys: Option<(&str, &Path)>,
    sources: &SourcesArgs,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let (before, after) = (read(old)?, read(new)?);
    let changes = Changes::between(&before, &after);
    let captured = match captured {
        None => Captured::default(),
        Some(file) => Captured::compare(&text(file)?, &before, &after)?,
    };
    let spread = keys.map(|(group, file)| rules_evenness::read(&after, group, file)).transpose()?;
    let survey = match &sources.sources {
        None => None,
        Some(router) => Some(Survey::make(&[&before, &after], sources, router).await?),
    };
    match output {
        Output::Json => {
            let mut answer = json!({
                "captured": captured.count,
                "newly_refused": captured.newly_refused,
                "statements": captured.changed.iter()
                    .map(|(sql, was, is)| json!({ "sql": sql, "was": was, "is": is }))
                    .collect::<Vec<_>>(),
                "keys": spread.as_ref().map(rules_evenness::Spread::json),
                "sources": survey,
            });
            changes.put_json(&mut answer);
            output::print_json(&answer)?;
        }
        Output::Table => {
            output::print(&changes.text())?;
            if let Some(survey) = &survey {
                output::print(&format!("\n{}", survey.text()))?;
                survey.tell_findings();
            }
            if captured.count > 0 {
                let told = format!(
                    "\n{} of {} statements would go elsewhere; {} would be refused and are not now",
                    captured.changed.len(),
                    captured.count,
                    captured.newly_refused
                );
                output::print(&told)?;
                if !captured.changed.is_empty() {
                    let rows =
                        captured.changed.into_iter().map(|(sql, was, is)| vec![sql, was, is]);
                    output::print(&output::table(&["statement", "goes to", "would go to"], rows))?;
                }
            }
            if let Some(spread) = spread {
                output::print(&format!("\n{}", spread.table()))?;
            }
        }
    }
    Ok(survey.map_or(ExitCode::SUCCESS, |survey| survey.exit_code()))
}

/// Says where each statement in `captured` would go under the rules in `file`; exit code 3 when one is refused.
/// # Errors
/// A file cannot be read, or the rules are mistaken.
pub(crate) fn simulate(file: &Path, captured: &Path, output: Output) -> anyhow::Result<ExitCode> {
    let rules = read(file)?;
    let sql = text(captured)?;
    let ranges = statements(&sql).map_err(|refused| Usage(refused.to_string()))?;
    let mut classes: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut told = Vec::new();
    let mut refused = false;
    for range in ranges {
        let route = route(&sql[range.clone()], &rules);
        *classes.entry(route.class).or_default() += 1;
        refused |= route.is_refused;
        told.push((sql[range].to_owned(), route.told, route.class));
    }
    match output {
        Output::Json => output::print_json(&json!({
            "statements": told.iter()
                .map(|(sql, route, class)| json!({ "sql": sql, "route": route, "class": class }))
                .collect::<Vec<_>>(),
            "by_class": classes,
        }))?,
        Output::Table => {
            let rows = told.into_iter().map(|(sql, route, _)| vec![sql, route]);
            output::print(&output::table(&["statement", "route"], rows))?;
            let rows =
                classes.into_iter().map(|(class, count)| vec![class.to_owned(), count.to_string()]);
            output::print(&format!("\n{}", output::table(&["goes to", "statements"], rows)))?;
        }
    }
    Ok(if refused { ExitCode::from(exit::REFUSED) } else { ExitCode::SUCCESS })
}
