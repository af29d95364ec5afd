//! I21: the audit chain verifies on every node and in every export, and says who did what was acknowledged.

use holdfast_txn::{AuditRecord, Command, Deed, Trail, check_chain};

use super::{Checked, hold};

/// What was acknowledged, and must stand in the trail.
#[derive(Debug, Default)]
pub(crate) struct Deeds {
    acknowledged: Vec<Deed>,
}

/// Who did what to what, and why, as the trail must say it: reasons of this world are unique.
fn told(command: &Command) -> Option<Deed> {
    let (by, about, words) = match command {
        Command::Operate { gid, by, reason, .. } => (by, gid.to_string(), reason),
        Command::SetRules { expected, by, reason, .. } => {
            (by, format!("epoch {}", expected + 1), reason)
        }
        Command::Note { deed } => return Some(deed.clone()),
        _ => return None,
    };
    Some(Deed { by: by.clone(), act: String::new(), about, words: words.clone() })
}

impl Deeds {
    /// Somebody hears that this did something.
    pub(crate) fn acknowledged(&mut self, command: &Command) {
        self.acknowledged.extend(told(command));
    }

    /// At the end, of each node.
    pub(crate) fn judged(&self, trail: &Trail) -> Checked {
        trail.check().map_err(|broken| super::Broken {
            promise: "I21",
            detail: format!("the trail of a node: {broken}"),
        })?;
        self.holds(|wanted| trail.kept.iter().any(|record| says(record, wanted)))
    }

    /// At the end, of everything that was exported.
    pub(crate) fn exported<'a>(
        &self,
        records: &(impl Iterator<Item = &'a AuditRecord> + Clone),
    ) -> Checked {
        let first = records.clone().next().map_or(1, |record| record.number);
        hold(first == 1, "I21", || format!("the export begins at record {first}"))?;
        check_chain(records.clone()).map_err(|broken| super::Broken {
            promise: "I21",
            detail: format!("the export: {broken}"),
        })?;
        self.holds(|wanted| records.clone().any(|record| says(record, wanted)))
    }

    fn holds(&self, has: impl Fn(&Deed) -> bool) -> Checked {
        let missing = self.acknowledged.iter().find(|wanted| !has(wanted));
        hold(missing.is_none(), "I21", || {
            format!("acknowledged, and in no record: {:?}", missing.expect("it is missing"))
        })
    }
}

fn says(record: &AuditRecord, wanted: &Deed) -> bool {
    let Deed { by, about, words, .. } = &record.deed;
    (by, about) == (&wanted.by, &wanted.about) && words.contains(&wanted.words)
}

#[cfg(test)]
mod tests {
    use holdfast_txn::{Machine, Timestamp};

    use super::*;

    #[test]
    fn an_act_that_no_record_tells_and_a_chain_with_a_gap_are_found() {
        let mut machine = Machine::new();
        let mut deeds = Deeds::default();
        for n in 0..4 {
            let (by, act, about) = ("user/alice", "x", "y");
            let [by, act, about] = [by, act, about].map(str::to_owned);
            let note =
                Command::Note { deed: Deed { by, act, about, words: format!("reason {n}") } };
            machine.apply(Timestamp(n), note.clone()).unwrap();
            deeds.acknowledged(&note);
        }
        let trail = machine.books().trail.clone();
        deeds.judged(&trail).unwrap();
        let all = trail.kept.iter().map(AsRef::as_ref);
        deeds.exported(&all).unwrap();
        let gap = all.clone().filter(|record| record.number != 2);
        assert_eq!(deeds.exported(&gap).unwrap_err().promise, "I21");
        assert_eq!(deeds.exported(&all.clone().skip(1)).unwrap_err().promise, "I21");
        assert_eq!(deeds.exported(&all.take(3)).unwrap_err().promise, "I21", "the end is missing");
        assert_eq!(deeds.judged(&Trail::default()).unwrap_err().promise, "I21");
    }
}
