//! I8: begin, add, submit, roll back, decide and look are linearizable: the log explains every answer in the order of real time, and
//! so does a search for an order of each gid that knows nothing of the log.

use std::rc::Rc;

use holdfast_txn::Command;

use super::{Checked, hold};
use crate::{
    checker::{
        linear::{self, Verdict},
        replay::{self, Content, Exchange, Replayed},
    },
    world::{cluster::Entry, network::Told, node::Asker},
};

/// Everything that was ever asked and told.
#[derive(Debug, Default)]
pub(crate) struct Exchanges(Vec<Exchange>);

impl Exchanges {
    /// A caller is answered. That the answer may be lost is no matter: it was true when it was given.
    pub(crate) fn told(&mut self, asker: &Asker, told: &Told, now_ms: u64) {
        let asked = match &asker.command {
            None => replay::Asked::Look,
            Some(Command::Fence { .. }) => replay::Asked::Fence,
            Some(command) => {
                Content::of(command).map_or(replay::Asked::Change, replay::Asked::Begin)
            }
        };
        let about_none = asker.command.as_ref().is_some_and(|command| command.gid().is_none());
        let told = match *told {
            // That rules and notes are in the log, the audit trail says.
            Told::Known if about_none => replay::Told::Nothing,
            Told::Decided(decision) => replay::Told::Decided(decision),
            Told::Known => replay::Told::Known,
            Told::Seen(None) => replay::Told::Absent,
            Told::Seen(Some(status)) => replay::Told::Status(status),
            Told::Refused { code, index, place } => replay::Told::Refused { code, index, place },
            Told::NotLeading | Told::Unknown => replay::Told::Nothing,
        };
        let (gid, asked_at, told_at) = (asker.gid.clone(), asker.asked_ms, now_ms);
        self.0.push(Exchange { gid, asked_at, told_at, asked, told });
    }

    /// At the end: holds all of it against the log, and gid by gid.
    pub(crate) fn judged(&self, log: &[Rc<Entry>]) -> Checked {
        let entries: Vec<replay::Entry> = (1..)
            .zip(log)
            .map(|(index, entry)| replay::Entry {
                index,
                at: entry.at,
                commands: entry.commands.clone(),
            })
            .collect();
        let found = Replayed::of(&entries).judge(&self.0);
        hold(found.is_empty(), "I8", || format!("the log does not explain {:?}", found[0]))?;
        linear::histories(&self.0).into_iter().try_for_each(|(gid, history)| {
            let verdict = linear::judge(&history);
            hold(verdict == Verdict::Linearizable, "I8", || {
                format!("{gid} is {verdict:?}: {history:?}")
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use holdfast_txn::{Gid, Status};

    use super::*;

    #[test]
    fn an_answer_that_no_log_explains_is_found() {
        let gid = Gid::parse("g").unwrap();
        let asker = Asker { client: 0, turn: 0, gid, command: None, asked_ms: 1 };
        let mut exchanges = Exchanges::default();
        exchanges.told(&asker, &Told::Seen(None), 2);
        exchanges.judged(&[]).unwrap();
        exchanges.told(&asker, &Told::Seen(Some(Status::Committed)), 3);
        assert_eq!(exchanges.judged(&[]).unwrap_err().promise, "I8");
    }
}
