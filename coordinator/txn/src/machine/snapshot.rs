//! A machine's whole state as plain data, and back.

use std::sync::Arc;

use crate::{Books, Digest, GlobalTransaction, Next, Timestamp, digest, mode::View};

use super::{
    Machine,
    index::{Index, Standing},
    known::Known,
};

/// A machine's whole state as plain data, for snapshots. Equal machines give equal snapshots.
///
/// It shares its transactions with the machine, which copies one only when it changes it: taking a snapshot costs a count for
/// each transaction and no copy, so it can be written down beside the work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The highest time seen in the log.
    pub clock: Timestamp,
    /// Open transactions in gid order.
    pub open: Vec<Arc<GlobalTransaction>>,
    /// Finished transactions, in the order in which they finished.
    pub finished: Vec<Arc<GlobalTransaction>>,
    /// What is kept beside transactions.
    pub books: Arc<Books>,
}

impl Snapshot {
    /// [`Machine::state_hash`] of the machine that it was taken from. Reads every transaction.
    #[must_use]
    pub fn state_hash(&self) -> Digest {
        let transactions = self.open.iter().chain(&self.finished).map(AsRef::as_ref);
        digest::of_state(self.clock, self.open.len(), transactions, &self.books)
    }
}

impl Machine {
    /// The whole state. Touches every transaction, reads none.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            clock: self.clock,
            open: self.transactions.open().cloned().collect(),
            finished: self.transactions.finished(|_| false).cloned().collect(),
            books: Arc::clone(&self.books),
        }
    }

    /// A machine with the state of `snapshot`. What follows from the state, it finds again from the rules.
    #[must_use]
    pub fn restore(snapshot: Snapshot) -> Self {
        let all: Vec<Arc<GlobalTransaction>> =
            snapshot.open.into_iter().chain(snapshot.finished).collect();
        let standing = |transaction: &GlobalTransaction| {
            let owing = match View::of(transaction).next() {
                Next::Call(_) => true,
                Next::Become(..) | Next::Record | Next::Wait => false,
            };
            (transaction.gid.clone(), Standing::of(transaction, owing))
        };
        Self {
            clock: snapshot.clock,
            books: snapshot.books,
            index: Index::of(all.iter().map(|transaction| standing(transaction)).collect()),
            transactions: Known::of(all),
            ..Self::default()
        }
    }
}
