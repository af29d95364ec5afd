//! A machine's whole state as plain data, and back.

use std::sync::Arc;

use crate::{Books, GlobalTransaction, Next, Timestamp, mode::View};

use super::{
    Machine,
    index::{Index, Standing},
    known::Known,
};

/// A machine's whole state as plain data, for snapshots. Equal machines give equal snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The highest time seen in the log.
    pub clock: Timestamp,
    /// Open transactions in gid order.
    pub open: Vec<GlobalTransaction>,
    /// Finished transactions, in the order in which they finished.
    pub finished: Vec<GlobalTransaction>,
    /// What is kept beside transactions.
    pub books: Arc<Books>,
}

impl Machine {
    /// The whole state.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let copy = |transaction: &Arc<GlobalTransaction>| (**transaction).clone();
        Snapshot {
            clock: self.clock,
            open: self.transactions.open().map(copy).collect(),
            finished: self.transactions.finished(|_| false).map(copy).collect(),
            books: Arc::clone(&self.books),
        }
    }

    /// A machine with the state of `snapshot`. What follows from the state, it finds again from the rules.
    #[must_use]
    pub fn restore(snapshot: Snapshot) -> Self {
        let all: Vec<Arc<GlobalTransaction>> =
            snapshot.open.into_iter().chain(snapshot.finished).map(Arc::new).collect();
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
