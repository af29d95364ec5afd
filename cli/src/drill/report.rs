//! What a drill came to: figures for a program, a table for people.

use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use super::catalog::{Drill, Goals};

/// The whole result. Field names are a format that programs read.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) drill: &'static str,
    pub(crate) what: &'static str,
    pub(crate) blast_radius: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) recover_ms: Spread,
    /// From the fault until all that was in flight at it was answered.
    pub(crate) resolved_ms: Spread,
    /// From the fault until another node leads by a hand-over, or a replaced node has its vote.
    pub(crate) mended_ms: Spread,
    /// Told committed, and not in the books; `null` where the books are not ours to read.
    pub(crate) lost: Option<u64>,
    /// In the books otherwise than once with both legs.
    pub(crate) doubled: Option<u64>,
    /// Open or held or prepared at the end.
    pub(crate) in_doubt: Option<u64>,
    pub(crate) conserved: Option<bool>,
    pub(crate) goals: Goals,
    pub(crate) steady: Steady,
    pub(crate) repeats: Vec<Repeat>,
    /// The blow at the end while far more was under way; it counts in no spread.
    pub(crate) surge: Option<Repeat>,
    pub(crate) alarms: Vec<Alarm>,
    /// Why it was ended before its time, if it was.
    pub(crate) aborted: Option<String>,
    /// A sentence each; empty when the verdict is pass.
    pub(crate) problems: Vec<String>,
    pub(crate) setup: Setup,
    pub(crate) curve: Vec<Point>,
}

/// What an SRE signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Pass,
    Fail,
}

/// Of several measurements, ms; `null` where there was none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Spread {
    pub(crate) p50: Option<u64>,
    pub(crate) max: Option<u64>,
}

impl Spread {
    /// Of these.
    pub(crate) fn of(mut values: Vec<u64>) -> Self {
        values.sort_unstable();
        let middle = values.len().saturating_sub(1) / 2;
        Self { p50: values.get(middle).copied(), max: values.last().copied() }
    }
}

/// Commits a second, before, during and after the faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Steady {
    pub(crate) before: f64,
    pub(crate) during: f64,
    pub(crate) after: f64,
}

/// One blow.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Repeat {
    pub(crate) victim: String,
    /// On the clock of the curve.
    pub(crate) from_ms: u64,
    pub(crate) to_ms: u64,
    /// To the first commit of a transaction that was begun after the fault (or its end, where it has no substitute).
    pub(crate) recover_ms: Option<u64>,
    pub(crate) in_flight: usize,
    pub(crate) resolved_ms: Option<u64>,
    pub(crate) mended_ms: Option<u64>,
    /// The longest time without a commit.
    pub(crate) gap_ms: u64,
}

impl Repeat {
    /// A line while the drill runs.
    pub(crate) fn to_text(&self) -> String {
        let after = |ms: Option<u64>| ms.map_or("never".to_owned(), |ms| format!("{ms} ms"));
        let mended = self.mended_ms.map_or(String::new(), |ms| format!("; mended after {ms} ms"));
        format!(
            "{:>6} ms  {} struck; next commit after {}, {} in flight answered after {}{mended}",
            self.from_ms,
            self.victim,
            after(self.recover_ms),
            self.in_flight,
            after(self.resolved_ms)
        )
    }
}

/// Something that should wake somebody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Alarm {
    pub(crate) at_ms: u64,
    /// The name of an alert rule, or what the runner itself saw.
    pub(crate) what: String,
    /// `page` or `ticket`, as the rule says.
    pub(crate) severity: String,
    pub(crate) state: AlarmState,
}

/// How far an alarm got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AlarmState {
    /// Its expression held, and not for as long as its rule asks.
    Pending,
    /// Somebody would have been told.
    Firing,
}

impl AlarmState {
    /// The word for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Firing => "firing",
        }
    }
}

