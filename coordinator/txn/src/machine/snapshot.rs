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
        let (mut open, mut finished) =
            (Vec::with_capacity(self.open()), Vec::with_capacity(self.finished.len()));
        for transaction in self.in_order() {
            let part = if transaction.status.is_final() { &mut finished } else { &mut open };
            part.push(transaction.clone());
        }
        Snapshot { clock: self.clock, open, finished, books: Arc::clone(&self.books) }
    }

    /// A machine with the state of `snapshot`. What follows from the state, it finds again from the rules.
    #[must_use]
    pub fn restore(snapshot: Snapshot) -> Self {
        let mut machine = Self { clock: snapshot.clock, books: snapshot.books, ..Self::default() };
        machine.finished.extend(snapshot.finished.iter().map(|done| done.gid.clone()));
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
