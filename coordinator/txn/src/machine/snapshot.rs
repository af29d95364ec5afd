//! A machine's whole state as plain data, and back.

use std::sync::Arc;

use crate::{Books, GlobalTransaction, Next, Timestamp, mode::View};

use super::{Machine, index::Standing};

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
        let mut machine = Self { clock: snapshot.clock, books: snapshot.books, ..Self::default() };
        for transaction in snapshot.open.into_iter().chain(snapshot.finished) {
            let owing = match View::of(&transaction).next() {
                Next::Call(_) => true,
                Next::Become(..) | Next::Record | Next::Wait => false,
            };
            let standing = Standing::of(&transaction, owing);
            machine.index.update(&transaction.gid, None, Some(standing));
            machine.transactions.insert(transaction.gid.clone(), Arc::new(transaction));
        }
        machine
    }
}
