//! What becomes a record: written down where it is, with no message in between.

use holdfast_proto::{Pairs, v1::HistoryRecord};
use prost::encoding::{message, uint32, uint64};

use crate::{
    sheet::{finished_ms, gid_of},
    term::Terms,
};

/// A finished transaction on its way into the history.
///
/// A message of one is two dozen small pieces of memory, made to be encoded and given back: that was a quarter of all that the history cost.
pub trait Recorded {
    /// Its gid, without a look at whether it is a text.
    fn gid(&self) -> &[u8];

    /// When it finished, ms since epoch.
    fn finished_ms(&self) -> u64;

    /// Appends the field `transaction` of a [`HistoryRecord`], with its number and its length.
    fn write_transaction(&self, to: &mut Vec<u8>);

    /// Appends the other fields of a [`HistoryRecord`], if anything is known of its calls.
    fn write_seen(&self, to: &mut Vec<u8>);

    /// Tells what it is found by beside its gid.
    fn tell(&self, terms: &mut Terms<'_>);
}

/// Numbers of the fields of [`HistoryRecord`].
const TRANSACTION: u32 = 1;
const ATTEMPTS: u32 = 2;
const ATTEMPTS_LEFT_OUT: u32 = 3;
const ATTEMPTS_NODE: u32 = 4;

impl Recorded for HistoryRecord {
    fn gid(&self) -> &[u8] {
        gid_of(self).as_bytes()
    }

    fn finished_ms(&self) -> u64 {
        finished_ms(self)
    }

    fn write_transaction(&self, to: &mut Vec<u8>) {
        if let Some(transaction) = &self.transaction {
            message::encode(TRANSACTION, transaction, to);
        }
    }

    fn write_seen(&self, to: &mut Vec<u8>) {
        message::encode_repeated(ATTEMPTS, &self.attempts, to);
        if self.attempts_left_out != 0 {
            uint32::encode(ATTEMPTS_LEFT_OUT, &self.attempts_left_out, to);
        }
        if self.attempts_node != 0 {
            uint64::encode(ATTEMPTS_NODE, &self.attempts_node, to);
        }
    }

    fn tell(&self, terms: &mut Terms<'_>) {
        let Some(transaction) = &self.transaction else { return };
        terms.status(transaction.status);
        terms.mode(transaction.mode);
        Pairs::among(&transaction.tags).for_each(|(name, value)| terms.tag(name, value));
        transaction.branches.iter().for_each(|branch| terms.participant(&branch.participant));
    }
}

#[cfg(test)]
mod tests {
    use holdfast_proto::v1::{Attempt, Transaction};
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_record_is_written_as_its_message_is() {
        let attempt = Attempt { branch: 2, outcome: "done".to_owned(), ..Attempt::default() };
        let transaction = Transaction { gid: "g".to_owned(), status: 7, ..Transaction::default() };
        let whole = HistoryRecord {
            transaction: Some(transaction),
            attempts: vec![attempt.clone(), attempt],
            attempts_left_out: 3,
            attempts_node: 300,
        };
        for record in [whole, HistoryRecord::default()] {
            let mut written = Vec::new();
            record.write_transaction(&mut written);
            record.write_seen(&mut written);
            assert_eq!(written, record.encode_to_vec());
        }
    }
}
