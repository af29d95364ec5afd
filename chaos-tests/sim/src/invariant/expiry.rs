//! I12: nothing expires before its interval has passed by the log's time, and what expired never commits.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_txn::{Act, Command, Decision, Gid, GlobalTransaction, Timestamp};

use super::{Broken, hold};

/// When each transaction may end by itself, reckoned here and not by the machine.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    clock: Timestamp,
    deadlines: BTreeMap<Gid, Timestamp>,
    asked: BTreeSet<Gid>,
    expired: BTreeSet<Gid>,
}

impl Deadlines {
    /// A caller or an operator asks for rollback: then it needs no deadline.
    pub(crate) fn asked(&mut self, gid: &Gid) {
        self.asked.insert(gid.clone());
    }

    /// An entry stamped `at` is applied: the log's time goes on, also if nothing in it takes effect.
    pub(crate) fn passes(&mut self, at: Timestamp) {
        self.clock = self.clock.max(at);
    }

    /// A command took effect, now by the log's time. Answers whether it ended a transaction by its deadline.
    pub(crate) fn applied(
        &mut self,
        command: &Command,
        after: &GlobalTransaction,
        has_moved: bool,
    ) -> Result<bool, Broken> {
        let gid = &after.gid;
        match command {
            Command::Begin { options, .. } if has_moved => {
                self.deadlines.insert(gid.clone(), self.clock.plus_ms(options.timeout_ms));
            }
            Command::Expire { .. } if has_moved => {
                let deadline = self.deadlines.get(gid).copied().unwrap_or(Timestamp(u64::MAX));
                hold(self.clock >= deadline, "I12", || {
                    format!("{gid} expired at {:?}, its deadline is {deadline:?}", self.clock)
                })?;
                self.expired.insert(gid.clone());
            }
            Command::RollBack { .. } | Command::Operate { act: Act::RollBack, .. } if has_moved => {
                hold(self.asked.contains(gid), "I12", || {
                    format!("{gid} was rolled back, and nobody asked for it")
                })?;
            }
            _ => {}
        }
        hold(
            !(self.expired.contains(gid) && after.decision == Some(Decision::Commit)),
            "I12",
            || format!("{gid} expired, and commits"),
        )?;
        Ok(has_moved && matches!(command, Command::Expire { .. }))
    }
}

#[cfg(test)]
mod tests {
    use holdfast_txn::Machine;

    use super::*;
    use crate::{
        settings::Settings,
        workload::{Places, Plan},
    };

    #[test]
    fn an_expiry_before_its_time_is_found() {
        let places = Places::of(&Settings::of(1));
        let (one, other) = (&places.accounts[0].0, &places.accounts[1].0);
        let plan = Plan::plain("g", &places, one.as_str(), other.as_str(), 1);
        let mut log = Machine::new();
        log.apply(Timestamp(0), plan.begin()).unwrap();
        let begun = log.get(&plan.gid).unwrap();
        let mut deadlines = Deadlines::default();
        deadlines.applied(&plan.begin(), begun, true).unwrap();
        let expire = Command::Expire { gid: plan.gid.clone() };
        deadlines.passes(Timestamp(9_999));
        let broken = deadlines.applied(&expire, begun, true).unwrap_err();
        assert_eq!(broken.promise, "I12");
        deadlines.passes(Timestamp(10_000));
        assert!(deadlines.applied(&expire, begun, true).unwrap());
    }
}
