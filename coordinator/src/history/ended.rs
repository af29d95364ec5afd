//! A finished transaction as the history writes it down: the bytes of its message, made from where the transaction is.

use std::sync::Arc;

use holdfast_history::{Recorded, Terms};
use holdfast_txn::{Branch, GlobalTransaction};

use crate::{
    dispatcher::attempts::Attempts,
    fields,
    rpc::show::{mode_to_wire, status_to_wire},
};

/// The field of a [`HistoryRecord`](holdfast_proto::v1::HistoryRecord) that holds the transaction.
const TRANSACTION: u32 = 1;
/// Of its fields, those that are messages.
const BRANCHES: u32 = 4;
const TAGS: u32 = 10;

/// One that is over.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(super) transaction: Arc<GlobalTransaction>,
    /// What this node saw of its calls, and which node it is.
    pub(super) seen: Option<(Attempts, u64)>,
}

impl Recorded for Ended {
    fn gid(&self) -> &[u8] {
        self.transaction.gid.text()
    }

    fn finished_ms(&self) -> u64 {
        self.transaction.finished_at.map_or(0, |at| at.0)
    }

    fn write_transaction(&self, to: &mut Vec<u8>) {
        fields::message(TRANSACTION, to, |to| write(&self.transaction, to));
    }

    fn write_seen(&self, to: &mut Vec<u8>) {
        if let Some((attempts, node)) = &self.seen {
            attempts.write(*node, to);
        }
    }

    fn tell(&self, terms: &mut Terms<'_>) {
        let known = &*self.transaction;
        terms.status(status_to_wire(known.status).into());
        terms.mode(mode_to_wire(known.mode).into());
        known.options.tags.iter().for_each(|(name, value)| terms.tag(name, value));
        known.branches.iter().for_each(|one| terms.participant(one.spec.participant.as_str()));
    }
}

/// As [`show::transaction`](crate::rpc::show::transaction) says it.
fn write(known: &GlobalTransaction, to: &mut Vec<u8>) {
    fields::bytes(1, known.gid.text(), to);
    fields::number(2, mode_to_wire(known.mode) as u64, to);
    fields::number(3, status_to_wire(known.status) as u64, to);
    for (number, branch) in known.numbered() {
        fields::message(BRANCHES, to, |to| write_branch(number.0, branch, to));
    }
    fields::number(5, known.begun_at.0, to);
    fields::number(6, known.deadline.0, to);
    fields::number(7, known.decided_at.map_or(0, |at| at.0), to);
    fields::number(8, known.finished_at.map_or(0, |at| at.0), to);
    fields::text(9, known.reason.as_deref().unwrap_or_default(), to);
    known.options.tags.iter().for_each(|tag| fields::entry(TAGS, tag, to));
}

fn write_branch(number: u32, known: &Branch, to: &mut Vec<u8>) {
    fields::number(1, number.into(), to);
    fields::text(2, known.spec.participant.as_str(), to);
    fields::text(3, known.state.as_str(), to);
    if let Some(refusal) = &known.refusal {
        fields::text(4, &refusal.code, to);
        fields::text(5, &refusal.message, to);
    }
    fields::numbers(6, known.spec.after.iter().flatten().map(|branch| branch.0), to);
    fields::number(7, known.spec.pivot.into(), to);
}

#[cfg(test)]
mod tests {
    use holdfast_proto::v1::HistoryRecord;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::{record::tests::transactions, rpc::show};

    proptest! {
        #[test]
        fn it_is_written_as_its_message_is(known in transactions()) {
            let message = HistoryRecord {
                transaction: Some(show::transaction(&known)),
                ..HistoryRecord::default()
            };
            let ended = Ended { transaction: Arc::new(known), seen: None };
            let mut written = Vec::new();
            ended.write_transaction(&mut written);
            ended.write_seen(&mut written);
            prop_assert_eq!(written, message.encode_to_vec());
            prop_assert_eq!(ended.gid(), Recorded::gid(&message));
            prop_assert_eq!(ended.finished_ms(), Recorded::finished_ms(&message));
            prop_assert_eq!(holdfast_history::terms_of(&ended), holdfast_history::terms_of(&message));
        }
    }
}
