//! I20: a message is published if, and only if, the local transaction that wrote it has committed; in order within its lane, and its effect
//! happens once.

use std::collections::BTreeMap;

use holdfast_branch::outbox::{Lane, MessageId, Row, gid_of};
use holdfast_ledger::{Kind, Posting};

use super::{Checked, hold};

/// What was written, and what it has led to.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    written: BTreeMap<String, Written>,
    /// The position that took effect last in each lane.
    last: BTreeMap<Lane, u64>,
}

#[derive(Debug)]
struct Written {
    row: Row,
    effects: u32,
}

/// What every gid of a message begins with.
const PREFIX: &str = "m-";

/// Whether a global transaction is a message.
pub(crate) fn is_message(gid: &str) -> bool {
    gid.starts_with(PREFIX)
}

impl Messages {
    /// The local transaction that wrote this row has committed.
    pub(crate) fn committed(&mut self, row: &Row) {
        self.written.insert(gid_of(row.id), Written { row: row.clone(), effects: 0 });
    }

    /// Local transactions of whoever gets messages are committed.
    pub(crate) fn at_commit<'a>(&mut self, postings: impl Iterator<Item = &'a Posting>) -> Checked {
        for posting in postings.filter(|posting| is_message(&posting.branch.gid)) {
            let gid = &*posting.branch.gid;
            let Some(message) = self.written.get_mut(gid) else {
                return hold(false, "I20", || {
                    format!(
                        "{gid} is published, and the local transaction that wrote it has not committed"
                    )
                });
            };
            message.effects += 1;
            hold(message.effects == 1 && posting.kind == Kind::Credit, "I20", || {
                format!("{gid} has effect {} ({})", message.effects, posting.kind.name())
            })?;
            let position = message.row.position;
            let before = self.last.insert(message.row.lane.clone(), position);
            hold(before.is_none_or(|before| before < position), "I20", || {
                format!("{gid} at {position} takes effect behind {before:?} of its lane")
            })?;
        }
        Ok(())
    }

    /// Nothing moves any more: everything that was written has been published.
    pub(crate) fn at_quiet(&self) -> Checked {
        let lost = self.written.iter().find(|(_, message)| message.effects == 0);
        hold(lost.is_none(), "I20", || {
            let lost: Option<MessageId> = lost.map(|(_, message)| message.row.id);
            format!("{lost:?} was written and never published")
        })
    }
}

#[cfg(test)]
mod tests {
    use holdfast_ledger::{AccountId, BranchKey};

    use super::*;

    fn row(id: u128, position: u64) -> Row {
        let lane = Lane { topic: "points".to_owned(), key: "a".to_owned() };
        Row { id: MessageId(id), position, lane }
    }

    fn effect(id: u128) -> Posting {
        Posting {
            branch: BranchKey::new(gid_of(MessageId(id)).as_str(), 1),
            account: AccountId::parse("a").unwrap(),
            kind: Kind::Credit,
            balance_delta: 1,
            held_out_delta: 0,
            held_in_delta: 0,
        }
    }

    #[test]
    fn what_is_lost_out_of_nothing_out_of_order_or_twice_is_found() {
        let mut messages = Messages::default();
        messages.at_quiet().unwrap();
        messages.committed(&row(1, 1));
        messages.committed(&row(2, 2));
        assert_eq!(messages.at_quiet().unwrap_err().promise, "I20", "two are lost");
        assert!(messages.at_commit([&effect(3)].into_iter()).is_err(), "nobody wrote it");
        messages.at_commit([&effect(1), &effect(2)].into_iter()).unwrap();
        messages.at_quiet().unwrap();
        assert!(messages.at_commit([&effect(2)].into_iter()).is_err(), "twice");
        messages.committed(&row(4, 4));
        messages.committed(&row(5, 5));
        messages.at_commit([&effect(5)].into_iter()).unwrap();
        assert!(messages.at_commit([&effect(4)].into_iter()).is_err(), "out of order");
    }
}