/// Names and severities, those that fired first: `HoldfastNoLeader (page), pending: HoldfastSlowDisk`.
fn alarms_to_text(alarms: &[Alarm]) -> String {
    let of = |state| -> Vec<String> {
        let mut names: Vec<String> = alarms
            .iter()
            .filter(|alarm| alarm.state == state)
            .map(|alarm| format!("{} ({})", alarm.what, alarm.severity))
            .collect();
        names.sort();
        names.dedup();
        names
    };
    let (firing, pending) = (of(AlarmState::Firing), of(AlarmState::Pending));
    let fired = if firing.is_empty() { "none".to_owned() } else { firing.join(", ") };
    if pending.is_empty() { fired } else { format!("{fired}; pending: {}", pending.join(", ")) }
}

/// How the drill was made.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Setup {
    /// `demo`, or the doors that were named.
    pub(crate) cluster: String,
    pub(crate) coordinators: usize,
    pub(crate) banks: usize,
    pub(crate) clients: u32,
    pub(crate) seed: u64,
    pub(crate) held_ms: u64,
    pub(crate) whole_s: f64,
    pub(crate) version: &'static str,
}

/// A tenth of a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Point {
    pub(crate) at_ms: u64,
    pub(crate) committed: u64,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    pub(crate) p99_ms: f64,
}

/// What the books say at the end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Books {
    pub(crate) lost: Option<u64>,
    pub(crate) doubled: Option<u64>,
    pub(crate) in_doubt: Option<u64>,
    pub(crate) conserved: Option<bool>,
    pub(crate) problems: Vec<String>,
}

/// The longest time between two commits within `from..to`, ms; its ends count as commits.
pub(crate) fn longest_gap(curve: &[Point], from_ms: u64, to_ms: u64) -> u64 {
    let commits = curve.iter().filter(|point| point.committed > 0).map(|point| point.at_ms);
    let within = commits.filter(|at| (from_ms..=to_ms).contains(at));
    let (longest, last) = within.fold((0, from_ms), |(longest, last): (u64, u64), at| {
        (longest.max(at.saturating_sub(last)), at)
    });
    longest.max(to_ms.saturating_sub(last))
}

impl Report {
    /// Judges by the goals of the drill: what is missed is a problem, and a problem fails it.
    pub(crate) fn judge(mut self, drill: &Drill) -> Self {
        let goals = drill.goals;
        let mut problems = std::mem::take(&mut self.problems);
        if let Some(why) = &self.aborted {
            problems.push(format!("HF6103 the drill was aborted: {why}"));
        }
        for repeat in self.repeats.iter().filter(|repeat| repeat.recover_ms.is_none()) {
            problems.push(format!("nothing was committed after {} was struck", repeat.victim));
        }
        for (what, is, goal) in [
            ("half of the recoveries", self.recover_ms.p50, goals.recover_p50_ms),
            ("the slowest recovery", self.recover_ms.max, goals.recover_max_ms),
            (
                "the hand-over or replacement",
                self.mended_ms.max,
                goals.mended_max_ms.unwrap_or(u64::MAX),
            ),
        ] {
            if is.is_some_and(|is| is > goal) {
                problems.push(format!("{what} took {} ms, the goal is {goal} ms", is.unwrap_or(0)));
            }
        }
        if let (Some(goal), Some(blow)) = (drill.surge, &self.surge) {
            let (goal, in_flight) = (goal.resolved_max_ms, blow.in_flight);
            match blow.resolved_ms {
                Some(is) if is <= goal => {}
                Some(is) => problems.push(format!(
                    "{in_flight} in flight were answered after {is} ms, the goal is {goal} ms"
                )),
                None => problems.push(format!("not all of {in_flight} in flight were answered")),
            }
        }
        for (what, count) in
            [("lost", self.lost), ("doubled", self.doubled), ("in doubt", self.in_doubt)]
        {
            if let Some(count) = count.filter(|count| *count > 0) {
                problems.push(format!("{count} {what}"));
            }
        }
        if self.conserved == Some(false) {
            problems.push("money is not conserved".to_owned());
        }
        if self.steady.before <= 0.0 || self.steady.after <= 0.0 {
            problems.push("the steady state was not seen before and after".to_owned());
        }
        self.verdict = if problems.is_empty() { Verdict::Pass } else { Verdict::Fail };
        self.problems = problems;
        self
    }

