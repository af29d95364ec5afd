//! `holdfast rules check --sources` and `plan --sources`: whether each source has what the rules send there, and which rows lie elsewhere, told
//! before rules are applied and behind a move.

mod contents;
mod judge;
mod look;
mod lookups;
mod order;
mod rows;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use futures::future::join_all;
use holdfast_route::{Placement, Slot, SlotRange, SourceId, Topology};
use serde::Serialize;
use serde_json::json;

use self::{
    look::Found,
    order::CopyOrder,
    rows::{Astray, Way},
};
use crate::{
    config::{self, ConfigArgs, RouterRole},
    exit,
    output::{self, Output},
    rules_plan,
};

/// For one source to let in, and for each of its answers.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A row lies where the rules do not look for it, or nobody can say.
const ASTRAY: &str = "HF1028";

/// The entries of lookups; each lies where its value leads.
pub(crate) const ENTRIES: &str = "holdfast.lookup";

/// Which sources are asked, and how much of them is read.
#[derive(Debug, clap::Args)]
pub(crate) struct SourcesArgs {
    /// Ask each source, by the accounts in this configuration of a router, whether it has what the rules send there, and which rows lie elsewhere
    #[arg(long, value_name = "FILE")]
    pub(crate) sources: Option<PathBuf>,
    /// Rows that are read of each table at each source; 0: none
    #[arg(long, value_name = "N", requires = "sources", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(..=1_000_000_000))]
    pub(crate) rows_max: u64,
}

/// Something that is wrong at a source.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    code: &'static str,
    source: String,
    text: String,
}

/// Tables that must be there, each with columns that it must have.
type Needs<'t> = BTreeMap<&'t str, BTreeSet<&'t str>>;

/// What is asked of a source.
struct Ask<'t> {
    source: &'t str,
    /// Of all rules.
    tables: Vec<&'t str>,
    /// By which rows are judged: the rules in force, and those to come if these are planned.
    rules: &'t [&'t Topology],
    rows_max: u64,
}

/// A source, what the rules need there, and what is there.
struct Looked<'t> {
    source: &'t str,
    needs: Needs<'t>,
    found: Result<Found, String>,
}

/// How much of a table was read at a source.
#[derive(Debug, Serialize)]
struct Read {
    source: String,
    #[serde(flatten)]
    read: rows::Read,
}

/// Rows that would have to move.
#[derive(Debug, Serialize)]
struct Move {
    table: String,
    from: String,
    /// `None`: the rules to come have no place for them.
    to: Option<String>,
    rows: u64,
    slots: Vec<SlotRange>,
}

/// What all sources told.
#[derive(Debug, Serialize)]
pub(crate) struct Survey {
    findings: Vec<Finding>,
    /// By the rules to come.
    moves: Vec<Move>,
    /// Of the tables whose rows move.
    copy_order: CopyOrder,
    read: Vec<Read>,
}

/// Checks each source that `rules` name, by the accounts in a router's configuration.
/// # Errors
/// The configuration cannot be read or is mistaken.
pub(crate) async fn check(
    file: &Path,
    rules: &Topology,
    args: &SourcesArgs,
    config: &Path,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let survey = Survey::make(&[rules], args, config).await?;
    let (count, file) = (rules.sources().len(), file.display().to_string());
    match output {
        Output::Json => output::print_json(&json!({
            "file": file,
            "sources": count,
            "findings": survey.findings,
            "read": survey.read,
        }))?,
        Output::Table => {
            let right = match survey.findings.is_empty() {
                true => format!("each of {count} sources has what the rules need; "),
                false => String::new(),
            };
            output::print(&format!("{file}: {right}{}.", survey.read_told()))?;
            survey.tell_findings();
        }
    }
    Ok(survey.exit_code())
}

