//! Runs the golden scripts: what a DBA would write, and what is answered.

use std::{error::Error, fmt::Write as _, path::Path};

use goldenscript::{Command, Context, Runner};
use holdfast_route::{Format, Parameter, Shape, Target, Template, Topology, Values};

#[derive(Default)]
struct Desk {
    topology: Option<std::sync::Arc<Topology>>,
}

impl Runner for Desk {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        let first = args.next_pos().unwrap_or_default();
        let second = args.next_pos().unwrap_or_default();
        args.reject_next()?;
        let mut output = String::new();
        match command.name.as_str() {
            // rules FILE: loads testscripts/rules/FILE.toml.
            "rules" => {
                let path = format!("{}/testscripts/rules/{first}.toml", env!("CARGO_MANIFEST_DIR"));
                self.read(&std::fs::read_to_string(path)?, &mut output)?;
            }
            // text "LINES": loads the rules as given.
            "text" => self.read(first, &mut output)?,
            // edit FILE "OLD=>NEW": loads a file of rules after one replacement.
            "edit" => {
                let path = format!("{}/testscripts/rules/{first}.toml", env!("CARGO_MANIFEST_DIR"));
                let rules = std::fs::read_to_string(path)?;
                let (old, new) = second.split_once("=>").ok_or("edit needs OLD=>NEW")?;
                if !rules.contains(old) {
                    return Err(format!("{old:?} is not in the rules").into());
                }
                self.read(&rules.replacen(old, new, 1), &mut output)?;
            }
            // locate GROUP KEY
            "locate" => {
                let topology = self.topology.as_ref().ok_or("no rules yet")?;
                match topology.locate(first, second) {
                    Ok(at) => writeln!(
                        output,
                        "{} {second:?}: slot {} on {} at {} ({}), epoch {}",
                        at.group, at.slot, at.shard, at.source, at.address, at.epoch
                    )?,
                    Err(refusal) => writeln!(output, "{refusal}")?,
                }
            }
            // shards: which slots of which group each shard holds.
            "shards" => {
                let topology = self.topology.as_ref().ok_or("no rules yet")?;
                for (id, shard) in topology.shards() {
                    let address = topology.sources()[shard.source()].address();
                    writeln!(output, "{id} at {} ({address})", shard.source())?;
                    for (name, group) in topology.groups() {
                        for range in group.slots_of(id) {
                            writeln!(output, "  {name}: {range}")?;
                        }
                    }
                }
            }
            // route "SQL" "PARAMETER,PARAMETER": where a statement goes; parameters are texts of no type, or of TEXT@OID.
            "route" => {
                let topology = self.topology.as_ref().ok_or("no rules yet")?;
                output.push_str(&route(topology, first, second)?);
            }
            other => return Err(format!("no command {other}").into()),
        }
        Ok(output)
    }
}

fn route(
    topology: &std::sync::Arc<Topology>,
    sql: &str,
    parameters: &str,
) -> Result<String, Box<dyn Error>> {
    let parameters: Vec<Parameter<'_>> = parameters
        .split(',')
        .filter(|text| !text.is_empty())
        .map(|text| {
            let (text, oid) = text.split_once('@').unwrap_or((text, "0"));
            Parameter {
                oid: oid.parse().expect("a type's number"),
                format: Format::Text,
                value: (text != "NULL").then_some(text.as_bytes()),
            }
        })
        .collect();
    let planned = Template::of(sql).and_then(|template| {
        let shape = Shape::read(template.text(), topology)?;
        let values = Values { sql, literals: template.literals(), parameters: &parameters };
        shape.plan(topology, &values)
    });
    let mut told = String::new();
    match planned {
        Err(refused) => writeln!(told, "{refused}")?,
        Ok(plan) => {
            for line in plan.explain(topology) {
                let source = line.source.as_deref().unwrap_or("any source");
                let slot = line.slot.map(|slot| format!(" slot {slot}")).unwrap_or_default();
                writeln!(told, "{source}{slot}: {}", line.reason)?;
                if let Some(sql) = line.rewritten {
                    writeln!(told, "  {sql}")?;
                }
            }
            if plan.awaits {
                writeln!(told, "waits: a slot of it moves")?;
            }
            if matches!(plan.target, Target::Several(_)) {
                let merge = &plan.merge;
                writeln!(
                    told,
                    "merge: sort {:?} distinct {} columns {:?} hidden {} limit {:?} offset {}",
                    merge.sort,
                    merge.distinct,
                    merge.columns,
                    merge.hidden,
                    merge.limit,
                    merge.offset
                )?;
                if let Some(name) = &merge.counted {
                    writeln!(told, "told: how many, as {name}")?;
                }
            }
        }
    }
    Ok(told)
}

impl Desk {
    fn read(&mut self, rules: &str, output: &mut String) -> Result<(), Box<dyn Error>> {
        match Topology::parse(rules) {
            Ok(topology) => {
                writeln!(
                    output,
                    "epoch {}: {} groups, {} tables, {} shards, {} sources",
                    topology.epoch(),
                    topology.groups().len(),
                    topology.tables().len(),
                    topology.shards().len(),
                    topology.sources().len()
                )?;
                self.topology = Some(topology.into());
            }
            Err(mistakes) => {
                for mistake in mistakes {
                    writeln!(output, "{mistake}")?;
                }
            }
        }
        Ok(())
    }
}

fn run_all(directory: &str, scripts_min: usize) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts").join(directory);
    let mut scripts = std::fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>())
        .expect("the scripts can be listed");
    scripts.sort();
    assert!(scripts.len() >= scripts_min, "only {} scripts", scripts.len());
    for script in scripts {
        goldenscript::run(&mut Desk::default(), &script)
            .unwrap_or_else(|error| panic!("{}: {error}", script.display()));
    }
}

#[test]
fn keys_are_located() {
    run_all("locate", 3);
}

#[test]
fn statements_are_routed() {
    run_all("route", 6);
}

#[test]
fn bad_rules_are_refused_with_every_mistake() {
    run_all("bad_rules", 8);
}
