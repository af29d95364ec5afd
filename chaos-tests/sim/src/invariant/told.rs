//! I5: a decision once told never changes, and what was acknowledged is in the log.

use std::collections::BTreeMap;

use holdfast_txn::{Decision, Gid, Machine};

use super::{Checked, hold};

/// What callers were told.
#[derive(Debug, Default)]
pub(crate) struct ToldDecisions(BTreeMap<Gid, Decision>);

impl ToldDecisions {
    /// A caller hears a decision: the log has it, and nobody heard another one.
    pub(crate) fn decided(&mut self, log: &Machine, gid: &Gid, decision: Decision) -> Checked {
        let in_log = log.get(gid).and_then(|transaction| transaction.decision);
        hold(in_log == Some(decision), "I5", || {
            format!("{gid} was told as {decision:?}, the log says {in_log:?}")
        })?;
        let before = *self.0.entry(gid.clone()).or_insert(decision);
        hold(before == decision, "I5", || format!("{gid} was told as {before:?} and {decision:?}"))
    }

    /// A caller hears that its command was taken.
    pub(crate) fn acknowledged(log: &Machine, gid: &Gid) -> Checked {
        hold(log.get(gid).is_some(), "I5", || {
            format!("{gid} was acknowledged and is not in the log")
        })
    }

    /// At the end: what was told is still so.
    pub(crate) fn at_quiet(&self, log: &Machine) -> Checked {
        self.0.iter().try_for_each(|(gid, decision)| {
            let now = log.get(gid).and_then(|transaction| transaction.decision);
            hold(now == Some(*decision), "I5", || {
                format!("{gid} was told as {decision:?} and ended as {now:?}")
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_that_the_log_does_not_have_is_found() {
        let (log, gid) = (Machine::new(), Gid::parse("g").unwrap());
        let mut told = ToldDecisions::default();
        assert_eq!(told.decided(&log, &gid, Decision::Commit).unwrap_err().promise, "I5");
        assert_eq!(ToldDecisions::acknowledged(&log, &gid).unwrap_err().promise, "I5");
    }
}