impl Survey {
    /// Asks each source. `rules`: those in force, and those to come if these are planned.
    /// # Errors
    /// The configuration cannot be read or is mistaken.
    pub(crate) async fn make(
        rules: &[&Topology],
        args: &SourcesArgs,
        config: &Path,
    ) -> anyhow::Result<Self> {
        let inputs = ConfigArgs { config: Some(config.to_owned()), ..ConfigArgs::default() };
        let loaded = config::load::<RouterRole>(&inputs.inputs(Vec::new()))?;
        let router = &loaded.config.router;
        let sources: BTreeSet<&SourceId> =
            rules.iter().flat_map(|rules| rules.sources().keys()).collect();
        let mut tables: BTreeSet<&str> = rules
            .iter()
            .flat_map(|rules| rules.tables().keys().map(|name| name.as_str()))
            .collect();
        if rules.iter().any(|rules| !rules.lookups().is_empty()) {
            tables.insert(ENTRIES);
        }
        let (Some(before), Some(after)) = (rules.first(), rules.last()) else {
            anyhow::bail!("no rules to ask sources by")
        };
        let looks = sources.into_iter().map(async |source| {
            let config = router.sources.iter().find(|known| *known.name == *source.as_str());
            let source = source.as_str();
            let tables = tables.iter().copied().collect();
            let ask = Ask { source, tables, rules, rows_max: args.rows_max };
            let found = look::look(config, &ask, ANSWER_MAX).await;
            Looked { source, needs: needs(after, source), found }
        });
        let looked = join_all(looks).await;
        let mut findings = judge::judge(&looked, after, router.coordinator.is_some());
        let moving = moving(before, after);
        let copy_order = order::copy_order(&moving, &looked).unwrap_or_else(|circle| {
            findings.push(circle);
            CopyOrder::default()
        });
        let mut survey = Self { findings, moves: Vec::new(), copy_order, read: Vec::new() };
        // Only of rules in force: what differs for a moment, while somebody writes, is in the way of nothing that is planned.
        if let [rules] = rules {
            let (differing, read) =
                contents::compare(&looked, &router.sources, rules, args.rows_max).await;
            survey.findings.extend(differing);
            survey.read.extend(read);
        }
        for Looked { source, found, .. } in looked {
            if let Ok(found) = found {
                survey.take_rows(source, found.rows);
            }
        }
        Ok(survey)
    }

    /// Takes in what the rows of a source told.
    fn take_rows(&mut self, source: &str, rows: rows::Rows) {
        let mut tell = |text| {
            self.findings.push(Finding { code: ASTRAY, source: source.to_owned(), text });
        };
        for (table, failed) in rows.unread {
            tell(rows::unread(&table, &failed));
        }
        for (Way { rules, table, to }, astray) in rows.astray {
            if rules == 0 {
                tell(astray.told(&table, to.as_deref()));
            } else {
                let slots = SlotRange::gather(astray.slots);
                let from = source.to_owned();
                self.moves.push(Move { table, from, to, rows: astray.rows, slots });
            }
        }
        let read = rows.read.into_iter().map(|read| Read { source: source.to_owned(), read });
        self.read.extend(read);
    }

    /// How many rows were read, in words.
    fn read_told(&self) -> String {
        let rows: u64 = self.read.iter().map(|one| one.read.rows).sum();
        let mut told = match self.read.is_empty() {
            true => "no rows were read".to_owned(),
            false => format!("{rows} rows were read"),
        };
        let beyond = self.read.iter().filter(|one| !one.read.all);
        let beyond: Vec<String> =
            beyond.map(|one| format!("{} at {}", one.read.table, one.source)).collect();
        if !beyond.is_empty() {
            told += &format!(", and there are more (--rows-max) of {}", beyond.join(", "));
        }
        told
    }

    /// Whether anything is wrong.
    pub(crate) fn is_in_the_way(&self) -> bool {
        !self.findings.is_empty()
    }

