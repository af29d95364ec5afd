//! The machine: every open transaction and the recently finished ones, moved by commands alone.

use crate::{BranchId, Command, Digest, Gid, GlobalTransaction, Next, Op, Outcome, Rejection, Report, Timestamp};

/// The state that the log replicates.
#[derive(Debug, Default)]
pub struct Machine {}

/// What the world is owed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Transactions that have calls to make, in gid order: ask [`Machine::owed`] for each.
    pub owing: Vec<Gid>,
    /// Transactions whose deadline has passed: propose [`Command::Expire`] for each.
    pub expired: Vec<Gid>,
}

/// A machine's whole state as plain data, for snapshots. Equal machines give equal snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The highest time seen in the log.
    pub clock: Timestamp,
    /// Open transactions in gid order.
    pub open: Vec<GlobalTransaction>,
    /// Finished transactions, in the order in which they finished.
    pub finished: Vec<GlobalTransaction>,
}

impl Machine {
    /// An empty machine.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Carries out `command`, whose entry is stamped `at`. Total and deterministic; a rejected command changes nothing
    /// but the clock, which never goes back.
    /// # Errors
    /// [`Rejection`], alike on every node.
    pub fn apply(&mut self, at: Timestamp, command: Command) -> Result<Outcome, Rejection> {
        let _ = (at, command);
        todo!()
    }

    /// At most `limit` of each kind of what is due at `now`. Costs by what is due, not by what is open.
    #[must_use]
    pub fn due(&self, now: Timestamp, limit: usize) -> Due {
        let _ = (now, limit);
        todo!()
    }

    /// The earliest deadline of an undecided transaction.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        todo!()
    }

    /// What the transaction needs next if `heard`, answers that are not in the log yet, were applied: calls to make,
    /// or [`Next::Become`]: then they are worth a [`Command::Report`] now. Never changes the machine.
    #[must_use]
    pub fn owed(&self, gid: &Gid, heard: &[Report]) -> Next {
        let _ = (gid, heard);
        todo!()
    }

    /// The transaction, open or finished and not yet forgotten.
    #[must_use]
    pub fn get(&self, gid: &Gid) -> Option<&GlobalTransaction> {
        let _ = gid;
        todo!()
    }

    /// Transactions in gid order, behind `after`.
    pub fn list<'a>(&'a self, after: Option<&Gid>) -> impl Iterator<Item = &'a GlobalTransaction> {
        let _ = after;
        std::iter::empty()
    }

    /// How many transactions are in each status, with those that are none left out.
    #[must_use]
    pub fn census(&self) -> std::collections::BTreeMap<crate::Status, usize> {
        todo!()
    }

    /// The highest time seen in the log.
    #[must_use]
    pub fn clock(&self) -> Timestamp {
        todo!()
    }

    /// Hash of the whole state: equal after an equal prefix of the log, on every node and after every snapshot.
    #[must_use]
    pub fn state_hash(&self) -> Digest {
        todo!()
    }

    /// The whole state.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        todo!()
    }

    /// A machine with the state of `snapshot`.
    #[must_use]
    pub fn restore(snapshot: Snapshot) -> Self {
        let _ = snapshot;
        todo!()
    }
}

#[expect(dead_code, reason = "names for the signatures above")]
type Named = (BranchId, Op);
