//! The machine: every open transaction and the recently finished ones, moved by commands alone.

use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::{
    Books, Digest, Gid, GlobalTransaction, Next, Report, Status, Timestamp, digest, limit,
};

mod admission;
mod apply;
mod index;
mod known;
mod operate;
mod progress;
mod snapshot;

pub use snapshot::Snapshot;

use index::Index;
use known::Known;
pub(crate) use progress::cut;

/// The state that the log replicates.
///
/// To look at a large one beside its work, take a [`Snapshot`].
pub struct Machine {
    /// The highest time seen in the log.
    clock: Timestamp,
    /// Open and finished ones.
    transactions: Known,
    /// Follows from the above.
    index: Index,
    /// Shared with copies, as transactions are.
    books: Arc<Books>,
    open_max: usize,
    finished_max: usize,
}

/// What the world is owed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Transactions that have calls to make, in gid order: ask [`Machine::owed`] for each.
    pub owing: Vec<Gid>,
    /// Transactions whose deadline has passed, earliest first: propose [`crate::Command::Expire`] for each.
    pub expired: Vec<Gid>,
}

impl Default for Machine {
    fn default() -> Self {
        Self::bounded(limit::OPEN_MAX, limit::FINISHED_MAX)
    }
}

/// Counts only: a machine is too large to print, and a payload is nobody's business.
impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("clock", &self.clock)
            .field("open", &self.open())
            .field("finished", &self.transactions.finished_count())
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// An empty machine.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty machine with smaller bounds, for tests. Nodes that differ in them would part ways, so a cluster never
    /// does this.
    #[doc(hidden)]
    #[must_use]
    pub fn bounded(open_max: usize, finished_max: usize) -> Self {
        Self {
            clock: Timestamp::default(),
            transactions: Known::default(),
            index: Index::default(),
            books: Arc::default(),
            open_max,
            finished_max,
        }
    }

    /// At most `limit` of each kind of what is due at `now`. Costs by what is due, not by what is open.
    ///
    /// A transaction owes as long as the log does not say otherwise, also while its calls are in flight: a leader that
    /// has more than `limit` of them pages through [`Machine::owing`].
    #[must_use]
    pub fn due(&self, now: Timestamp, limit: usize) -> Due {
        Due {
            owing: self.owing(None).take(limit).cloned().collect(),
            expired: self.index.expired(now).take(limit).cloned().collect(),
        }
    }

    /// Transactions that have calls to make, in gid order, behind `after`.
    pub fn owing<'a>(&'a self, after: Option<&Gid>) -> impl Iterator<Item = &'a Gid> + use<'a> {
        self.index.owing(after)
    }

    /// The earliest deadline of an undecided transaction.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.index.next_deadline()
    }

    /// What the transaction needs next if `heard`, answers that are not in the log yet, were applied: calls to make, or
    /// [`Next::Become`] or [`Next::Record`]: then they are worth a [`crate::Command::Report`] now, all in one and in this
    /// order. Forget them once that report is applied, and when the transaction is retried: an answer to the attempt
    /// before would interrupt it again. Never changes the machine, and copies no payload.
    ///
    /// A gid that is not known or finished, or that needs attention: [`Next::Wait`].
    #[must_use]
    pub fn owed(&self, gid: &Gid, heard: &[Report]) -> Next {
        match self.get(gid) {
            Some(transaction) => transaction.owed(heard),
            None => Next::Wait,
        }
    }

    /// The transaction as the machine shares it: cheap to take and to keep for a moment. While somebody keeps it, a change
    /// copies it first.
    #[must_use]
    pub fn share(&self, gid: &Gid) -> Option<Arc<GlobalTransaction>> {
        self.transactions.get(gid).cloned()
    }

    /// The transaction, open or finished and not yet forgotten.
    #[must_use]
    pub fn get(&self, gid: &Gid) -> Option<&GlobalTransaction> {
        self.transactions.get(gid).map(AsRef::as_ref)
    }

    /// Finished transactions that are not forgotten, in the order in which they finished, from those of `since` on. Finds the
    /// first by halving.
    pub fn finished_since(
        &self,
        since: Timestamp,
    ) -> impl Iterator<Item = &Arc<GlobalTransaction>> {
        self.transactions.finished(move |known| known.finished_at.is_some_and(|at| at < since))
    }

    /// Transactions in gid order, behind `after`.
    pub fn list<'a>(
        &'a self,
        after: Option<&Gid>,
    ) -> impl Iterator<Item = &'a GlobalTransaction> + use<'a> {
        self.transactions.behind(after).map(AsRef::as_ref)
    }

    /// How many transactions are in each status, open and finished ones that are remembered; statuses that nobody is in
    /// are left out. Costs by the number of statuses.
    #[must_use]
    pub fn census(&self) -> BTreeMap<Status, usize> {
        self.index.census()
    }

    /// How many transactions are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.transactions.open_count()
    }

    /// Shard rules, audit trail and open proposals, as the machine shares them: cheap to take and to keep for a moment.
    #[must_use]
    pub fn books(&self) -> &Arc<Books> {
        &self.books
    }

    /// The highest time seen in the log.
    #[must_use]
    pub fn clock(&self) -> Timestamp {
        self.clock
    }

    /// Hash of the whole state: equal after an equal prefix of the log, on every node and after every snapshot. Reads
    /// every transaction; beside the work, ask a [`Snapshot`] for it.
    #[must_use]
    pub fn state_hash(&self) -> Digest {
        digest::of_state(self.clock, self.open(), self.in_order(), &self.books)
    }

    /// Open transactions in gid order, then finished ones in the order in which they finished.
    fn in_order(&self) -> impl Iterator<Item = &GlobalTransaction> {
        self.transactions.open().chain(self.transactions.finished(|_| false)).map(AsRef::as_ref)
    }
}