    /// Tells people what is wrong.
    pub(crate) fn tell_findings(&self) {
        for Finding { code, source, text } in &self.findings {
            exit::tell(&format!("{code} source {source}: {text}"));
        }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.findings.is_empty() { 0 } else { exit::FAILED })
    }

    /// What would move, for people.
    pub(crate) fn text(&self) -> String {
        let mut parts = Vec::new();
        if self.moves.is_empty() {
            parts.push(format!("No row would have to move; {}.", self.read_told()));
        } else {
            let rows = self.moves.iter().map(|one| {
                let to = one.to.as_deref().unwrap_or("nowhere").to_owned();
                let slots = rules_plan::ranges(&one.slots);
                vec![one.table.clone(), one.rows.to_string(), one.from.clone(), to, slots]
            });
            let head = ["rows that would have to move", "rows", "from", "to", "of slots"];
            parts.push(output::table(&head, rows));
            parts.push(format!("In all, {}.", self.read_told()));
        }
        let CopyOrder { tables, deferred } = &self.copy_order;
        if !tables.is_empty() {
            let deferred = if *deferred { ", behind SET CONSTRAINTS ALL DEFERRED" } else { "" };
            let tables = tables.join(", ");
            parts.push(format!("Copy in this order{deferred}, delete in the reverse: {tables}."));
        }
        parts.join("\n\n")
    }
}

impl Astray {
    /// What is wrong with these rows of a table, which belong `to` a source.
    fn told(&self, table: &str, to: Option<&str>) -> String {
        let Self { rows, slots, first } = self;
        let first = if first.is_empty() { String::new() } else { format!(", the first {first}") };
        let Some(to) = to else {
            return format!(
                "rows of table {table} without a slot, or with columns of two slots: {rows}{first}. Mend these columns: nobody finds the rows by them"
            );
        };
        let slots = SlotRange::gather(slots.iter().copied());
        let slots = match rules_plan::ranges(&slots) {
            none if none.is_empty() => none,
            some => format!(" (slots {some})"),
        };
        format!(
            "rows of table {table} that belong to source {to}: {rows}{slots}{first}. Move them there, or delete them here if they are there"
        )
    }
}

/// What the rules need at `source`.
fn needs<'t>(rules: &'t Topology, source: &str) -> Needs<'t> {
    let mut needs = Needs::new();
    for (table, placement) in rules.tables() {
        if !rules.spread(placement).iter().any(|known| known.as_str() == source) {
            continue;
        }
        let columns = match placement {
            Placement::Sharded(sharded) => {
                let keys = sharded.columns.iter().map(|column| &*column.name);
                keys.chain(sharded.order.iter().map(|column| &**column)).collect()
            }
            Placement::Single(_) | Placement::Reference => BTreeSet::new(),
        };
        needs.insert(table.as_str(), columns);
    }
    if rules.lookups().values().any(|lookup| needs.contains_key(lookup.table().as_str())) {
        needs.insert(ENTRIES, BTreeSet::from(["name", "value", "owner"]));
    }
    needs
}

/// Tables of which a row may have another place by the rules to come.
fn moving<'t>(before: &'t Topology, after: &'t Topology) -> BTreeSet<&'t str> {
    let placed = |rules: &'t Topology, placement: &'t Placement| -> Vec<&'t SourceId> {
        match placement {
            Placement::Sharded(sharded) => {
                let group = &rules.groups()[&sharded.group];
                Slot::all().map(|slot| rules.shards()[group.shard_of(slot)].source()).collect()
            }
            Placement::Single(_) | Placement::Reference => {
                rules.spread(placement).into_iter().collect()
            }
        }
    };
    let leads = |placement: &'t Placement| match placement {
        Placement::Sharded(sharded) => &sharded.columns[..],
        Placement::Single(_) | Placement::Reference => &[],
    };
    let both = before
        .tables()
        .iter()
        .filter_map(|(name, was)| Some((name, was, after.tables().get(name)?)));
    both.filter(|(_, was, is)| leads(was) != leads(is) || placed(before, was) != placed(after, is))
        .map(|(name, ..)| name.as_str())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_source_that_says_nothing_is_told_of_after_the_limit() {
        let (_silent, config) = crate::router::silent_source();
        let limit = Duration::from_millis(20);
        let ask = Ask { source: "pg-1", tables: Vec::new(), rules: &[], rows_max: 1 };
        let told = look::look(Some(&config), &ask, limit).await.expect_err("nobody answers");
        assert!(told.starts_with("no answer within 20 ms"), "{told}");
    }
}
