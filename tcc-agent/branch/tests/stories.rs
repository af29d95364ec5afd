//! Runs the stories of `testscripts/`: one call a line, and what the barrier and the participant make of it.

mod model;

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fmt::Write as _,
    path::Path,
};

use goldenscript::{Command, Context, Runner};
use holdfast_branch::{Op, Outcome, Record, Verdict, decide, decide_anew};
use model::Branch;

#[derive(Default)]
struct Stories {
    branches: BTreeMap<String, Branch>,
}

fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done => "done".into(),
        Outcome::Working => "working".into(),
        Outcome::Refused { code, message } if code == holdfast_branch::LATE_CODE => {
            format!("refused {code} {}", message.split(':').next().expect("a message has words"))
        }
        Outcome::Refused { code, message } => format!("refused {code} \"{message}\""),
    }
}

fn outcome(text: &str, code: Option<String>, message: Option<String>) -> Option<Outcome> {
    match text {
        "done" => Some(Outcome::Done),
        "working" => Some(Outcome::Working),
        "refused" => Some(Outcome::Refused {
            code: code.unwrap_or_default(),
            message: message.unwrap_or_default(),
        }),
        "unknown" => None,
        other => panic!("a participant says done, working, refused or unknown, not {other:?}"),
    }
}

/// A record in short: `try=done confirm=by cancel`.
fn short(record: &Record) -> String {
    let rows: Vec<String> = record
        .rows()
        .map(|row| {
            if row.by == row.op {
                format!("{}={}", row.op, row.outcome.as_str())
            } else {
                format!("{}=by {}", row.op, row.by)
            }
        })
        .collect();
    if rows.is_empty() { "nothing".into() } else { rows.join(" ") }
}

/// Every record that calls lead to, whatever the participant says, and the verdict on each operation.
fn table() -> Result<String, Box<dyn Error>> {
    let refusal = Outcome::Refused { code: "AM04".into(), message: "not enough money".into() };
    let says = [Some(Outcome::Done), Some(Outcome::Working), Some(refusal), None];
    let mut table = BTreeMap::new();
    let mut open = vec![Branch::default()];
    let mut seen = BTreeSet::from([short(&Record::default())]);
    while let Some(branch) = open.pop() {
        for op in Op::ALL {
            let verdict = match decide(op, &branch.record) {
                Verdict::Proceed => "proceed".to_owned(),
                Verdict::Repeat(outcome) => format!("repeat {}", outcome.as_str()),
                Verdict::Empty => "empty".to_owned(),
                Verdict::Late => "late".to_owned(),
                Verdict::Disorder(disorder) => disorder.code().to_owned(),
            };
            table.insert((short(&branch.record), op), verdict);
            for say in &says {
                let mut next = branch.clone();
                next.call(op, say.as_ref());
                if seen.insert(short(&next.record)) {
                    open.push(next);
                }
            }
        }
    }
    let mut text = String::new();
    for record in &seen {
        writeln!(text, "{record}")?;
        for op in Op::ALL {
            writeln!(text, "  {:10} {}", op.as_str(), table[&(record.clone(), op)])?;
        }
    }
    Ok(text)
}

impl Runner for Stories {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut arguments = command.consume_args();
        if command.name == "table" {
            arguments.reject_next()?;
            return table();
        }
        let name = arguments.next_pos().ok_or("say which branch")?.to_owned();
        let branch = self.branches.entry(name.clone()).or_default();
        let mut output = String::new();
        if command.name == "rows" {
            for row in branch.record.rows() {
                writeln!(output, "{} {}: by {}, {}", name, row.op, row.by, words(&row.outcome))?;
            }
            if output.is_empty() {
                writeln!(output, "{name}: none")?;
            }
        } else if command.name == "effects" {
            let effects: Vec<&str> = branch.effects.iter().map(|op| op.as_str()).collect();
            let effects = if effects.is_empty() { "none".into() } else { effects.join(", ") };
            writeln!(output, "{name}: {effects}")?;
        } else {
            let op = Op::parse(&command.name)?;
            let say = arguments.take_key("says").map(str::to_owned);
            let code = arguments.take_key("code").map(str::to_owned);
            let message = arguments.take_key("message").map(str::to_owned);
            let say = outcome(say.as_deref().unwrap_or("done"), code, message);
            let decides = match arguments.take_key("refusal") {
                Some("waits") => decide_anew,
                Some(other) => return Err(format!("a refusal waits, it does not {other}").into()),
                None => decide,
            };
            let (verdict, answer) = branch.judged_by(decides, op, say.as_ref());
            let verdict = match verdict {
                Verdict::Proceed => "the participant is called".to_owned(),
                Verdict::Repeat(_) => "a repeat, the same answer again".to_owned(),
                Verdict::Empty => "nothing to undo, recorded".to_owned(),
                Verdict::Late => "too late".to_owned(),
                Verdict::Disorder(disorder) => format!("{} {disorder}", disorder.code()),
            };
            let answer = answer.map_or_else(|| "unknown".into(), |answer| words(&answer));
            writeln!(output, "{verdict} -> {answer}")?;
        }
        arguments.reject_next()?;
        Ok(output)
    }
}

#[test]
fn every_story_ends_as_it_is_told() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts");
    let mut told = 0;
    let mut stories: Vec<_> =
        folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    stories.sort();
    for story in stories {
        goldenscript::run(&mut Stories::default(), &story).unwrap();
        told += 1;
    }
    assert!(told >= 12, "only {told} stories in {}", folder.display());
}
