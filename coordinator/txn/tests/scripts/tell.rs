//! What the machine says, as a script tells it.

use std::fmt::Write as _;

use holdfast_txn::{
    Answer, AuditRecord, Decision, Deed, GlobalTransaction, Machine, Next, Outcome, Report, Status,
    Timestamp, Trail,
};

/// One line for what a command did; `transaction` is as it stands after it.
pub(crate) fn outcome(outcome: &Outcome, transaction: &GlobalTransaction) -> String {
    let GlobalTransaction { gid, status, reason, .. } = transaction;
    let mut line = match (outcome.moved, outcome.repeated) {
        (Some(moved), false) => match moved.from {
            Some(from) => format!("{gid} {from} -> {}", moved.to),
            None => format!("{gid} begun -> {}", moved.to),
        },
        (None, false) => format!("{gid} {status}, noted"),
        (None, true) => format!("{gid} {status}, as before"),
        (Some(_), true) => panic!("a repeat moved {gid}"),
    };
    let speaks = outcome.moved.is_some_and(|moved| {
        let troubled =
            [Status::RollingBack, Status::Compensating, Status::RolledBack, Status::NeedsAttention];
        troubled.contains(&moved.to) || moved.from == Some(Status::NeedsAttention)
    });
    if let Some(reason) = reason.as_ref().filter(|_| speaks) {
        let _ = write!(line, " ({reason})");
    }
    line
}

/// A line for each thing that is needed next.
pub(crate) fn next(next: &Next, transaction: &GlobalTransaction) -> Vec<String> {
    match next {
        Next::Call(calls) => calls
            .iter()
            .map(|(branch, op)| {
                let spec = &transaction.branch(*branch).unwrap().spec;
                let payload = transaction.payload(*branch, *op).unwrap();
                // Most stories are not about what a call carries.
                let carries = if *payload == spec.payload {
                    String::new()
                } else {
                    format!(", carrying {}", String::from_utf8_lossy(payload))
                };
                format!("call {branch} {op} {}{carries}", spec.participant)
            })
            .collect(),
        Next::Become(status, Some(decision)) => {
            vec![format!("report: decides to {} -> {status}", self::decision(*decision))]
        }
        Next::Become(status, None) => vec![format!("report: -> {status}")],
        Next::Record => vec!["report: the pivot is reached".to_owned()],
        Next::Wait => vec!["wait".to_owned()],
    }
}

pub(crate) fn report(report: &Report) -> String {
    let Report { branch, op, answer } = report;
    let answer = match answer {
        Answer::Done => "done".to_owned(),
        Answer::Refused(words) => format!("refused: {}", words.message),
        Answer::GivenUp { attempts, last } => format!("unknown after {attempts} attempts: {last}"),
    };
    format!("{branch} {op} {answer}")
}

fn decision(decision: Decision) -> &'static str {
    match decision {
        Decision::Commit => "commit",
        Decision::RollBack => "roll back",
    }
}

/// Seconds since the story began.
pub(crate) fn time(at: Timestamp) -> String {
    format!("{}.{:03} s", at.0 / 1000, at.0 % 1000)
}

/// Everything that people ask of a transaction.
pub(crate) fn transaction(transaction: &GlobalTransaction) -> String {
    let GlobalTransaction { gid, mode, enlisted, status, begun_at, deadline, .. } = transaction;
    let style = if *enlisted { "enlisted" } else { "declared" };
    let mut text = format!("{gid} {} {style}: {status}", mode.as_str());
    if let Some(interrupted) = transaction.interrupted {
        let _ = write!(text, ", interrupted while {interrupted}");
    }
    let _ = write!(text, "\nbegun {}, deadline {}", time(*begun_at), time(*deadline));
    if let (Some(decided), Some(at)) = (transaction.decision, transaction.decided_at) {
        let _ = write!(text, ", decided to {} {}", decision(decided), time(at));
    }
    if let Some(at) = transaction.finished_at {
        let _ = write!(text, ", finished {}", time(at));
    }
    if transaction.pivot_reached {
        text.push_str(", pivot reached");
    }
    if let Some(reason) = &transaction.reason {
        let shown: String = reason.chars().take(200).collect();
        let cut = if shown.len() < reason.len() {
            format!("... ({} bytes)", reason.len())
        } else {
            String::new()
        };
        let _ = write!(text, "\nreason: {shown}{cut}");
    }
    for (id, branch) in transaction.numbered() {
        let _ = write!(text, "\n{id} {} {}", branch.spec.participant, branch.state.as_str());
        if !branch.spec.payload.is_empty() {
            let _ = write!(text, ", {} bytes", branch.spec.payload.len());
        }
        if let Some(capture) = transaction.captures.of(id) {
            let _ = write!(text, ", confirmed with {} bytes", capture.len());
        }
        if let Some(refusal) = &branch.refusal {
            let shown: String = refusal.message.chars().take(60).collect();
            let _ = write!(text, ", refused: {shown}");
        }
    }
    text
}

pub(crate) fn census(machine: &Machine) -> String {
    let counts = machine.census();
    let lines: Vec<_> = counts.iter().map(|(status, count)| format!("{count} {status}")).collect();
    if lines.is_empty() { "nothing".to_owned() } else { lines.join("\n") }
}

/// The audit trail, a line each.
pub(crate) fn trail(trail: &Trail) -> String {
    let line = |record: &AuditRecord| {
        let Deed { by, act, about, words } = &record.deed;
        format!("{} {} {by} {act} {about}: {words}\n", record.number, time(record.at))
    };
    trail.kept.iter().map(|record| line(record)).collect()
}