    /// As JSON.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("plain figures and texts")
    }

    /// A table, the problems, the verdict.
    pub(crate) fn to_text(&self) -> String {
        let shown = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
        let rows = [
            ("drill", format!("{} ({})", self.drill, self.what)),
            ("blast radius", self.blast_radius.to_owned()),
            ("struck", format!("{} times", self.repeats.len())),
            (
                "recover, ms",
                format!(
                    "{} / {}    p50 / max, goals {} / {}",
                    shown(self.recover_ms.p50),
                    shown(self.recover_ms.max),
                    self.goals.recover_p50_ms,
                    self.goals.recover_max_ms
                ),
            ),
            (
                "in flight resolved after, ms",
                format!(
                    "{} / {}    p50 / max",
                    shown(self.resolved_ms.p50),
                    shown(self.resolved_ms.max)
                ),
            ),
            (
                "commits a second",
                format!(
                    "{:.0} / {:.0} / {:.0}    before / during / after",
                    self.steady.before, self.steady.during, self.steady.after
                ),
            ),
            (
                "mended after, ms",
                format!(
                    "{} / {}    p50 / max",
                    shown(self.mended_ms.p50),
                    shown(self.mended_ms.max)
                ),
            ),
            (
                "a surge in flight, ms",
                self.surge.as_ref().map_or("-".to_owned(), |blow| {
                    format!("{}    until {} were answered", shown(blow.resolved_ms), blow.in_flight)
                }),
            ),
            ("lost", shown(self.lost)),
            ("doubled", shown(self.doubled)),
            ("in doubt", shown(self.in_doubt)),
            (
                "money conserved",
                self.conserved.map_or("-", |yes| if yes { "yes" } else { "NO" }).to_owned(),
            ),
            ("alarms raised", alarms_to_text(&self.alarms)),
        ];
        let mut text: String =
            rows.iter().map(|(name, value)| format!("{name:<30}{value}\n")).collect();
        for problem in &self.problems {
            text.push_str(&format!("- {problem}\n"));
        }
        text.push_str(match self.verdict {
            Verdict::Pass => "\nVerdict: pass",
            Verdict::Fail => "\nVerdict: FAIL",
        });
        text
    }

    /// Writes the JSON to `path`.
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&self.to_json())? + "\n";
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(at_ms: u64, committed: u64) -> Point {
        Point { at_ms, committed, refused: 0, unknown: 0, p99_ms: 0.0 }
    }

    #[test]
    fn a_spread_is_that_of_its_values() {
        assert_eq!(Spread::of(vec![]), Spread { p50: None, max: None });
        assert_eq!(Spread::of(vec![7]), Spread { p50: Some(7), max: Some(7) });
        assert_eq!(Spread::of(vec![9, 1, 5, 3]), Spread { p50: Some(3), max: Some(9) });
    }

    #[test]
    fn alarms_are_named_once_those_that_fired_before_those_that_are_pending() {
        let alarm = |what: &str, state| Alarm {
            at_ms: 5,
            what: what.to_owned(),
            severity: "page".to_owned(),
            state,
        };
        assert_eq!(alarms_to_text(&[]), "none");
        let pending = alarm("A", AlarmState::Pending);
        assert_eq!(alarms_to_text(std::slice::from_ref(&pending)), "none; pending: A (page)");
        let fired = alarm("B", AlarmState::Firing);
        let text = alarms_to_text(&[pending, fired.clone(), fired]);
        assert_eq!(text, "B (page); pending: A (page)");
    }

    #[test]
    fn the_longest_gap_counts_the_ends() {
        let curve = [point(100, 1), point(200, 0), point(300, 1), point(900, 1), point(1_000, 0)];
        assert_eq!(longest_gap(&curve, 0, 1_000), 600);
        assert_eq!(longest_gap(&curve, 0, 2_000), 1_100);
        assert_eq!(longest_gap(&[], 0, 500), 500);
    }
}
